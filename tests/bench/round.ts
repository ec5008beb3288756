/** A round: a contender is taken through its steps. */

import { messageOf } from "../../lib/errors.ts";
import { expectNoEnd } from "./children.ts";
import { disown, own, type Removable } from "./owned.ts";
import type { Result } from "./results.ts";
import type { Row, Step, Wanted } from "./row.ts";

/** A contender's round, and what is wanted of it. */
export interface Round<T> {
  readonly steps: readonly Step<T>[];
  readonly wanted: Wanted;
  /** Makes the subject, which is removed when the round is over. */
  begin(): T;
  /** What the subject has printed, to be told with what went wrong. */
  output?(subject: T): string;
  /** Where a row's samples are put. */
  results(row: Row): Result;
  /** Whether they are; they are not in a warm-up. */
  readonly keep: boolean;
}

/**
 * Does a round; a row that fails once is left out from then on.
 *
 * @throws {Error} when the bench has been interrupted
 */
export async function runRound<T extends Removable>(round: Round<T>): Promise<void> {
  const subject = own(round.begin());
  try {
    for (const step of round.steps) {
      const results = step.rows.map(round.results);
      const rows = step.rows.map(round.wanted);
      if (!step.isNeeded && (!rows.includes(true) || results.some(({ error }) => error !== undefined))) continue;
      try {
        for (let i = 0; i < (step.times ?? 1); i++) {
          const samples = await step.measure(subject);
          if (round.keep) samples.forEach((sample, at) => rows[at] && results[at]!.samples.push(sample));
        }
      } catch (error) {
        expectNoEnd();
        const output = round.output?.(subject).trim();
        for (const each of results) each.error ??= messageOf(error) + (output ? `; it said: ${output}` : "");
        // Those after it would only fail too.
        if (step.isNeeded) return;
      }
    }
  } finally {
    await disown(subject);
  }
}
