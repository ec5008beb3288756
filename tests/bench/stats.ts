/** What is said of a row's samples. */

/** Samples in short. */
export interface Summary {
  readonly count: number;
  readonly median: number;
  /** The quartiles, between which half of the samples are. */
  readonly low: number;
  readonly high: number;
}

/** @throws {RangeError} when there are no samples */
export function summarize(samples: readonly number[]): Summary {
  const sorted = [...samples].sort((a, b) => a - b);
  return {
    count: sorted.length,
    median: quantile(sorted, 0.5),
    low: quantile(sorted, 0.25),
    high: quantile(sorted, 0.75),
  };
}

/** @throws {RangeError} when there are no samples */
export function median(samples: readonly number[]): number {
  return summarize(samples).median;
}

/** Between two samples, what is as far between them. */
function quantile(sorted: readonly number[], part: number): number {
  if (sorted.length === 0) throw new RangeError("Cannot summarize samples: there are none");
  const at = part * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  return below + (sorted[Math.ceil(at)]! - below) * (at % 1);
}
