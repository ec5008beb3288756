/** Processes that have a terminal, and Update. */

import { assertEquals, assertMatch } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { type Reader, Writer } from "./fifo.ts";
import { modes } from "./modes.ts";
import { assertStatus, type Shim, withShim } from "./shim.ts";

modes(["hosted", "alone"], "a terminal comes to a host through a holder");

/** Creates the container with a terminal, and gives the test's end of it. */
async function createWithTerminal(shim: Shim): Promise<{ readonly stdin: string; readonly output: Reader }> {
  const { stdin, stdout } = await shim.fifos();
  const [output] = await Promise.all([shim.read(stdout), shim.create({ stdin, stdout, terminal: true })]);
  return { stdin, output };
}

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
    args: ["sh", "-c", "stty -echo; trap 'echo interrupted' INT; echo ready; sleep 1000; cat; exit 3"],
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
