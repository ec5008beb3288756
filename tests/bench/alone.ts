/** What is measured with one shim alive, and, of memory, with one of each kind. */

import { type Bench, holder, noting, subjectRound } from "./bench.ts";
import { Crowd } from "./crowd.ts";
import { type Daemon, RUNTIMES } from "./daemon.ts";
import { EmptyProgram } from "./floor.ts";
import { AFTER_START, type Holder, measureMemory, MEMORY_ROWS } from "./memory.ts";
import { disown, own } from "./owned.ts";
import { type Row, type Step, timed, type Wanted } from "./row.ts";
import { AROUND, FIRST_REPLY, QUICK_IN_HOST, RUN, RUNS, steps, stepsAround } from "./rows.ts";
import { runRound } from "./round.ts";

/**
 * A round of each, in turn, so that what changes on the machine changes for all; and each but Go's, which is between ours in
 * a host and ours alone, is as often the first. The host has another container all the time.
 */
export async function measureRounds(bench: Bench): Promise<void> {
  const { extent: { rounds, warmUps, host }, competitors: [ours, go], hosted, say } = bench;
  const inHost: Wanted = (row) => host.isWhole || QUICK_IN_HOST.has(row);
  const all = steps(bench.extent);
  for (let i = -warmUps; i < rounds; i++) {
    const keep = i >= 0;
    say(keep ? `round ${i + 1} of ${rounds}` : "warm-up");
    const order = [hosted, go, ours];
    for (const competitor of i % 2 === 0 ? order : order.reverse()) {
      const wanted = competitor === hosted || host.isOnly ? inHost : () => true;
      const round = { competitor, alive: 1, keep, wanted };
      await subjectRound(bench, { ...round, steps: all });
      if (bench.wanted(AROUND) && wanted(AROUND)) await subjectRound(bench, { ...round, steps: stepsAround });
    }
    if (host.isOnly) continue;
    await floorRound(bench, FIRST_REPLY, keep);
    await v2Round(bench, ours.daemon, keep);
  }
}

/** The start of an empty program, for a row that has that in it. */
export function floorRound({ emptyProgram, wanted, results }: Bench, row: Row, keep: boolean): Promise<void> {
  return runRound({
    steps: [{ rows: [row], measure: async (program: EmptyProgram) => [await program.startTimed()] }],
    wanted,
    keep,
    results: (row) => results.of(1, "empty Deno", row),
    begin: () => new EmptyProgram(emptyProgram),
  });
}

const v2Steps: readonly Step<{ readonly daemon: Daemon; remove(): Promise<void> }>[] = [
  { rows: [RUN], times: RUNS, measure: async ({ daemon }) => [await timed(() => daemon.run(RUNTIMES.v2))] },
];

function v2Round({ wanted, results }: Bench, daemon: Daemon, keep: boolean): Promise<void> {
  return runRound({
    steps: v2Steps,
    wanted,
    keep,
    results: (row) => results.of(1, "v2 shim", row),
    // The daemon is not the round's.
    begin: () => ({ daemon, remove: () => Promise.resolve() }),
  });
}

/** One shim of each kind at a time, so that none shares its pages with another of its kind. */
export async function measureMemoryAlone(bench: Bench): Promise<void> {
  const { extent, competitors, emptyProgram, say } = bench;
  if (!MEMORY_ROWS.some(bench.wanted)) return;
  for (let i = 0; i < extent.work.times; i++) {
    say(`memory and idleness, ${i + 1} of ${extent.work.times}`);
    const crowds = competitors.map((each) => new Crowd(each));
    const program = own(new EmptyProgram(emptyProgram));
    await noting(bench, { alive: 1, contenders: ["ours", "Go"], rows: MEMORY_ROWS }, async () => {
      await Promise.all([...crowds.map((crowd) => crowd.grow(1)), program.startTimed()]);
      const workers = crowds.map(({ subjects }, at) => holder(bench, 1, competitors[at]!.name, subjects[0]!));
      const takeFloor = holder(bench, 1, "empty Deno", program).take;
      const floor: Holder = {
        subject: program,
        take: (row, sample) => row === AFTER_START.privateDirty && takeFloor(row, sample),
      };
      await measureMemory({ idle: [...workers, floor], workers }, extent);
    });
    for (const crowd of crowds) await crowd.disperse();
    await disown(program);
  }
}
