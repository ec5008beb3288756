/** Streams that are taken away, or that nobody takes: the process may wait for them, and nothing else does. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { must } from "./command.ts";
import { onlyOurs } from "./env.ts";
import { assertEnds, assertSupervised, SENTENCE, withServed } from "./fault.ts";
import { modes } from "./modes.ts";
import { type Shim, Status } from "./shim.ts";
import { pause, until } from "./until.ts";

modes(["hosted", "alone"], "another process opens the streams in each");

/** How long Delete may take of a process whose output nobody reads, with some room; in ms. */
const DELETE_MS = 6000;

/** What becomes of a FIFO before it is opened, and what is said of it. A plain file is a stream like another: shim_stdio_test. */
const BEFORE: readonly (readonly [string, (path: string) => Promise<unknown>, RegExp])[] = [
  ["is removed", (path) => Deno.remove(path), /no such file or directory/i],
  ["is a folder now", (path) => replace(path, () => Deno.mkdir(path)), /is a directory|directory/i],
  ["leads to itself", (path) => replace(path, () => Deno.symlink(path, path)), /symbolic links/i],
  ["is a socket now", (path) => replace(path, () => bind(path)), /no such device or address/i],
];

async function replace(path: string, make: () => Promise<unknown>): Promise<void> {
  await Deno.remove(path);
  await make();
}

/** Leaves a socket at a path that nobody listens at. */
function bind(path: string): Promise<unknown> {
  const script = "use Socket; socket my $s, AF_UNIX, SOCK_STREAM, 0; bind $s, pack_sockaddr_un(@ARGV) or die $!";
  return must(["perl", "-e", script, path]);
}

for (const name of ["stdin", "stdout", "stderr"] as const) {
  for (const [what, change, message] of BEFORE) {
    onlyOurs(
      "it says so in other words, or hangs",
      `when the FIFO of ${name} ${what}, Create and an exec fail with a sentence that names it, and leave nothing`,
      () =>
        withServed({}, async ({ shim }) => {
          const fifos = await shim.fifos();
          await change(fifos[name]);
          const create = await assertRejects(() => shim.create({ [name]: fifos[name] }), StatusError);
          assertMatch(create.message, message);
          assertMatch(create.message, SENTENCE);
          assert(create.message.includes(fifos[name]), create.message);
          assertEquals(shim.leftovers(), []);
          const init = await shim.run();
          await shim.exec("other", ["true"], { [name]: fifos[name] });
          const start = await assertRejects(() => shim.startProcess("other"), StatusError);
          assertMatch(start.message, message);
          assertEquals((await shim.wait("other")).status, 255);
          await shim.deleteProcess("other");
          await assertSupervised(shim, init);
          await assertEnds(shim, init);
        }),
    );
  }
}

onlyOurs(
  "its container waits for ever",
  "when the FIFO of stdin is removed between Create and Start, Start fails and can be tried again",
  () =>
    withServed({ args: ["cat"] }, async ({ shim }) => {
      const fifos = await shim.fifos();
      const { stdout } = await shim.createWithFifosOf(fifos);
      await Deno.remove(fifos.stdin);
      const error = await assertRejects(() => shim.startProcess(), StatusError);
      assertMatch(error.message, /no such file or directory/i);
      assert(error.message.includes(fifos.stdin), error.message);
      assertEquals((await shim.state()).status, Status.CREATED);
      // Its input is at its end: there is nobody it could come from.
      await shim.startProcess();
      assertEquals((await shim.wait()).status, 0);
      assertEquals(await stdout.text(), "");
      await shim.delete();
    }),
);

Deno.test("FIFOs that are removed, or replaced by files, while the container runs are still its streams", () =>
  withServed({ args: ["cat"] }, async ({ shim }) => {
    const { fifos, stdout, stderr } = await shim.createWithFifos();
    await shim.startProcess();
    using stdin = await Deno.open(fifos.stdin, { write: true });
    for (const path of Object.values(fifos)) {
      await Deno.remove(path);
      await Deno.writeTextFile(path, "not a FIFO\n");
    }
    await stdin.write(new TextEncoder().encode("hello\n"));
    assertEquals(await stdout.line(), "hello\n");
    stdin.close();
    await shim.closeStdin();
    assertEquals((await shim.wait()).status, 0);
    assertEquals([await stdout.text(), await stderr.text()], ["", ""]);
    for (const path of Object.values(fifos)) assertEquals(await Deno.readTextFile(path), "not a FIFO\n");
    await shim.delete();
  }));

