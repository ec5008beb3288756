/** What is to be thought of a row: whether it reaches its target, and whether it is so far off that it cannot be noise. */

import { FIRST_CONTAINER } from "./hosted.ts";
import { type HostLine, type Line, medianOf, quotient, type Result } from "./results.ts";
import type { Row } from "./row.ts";
import { FIRST_REPLY } from "./rows.ts";
import { summarize } from "./stats.ts";
import { CROWD_COST, FAILURE_OF_ZERO, hostTarget, type Target, TARGETS } from "./targets.ts";

/** `short` misses the limit, `ok` the aim. */
export type Mark = "aim" | "ok" | "short";

/** How much worse than its limit a row must be for `--check` to fail. */
const FAILURE_FACTOR = 2;

/** The rows that have a start of Deno in them; what is in a host that is there already is compared with no empty program. */
const STARTS: ReadonlySet<Row> = new Set([FIRST_REPLY, FIRST_CONTAINER]);

/** A row's target, and how it is met. */
export interface Verdict {
  readonly target: Target;
  readonly mark: Mark;
  /** Whether the target was set for this very row: not for one beside it, nor, but for what a crowd costs, in a crowd. */
  readonly isPrimary: boolean;
}

/** What has a target. */
interface Judged {
  readonly target: Target;
  readonly subject: Result;
  /** What it is divided by; undefined where the target is for the value itself. */
  readonly reference: Result | undefined;
}

function isOfHost(line: Line): line is HostLine {
  return line.hosted !== undefined;
}

function judged(line: Line): Judged | undefined {
  const { row, ours, go } = line;
  const target = isOfHost(line) ? hostTarget(row) : TARGETS.get(row);
  if (!target) return undefined;
  const reference = { ratio: go, alone: ours, value: undefined }[target.of];
  return { target, subject: isOfHost(line) ? line.hosted : ours, reference };
}

/** What is to be thought of a row; undefined when it has no target, or was not measured. */
export function verdict(line: Line): Verdict | undefined {
  const found = judged(line);
  if (!found) return undefined;
  const { target, subject, reference } = found;
  const reached = reference ? quotient(medianOf(subject), medianOf(reference)) : medianOf(subject);
  if (reached === undefined) return undefined;
  const reaches = (goal: number) => line.row.moreIsBetter ? reached >= goal : reached <= goal;
  const mark = reaches(target.aim) ? "aim" : reaches(target.limit) ? "ok" : "short";
  const isPrimary = !target.isSecondary && (line.alive === 1 || line.row === CROWD_COST);
  return { target, mark, isPrimary };
}

/** What a target's number is multiplied by, in the words of a failure. */
const MEASURES = { ratio: "times Go's", alone: "times alone", value: undefined };

/**
 * What is so bad that it is no noise: also our better quartile is, compared with the worse one of what it is divided by.
 *
 * From a first reply that Deno has to be started for is taken off, before, what an empty program of it took in the same run.
 */
export function failures(lines: readonly Line[]): string[] {
  return lines.flatMap((line) => {
    const { row, alive, floor, go } = line;
    const found = judged(line);
    if (!found || !verdict(line)?.isPrimary) return [];
    const { target, subject, reference } = found;
    const { better, worse } = row.moreIsBetter
      ? { better: "high", worse: "low" } as const
      : { better: "low", worse: "high" } as const;
    const ours = summarize(subject.samples)[better];
    const best = reference ? ours / summarize(reference.samples)[worse] : ours;
    const reached = best - (STARTS.has(row) ? quotient(medianOf(floor), medianOf(go)) ?? 0 : 0);
    const worst = row.moreIsBetter
      ? target.limit / FAILURE_FACTOR
      : FAILURE_OF_ZERO.get(row) ?? target.limit * FAILURE_FACTOR;
    if (row.moreIsBetter ? reached >= worst : reached <= worst) return [];
    const unit = MEASURES[target.of] ?? row.unit;
    const side = row.moreIsBetter ? "under" : "over";
    const where = isOfHost(line) ? "in a host" : `${alive} alive`;
    return [`${row.name}, ${where}: ${reached.toFixed(2)} ${unit} at best, ${side} ${worst.toFixed(2)}`];
  });
}
