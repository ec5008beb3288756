/** What the shim is meant to reach, in one place. */

import { SHIM_INFO, STATE } from "./calls.ts";
import { FIRST_CONTAINER, FLOOD_STATE, HOLDER_MEMORY, sharedMemory } from "./hosted.ts";
import { AFTER_START, AFTER_WORK, GROWTH, WAKE_UPS } from "./memory.ts";
import { FLOW_ROWS } from "./output.ts";
import type { Row } from "./row.ts";
import { AROUND, CREATE, DELETE, EXEC, EXIT_EVENT, FIRST_REPLY, KILL, RUN, START } from "./rows.ts";

/** A row's target. */
export interface Target {
  /** What counts: our median divided by Go's, or by that of ours alone, or our median itself. */
  readonly of: "ratio" | "alone" | "value";
  /** What must not be passed: at most this, or at least where more is better. */
  readonly limit: number;
  /** What is wanted. */
  readonly aim: number;
  /** Whether the row stands beside the one that the target was set for; `--check` does not look at it. */
  readonly isSecondary?: boolean;
}

function times(limit: number, aim: number): Target {
  return { of: "ratio", limit, aim };
}

function atMost(limit: number, aim: number): Target {
  return { of: "value", limit, aim };
}

/** For the first of the rows, and for those beside it. */
function andBeside([first, ...others]: readonly Row[], target: Target): [Row, Target][] {
  return [[first!, target], ...others.map((row): [Row, Target] => [row, { ...target, isSecondary: true }])];
}

/** State while others are alive, divided by State alone. */
export const CROWD_COST: Row = { name: "State p50, cost in the crowd", unit: "× alone" };

/** Memory is in MiB (1 048 576 bytes), bytes moved in MB and GB (powers of ten). */
export const TARGETS: ReadonlyMap<Row, Target> = new Map([
  [FIRST_REPLY, times(3.0, 2.5)],
  ...[CREATE, START, DELETE, EXEC].map((row): [Row, Target] => [row, times(1.0, 0.9)]),
  ...[STATE, SHIM_INFO].flatMap((call) => andBeside([call.alone[0], call.inFlight[0]], times(1.0, 0.7))),
  [KILL, times(1.0, 0.7)],
  [EXIT_EVENT, times(0.5, 0.1)],
  ...andBeside(FLOW_ROWS.speed.stdout, times(3, 5)),
  ...andBeside(FLOW_ROWS.cpu.stdout, times(0.3, 0.1)),
  ...andBeside(FLOW_ROWS.speed.terminal, times(2, 4)),
  ...andBeside(FLOW_ROWS.cpu.terminal, times(0.5, 0.2)),
  [AFTER_START.privateDirty, atMost(11, 8)],
  [AFTER_WORK.privateDirty, atMost(11, 8)],
  [GROWTH, atMost(1, 0.5)],
  [WAKE_UPS, atMost(0, 0)],
  [CROWD_COST, atMost(1.1, 1.0)],
]);

/** The targets in a host. */
const HOST_TARGETS: ReadonlyMap<Row, Target> = new Map([
  [FIRST_CONTAINER, times(4, 3)],
  [HOLDER_MEMORY, atMost(32, 8)],
  [sharedMemory(8), times(1.0, 0.6)],
  ...[32, 200].map((size): [Row, Target] => [sharedMemory(size), times(0.4, 0.2)]),
  [FLOOD_STATE, times(3, 1.5)],
  [FIRST_REPLY, times(0.8, 0.5)],
  [RUN, times(1.0, 0.9)],
]);

/** How much worse a row may be in a host than alone. */
const HOST_COST = 1.1;

/** The target of a row in a host: what has none of its own is to be as good as alone. */
export function hostTarget(row: Row): Target | undefined {
  if (row.isOfHost || HOST_TARGETS.has(row)) return HOST_TARGETS.get(row);
  const limit = row.moreIsBetter ? 1 / HOST_COST : HOST_COST;
  return { of: "alone", limit, aim: 1, isSecondary: TARGETS.get(row)?.isSecondary ?? !TARGETS.has(row) };
}

/** What `--check` refuses where the limit is 0 and nothing is twice as bad. */
export const FAILURE_OF_ZERO: ReadonlyMap<Row, number> = new Map([[WAKE_UPS, 1]]);

const COSTS = "See COSTS.md.";
const TERMINAL_NOTE =
  "A terminal of Linux gives 4 KiB at a time, and wakes a thread of the kernel for each. A loop of " +
  `splice(2) in C, which does nothing else, is hardly faster here. ${COSTS}`;
const COLD_NOTE =
  "Each call is the first of its kind in its process: JavaScript that is called for the first time is " +
  `compiled first. In processes that have done it before, the difference is the row "${AROUND.name}". ${COSTS}`;

/** What is to be said below the table of some rows. */
export const NOTES: ReadonlyMap<Row, string> = new Map([
  [
    FIRST_REPLY,
    `An empty program of Deno, in the column "empty Deno", takes longer than the limit by itself. ${COSTS}`,
  ],
  [CREATE, COLD_NOTE],
  [START, COLD_NOTE],
  [FLOW_ROWS.speed.stdout[1]!, "What dd writes in pieces of this size is what limits both."],
  [FLOW_ROWS.speed.terminal[0]!, TERMINAL_NOTE],
  [FLOW_ROWS.cpu.terminal[0]!, TERMINAL_NOTE],
  [GROWTH, `Code that the execs were the first to need; it does not grow from there. ${COSTS}`],
]);
