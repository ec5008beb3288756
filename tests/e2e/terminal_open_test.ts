/** Terminals that nobody has open for a moment, or still when their process has ended, and what becomes of their bytes. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { inModes } from "./env.ts";
import { Writer } from "./fifo.ts";
import { onlyHosted, withHosted } from "./host.ts";
import { descriptorsOf } from "./proc.ts";
import { type Shim, withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { createWithTerminal, execOnTerminal, type OnTerminal } from "./terminal.ts";
import { pause, until } from "./until.ts";

const NOT_MIXED = "a terminal's streams are the same code whoever else is in the host";

/** More than a terminal and its FIFO hold. */
const LINES = 30_000;

/** Opens its terminal for each line that it prints or reads, as systemd does, and has it closed when it has printed the first. */
const FOR_EACH_LINE = `stty -echo; terminal=$(tty); echo first; exec <&- >&- 2>&-
  until [ -e /go ]; do usleep 5000; done
  read line <$terminal; echo "got $line" >$terminal; seq ${LINES} >$terminal; exit 3`;

/** Whether no process of the container has a terminal open. */
function isTerminalClosed(shim: Shim): boolean {
  return !shim.containerProcesses().some((pid) =>
    [...descriptorsOf(pid).values()].some((each) => each.startsWith("/dev/pts/") || each === "/dev/console")
  );
}

/** Plays the part of the client of {@linkcode FOR_EACH_LINE}. */
async function typeWhileClosed(
  shim: Shim,
  id: string,
  { stdin, output }: OnTerminal,
  meanwhile: () => Promise<unknown> = () => Promise.resolve(),
): Promise<void> {
  assertEquals(await output.line(), "first\r\n");
  await until("nobody has the terminal open", () => isTerminalClosed(shim));
  using keyboard = await Writer.open(stdin);
  await keyboard.write("something\n");
  await meanwhile();
  await Deno.writeTextFile(`${shim.rootfs}/go`, "");
  const lines = Array.from({ length: LINES }, (_, i) => `${i + 1}\r\n`).join("");
  const text = await output.text();
  assert(
    text === `got something\r\n${lines}`,
    `${text.length} characters have come, which begin with ${text.slice(0, 30)}`,
  );
  assertEquals((await shim.wait(id)).status, 3);
}

inModes(
  ["hosted", "alone"],
  NOT_MIXED,
  "a process may open its terminal for each line: nothing that it prints or that is typed is lost in between",
  () =>
    withShim({ terminal: true, args: ["sh", "-c", FOR_EACH_LINE] }, async (shim) => {
      const attached = await createWithTerminal(shim);
      await shim.startProcess();
      await typeWhileClosed(shim, shim.id, attached);
      await shim.delete();
    }),
);

onlyHosted(
  "a host may die while nobody has a terminal open: the next one types what waits, and passes on what is printed",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const attached = await execOnTerminal(shim, "other", ["sh", "-c", FOR_EACH_LINE]);
      await typeWhileClosed(shim, "other", attached, () => replaceHost(machine));
      await shim.deleteProcess("other");
    }),
);

/** For how long a shim is looked at that has nothing to do, in ms, and how much of a CPU it may have taken, in ms. */
const IDLE_MS = 500;
const IDLE_CPU_MS = 50;
/** Of times in /proc, per second: sysconf(3), _SC_CLK_TCK. */
const TICKS = 100;

inModes(
  ["alone"],
  "a host's CPU is not one container's alone",
  "waiting for somebody to open a terminal costs no CPU, also when something has been typed",
  () =>
    withShim({ terminal: true, args: ["sh", "-c", "exec <&- >&- 2>&-; sleep 1000"] }, async (shim) => {
      const { stdin } = await createWithTerminal(shim);
      await shim.startProcess();
      using keyboard = await Writer.open(stdin);
      await until("nobody has the terminal open", () => isTerminalClosed(shim));
      await keyboard.write("something\n");
      const before = cpuMsOf(shim.pid);
      await pause(IDLE_MS);
      const taken = cpuMsOf(shim.pid) - before;
      assert(taken <= IDLE_CPU_MS, `${taken} ms of CPU in ${IDLE_MS}`);
    }),
);

/** The CPU time that a process has taken, in ms. */
function cpuMsOf(pid: number): number {
  const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/^.*\) /, "").split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 1000 / TICKS;
}

/**
 * More pieces than a FIFO has pages: pipe(7). The pause behind each is for the kernel: when the process ends, it hangs up on who
 * has the terminal open still, and throws away what has not reached the master's side.
 */
const PIECES = 24;

/** Leaves something in a session of its own that has the terminal open, is not ended with it, and does this; prints pieces. */
function leaving(action: string): string[] {
  const left = `setsid sh -c "trap : HUP; touch /$$; ${action}"`;
  const print = `for each in $(seq ${PIECES}); do echo main; usleep 5000; done`;
  return ["sh", "-c", `tty=$(tty); ${left} & until [ -e /$$ ]; do usleep 5000; done; ${print}`];
}

inModes(
  ["hosted", "alone"],
  NOT_MIXED,
  "a terminal's output ends with its process, also when others have it open, or go on printing on it",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const silent = await execOnTerminal(shim, "silent", leaving("sleep 1000"));
      // Nobody reads as long as it runs, and part of it is on the terminal still when it ends.
      await shim.wait("silent");
      // Before DeleteProcess, which would end it.
      assertEquals(await silent.output.text(), "main\r\n".repeat(PIECES));
      const loud = await execOnTerminal(shim, "loud", leaving("while :; do echo left >$tty; done"));
      assertMatch(await loud.output.text(), /main\r\n/);
      for (const id of ["silent", "loud"]) await shim.deleteProcess(id);
    }),
);
