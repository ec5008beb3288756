/** What is looked at each second of a soak, and whether it has grown. */

import { quantile } from "../bench/stats.ts";
import { field, type Host } from "../e2e/host.ts";
import { descriptorsOf } from "../e2e/proc.ts";

/** What is looked at. */
export interface Sample {
  /** Seconds since the beginning. */
  readonly at: number;
  readonly hosts: number;
  /** Of all hosts together. */
  readonly hostDescriptors: number;
  readonly hostThreads: number;
  readonly hostDirtyKib: number;
  /** Of the holders together that are there all the time. */
  readonly holderDescriptors: number;
  readonly holderDirtyKib: number;
  /** How long State has taken to be answered in the last second, in ms. */
  readonly stateP50Ms: number;
  readonly stateP99Ms: number;
  /** How many hosts have been killed so far. */
  readonly kills: number;
}

/** A number of a sample. */
export type Name = keyof Sample;

/** How much more of something there may be at the end. */
interface Tolerance {
  readonly factor: number;
  /** And so much besides. */
  readonly more: number;
  readonly why: string;
}

/** What may not grow, and how much is tolerated. */
export const TOLERANCES: ReadonlyMap<Name, Tolerance> = new Map<Name, Tolerance>([
  [
    "hostDescriptors",
    { factor: 1, more: 24, why: "a container has some 15, and an exec some 10: that many come and go at any moment" },
  ],
  ["hostThreads", { factor: 1, more: 2, why: "those of Deno's pool come and go" }],
  ["hostDirtyKib", { factor: 1.1, more: 4096, why: "V8 collects garbage when it likes, not when a container ends" }],
  ["holderDescriptors", { factor: 1, more: 24, why: "an exec has some 10 while it is there" }],
  ["holderDirtyKib", { factor: 1, more: 64, why: "a page or two for each, when they are first used" }],
  ["stateP50Ms", { factor: 2, more: 2, why: "the work is never quite the same, and others use the machine too" }],
  ["stateP99Ms", { factor: 3, more: 30, why: "that of a second is the worst of some thirty, which is noise" }],
]);

/** Looks at a machine's hosts, and at the holders that are there all the time. */
export function take(
  hosts: readonly Host[],
  holders: readonly number[],
  { at, kills, latencies }: { readonly at: number; readonly kills: number; readonly latencies: readonly number[] },
): Sample | undefined {
  const sum = (pids: readonly number[], of: (pid: number) => number) => pids.reduce((all, pid) => all + of(pid), 0);
  const pids = hosts.map(({ pid }) => pid);
  try {
    return {
      at,
      hosts: pids.length,
      hostDescriptors: sum(pids, (pid) => descriptorsOf(pid).size),
      hostThreads: sum(pids, (pid) => field(pid, "status", "Threads")),
      hostDirtyKib: sum(pids, (pid) => field(pid, "smaps_rollup", "Private_Dirty")),
      holderDescriptors: sum(holders, (pid) => descriptorsOf(pid).size),
      holderDirtyKib: sum(holders, (pid) => field(pid, "smaps_rollup", "Private_Dirty")),
      stateP50Ms: latencies.length > 0 ? quantile(latencies, 0.5) : NaN,
      stateP99Ms: latencies.length > 0 ? quantile(latencies, 0.99) : NaN,
      kills,
    };
  } catch (error) {
    // A host has been killed.
    if (error instanceof Deno.errors.NotFound || String(error).includes("ESRCH")) return undefined;
    throw error;
  }
}

/** What something was in the second tenth of the time, and in the last. */
export interface Growth {
  readonly name: Name;
  readonly before: number;
  readonly after: number;
  readonly isTolerated: boolean;
  readonly tolerance: Tolerance;
}

/** Compares the medians of the second tenth of the time with those of the last. */
export function growths(samples: readonly Sample[], seconds: number): Growth[] {
  const median = (name: Name, from: number, to: number) => {
    const values = samples.filter(({ at }) => at >= from * seconds && at < to * seconds).map((each) => each[name])
      .filter((each) => !Number.isNaN(each));
    return quantile(values, 0.5);
  };
  return [...TOLERANCES].map(([name, tolerance]) => {
    const [before, after] = [median(name, 0.1, 0.2), median(name, 0.9, Infinity)];
    return { name, before, after, tolerance, isTolerated: after <= before * tolerance.factor + tolerance.more };
  });
}

/** All samples, as a table. */
export function csv(samples: readonly Sample[]): string {
  const names = Object.keys(samples[0]!) as Name[];
  const rows = samples.map((each) => names.map((name) => `${Math.round(each[name] * 1000) / 1000}`).join(","));
  return `${[names.join(","), ...rows].join("\n")}\n`;
}
