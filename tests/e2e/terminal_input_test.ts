/** The end of a terminal's input: CloseIO, and who leaves without it. */

import { assertEquals } from "@std/assert";
import { inModes } from "./env.ts";
import { Writer } from "./fifo.ts";
import { onlyHosted, withHosted } from "./host.ts";
import { withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { addWithTerminal, createWithTerminal, execOnTerminal, startOnTerminal } from "./terminal.ts";

const NOT_MIXED = "a terminal's streams are the same code whoever else is in the host";

/** Reads lines until there are no more, and says so then, with what the last line has that is not whole. */
const LINES = [
  "sh",
  "-c",
  "stty -echo; echo ready; while read -r line; do echo got $line; done; echo end $line; exit 3",
];

/** Comes to the end of its input more than once. */
const AGAIN = ["sh", "-c", "cat; cat; cat; echo end; exit 3"];

/** Takes keys as they come, among which the end of a file is one like any other, until it is hung up on. */
const KEYS = [
  "sh",
  "-c",
  "trap 'echo hung up; exit 4' HUP; stty -icanon -echo; echo ready; sleep 1000 & while :; do wait; done",
];

inModes(
  ["hosted", "alone"],
  NOT_MIXED,
  "CloseIO ends a terminal's input, when all that was typed has been read; a client that leaves does not",
  () =>
    withShim({ terminal: true, args: LINES }, async (shim) => {
      const { stdin, output } = await createWithTerminal(shim);
      await shim.startProcess();
      assertEquals(await output.line(), "ready\r\n");
      {
        using keyboard = await Writer.open(stdin);
        await keyboard.write("first\n");
        assertEquals(await output.line(), "got first\r\n");
      }
      {
        using keyboard = await Writer.open(stdin);
        await keyboard.write("second\n");
        assertEquals(await output.line(), "got second\r\n");
        await shim.closeStdin();
        // Before this one has left, too; the last is no whole line.
        await keyboard.write("third\nfourth");
        assertEquals(await output.line(), "got third\r\n");
      }
      assertEquals(await output.text(), "end fourth\r\n");
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    }),
);

inModes(
  ["hosted", "alone"],
  NOT_MIXED,
  "CloseIO before Start is the end of a terminal's input for each who reads it; who takes keys as they come is hung up on",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const keys = await execOnTerminal(shim, "keys", KEYS);
      assertEquals(await keys.output.line(), "ready\r\n");
      await shim.closeStdin("keys");
      await addWithTerminal(shim, "again", AGAIN);
      await shim.closeStdin("again");
      const again = await startOnTerminal(shim, "again");
      assertEquals(await keys.output.text(), "hung up\r\n");
      assertEquals((await shim.wait("keys")).status, 4);
      assertEquals(await again.text(), "end\r\n");
      assertEquals((await shim.wait("again")).status, 3);
      for (const id of ["keys", "again"]) await shim.deleteProcess(id);
    }),
);

onlyHosted(
  "a terminal's input that a host has closed ends in the next one",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const lines = await execOnTerminal(shim, "lines", LINES);
      const keys = await execOnTerminal(shim, "keys", KEYS);
      for (const { output } of [lines, keys]) {
        assertEquals(await output.line(), "ready\r\n");
      }
      {
        // As long as somebody has it open, it is not at its end.
        using _keyboard = await Writer.open(lines.stdin);
        await shim.closeStdin("lines");
        await shim.closeStdin("keys");
        await replaceHost(machine);
      }
      assertEquals(await lines.output.text(), "end\r\n");
      assertEquals(await keys.output.text(), "hung up\r\n");
      for (const id of ["lines", "keys"]) {
        await shim.deleteProcess(id);
      }
    }),
);
