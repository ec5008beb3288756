/**
 * Kills shims at random moments, and prints what is left, with this shim and with Debian's Go shim.
 *
 *     deno run -A tests/survival/deaths_main.ts [--shim ours|go]... [--rounds N] [--seed N] [--verbose]
 */

import { parseArgs } from "@std/cli/parse-args";
import { describeDeaths, observeDeaths } from "./deaths.ts";
import { SUBJECTS } from "./subjects.ts";

const flags = parseArgs(Deno.args, {
  string: ["shim", "rounds", "seed"],
  boolean: ["verbose"],
  collect: ["shim"],
  default: { rounds: "200", seed: `${Date.now() % 2 ** 32}` },
});
const names = flags.shim.length > 0 ? flags.shim : ["ours", "go"];
const [rounds, seed] = [Number(flags.rounds), Number(flags.seed)];
console.log(`--rounds ${rounds} --seed ${seed}`);
for (const subject of SUBJECTS.filter(({ name }) => names.includes(name))) {
  const deaths = await observeDeaths(subject, { rounds, seed }, (seen) => flags.verbose && console.error(seen));
  console.log(`${subject.name}: ${describeDeaths(deaths)}`);
  for (const each of deaths.problems) console.log(`  ${each}`);
}
