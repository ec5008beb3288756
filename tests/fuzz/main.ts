/**
 * Sends a shim what nobody should, and looks whether its container, or a client that behaves, can notice.
 *
 *     deno run -A tests/fuzz/main.ts [--seed N] [--cases N] [--seconds S] [--case N] [--replay FILE]
 *         [--without METHOD,...] [--shim PATH] [--way alone|hosted]
 *
 * There are 200,000 cases unless told otherwise, in each of the two ways that a shim of ours can live. A seed makes the
 * same cases each time. When something is noticed, the case that has done it is printed, and written to build/fuzz.json:
 * --case plays one of a seed again, --replay those of a file. It runs as a test, see tests/run.ts: nothing is left of it.
 */

import { parseArgs } from "@std/cli/parse-args";
import { NAMES, variable } from "./options.ts";

const flags = parseArgs(Deno.args, {
  string: [...NAMES, "shim", "way"],
  unknown: (what: string) => {
    console.error(`What is ${what}?`);
    Deno.exit(2);
  },
});

const environment: Record<string, string> = {
  // What is asked for is asked for, also without a word.
  [variable("seed")]: flags.seed ?? `${Date.now() % 2 ** 32}`,
  ...flags.shim === undefined ? {} : { SHIM: flags.shim },
};
for (const name of NAMES) {
  const value = flags[name];
  if (value !== undefined) environment[variable(name)] = name === "replay" ? Deno.realPathSync(value) : value;
}

let failed = false;
for (const way of flags.way === undefined && flags.shim === undefined ? ["alone", "hosted"] : [flags.way ?? "alone"]) {
  const tests = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "tests/run.ts", "tests/e2e/fuzz_test.ts"],
    cwd: new URL("../..", import.meta.url),
    env: { ...environment, WAY: way },
  }).spawn();
  if (!(await tests.status).success) failed = true;
}
Deno.exit(failed ? 1 : 0);
