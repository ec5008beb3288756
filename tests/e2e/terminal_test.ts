/** Processes that have a terminal, and Update. */

import { assertEquals, assertMatch } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { inModes } from "./env.ts";
import { Writer } from "./fifo.ts";
import { onlyHosted, withHosted } from "./host.ts";
import { modes } from "./modes.ts";
import { assertStatus, type Shim, withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { addWithTerminal, createWithTerminal, execOnTerminal, startOnTerminal } from "./terminal.ts";

modes(["hosted", "alone"], "a terminal comes to a host through a holder");

Deno.test("a container with a terminal sees its size, its changes, and what is typed", () =>
  withShim({
    terminal: true,
    args: ["sh", "-c", "tty; stty size; read line; stty size; echo got $line; exit 5"],
  }, async (shim) => {
    const { stdin, output } = await createWithTerminal(shim);
    await shim.resize(100, 30);
    await shim.startProcess();
    using keyboard = await Writer.open(stdin);
    let text = "";
    while (!text.endsWith("30 100\r\n")) text += await output.line();
    assertMatch(text, /^\/dev\/(pts\/0|console)\r\n30 100\r\n$/);
    await shim.resize(81, 25);
    await keyboard.write("hello\n");
    assertEquals(await output.text(), "hello\r\n25 81\r\ngot hello\r\n");
    assertEquals((await shim.wait()).status, 5);
    await shim.delete();
  }));

Deno.test("^C interrupts and ^D ends the input of a process with a terminal", () =>
  withShim({
    terminal: true,
    args: [
      "sh",
      "-c",
      "stty -echo; trap 'echo interrupted; on=1' INT; echo ready; until [ $on ]; do sleep 0.1; done; cat; exit 3",
    ],
  }, async (shim) => {
    const { stdin, output } = await createWithTerminal(shim);
    await shim.startProcess();
    using keyboard = await Writer.open(stdin);
    assertEquals(await output.line(), "ready\r\n");
    await keyboard.write("\x03");
    assertEquals(await output.line(), "interrupted\r\n");
    await keyboard.write("last\n\x04");
    assertEquals(await output.text(), "last\r\n");
    assertEquals((await shim.wait()).status, 3);
    await shim.delete();
  }));

Deno.test("everything that is printed on a terminal arrives, also when nobody reads for a while", () =>
  withShim({ terminal: true, args: ["sh", "-c", "seq 1 50000"] }, async (shim) => {
    const { output } = await createWithTerminal(shim);
    await shim.startProcess();
    // More than its FIFO and the terminal hold: the process is kept waiting until somebody reads.
    assertEquals(await output.text(), Array.from({ length: 50_000 }, (_, i) => `${i + 1}\r\n`).join(""));
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
  }));

Deno.test("another process of a container has a terminal of its own", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const { stdin, stdout } = await shim.fifos("other");
    await shim.exec("other", ["sh", "-c", "read line; stty size; echo $line; exit 6"], {
      stdin,
      stdout,
      terminal: true,
    });
    const [output] = await Promise.all([shim.read(stdout), shim.startProcess("other")]);
    await shim.resize(90, 20, "other");
    using keyboard = await Writer.open(stdin);
    await keyboard.write("typed\n");
    assertEquals(await output.text(), "typed\r\n20 90\r\ntyped\r\n");
    assertEquals((await shim.wait("other")).status, 6);
    await shim.deleteProcess("other");
    await shim.kill(9);
    await shim.wait();
    await shim.delete();
  }));

Deno.test("ResizePty needs an id, and does nothing without a terminal", () =>
  withShim({}, async (shim) => {
    await shim.run();
    await assertStatus(shim.resize(80, 24, ""), Code.INVALID_ARGUMENT, "id not provided");
    await shim.resize(80, 24);
    await shim.kill(9);
    await shim.wait();
    await shim.delete();
  }));

Deno.test("Update changes what a container may use", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const [member] = shim.containerProcesses();
    const cgroup = /^\d+:pids:(.*)$/m.exec(await Deno.readTextFile(`/proc/${member}/cgroup`))![1];
    await shim.update({ pids: { limit: 77 } });
    assertEquals(await Deno.readTextFile(`/sys/fs/cgroup/pids${cgroup}/pids.max`), "77\n");
    await shim.kill(9);
    await shim.wait();
    await shim.delete();
  }));

/** Says what size another process's terminal is to have, before that has one; then `meanwhile`; and starts it. */
async function resizeBeforeStart(shim: Shim, meanwhile: () => Promise<unknown>): Promise<void> {
  await shim.run();
  await addWithTerminal(shim, "other", ["stty", "size"]);
  await shim.resize(100, 30, "other");
  await shim.resize(90, 20, "other");
  await meanwhile();
  assertEquals(await (await startOnTerminal(shim, "other")).text(), "20 90\r\n");
  await shim.wait("other");
  await shim.deleteProcess("other");
}

inModes(
  ["alone"],
  "hosted it is tested with a host that dies",
  "ResizePty of another process before its Start is the size that it starts with",
  () => withShim({}, (shim) => resizeBeforeStart(shim, () => Promise.resolve())),
);

onlyHosted(
  "ResizePty before Start is the size that a process starts with, also in another host",
  () => withHosted({}, (shim, machine) => resizeBeforeStart(shim, () => replaceHost(machine))),
);

/** A path that is longer than that of a socket may be: unix(7). */
const LONG = "a-folder-with-a-name-that-is-not-short/".repeat(5);

inModes(
  ["hosted", "alone"],
  "where the socket is does not depend on who else is in the host",
  "a terminal needs no folder for temporary files, and no short path of the bundle, where it leaves nothing",
  () => {
    const folder = Deno.makeTempDirSync();
    const bundle = `${folder}/${LONG}bundle`;
    Deno.mkdirSync(bundle, { recursive: true });
    const options = {
      terminal: true,
      args: ["sh", "-c", "tty; exec sleep 1000"],
      prefix: ["env", "TMPDIR=/proc"],
      elsewhere: { bundle },
    };
    return withShim(options, async (shim) => {
      const names = () => [...Deno.readDirSync(bundle)].map(({ name }) => name).filter((name) => name.endsWith(".pty"));
      const { stdout } = await shim.fifos();
      const [output] = await Promise.all([shim.read(stdout), shim.create({ stdout, terminal: true }, { bundle })]);
      await shim.startProcess();
      assertMatch(await output.line(), /^\/dev\/(pts\/0|console)\r\n$/);
      const other = await execOnTerminal(shim, "other", ["tty"]);
      assertEquals(await other.output.text(), "/dev/pts/1\r\n");
      assertEquals(names(), []);
      await shim.wait("other");
      await shim.deleteProcess("other");
    }).finally(() => Deno.removeSync(folder, { recursive: true }));
  },
);
