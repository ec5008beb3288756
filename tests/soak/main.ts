/**
 * Everything at once, for long, in hosts. Writes build/soak.csv and build/soak.svg; ends with 1 when anything has grown
 * or gone wrong.
 *
 *     deno run -A tests/soak/main.ts [--seconds 1200] [--seed N]
 */

import { parseArgs } from "@std/cli/parse-args";
import { REPOSITORY } from "../e2e/env.ts";
import { plot } from "./plot.ts";
import { csv } from "./samples.ts";
import { soak } from "./soak.ts";

const flags = parseArgs(Deno.args, {
  string: ["seconds", "seed"],
  default: { seconds: "1200", seed: `${Date.now() % 2 ** 32}` },
  unknown: (what: string) => {
    console.error(`What is ${what}?`);
    Deno.exit(2);
  },
});
const [seconds, seed] = [Number(flags.seconds), Number(flags.seed)];
if (!(seconds >= 20) || !Number.isInteger(seed)) {
  console.error("For how many seconds (at least 20), from which seed?");
  Deno.exit(2);
}
console.log(`--seconds ${seconds} --seed ${seed}`);
const { samples, growths, counts, kills, exits } = await soak({ seconds, seed, tell: console.log });
Deno.mkdirSync(`${REPOSITORY}/build`, { recursive: true });
Deno.writeTextFileSync(`${REPOSITORY}/build/soak.csv`, csv(samples));
Deno.writeTextFileSync(`${REPOSITORY}/build/soak.svg`, plot(samples, `A soak of ${seconds} s, ${kills} hosts killed`));
console.log([...counts].map(([kind, count]) => `${count} × ${kind}`).join(", "));
console.log(`${exits} exits told, each with its status`);
console.log("median of the second tenth of the time -> of the last");
for (const { name, before, after, tolerance, isTolerated } of growths) {
  const { factor, more, why } = tolerance;
  const limit = `tolerated: × ${factor} + ${more}: ${why}`;
  console.log(`${isTolerated ? "  " : "! "}${name}: ${before.toFixed(2)} -> ${after.toFixed(2)} (${limit})`);
}
const isFlat = growths.every((each) => each.isTolerated);
console.log(isFlat ? "nothing has grown: build/soak.svg, build/soak.csv" : "! something has grown: build/soak.svg");
Deno.exit(isFlat ? 0 : 1);
