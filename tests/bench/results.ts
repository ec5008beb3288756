/** What has been measured. */

import type { Row } from "./row.ts";
import { summarize } from "./stats.ts";

/** What is measured: the two shims, ours in a host, and two others for some rows. */
export type Contender = "ours" | "Go" | "hosted" | "empty Deno" | "v2 shim";

/** What a contender's rounds gave for a row. */
export interface Result {
  readonly samples: number[];
  /** Why the row could not be measured, or not to the end. */
  error?: string;
}

/** A row, and what was measured, with one number of shims alive. */
export interface Line {
  readonly row: Row;
  /** How many shims were alive. */
  readonly alive: number;
  readonly ours: Result;
  readonly go: Result;
  /** What ours gave in a host, if this is a line of the table of that. */
  readonly hosted?: Result;
  /** What the others gave, if they have the row. */
  readonly floor: Result | undefined;
  readonly v2: Result | undefined;
}

/** A row that ours was measured for in a host. */
export interface HostLine extends Line {
  readonly hosted: Result;
}

/** Results by row, contender and number of shims alive. */
export class Results {
  readonly #results = new Map<number, Map<Row, Map<Contender, Result>>>();

  /** What there is, or will be. */
  of(alive: number, contender: Contender, row: Row): Result {
    const rows = entry(this.#results, alive, () => new Map<Row, Map<Contender, Result>>());
    const results = entry(rows, row, () => new Map<Contender, Result>());
    return entry(results, contender, (): Result => ({ samples: [] }));
  }

  /** The numbers of shims alive that anything has been measured with. */
  get alive(): number[] {
    return [...this.#results.keys()];
  }

  /** What was measured with one number of shims alive, or should have been, in the order in which that was begun. */
  lines(alive: number): Line[] {
    const rows = [...this.#results.get(alive) ?? []].filter(([row]) => !row.isOfHost);
    const begun = rows.filter(([, results]) =>
      [...results].some(([contender, result]) => contender !== "hosted" && isBegun(result))
    );
    return begun.map(([row, results]) => ({
      row,
      alive,
      ours: results.get("ours") ?? { samples: [] },
      go: results.get("Go") ?? { samples: [] },
      floor: results.get("empty Deno"),
      v2: results.get("v2 shim"),
    }));
  }

  /** What was measured in a host, or should have been: the rows that are of a host alone first. */
  hostLines(): HostLine[] {
    const rows = [...this.#results.get(1) ?? []].flatMap(([row, results]): HostLine[] => {
      const hosted = results.get("hosted");
      if (!hosted || !isBegun(hosted)) return [];
      const [ours, go] = [results.get("ours"), results.get("Go")].map((each) => each ?? { samples: [] });
      const floor = row.isOfHost ? results.get("empty Deno") : undefined;
      return [{ row, alive: 1, ours: ours!, go: go!, hosted, floor, v2: undefined }];
    });
    return [...rows.filter(({ row }) => row.isOfHost), ...rows.filter(({ row }) => !row.isOfHost)];
  }
}

function isBegun({ samples, error }: Result): boolean {
  return samples.length > 0 || error !== undefined;
}

function entry<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  const found = map.get(key);
  if (found !== undefined) return found;
  const made = make();
  map.set(key, made);
  return made;
}

/** The median; undefined when the row was not measured, or not to the end. */
export function medianOf(result: Result | undefined): number | undefined {
  if (!result || result.error !== undefined || result.samples.length === 0) return undefined;
  return summarize(result.samples).median;
}

/** Our median divided by Go's; undefined when either was not measured, or Go's is nothing. */
export function ratio({ ours, go }: Line): number | undefined {
  return quotient(medianOf(ours), medianOf(go));
}

/** The median in a host, divided by Go's or by ours alone. */
export function hostRatio({ hosted, go, ours }: HostLine, to: "Go" | "alone"): number | undefined {
  return quotient(medianOf(hosted), medianOf(to === "Go" ? go : ours));
}

/** One number divided by another; undefined unless there are both, and the other is not 0. */
export function quotient(one: number | undefined, other: number | undefined): number | undefined {
  return one === undefined || other === undefined || other === 0 ? undefined : one / other;
}

/** Why rows were not measured, those together that failed alike; nothing if all were measured. */
export function errors(lines: readonly Line[]): string[] {
  const failed = new Map<string, Set<string>>();
  for (const { row, alive, ours, go, hosted, floor, v2 } of lines) {
    for (const [name, result] of Object.entries({ ours, Go: go, hosted, "empty Deno": floor, "v2 shim": v2 })) {
      if (result?.error === undefined) continue;
      entry(failed, `${name}, ${alive} alive: ${result.error}`, () => new Set<string>()).add(row.name);
    }
  }
  return [...failed].map(([why, rows]) => `${why} (not measured: ${[...rows].join("; ")})`);
}
