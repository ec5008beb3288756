/**
 * Kills what has to do with a container, and prints what is lost, with this shim and its peers.
 *
 *     deno run -A tests/survival/main.ts [--shim ours|go|v2]... [--victim NAME]... [--rounds N] [--verbose]
 *
 * Prints a table, which is Markdown. What is lost in some of N rounds alone says in how many. SHIM names another
 * executable for this project's than bin/containerd-shim. With --verbose it says on stderr what it sees. The exit
 * code is 1 when something could not be observed.
 */

import { parseArgs } from "@std/cli/parse-args";
import { messageOf } from "../../lib/errors.ts";
import { type Losses, observe, type Victim, VICTIMS } from "./scene.ts";
import { type Subject, SUBJECTS } from "./subjects.ts";
import { cell, table } from "./table.ts";

const flags = parseArgs(Deno.args, {
  string: ["shim", "victim", "rounds"],
  boolean: ["verbose"],
  collect: ["shim", "victim"],
  default: { rounds: "1" },
  unknown: (what: string) => {
    console.error(`What is ${what}?`);
    Deno.exit(2);
  },
});

/** What is named, or everything. */
function chosen<T>(all: readonly T[], names: readonly string[], nameOf: (each: T) => string): T[] {
  for (const name of names) {
    if (all.some((each) => nameOf(each) === name)) continue;
    console.error(`There is no ${name}: ${all.map(nameOf).join(", ")}`);
    Deno.exit(2);
  }
  return all.filter((each) => names.length === 0 || names.includes(nameOf(each)));
}

const subjects: readonly Subject[] = chosen(SUBJECTS, flags.shim, ({ name }) => name);
const victims: readonly Victim[] = chosen([...VICTIMS.keys()], flags.victim, (each) => each);
const rounds = Number(flags.rounds);
if (!Number.isInteger(rounds) || rounds < 1) {
  console.error("How many rounds?");
  Deno.exit(2);
}

/** What has been lost, by round; a sentence where that could not be observed. */
const cells = new Map<string, Losses[]>();
let failed = false;
for (let round = 1; round <= rounds; round++) {
  for (const victim of victims) {
    for (const subject of subjects) {
      const where = `${subject.name}, ${victim}`;
      const start = performance.now();
      const tell = (seen: string) => {
        if (!flags.verbose) return;
        console.error(`${where}, round ${round}, ${((performance.now() - start) / 1000).toFixed(1)} s: ${seen}`);
      };
      let losses: Losses;
      try {
        losses = await observe(subject, victim, tell);
      } catch (error) {
        failed = true;
        console.error(`${where}, round ${round}:`, error);
        losses = [`not observed: ${messageOf(error).split("\n")[0]}`];
      }
      tell(`=> ${cell([losses])}`);
      cells.set(where, [...cells.get(where) ?? [], losses]);
    }
  }
}
console.log(table(subjects, victims, ({ name }, victim) => cell(cells.get(`${name}, ${victim}`)!)).join("\n"));
Deno.exit(failed ? 1 : 0);
