/** The calls that change nothing: how long one takes, alone and among others. */

import { withOwnCpus } from "./pin.ts";
import type { Row, Step } from "./row.ts";
import { quantile } from "./stats.ts";
import type { Subject } from "./subject.ts";

/** Calls of one sample, and those before them that do not count. */
const CALLS = 1000;
const WARM_UP_CALLS = 100;
/** Calls that are always outstanding, all on one connection. */
const IN_FLIGHT = 32;

function row(name: string): Row {
  return { name, unit: "µs", digits: 0 };
}

/** A call's rows. */
interface CallRows {
  /** p50 and p99. */
  readonly alone: readonly [Row, Row];
  readonly inFlight: readonly [Row, Row];
}

function rowsOf(call: string): CallRows {
  return {
    alone: [row(`${call} p50`), row(`${call} p99`)],
    inFlight: [row(`${call} p50, ${IN_FLIGHT} in flight`), row(`${call} p99, ${IN_FLIGHT} in flight`)],
  };
}

/** State's rows. */
export const STATE = rowsOf("State");
/** ShimInfo's rows. */
export const SHIM_INFO = rowsOf("ShimInfo");

/** The steps: the shim has a container that runs. */
export const callSteps: readonly Step<Subject>[] = [
  ...stepsOf(SHIM_INFO, (subject) => subject.shimPid()),
  ...stepsOf(STATE, (subject) => subject.state()),
];

function stepsOf({ alone, inFlight }: CallRows, call: (subject: Subject) => Promise<unknown>): Step<Subject>[] {
  return ([[alone, 1], [inFlight, IN_FLIGHT]] as const).map(([rows, callers]) => ({
    rows,
    measure: (subject) =>
      withOwnCpus(subject.pid, async () => {
        await latencies(() => call(subject), WARM_UP_CALLS, callers);
        const samples = await latencies(() => call(subject), CALLS, callers);
        return [quantile(samples, 0.5), quantile(samples, 0.99)];
      }),
  }));
}

/** Calls by several callers, of which each calls again as soon as it has been answered; what each call took, in µs. */
async function latencies(call: () => Promise<unknown>, count: number, callers: number): Promise<number[]> {
  const samples: number[] = [];
  let left = count;
  const callOnAndOn = async () => {
    while (left-- > 0) {
      const start = performance.now();
      await call();
      samples.push((performance.now() - start) * 1000);
    }
  };
  await Promise.all(Array.from({ length: callers }, callOnAndOn));
  return samples;
}
