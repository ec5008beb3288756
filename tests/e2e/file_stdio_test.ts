/** Files of the host as a process's input and output: it never has the file itself, and nobody else waits for it. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { Builds, upgrade } from "./builds.ts";
import { must } from "./command.ts";
import { makeDisk } from "./disk.ts";
import { inModes, newPlace, WAY } from "./env.ts";
import { withServed } from "./fault.ts";
import { endContainer, field, HOLDER_KIB, onlyHosted, withHosted, withHostedShims } from "./host.ts";
import { paths, removeFolder } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { bursting, countNumbered } from "./numbered.ts";
import { descriptorsOf, isAlive, type Process, processOf } from "./proc.ts";
import { assertStatus, type Shim, type ShimOptions, Status, withShim } from "./shim.ts";
import { later, replaceHost } from "./takeover.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "a host's child is started by its holder");

/** Why a test runs once. */
const SAME = "what copies is the same process";
/** Why a test runs twice. */
const BOTH_WAYS = "a host's child is started by its holder";
const builds = new Builds();
Deno.test.afterAll(() => builds[Symbol.asyncDispose]());

/** Registers a test for both ways in which a shim has children. */
function inBoth(name: string, test: () => Promise<void>, isOnlyOurs = false): void {
  inModes(["hosted", "alone"], BOTH_WAYS, name, test, { isOnlyOurs });
}

/** What copies between a container's pipes and files. */
function copiers(shim: Shim): Process[] {
  return shim.children().filter(({ comm }) => comm === "shim-copy");
}

/** Runs another process to its end. */
async function exec(shim: Shim, id: string, script: string, stdio: Parameters<Shim["exec"]>[2]): Promise<number> {
  await shim.exec(id, ["sh", "-c", script], stdio);
  await shim.startProcess(id);
  const { status } = await shim.wait(id);
  await shim.deleteProcess(id);
  return status;
}

/** What a process reads from and prints to, as it sees it itself. */
const KINDS =
  "for each in 0 1 2; do case $(readlink /proc/self/fd/$each) in pipe:*) echo pipe;; *) echo other;; esac; done";

inBoth(
  "a process whose output is a file cannot truncate the file, nor change its mode; its lines stay in order",
  () =>
    withShim({}, async (shim) => {
      const script = `echo 1; echo 2 >&2; echo 3 >/dev/stderr; echo 4 >/dev/stdout; echo 5
      chmod 4755 /proc/self/fd/1 /proc/self/fd/2; echo 6 >&2; ${KINDS}`;
      await shim.run();
      const path = `${shim.folder}/log`;
      for (const stdout of [`file://${path}`, path]) {
        assertEquals(await exec(shim, "e", script, { stdout, stderr: stdout }), 0);
        assertEquals(await Deno.readTextFile(path), "1\n2\n3\n4\n5\n6\nother\npipe\npipe\n");
        assertEquals((await Deno.stat(path)).mode! & 0o7777, 0o644);
        await Deno.truncate(path);
      }
      await endContainer(shim);
    }),
);

inBoth(
  "the same of a container's first process",
  () =>
    withShim(
      { args: ["sh", "-c", `echo out; chmod 4755 /proc/self/fd/1; echo err >/dev/stderr; ${KINDS}`] },
      async (shim) => {
        const path = `${shim.folder}/log`;
        await shim.run({ stdout: `file://${path}`, stderr: `file://${path}` });
        assertEquals((await shim.wait()).status, 0);
        await shim.delete();
        assertEquals(await Deno.readTextFile(path), "out\nerr\nother\npipe\npipe\n");
        assertEquals((await Deno.stat(path)).mode! & 0o7777, 0o644);
        assertEquals(copiers(shim), []);
      },
    ),
);

inBoth(
  "a file that is a process's input is read to its end, and cannot be written to",
  () =>
    withShim({ args: ["sh", "-c", "cat; echo changed >/proc/self/fd/0; exit 3"] }, async (shim) => {
      const [input, log] = [`${shim.folder}/input`, `${shim.folder}/log`];
      const text = "0123456789abcdef".repeat(20_000);
      await Deno.writeTextFile(input, text);
      await Deno.writeTextFile(log, "");
      await shim.run({ stdin: input, stdout: log, stderr: log });
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
      assert(await Deno.readTextFile(input) === text, "it has been written to");
      assertStringIncludes(await Deno.readTextFile(log), text);
    }),
);

