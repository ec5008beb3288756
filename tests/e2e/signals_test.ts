/** Signals to the shim itself: it ends when it is told to, and for no other reason that somebody else may give. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { kill } from "../../ffi/process.ts";
import { Signal } from "../../ffi/signals.ts";
import { type Form, inEachForm, onlyOurs, onlyOursInEachForm } from "./env.ts";
import { modes } from "./modes.ts";
import { isAlive, processOf } from "./proc.ts";
import { Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "signals come to a host through a holder");

/** Those that no program of this kind ends by: some do something in the shim, and the others nothing. */
const HARMLESS = [
  ...[Signal.SIGUSR1, Signal.SIGUSR2, Signal.SIGPIPE, Signal.SIGALRM, Signal.SIGCHLD, Signal.SIGCONT, Signal.SIGURG],
  ...[Signal.SIGXCPU, Signal.SIGXFSZ, Signal.SIGVTALRM, Signal.SIGWINCH, Signal.SIGIO, Signal.SIGPWR],
];

/** The first of real time that a program may use, the one after it, and the last: signal(7). */
const [FIRST_REAL_TIME, NEXT_REAL_TIME, LAST_REAL_TIME] = [34, 35, 64];

/** Those that end or stop a process that does not ask for them. */
const FATAL = [Signal.SIGHUP, Signal.SIGQUIT, Signal.SIGSTKFLT, FIRST_REAL_TIME];
const STOPPING = [Signal.SIGTSTP, Signal.SIGTTIN, Signal.SIGTTOU];

/** Those that mean something to the shim, and that it says nothing of. */
const KNOWN: readonly number[] = [Signal.SIGPIPE, Signal.SIGCHLD];

/** Sends the shim signals, one after the other, and fails unless it and its container are as they were. */
async function assertHarmless(form: Form, signals: readonly number[]): Promise<void> {
  await withShim({ shim: form }, async (shim) => {
    const init = await shim.run();
    for (const signal of signals) {
      kill(shim.pid, signal);
      // What it answers afterwards it answers after the signal, for it was pending before the call was read.
      assertEquals(await shim.shimPid(), shim.pid, `signal ${signal}`);
      assertEquals(processOf(shim.pid)?.state === "T", false, `signal ${signal} has stopped it`);
    }
    assertEquals((await shim.state()).status, Status.RUNNING);
    assert(isAlive(init));
    await shim.kill(9);
    assertEquals((await shim.wait()).status, 137);
    await shim.delete();
  });
}

inEachForm(
  "signals that are no reason to end leave the shim and the container alone",
  (form) => assertHarmless(form, [...HARMLESS, NEXT_REAL_TIME, LAST_REAL_TIME]),
);

onlyOursInEachForm(
  "it ends by these, and leaves its container without a parent",
  "SIGHUP and SIGQUIT leave the shim and the container alone",
  (form) => assertHarmless(form, FATAL),
);

onlyOursInEachForm(
  "it stops",
  "SIGTSTP, SIGTTIN and SIGTTOU do not stop the shim",
  (form) => assertHarmless(form, STOPPING),
);

onlyOursInEachForm(
  "it says nothing of them",
  "with -debug the log names each signal that has been ignored, and none of those that are known",
  (form) =>
    withShim({ shim: form, flags: ["-debug"] }, async (shim) => {
      const log = await shim.read(`${shim.workdir}/shim.stdout.log`);
      /** The next line that is not of the start or of a call. */
      const line = async () => {
        for (;;) {
          const next = await log.line();
          if (next.includes("signal ignored")) return next;
        }
      };
      const unknown = [
        ...HARMLESS.filter((signal) => signal !== Signal.SIGUSR1 && !KNOWN.includes(signal)),
        ...FATAL,
        ...STOPPING,
        LAST_REAL_TIME,
      ];
      for (const signal of unknown) {
        for (const each of KNOWN) kill(shim.pid, each);
        kill(shim.pid, signal);
        const name = Object.entries(Signal).find(([, number]) => number === signal)?.[0] ?? `${signal}`;
        assertMatch(await line(), new RegExp(` level=debug msg="signal ignored" .*signal=${name}( |\n)`));
      }
    }),
);

inEachForm(
  "a shim that was stopped goes on, and says how its container ended meanwhile",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      const init = await shim.run();
      kill(shim.pid, Signal.SIGSTOP);
      await until("it has stopped", () => processOf(shim.pid)?.state === "T");
      kill(init, Signal.SIGKILL);
      await until("the container has ended", () => processOf(init)?.state === "Z");
      const waiting = shim.wait();
      kill(shim.pid, Signal.SIGCONT);
      assertEquals((await waiting).status, 137);
      assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 137);
      await shim.delete();
    }),
);

onlyOursInEachForm(
  "it leaves a container that has not ended by itself",
  "a second SIGTERM changes nothing",
  (form) =>
    withShim({ shim: form, args: ["sh", "-c", "trap '' TERM; sleep 1000"], endsItself: true }, async (shim) => {
      const init = await shim.run();
      // Again and again until the end: some find the shim on its way.
      let sent = 0;
      let ended = false;
      const status = shim.status.finally(() => ended = true);
      await until("the shim has ended", () => {
        if (!ended && isAlive(shim.pid)) {
          Deno.kill(shim.pid, "SIGTERM");
          sent++;
        }
        return ended;
      });
      assert(sent > 1, "it ended before the second SIGTERM");
      assertEquals(await status, 0);
      assertEquals(processOf(init), undefined);
    }),
);

onlyOurs(
  "it prints its goroutines and ends with 2",
  "SIGABRT ends the shim as it ends any program",
  () =>
    withShim({ endsItself: true }, async (shim) => {
      assertEquals(await shim.end("SIGABRT"), 128 + Signal.SIGABRT);
    }),
);
