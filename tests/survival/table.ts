/** The table: who is killed, and what is lost with each shim. */

import { type Losses, type Victim, VICTIMS } from "./scene.ts";
import type { Subject } from "./subjects.ts";

/** What a cell says of several rounds. */
export function cell(rounds: readonly Losses[]): string {
  const losses = rounds.flatMap((each) => each ?? []);
  if (rounds.every((each) => each === undefined)) return "–";
  if (losses.length === 0) return "nothing";
  return [...new Set(losses)].map((loss) => {
    const count = losses.filter((each) => each === loss).length;
    return count === rounds.length ? loss : `${loss} (${count} of ${rounds.length} times)`;
  }).join("; ");
}

/** The table's lines, Markdown. */
export function table(
  subjects: readonly Subject[],
  victims: readonly Victim[],
  cellOf: (subject: Subject, victim: Victim) => string,
): string[] {
  return [
    ["SIGKILL to", ...subjects.map(({ head }) => head)],
    ["---", ...subjects.map(() => "---")],
    ...victims.map((victim) => [VICTIMS.get(victim)!, ...subjects.map((subject) => cellOf(subject, victim))]),
  ].map((row) => `| ${row.join(" | ")} |`);
}