inBoth("an input that its process does not read to the end is not waited for", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const log = `${shim.folder}/log`;
    const script = `head -c 3 | wc -c; ${KINDS}`;
    assertEquals(await exec(shim, "e", script, { stdin: "/dev/zero", stdout: `file://${log}` }), 0);
    assertEquals(await Deno.readTextFile(log), "3\npipe\npipe\npipe\n");
    await until("nothing is left of it", () => copiers(shim).length === 0);
    await endContainer(shim);
  }));

inBoth("a device of the host is no process's own", () =>
  withShim({ args: ["sleep", "1000"] }, async (shim) => {
    const pid = await shim.run({ stdin: "/dev/null", stdout: "/dev/null", stderr: "/dev/full" });
    const kinds = [...descriptorsOf(pid).values()].map((each) => each.replace(/:.*/, ""));
    assertEquals(kinds, ["pipe", "pipe", "pipe"]);
    await endContainer(shim);
    assertEquals(copiers(shim), []);
  }));

inBoth(
  "a process that has no input and output cannot change the host's /dev/null, which is where it reads and prints",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const script =
        `read -r line && exit 1; echo nowhere || exit 2; echo nowhere >/dev/stderr || exit 3; cat /dev/stdin || exit 4
      for each in 0 1 2; do chmod 666 /proc/self/fd/$each && exit 5; done; exit 6`;
      assertEquals(await exec(shim, "e", script, {}), 6);
      await endContainer(shim);
    }),
  true,
);

inBoth("why a file cannot be opened is what Create and Start say", () =>
  withShim({}, async (shim) => {
    const folder = `${shim.folder}/folder`;
    await Deno.mkdir(folder);
    await Deno.writeTextFile(`${folder}/file`, "");
    const wrong: [{ stdin?: string; stdout?: string }, RegExp][] = [
      [{ stdin: folder }, /open .*\/folder: is a directory/i],
      [{ stdout: folder }, /open .*\/folder: is a directory/i],
      [{ stdout: `file://${folder}` }, /open .*\/folder: is a directory/i],
      [{ stdout: `file://${folder}/file/log` }, /open .*\/file\/log: not a directory/i],
      [{ stdout: "file:///proc/nothing/log" }, /open \/proc\/nothing\/log: no such file/i],
      [{ stdout: "file:///sys/log" }, /open \/sys\/log: (permission denied|read-only)/i],
    ];
    for (const [stdio, message] of wrong) await assertStatus(shim.create(stdio), Code.UNKNOWN, message);
    assertEquals(copiers(shim), []);
    const init = await shim.run();
    for (const [stdio, message] of wrong) {
      await shim.exec("e", ["true"], stdio);
      await assertStatus(shim.startProcess("e"), Code.UNKNOWN, message);
      await shim.deleteProcess("e");
    }
    assertEquals([copiers(shim), isAlive(init)], [[], true]);
    await endContainer(shim);
  }), true);

inModes(
  ["hosted"],
  SAME,
  "a log may be truncated and renamed by others while it is written to",
  () =>
    withShim({ args: ["sh", "-c", "for each in 1 2 3; do read -r line <$each; echo $each; done"] }, async (shim) => {
      for (const each of ["1", "2", "3"]) await must(["mkfifo", `${shim.rootfs}/${each}`]);
      const go = (each: number) => Deno.writeTextFile(`${shim.rootfs}/${each}`, "\n");
      const path = `${shim.folder}/log`;
      const holds = (at: string, text: string) => until(`${at} has it`, () => Deno.readTextFileSync(at) === text);
      await shim.run({ stdout: `file://${path}` });
      await go(1);
      await holds(path, "1\n");
      await Deno.truncate(path);
      await go(2);
      await holds(path, "2\n");
      await Deno.rename(path, `${path}.1`);
      await go(3);
      await holds(`${path}.1`, "2\n3\n");
      await shim.wait();
      await shim.delete();
    }),
);

/** A shim with a container that runs, beside one that is to have trouble. */
function withNeighbour(test: (troubled: Shim, other: Shim) => Promise<void>): Promise<void> {
  const run = async (troubled: Shim, other: Shim) => {
    const pid = await other.run();
    await test(troubled, other);
    assertEquals((await other.state()).pid, pid);
    await endContainer(other);
  };
  if (WAY === "hosted") return withHostedShims([{}, {}], ([troubled, other]) => run(troubled!, other!));
  return withShim({}, (troubled) => withShim({}, (other) => run(troubled, other)));
}

