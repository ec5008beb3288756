/**
 * Measures this project's shim and Debian's Go shim, in turn, both driven by the same client.
 *
 *     deno run -A tests/bench/main.ts [--quick] [--rounds N] [--ours PATH] [--go PATH] [--out FILE] [--check]
 *
 * Prints a table of medians, which --out also writes to a file; --check fails when a ratio is so bad that it cannot be
 * noise. The exit code is 1 then, and when a row could not be measured.
 */

import { folder } from "./folder.ts";
import { parseArgs } from "@std/cli/parse-args";
import { messageOf } from "../../lib/errors.ts";
import { must } from "../e2e/command.ts";
import { OUR_EXECUTABLE } from "../e2e/env.ts";
import { makeRootfs } from "../e2e/rootfs.ts";
import { adoptAll, endAll } from "./children.ts";
import { describeMachine } from "./machine.ts";
import { FIRST_REPLY, type Row, STDOUT, type Step, steps } from "./rows.ts";
import { Subject } from "./subject.ts";
import { errors, type Line, ratio, type Result, table } from "./table.ts";

const MIB = 1 << 20;
const FULL = { rounds: 10, warmUps: 2, bytes: 1024 * MIB };
const QUICK = { rounds: 7, warmUps: 1, bytes: 256 * MIB };

/** What --check refuses: more than this for the first, less than this for the second. */
const FIRST_REPLY_RATIO_LIMIT = 6.0;
const STDOUT_RATIO_LIMIT = 1.0;

/** One of the two shims. */
interface Contender {
  readonly path: string;
  readonly results: ReadonlyMap<Row, Result>;
}

/** Whether the bench was told to stop. */
let interrupted = false;
const interruption = Promise.withResolvers<never>();
interruption.promise.catch(() => {});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.addSignalListener(signal, () => {
    interrupted = true;
    interruption.reject(new Error(`Interrupted by ${signal}`));
  });
}

// It belongs to a row that says so itself, or to a round that was interrupted: what was started must still be ended.
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  if (!interrupted) console.error(`A rejection that nobody awaited: ${messageOf(event.reason)}`);
});

/** Takes one shim through all steps; a row that fails once is left out from then on. */
async function round(contender: Contender, rootfs: string, all: readonly Step[], keep: boolean): Promise<void> {
  const { path, results } = contender;
  const subject = new Subject(path, rootfs);
  try {
    await subject.prepare();
    for (const { rows, times = 1, measure } of all) {
      if (rows.some((row) => results.get(row)!.error !== undefined)) continue;
      try {
        if (results.get(FIRST_REPLY)!.error !== undefined) throw new Error("there is no shim to measure");
        for (let i = 0; i < times && !interrupted; i++) {
          const samples = await measure(subject);
          if (keep) rows.forEach((row, at) => results.get(row)!.samples.push(samples[at]!));
        }
      } catch (error) {
        const output = subject.output().trim();
        for (const row of rows) results.get(row)!.error = messageOf(error) + (output && `; the shim said: ${output}`);
      }
    }
  } finally {
    if (!interrupted) await subject.remove();
    else leftBehind.push(subject);
  }
}

/** Of a round that was interrupted: they are removed when all processes have ended. */
const leftBehind: Subject[] = [];

/** @returns what is wrong with the ratios */
function check(lines: readonly Line[]): string[] {
  const ratioOf = (row: Row) => ratio(lines.find((line) => line.row === row)!);
  const [firstReply, stdout] = [ratioOf(FIRST_REPLY), ratioOf(STDOUT)];
  const wrong: string[] = [];
  if (firstReply !== undefined && firstReply > FIRST_REPLY_RATIO_LIMIT) {
    wrong.push(`${FIRST_REPLY.name}: ${firstReply.toFixed(2)} times Go's, over ${FIRST_REPLY_RATIO_LIMIT}`);
  }
  if (stdout !== undefined && stdout < STDOUT_RATIO_LIMIT) {
    wrong.push(`${STDOUT.name}: ${stdout.toFixed(2)} times Go's, under ${STDOUT_RATIO_LIMIT}`);
  }
  return wrong;
}

interface Flags {
  readonly quick: boolean;
  readonly check: boolean;
  readonly ours: string;
  readonly go: string;
  readonly rounds?: string;
  readonly out?: string;
}

async function main(): Promise<number> {
  const flags: Flags = parseArgs(Deno.args, {
    boolean: ["quick", "check"],
    string: ["rounds", "ours", "go", "out"],
    default: { ours: OUR_EXECUTABLE, go: "/usr/bin/containerd-shim" },
    unknown(argument: string) {
      throw new Error(`Cannot measure with ${argument}: there is no such flag`);
    },
  });
  const extent = flags.quick ? QUICK : FULL;
  const rounds = flags.rounds === undefined ? extent.rounds : Number(flags.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`Cannot measure ${flags.rounds} rounds`);

  const machine = await describeMachine();
  const rootfs = `${folder}/rootfs`;
  await makeRootfs(rootfs);
  // What has been written lately is dirty in the page cache, and counts as its mapper's private dirty memory.
  await must(["sync"]);
  adoptAll();

  const all = steps(extent);
  const rows = all.flatMap((step) => step.rows);
  const contender = (path: string): Contender => ({
    path,
    results: new Map(rows.map((row) => [row, { samples: [] }])),
  });
  const [ours, go] = [contender(flags.ours), contender(flags.go)];
  for (let i = -extent.warmUps; i < rounds && !interrupted; i++) {
    console.error(i < 0 ? "warm-up" : `round ${i + 1} of ${rounds}`);
    for (const each of [ours, go]) await Promise.race([round(each, rootfs, all, i >= 0), interruption.promise]);
  }

  const lines = rows.map((row) => ({ row, ours: ours.results.get(row)!, go: go.results.get(row)! }));
  const failures = [...errors(lines), ...flags.check ? check(lines) : []];
  const report = [
    `Medians of ${rounds} rounds in turn, after ${extent.warmUps} to warm up; ${extent.bytes / MIB} MiB of output.`,
    `${machine}\n- ours: ${flags.ours}; Go: ${flags.go}`,
    table(lines),
    ...failures,
  ].join("\n\n");
  console.log(`\n${report}`);
  if (flags.out !== undefined) await Deno.writeTextFile(flags.out, `${report}\n`);
  return failures.length === 0 ? 0 : 1;
}

let code = 1;
try {
  code = await main();
} catch (error) {
  console.error(messageOf(error));
} finally {
  await endAll();
  for (const subject of leftBehind) await subject.remove();
  await Deno.remove(folder, { recursive: true });
}
Deno.exit(code);