/** Prints more than any pipe holds, and says so when it is through. */
const FLOOD = ["sh", "-c", "head -c 4000000 /dev/zero; exit 5"];

/** Readers of an output, and what they do with it. */
const READERS: readonly (readonly [string, (path: string) => Promise<Disposable>])[] = [
  ["is never opened", () => Promise.resolve({ [Symbol.dispose]: () => {} })],
  ["is opened and never read", async (path) => {
    const file = await Deno.open(path, { read: true, write: true });
    return { [Symbol.dispose]: () => file.close() };
  }],
  ["is read at one byte a second", async (path) => {
    const file = await Deno.open(path, { read: true, write: true });
    // As a reader does that does not wait: there is a byte, for the output floods.
    const timer = setInterval(() => file.readSync(new Uint8Array(1)), 1000);
    return {
      [Symbol.dispose]: () => {
        clearInterval(timer);
        file.close();
      },
    };
  }],
];

for (const [what, read] of READERS) {
  onlyOurs(
    "it waits for a reader for ever",
    `while a container's output ${what}, it waits, calls are answered, others' output arrives, and it can be killed`,
    () =>
      withServed({ args: FLOOD }, async ({ shim }) => {
        const fifos = await shim.fifos();
        using _reader = await read(fifos.stdout);
        const init = await shim.run({ stdout: fifos.stdout });
        await assertSupervised(shim, init);
        await shim.exec("other", FLOOD, { stdout: fifos.stdout });
        await shim.startProcess("other");
        await assertSupervised(shim, init);
        await shim.kill(9, { id: "other" });
        assertEquals((await shim.wait("other")).status, 137);
        await deletesInTime(() => shim.deleteProcess("other"));
        await shim.kill(9);
        assertEquals((await shim.wait()).status, 137);
        assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 137);
        await deletesInTime(() => shim.delete());
      }),
  );
}

async function deletesInTime(remove: () => Promise<unknown>): Promise<void> {
  const start = performance.now();
  await remove();
  assert(performance.now() - start < DELETE_MS, `it has taken ${performance.now() - start} ms`);
}

Deno.test("a reader that reads one byte a second gets each byte, in order, while the container goes on", () =>
  withServed({ args: ["sh", "-c", "printf abcde; exit 5"] }, async ({ shim }) => {
    const { stdout } = await shim.createWithFifos();
    await shim.startProcess();
    // It has ended long before it is read.
    assertEquals((await shim.wait()).status, 5);
    const bytes: number[] = [];
    for (let i = 0; i < 2; i++) {
      await pause(1000);
      bytes.push(await stdout.byte());
    }
    const [rest] = await Promise.all([stdout.text(), shim.delete()]);
    assertEquals(String.fromCharCode(...bytes) + rest, "abcde");
  }));

onlyOurs(
  "it blocks",
  "a log that nobody reads, and one that is full, keep no call waiting",
  () =>
    withServed({ flags: ["-debug"] }, async ({ shim }) => {
      const init = await shim.run();
      // A line or two each: more than a FIFO holds.
      for (let i = 0; i < 2000; i++) await shim.state();
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

onlyOurs(
  "it ends with its log",
  "a log whose FIFO has been removed is written no more, and the shim goes on",
  () =>
    withServed({ flags: ["-debug"] }, async ({ shim }) => {
      await removeLogs(shim);
      const init = await shim.run();
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

async function removeLogs(shim: Shim): Promise<void> {
  for (const name of ["stdout", "stderr"]) {
    const path = `${shim.workdir}/shim.${name}.log`;
    await until("the log is there", () => Deno.statSync(path).isFifo === true);
    await Deno.remove(path);
  }
}
