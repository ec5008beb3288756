/** What is to be thought of a row: whether it reaches its target, and whether it is so far off that it cannot be noise. */

import { type Line, medianOf, quotient, ratio } from "./results.ts";
import { FIRST_REPLY } from "./rows.ts";
import { summarize } from "./stats.ts";
import { CROWD_COST, FAILURE_OF_ZERO, type Target, TARGETS } from "./targets.ts";

/** `short` misses the limit, `ok` the aim. */
export type Mark = "aim" | "ok" | "short";

/** How much worse than its limit a row must be for `--check` to fail. */
const FAILURE_FACTOR = 2;

/** A row's target, and how it is met. */
export interface Verdict {
  readonly target: Target;
  readonly mark: Mark;
  /** Whether the target was set for this very row: not for one beside it, nor, but for what a crowd costs, in a crowd. */
  readonly isPrimary: boolean;
}

/** What is to be thought of a row; undefined when it has no target, or was not measured. */
export function verdict(line: Line): Verdict | undefined {
  const target = TARGETS.get(line.row);
  const reached = target?.of === "ratio" ? ratio(line) : medianOf(line.ours);
  if (!target || reached === undefined) return undefined;
  const reaches = (goal: number) => line.row.moreIsBetter ? reached >= goal : reached <= goal;
  const mark = reaches(target.aim) ? "aim" : reaches(target.limit) ? "ok" : "short";
  const isPrimary = !target.isSecondary && (line.alive === 1 || line.row === CROWD_COST);
  return { target, mark, isPrimary };
}

/**
 * What is so bad that it is no noise: also our better quartile is, compared with Go's worse one.
 *
 * From the first reply is taken off, before, what an empty program of Deno took in the same run.
 */
export function failures(lines: readonly Line[]): string[] {
  return lines.flatMap((line) => {
    const { row, alive, floor, go } = line;
    const judged = verdict(line);
    if (!judged?.isPrimary) return [];
    const { target } = judged;
    const { better, worse } = row.moreIsBetter
      ? { better: "high", worse: "low" } as const
      : { better: "low", worse: "high" } as const;
    const ours = summarize(line.ours.samples)[better];
    const best = target.of === "ratio" ? ours / summarize(go.samples)[worse] : ours;
    const reached = best - (row === FIRST_REPLY ? quotient(medianOf(floor), medianOf(go)) ?? 0 : 0);
    const worst = row.moreIsBetter
      ? target.limit / FAILURE_FACTOR
      : FAILURE_OF_ZERO.get(row) ?? target.limit * FAILURE_FACTOR;
    if (row.moreIsBetter ? reached >= worst : reached <= worst) return [];
    const unit = target.of === "ratio" ? "times Go's" : row.unit;
    const side = row.moreIsBetter ? "under" : "over";
    return [`${row.name}, ${alive} alive: ${reached.toFixed(2)} ${unit} at best, ${side} ${worst.toFixed(2)}`];
  });
}
