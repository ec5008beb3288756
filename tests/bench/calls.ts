/** The calls that change nothing: how long one takes, alone and among others. */

import { REPOSITORY } from "../e2e/env.ts";
import { runAndRead } from "./children.ts";
import { withCpus } from "./pin.ts";
import type { Row, Step } from "./row.ts";
import type { Subject } from "./subject.ts";

/** The methods that are called. */
const CALLS = ["ShimInfo", "State"] as const;
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

function rowsOf(call: typeof CALLS[number]): CallRows {
  return {
    alone: [row(`${call} p50`), row(`${call} p99`)],
    inFlight: [row(`${call} p50, ${IN_FLIGHT} in flight`), row(`${call} p99, ${IN_FLIGHT} in flight`)],
  };
}

/** ShimInfo's rows. */
export const SHIM_INFO = rowsOf("ShimInfo");
/** State's rows. */
export const STATE = rowsOf("State");

/** The step: the shim has a container that runs. */
export const callStep: Step<Subject> = {
  rows: [SHIM_INFO, STATE].flatMap(({ alone, inFlight }) => [...alone, ...inFlight]),
  measure: (subject) =>
    withCpus(
      subject.server,
      (pinned) => callBy(pinned, subject, { methods: CALLS, callers: [1, IN_FLIGHT], count: 1000 }),
    ),
};

/** Between two calls of somebody who calls now and then, in ms. */
const PAUSE_MS = 5;

/** Of a caller that runs when it wants to, whoever else wants the CPU: nice(1). */
export const FIRST_NICE = -20;

/** Calls State now and then, on any CPU; p50 in µs. Where the caller comes first, it is the shim alone that may wait. */
export async function stateLatency(
  subject: Subject,
  { count, comesFirst }: { readonly count: number; readonly comesFirst: boolean },
): Promise<number> {
  const plan: CallPlan = { methods: ["State"], callers: [1], count, pauseMs: PAUSE_MS };
  return (await callBy(comesFirst ? ["nice", "-n", `${FIRST_NICE}`] : [], subject, plan))[0]!;
}

/** What {@linkcode CLIENT} is to call. */
export interface CallPlan {
  readonly methods: readonly (typeof CALLS[number])[];
  /** How many callers there are at a time, for each method. */
  readonly callers: readonly number[];
  /** Calls of one sample. */
  readonly count: number;
  /** How long a caller waits after each, in ms; not at all unless given. */
  readonly pauseMs?: number;
  /** What is to be known of what the calls took; p50 and p99 unless given. */
  readonly quantiles?: readonly number[];
  /**
   * How long the calls of one sample may take together, in ms: after that there are no more, and one that has not been answered
   * counts as if it had been just then. Whoever would have called meanwhile counts too. They may take for ever unless given.
   */
  readonly patienceMs?: number;
}

/**
 * Has a process of its own call a shim.
 *
 * @param prefix what its command line begins with
 * @returns for each method, and each number of callers, the quantiles, in µs
 */
export async function callBy(prefix: readonly string[], subject: Subject, plan: CallPlan): Promise<number[]> {
  const client = [Deno.execPath(), "run", "-A", "--config", `${REPOSITORY}/deno.json`, CLIENT];
  const args = [subject.publicSocket, subject.id, JSON.stringify(plan)];
  return JSON.parse(await runAndRead([...prefix, ...client, ...args]));
}

const CLIENT = `${import.meta.dirname}/calls_client.ts`;