inBoth(
  "a log that is a FIFO without a reader has Create wait, and nothing else",
  () =>
    withNeighbour(async (troubled, other) => {
      const path = `${troubled.folder}/fifo`;
      await must(["mkfifo", path]);
      const creating = later(troubled.create({ stdout: `file://${path}` }));
      await until("it is waited for", () => copiers(troubled).length === 1);
      assertEquals((await other.state()).status, Status.RUNNING);
      assertEquals(await exec(other, "e", "true", {}), 0);
      assertEquals(await troubled.shimPid(), troubled.pid);
      assertEquals(troubled.containerProcesses(), []);
      const reader = await troubled.read(path);
      await creating;
      await troubled.startProcess();
      assertEquals(await exec(troubled, "e", "echo hello", { stdout: path }), 0);
      await endContainer(troubled);
      assertEquals(await reader.text(), "hello\n");
    }),
  true,
);

/** Runs a test with a file system in a file, which may be frozen: write(2) and open(2) wait there. */
async function withDisk(test: (folder: string) => Promise<void>): Promise<void> {
  const { folder } = newPlace();
  const disk = `${folder}/disk`;
  try {
    await must(["sh", "-c", makeDisk(`${folder}/image`, disk)]);
    await test(disk);
  } finally {
    await must(["sh", "-c", `fsfreeze -u ${disk} 2>&1 || true`]);
    await removeFolder(folder);
  }
}

inBoth(
  "a log on a file system that is frozen has its own container wait, and nothing else",
  () =>
    withDisk((disk) =>
      withNeighbour(async (troubled, other) => {
        await troubled.run();
        await troubled.exec("flood", ["sh", "-c", "seq 100000; exit 4"], { stdout: `file://${disk}/log` });
        await troubled.exec("later", ["true"], { stdout: `file://${disk}/folder/log` });
        await must(["fsfreeze", "-f", disk]);
        const starting = later(troubled.startProcess("later"));
        await until("it is waited for", () => copiers(troubled).some(({ state }) => state === "D"));
        assertEquals((await other.state()).status, Status.RUNNING);
        assertEquals(await exec(other, "e", "true", {}), 0);
        assertEquals((await troubled.state()).status, Status.RUNNING);
        await must(["fsfreeze", "-u", disk]);
        await starting;
        await troubled.startProcess("flood");
        assertEquals((await troubled.wait("flood")).status, 4);
        for (const id of ["flood", "later"]) await troubled.deleteProcess(id);
        assertEquals((await Deno.readTextFile(`${disk}/log`)).split("\n").length, 100_001);
        await endContainer(troubled);
      })
    ),
  true,
);

inBoth(
  "Delete does not wait for a log on a file system that is frozen; it says that output is lost",
  () =>
    withDisk((disk) =>
      withShim({ args: ["sh", "-c", "read -r line </go; echo late; exit 4"] }, async (shim) => {
        await must(["mkfifo", `${shim.rootfs}/go`]);
        await shim.run({ stdout: `file://${disk}/log` });
        await must(["fsfreeze", "-f", disk]);
        await Deno.writeTextFile(`${shim.rootfs}/go`, "\n");
        assertEquals((await shim.wait()).status, 4);
        const start = performance.now();
        await shim.delete();
        assert(performance.now() - start < 6000, "Delete has waited");
        assertMatch(shim.unreadLog(), /level=warning msg="what is printed from now on does not reach its file"/);
        await must(["fsfreeze", "-u", disk]);
        await until("it has ended", () => copiers(shim).length === 0);
      })
    ),
  true,
);

inBoth(
  "Delete ends what writes to a file while something else still holds the output",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const log = `${shim.folder}/log`;
      assertEquals(await exec(shim, "e", "echo out; setsid sleep 1000 & exit 5", { stdout: `file://${log}` }), 5);
      assertEquals([await Deno.readTextFile(log), copiers(shim)], ["out\n", []]);
      await endContainer(shim);
    }),
  true,
);

inModes(
  ["hosted"],
  SAME,
  "what writes to a file is a small process, which ends with the container when the shim is told to end",
  async () => {
    let pid = 0;
    await withShim({ args: ["sh", "-c", "seq 20000; exec sleep 1000"] }, async (shim) => {
      const path = `${shim.folder}/log`;
      await shim.run({ stdout: `file://${path}` });
      await until("all is written", () => Deno.readTextFileSync(path).endsWith("20000\n"));
      pid = copiers(shim)[0]!.pid;
      const dirty = field(pid, "smaps_rollup", "Private_Dirty");
      assert(dirty > 0 && dirty <= HOLDER_KIB, `it has ${dirty} KiB of its own`);
      assertEquals([...descriptorsOf(pid).values()].filter((each) => each === path).length, 1);
    });
    assert(!isAlive(pid), "it goes on");
  },
  { isOnlyOurs: true },
);

