/** What a run is told by its environment, for it is a test: see main.ts. */

import type { FuzzOptions } from "./fuzz.ts";

/** The names of what can be told: numbers, then methods with commas between them, and a file. */
export const NAMES = ["seed", "cases", "seconds", "case", "without", "replay"] as const;

/** The name that something has in the environment. */
export function variable(name: string): string {
  return `FUZZ_${name.toUpperCase()}`;
}

/** Whether somebody has asked for this run, and not for all tests. */
export const IS_ASKED_FOR = NAMES.some((name) => Deno.env.has(variable(name)));

/** How many cases there are in a run, and how long it may take, in s, unless that is told. */
const [CASES, SECONDS] = IS_ASKED_FOR ? [200_000, 3600] : [Infinity, 4];

export function optionsOfEnvironment(): FuzzOptions {
  const [seed, cases, seconds, only] = NAMES.slice(0, 4).map((name) => {
    const value = Deno.env.get(variable(name));
    return value === undefined ? undefined : Number(value);
  });
  return {
    seed: seed ?? Date.now() % 2 ** 32,
    cases: cases ?? CASES,
    seconds: seconds ?? SECONDS,
    only,
    without: Deno.env.get(variable("without"))?.split(",") ?? [],
    replay: Deno.env.get(variable("replay")),
  };
}
