/** What is measured in a round, in its order. A new row is a new entry of {@linkcode steps}. */

import { Signal } from "../../ffi/signals.ts";
import { pause } from "../e2e/until.ts";
import { callStep } from "./calls.ts";
import { RUNTIMES } from "./daemon.ts";
import type { Extent } from "./extent.ts";
import { FLOW_ROWS, outputSteps } from "./output.ts";
import { newId, type Row, type Step, timed } from "./row.ts";
import type { Subject } from "./subject.ts";

/** Processes whose lives are timed in each round. */
const EXECS = 3;
/** Commands of the runtime, likewise. */
const PAUSES = 10;
/** Runs of a container through containerd that are timed in each round. */
export const RUNS = 2;

/** From posix_spawn(3) to the answer of a call that waits already. */
export const FIRST_REPLY: Row = { name: "exec to first reply", unit: "ms" };
/** Create: `runc create`. */
export const CREATE: Row = { name: "create", unit: "ms", digits: 1 };
/** Start: `runc start`. */
export const START: Row = { name: "start", unit: "ms", digits: 1 };
/** Pause or Resume with a runtime that does nothing: what the shim adds to a command of the runtime, and a process's life. */
export const AROUND: Row = { name: "around a runtime that does nothing", unit: "ms" };
/** Exec, Start, Wait and DeleteProcess. */
export const EXEC: Row = { name: "exec of `true`, whole", unit: "ms", digits: 1 };
/**
 * From a process's being killed to the news of that from containerd. It has run for a while: the exit of one that ends at once
 * is held back until its start is out.
 */
export const EXIT_EVENT: Row = { name: "exit to event delivered", unit: "ms" };
/** From Kill of the container to what Wait answers. */
export const KILL: Row = { name: "kill to Wait reply", unit: "ms" };
/** Delete: `runc delete`. */
export const DELETE: Row = { name: "delete", unit: "ms", digits: 1 };
/** From SIGTERM to the shim's end, which has no container any more. */
const END: Row = { name: "SIGTERM to gone", unit: "ms" };
/** Also that of containerd's own default, runtime v2. */
export const RUN: Row = { name: "`ctr run --rm`, whole", unit: "ms", digits: 1 };

/** What the quick bench measures in a host. */
export const QUICK_IN_HOST: ReadonlySet<Row> = new Set([
  ...[FIRST_REPLY, CREATE, START, EXEC, EXIT_EVENT, KILL, DELETE, RUN],
  ...callStep.rows,
  ...[FLOW_ROWS.speed, FLOW_ROWS.cpu].flatMap(({ stdout }) => stdout.slice(0, 2)),
]);

/** The steps of a round. */
export function steps(extent: Extent): readonly Step<Subject>[] {
  return [
    ...begin,
    {
      rows: [EXEC],
      times: EXECS,
      measure: (subject) => {
        const id = newId();
        return subject.withHeldFifos(id, async (paths) => [await timed(() => subject.execToEnd(id, ["true"], paths))]);
      },
    },
    callStep,
    { rows: [EXIT_EVENT], times: EXECS, measure: async (subject) => [await exitToEvent(subject)] },
    ...outputSteps(extent),
    {
      rows: [KILL],
      isNeeded: true,
      measure: async (subject) => {
        const wait = subject.wait();
        wait.catch(() => {}); // until it is awaited below
        await subject.state(); // the call above has arrived
        let killed: Promise<void> | undefined;
        const ms = await timed(() => {
          killed = subject.kill(Signal.SIGKILL);
          killed.catch(() => {}); // until it is awaited below
          return wait;
        });
        await killed;
        return [ms];
      },
    },
    ...end,
    {
      rows: [RUN],
      times: RUNS,
      measure: async ({ daemon }) => [await timed(() => daemon.run(RUNTIMES.v1))],
    },
  ];
}

/** The first step: the shim is started. */
export const firstReply: Step<Subject> = {
  rows: [FIRST_REPLY],
  isNeeded: true,
  measure: async (subject) => {
    await subject.prepare();
    return [await subject.startTimed()];
  },
};

/** The steps up to a container that runs. */
export const begin: readonly Step<Subject>[] = [
  firstReply,
  {
    rows: [CREATE],
    isNeeded: true,
    measure: async (subject) => {
      const paths = await subject.heldFifos();
      return [await timed(() => subject.create(paths))];
    },
  },
  { rows: [START], isNeeded: true, measure: async (subject) => [await timed(() => subject.startProcess())] },
];

/** The last step of what needs the shim: it has no container, and ends. */
export const lastEnd: Step<Subject> = {
  rows: [END],
  isNeeded: true,
  measure: async (subject) => [await timed(() => subject.end("SIGTERM"))],
};

const end: readonly Step<Subject>[] = [
  { rows: [DELETE], isNeeded: true, measure: async (subject) => [await timed(() => subject.delete())] },
  lastEnd,
];

/** The steps of a round whose shim has, in the place of its runtime, a program that does nothing. */
export const stepsAround: readonly Step<Subject>[] = [
  { ...firstReply, rows: [] },
  {
    rows: [],
    isNeeded: true,
    measure: async (subject) => {
      await subject.runIdle(subject.runtime("runc"));
      subject.runtime("true");
      return [];
    },
  },
  {
    rows: [AROUND],
    times: PAUSES,
    measure: async (subject) => {
      const ms = await timed(() => subject.pause());
      await subject.resume();
      return [ms];
    },
  },
  {
    rows: [],
    isNeeded: true,
    measure: async (subject) => {
      subject.runtime("runc");
      await subject.endContainer();
      return [];
    },
  },
];

/**
 * A process of the container is killed, and not through the shim; then containerd is told, and tells us. What of this is
 * containerd's and `ctr`'s is the same for both shims, and some tenths of a millisecond.
 *
 * @returns ms
 */
/** How long a process runs before it is killed, in ms. */
const RUNNING_MS = 50;

function exitToEvent(subject: Subject): Promise<number> {
  const id = newId();
  return subject.withHeldFifos(id, async (paths) => {
    await subject.exec(id, ["sleep", "1000"], paths);
    const pid = await subject.startProcess(id);
    const told = subject.daemon.exit(subject.namespace, id);
    await pause(RUNNING_MS);
    const ms = await timed(() => {
      Deno.kill(pid, "SIGKILL");
      return told;
    });
    await subject.wait(id);
    await subject.deleteProcess(id);
    return ms;
  });
}
