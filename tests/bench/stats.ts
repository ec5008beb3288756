/** What is said of a row's samples. */

/** Samples in short. */
export interface Summary {
  readonly median: number;
  /** The quartiles, between which half of the samples are. */
  readonly low: number;
  readonly high: number;
}

/** @throws {RangeError} when there are no samples */
export function summarize(samples: readonly number[]): Summary {
  return {
    median: quantile(samples, 0.5),
    low: quantile(samples, 0.25),
    high: quantile(samples, 0.75),
  };
}

/**
 * What a part (0 to 1) of the samples is below. Between two samples it is what is as far between them.
 *
 * @throws {RangeError} when there are no samples
 */
export function quantile(samples: readonly number[], part: number): number {
  if (samples.length === 0) throw new RangeError("Cannot summarize samples: there are none");
  const sorted = [...samples].sort((a, b) => a - b);
  const at = part * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  return below + (sorted[Math.ceil(at)]! - below) * (at % 1);
}

/**
 * What calls have taken, and what those would have that a caller has not made because it waited: after so long, and again, it
 * would have called (coordinated omission).
 */
export function withMissed(samples: readonly number[], interval: number): number[] {
  const all = [...samples];
  for (const sample of samples) for (let left = sample - interval; left > 0; left -= interval) all.push(left);
  return all;
}
