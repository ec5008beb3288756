/** Output that nobody has read yet when its process is deleted: it is there for a reader who has its FIFO open, all of it. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { inModes, WAY } from "./env.ts";
import type { Reader } from "./fifo.ts";
import { endContainer, withHosted } from "./host.ts";
import { type Shim, withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";

/** Registers a test for both ways in which a shim has descriptors: by itself, and with a holder that keeps them. */
function inBoth(name: string, test: () => Promise<void>): void {
  inModes(["hosted", "alone"], "a holder has them open too", name, test, { isOnlyOurs: true });
}

/** Starts another process, whose output has readers that do not read, and waits until it has ended. */
async function execUnread(shim: Shim, id: string, script: string, terminal = false): Promise<Reader[]> {
  const { stdout, stderr } = await shim.fifos(id);
  const outputs = terminal ? [stdout] : [stdout, stderr];
  await shim.exec(id, ["sh", "-c", script], { stdout, ...terminal ? { terminal } : { stderr } });
  const readers = Promise.all(outputs.map((each) => shim.read(each)));
  await shim.startProcess(id);
  assertEquals((await shim.wait(id)).status, 0, id);
  return await readers;
}

/** Numbers, a line each. */
function lines(count: number, end = "\n"): string {
  return Array.from({ length: count }, (_, i) => `${i + 1}${end}`).join("");
}

/** A script that prints so many bytes so often: what is left of each piece, when pages are filled, takes a page of its own. */
function pieces(size: number, count: number): string {
  return `dd if=/dev/zero bs=${size} count=${count} status=none`;
}

/** A script that prints lines which take a page each, more than a FIFO has; and some that stay in the terminal then. */
const ON_TERMINAL = "for each in $(seq 20); do echo $each; usleep 10000; done; seq 21 300";

/** How much a flood is, in bytes; and how much of it is read: the rest is what pipes hold that have been made larger. */
const FLOOD = 100 * 65_536;
const READ = FLOOD - 950_000;

inBoth("what a process has printed waits in the FIFO, whatever its pieces, when Delete has waited long enough", () => {
  const options = { args: ["sh", "-c", `${pieces(10_000, 10)}; ${pieces(10_000, 10)} >&2`] };
  const test = async (shim: Shim, replace: () => Promise<unknown>) => {
    const { stdout, stderr } = await shim.createWithFifos();
    await shim.startProcess();
    await shim.wait();
    await replace();
    await shim.delete();
    assertEquals([(await stdout.text()).length, (await stderr.text()).length], [100_000, 100_000]);
    assertMatch(shim.unreadLog(), /level=warning msg="output has not been read.*bytes=100000 .*stream=stdout/);
  };
  if (WAY === "alone") return withShim(options, (shim) => test(shim, () => Promise.resolve()));
  return withHosted(options, (shim, machine) => test(shim, () => replaceHost(machine)));
});

inBoth(
  "the same of other processes, of a terminal, of a flood, and of one whose child still prints",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const pipes = await execUnread(shim, "pipes", `${pieces(10_000, 10)}; ${pieces(10_000, 10)} >&2`);
      const terminal = await execUnread(shim, "terminal", ON_TERMINAL, true);
      const child = await execUnread(shim, "child", "seq 20000; (while echo more; do usleep 1000; done) >&2 & exit 0");
      let read = 0;
      const flood = await shim.execWithFifos("flood", ["sh", "-c", pieces(65_536, 100)]);
      while (read < READ) read += (await flood.stdout.read())!.length;
      assertEquals((await shim.wait("flood")).status, 0);
      await Promise.all(["pipes", "terminal", "child", "flood"].map((id) => shim.deleteProcess(id)));
      const [out, err] = await Promise.all(pipes.map((each) => each.text()));
      assertEquals([out!.length, err!.length], [100_000, 100_000]);
      assertEquals(await terminal[0]!.text(), lines(300, "\r\n"));
      assert(await child[0]!.text() === lines(20_000), "not all is there");
      assertMatch(await child[1]!.text(), /^(more\n)+$/);
      assertEquals(read + (await flood.stdout.text()).length, FLOOD);
      await endContainer(shim);
    }),
);