/** How many lines a process prints before it ends: more than a pipe holds. */
const LINES = 30_000;

/** Its log, when it is whole. */
async function untilWhole(path: string): Promise<void> {
  await until("its log is whole", () => Deno.readTextFileSync(path).endsWith(`\n${LINES}\n`));
  assertEquals(Deno.readTextFileSync(path), Array.from({ length: LINES }, (_, i) => `${i + 1}\n`).join(""));
}

inBoth("what a process has printed is in its log, though its shim is killed as soon as it has ended", async () => {
  const options: ShimOptions = { args: ["sh", "-c", `seq ${LINES}`], endsItself: true };
  const test = async (shim: Shim, killHost: () => void) => {
    const path = `${shim.folder}/log`;
    const init = await shim.run({ stdout: `file://${path}` });
    const known = copiers(shim);
    await until("it has ended", () => !isAlive(init));
    // The holder first, which would start another host.
    shim.signal("SIGKILL");
    killHost();
    await shim.status;
    await untilWhole(path);
    await until("what wrote it has ended", () => !known.some(({ pid }) => isAlive(pid)));
    await must(["runc", "--root", `/run/containerd/runc/${shim.namespace}`, "delete", "--force", shim.id]);
  };
  if (WAY === "alone") return await withShim(options, (shim) => test(shim, () => {}));
  await withHosted(options, async (shim, machine) => {
    const { pid } = machine.host();
    await test(shim, () => Deno.kill(pid, "SIGKILL"));
    for (const each of paths(machine.folder)) await Deno.remove(each);
  });
});

onlyHosted(
  "lines that are printed while hosts die and another build takes over are in the log, each once",
  () =>
    withHosted({ args: ["sh", "-c", bursting("/end", 3)] }, async (shim, machine) => {
      const logs = ["init.out", "init.err", "terminal"].map((each) => `${shim.folder}/${each}`);
      const [out, err, terminal] = logs as [string, string, string];
      await shim.run({ stdout: `file://${out}`, stderr: `file://${err}` });
      await shim.exec("t", ["sh", "-c", `stty -onlcr; (${bursting("/end-exec", 4)}) 2>/dev/null`], {
        stdout: `file://${terminal}`,
        terminal: true,
      });
      await shim.startProcess("t");
      await replaceHost(machine);
      await replaceHost(machine);
      const newer = await builds.make();
      assertEquals((await upgrade(machine, newer)).code, 0);
      // The holder's own executable is of another build than its host's.
      const log = `${shim.folder}/exec`;
      assertEquals(await exec(shim, "e", "echo hello", { stdout: `file://${log}` }), 0);
      assertEquals(await Deno.readTextFile(log), "hello\n");
      await replaceHost(machine);
      await Deno.writeTextFile(`${shim.rootfs}/end-exec`, "");
      assertEquals((await shim.wait("t")).status, 4);
      await Deno.writeTextFile(`${shim.rootfs}/end`, "");
      assertEquals((await shim.wait()).status, 3);
      const known = copiers(shim).map(({ pid }) => pid);
      await shim.deleteProcess("t");
      await shim.delete();
      for (const path of logs) assert(await countNumbered(path) > 0);
      assertEquals(known.map(processOf).filter((each) => each !== undefined), []);
      assertEquals(copiers(shim), []);
    }),
);

inBoth("a file can be opened though the shim's executable has been replaced on the disk", async () => {
  const path = await builds.make({ isOurs: true });
  await withServed({ shim: { name: "copy", path } }, async ({ shim }) => {
    await shim.run();
    await Deno.rename(path, `${path}.before`);
    await Deno.writeTextFile(path, "no program\n", { mode: 0o755 });
    const log = `${shim.folder}/log`;
    assertEquals(await exec(shim, "e", "echo hello", { stdout: `file://${log}` }), 0);
    assertEquals(await Deno.readTextFile(log), "hello\n");
    await endContainer(shim);
  });
}, true);

inModes(
  ["hosted"],
  SAME,
  "output that a full disk does not take is told of",
  () =>
    withServed({ args: ["sh", "-c", "echo out; exit 4"] }, async ({ shim }) => {
      await shim.run({ stdout: "/dev/full" });
      assertEquals((await shim.wait()).status, 4);
      await shim.delete();
      assertMatch(shim.unreadLog(), /level=error msg="a file has not taken all .* error="write \/dev\/full: no space/);
    }),
  { isOnlyOurs: true },
);
