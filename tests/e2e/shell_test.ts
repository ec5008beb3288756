/** An interactive shell under a real terminal, through containerd and ctr, as a person would use it. */

import { assertEquals, assertMatch } from "@std/assert";
import { must, type Running, start } from "./command.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { containerProcesses } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { descendants, processOf } from "./proc.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "a terminal comes to a host through a holder");

/** What is pasted, in bytes. */
const PASTED = 1 << 20;

/** Returns, and the sequences of a shell that edits its line, also one that has not come to its end. */
// deno-lint-ignore no-control-regex
const MOVES = /\r|\x1b\[\d*[A-Za-z]|\x1b\[?\d*$/g;

/** Somebody at a terminal: script(1) makes one, and has it show what is on it. */
class Terminal {
  readonly #running: Running;
  #seen = 0;

  /** Starts a command on a terminal of 100 columns and 30 rows. */
  constructor(command: readonly string[]) {
    const quoted = command.map((each) => `'${each}'`).join(" ");
    this.#running = start(["script", "-qfec", `stty cols 100 rows 30; exec ${quoted}`, "/dev/null"], {
      patienceMs: 60_000,
    });
    // Where a test fails before it comes to the end, this is not what failed.
    this.#running.result.catch(() => {});
  }

  type(text: string): Promise<void> {
    return this.#running.write(new TextEncoder().encode(text));
  }

  /** Waits for something to be shown that has not been waited for, and gives what it was. */
  async sees(pattern: RegExp): Promise<string> {
    return await until(`the terminal shows ${pattern}`, () => {
      // Without what moves the cursor: ctr leaves the terminal to put a return before each end of line, once more.
      const shown = this.#running.stdoutSoFar().replace(MOVES, "");
      const match = pattern.exec(shown.slice(this.#seen));
      if (!match) return undefined;
      this.#seen += match.index + match[0].length;
      return match[0];
    }).catch((error) => {
      throw new Error(`${error.message}; it shows ${JSON.stringify(this.#running.stdoutSoFar().slice(-500))}`);
    });
  }

  /** Changes its size, as a window's frame that is dragged does. */
  async resize(columns: number, rows: number): Promise<void> {
    const ctr = await until("ctr runs", () => descendants(this.#running.pid).find(({ comm }) => comm === "ctr"));
    const terminal = await Deno.readLink(`/proc/${ctr.pid}/fd/0`);
    await must(["stty", "-F", terminal, "cols", `${columns}`, "rows", `${rows}`]);
  }

  /** Waits for the command to end, and gives its status. */
  async ended(): Promise<number> {
    const { code } = await this.#running.result;
    return code;
  }
}

/** Waits until a program runs in the container, in one of these states. */
function runs(containerd: Containerd, name: string, states: string): Promise<number> {
  return until(`${name} runs`, () =>
    containerProcesses(containerd.namespace).find((pid) => {
      const process = processOf(pid);
      return process?.comm === name && states.includes(process.state);
    }));
}

Deno.test("a shell on a terminal: its size, ^C, job control, a MiB pasted, and its status", () =>
  withContainerd(async (containerd) => {
    const flags = ["--rm", "--tty", "--env", "PATH=/bin"];
    const terminal = new Terminal(containerd.runArguments(containerd.newId(), ["/bin/sh"], { flags }));
    await terminal.sees(/# /);
    await terminal.type("tty; stty size\n");
    assertMatch(await terminal.sees(/\n\/dev\/\S+\n\d+ \d+\n/), /^\n\/dev\/(pts\/0|console)\n30 100\n$/);

    await terminal.resize(81, 25);
    await until("the shell knows its new size", async () => {
      await terminal.type("stty size\n");
      return (await terminal.sees(/\n\d+ \d+\n/)).trim() === "25 81";
    });

    await terminal.type("sleep 1000\n");
    await runs(containerd, "sleep", "S");
    await terminal.type("\x03");
    await terminal.type("echo status $?\n");
    assertEquals((await terminal.sees(/\nstatus \d+\n/)).trim(), "status 130");

    await terminal.type("sleep 1000\n");
    await runs(containerd, "sleep", "S");
    await terminal.type("\x1a");
    await runs(containerd, "sleep", "T");
    await terminal.sees(/Stopped\s+sleep 1000/);
    await terminal.type("jobs; fg\n");
    await terminal.sees(/Stopped\s+sleep 1000/);
    await runs(containerd, "sleep", "S");
    await terminal.type("\x03");
    await terminal.type("jobs; echo none $((1 + 1))\n");
    await terminal.sees(/\nnone 2\n/);

    const bytes = new Uint8Array(PASTED).map((_, i) => 0x20 + ((i * 7919) >>> 3) % 95);
    await Deno.writeFile(`${containerd.folder}/pasted`, bytes);
    const [sum] = (await must(["md5sum", `${containerd.folder}/pasted`])).split(" ");
    await terminal.type(
      `stty raw -echo; echo ready $((2 + 2)); head -c ${PASTED} >/tmp/got; md5sum </tmp/got; stty sane\n`,
    );
    await terminal.sees(/ready 4/);
    await terminal.type(new TextDecoder().decode(bytes));
    assertEquals((await terminal.sees(/[0-9a-f]{32}/)).trim(), sum);

    await terminal.type("exit 7\n");
    assertEquals(await terminal.ended(), 7);
  }));

Deno.test("^D ends a shell that has been started with ctr task exec, and its output is whole", () =>
  withContainerd(async (containerd) => {
    const id = containerd.newId();
    await containerd.runDetached(id, ["/bin/sleep", "1000"]);
    const terminal = new Terminal(containerd.execArguments(id, ["--tty"], ["/bin/sh"]));
    await terminal.sees(/# /);
    await terminal.type("stty -echo; seq 1 20000; echo last $((3 + 3))\n");
    const shown = await terminal.sees(/(?:\n|^)1\n(?:\d+\n)*last 6\n/);
    assertEquals(shown.trim().split("\n"), [...Array.from({ length: 20_000 }, (_, i) => `${i + 1}`), "last 6"]);
    await terminal.type("\x04");
    assertEquals(await terminal.ended(), 0);
    await containerd.end(id);
  }));
