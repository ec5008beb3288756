/** What is measured in a crowd. */

import { pause } from "../e2e/until.ts";
import { type Bench, type Competitor, holder, noting, subjectRound } from "./bench.ts";
import { callStep, STATE } from "./calls.ts";
import { Crowd } from "./crowd.ts";
import type { CrowdExtent } from "./extent.ts";
import { measureMemory, MEMORY_ROWS, SETTLE_MS } from "./memory.ts";
import { medianOf, quotient } from "./results.ts";
import type { Row, Wanted } from "./row.ts";
import { begin, steps } from "./rows.ts";
import { CROWD_COST } from "./targets.ts";

/** How many of a crowd work, when memory after work is looked at. */
const WORKERS = 3;

/** Rounds, and memory, while others of the same kind are alive. */
export async function measureInCrowd(bench: Bench, competitor: Competitor, extent: CrowdExtent): Promise<void> {
  const callRows = new Set(callStep.rows);
  const wanted: Wanted = (row) => bench.wanted(row) && (!extent.callsAlone || callRows.has(row));
  const all = extent.callsAlone ? [...begin, callStep] : steps(bench.extent);
  const rows = [...all.flatMap(({ rows }) => rows), ...MEMORY_ROWS].filter(wanted);
  if (rows.length === 0) return;
  const { alive, rounds } = extent;
  const say = (what: string) => bench.say(`${alive} alive, ${competitor.name}: ${what}`);
  const crowd = new Crowd(competitor);
  await noting(bench, { alive, contenders: [competitor.name], rows }, async () => {
    say("starting them");
    await crowd.grow(alive - 1);
    await pause(SETTLE_MS);
    for (let i = 0; i < rounds; i++) {
      say(`round ${i + 1} of ${rounds}`);
      await subjectRound(bench, { competitor, alive, steps: all, keep: true, wanted });
    }
  });
  if (MEMORY_ROWS.some(wanted)) {
    say("memory and idleness");
    await noting(bench, { alive, contenders: [competitor.name], rows: MEMORY_ROWS }, async () => {
      await crowd.grow(1);
      const idle = crowd.subjects.map((subject) => holder(bench, alive, competitor.name, subject));
      await measureMemory({ idle, workers: idle.slice(-WORKERS) }, bench.extent);
    });
  }
  await crowd.disperse();
}

/** What State costs in a crowd, measured by what it costs alone. */
export function compareWithAlone({ competitors, wanted, results }: Bench, alive: number): void {
  const row: Row = STATE.alone[0];
  if (!wanted(row)) return;
  for (const { name } of competitors) {
    const times = quotient(medianOf(results.of(alive, name, row)), medianOf(results.of(1, name, row)));
    const result = results.of(alive, name, CROWD_COST);
    if (times === undefined) result.error = "State was not measured";
    else result.samples.push(times);
  }
}
