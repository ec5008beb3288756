/** What the stages of the bench share. */

import { messageOf } from "../../lib/errors.ts";
import { expectNoEnd } from "./children.ts";
import type { Extent } from "./extent.ts";
import type { Holder } from "./memory.ts";
import type { Contender, Results } from "./results.ts";
import type { Row, Step, Wanted } from "./row.ts";
import { runRound } from "./round.ts";
import { Subject, type SubjectOptions } from "./subject.ts";

/** One of the two shims, or ours in a host. */
export interface Competitor extends SubjectOptions {
  readonly name: "ours" | "Go" | "hosted";
}

/** What all stages work with. */
export interface Bench {
  readonly extent: Extent;
  /** Ours, and Go's. */
  readonly competitors: readonly [Competitor, Competitor];
  /** Ours, in a host. */
  readonly hosted: Competitor;
  /** The empty program's executable. */
  readonly emptyProgram: string;
  readonly wanted: Wanted;
  readonly results: Results;
  /** Says what is being done. */
  say(what: string): void;
}

/** A round of a shim. */
export interface SubjectRound {
  readonly competitor: Competitor;
  /** How many shims are alive, this one among them. */
  readonly alive: number;
  readonly steps: readonly Step<Subject>[];
  /** Whether it counts. */
  readonly keep: boolean;
  /** Which of the rows that are wanted at all. */
  readonly wanted?: Wanted;
}

/** Does a round with a new shim. */
export function subjectRound(
  bench: Bench,
  { competitor, alive, wanted = () => true, ...round }: SubjectRound,
): Promise<void> {
  return runRound({
    ...round,
    wanted: (row) => bench.wanted(row) && wanted(row),
    results: (row) => bench.results.of(alive, competitor.name, row),
    begin: () => new Subject(competitor),
    output: (subject) => subject.output(),
  });
}

/** Somebody whose samples of memory are a contender's. */
export function holder<T>({ wanted, results }: Bench, alive: number, contender: Contender, subject: T): Holder<T> {
  return {
    subject,
    take: (row, sample) => {
      if (wanted(row)) results.of(alive, contender, row).samples.push(sample);
    },
  };
}

/**
 * Does something for the sake of some rows, all of which have failed if that fails.
 *
 * @throws {Error} when the bench has been interrupted
 */
export async function noting(
  { wanted, results }: Bench,
  { alive, contenders, rows }: {
    readonly alive: number;
    readonly contenders: readonly Contender[];
    readonly rows: readonly Row[];
  },
  action: () => Promise<void>,
): Promise<void> {
  try {
    await action();
  } catch (error) {
    expectNoEnd();
    for (const contender of contenders) {
      for (const row of rows.filter(wanted)) results.of(alive, contender, row).error ??= messageOf(error);
    }
  }
}
