/** What is measured, in the order in which a round measures it. A new row is a new entry of {@linkcode steps}. */

import * as fds from "../../ffi/fd.ts";
import { Signal } from "../../ffi/signals.ts";
import { isAlive } from "../e2e/proc.ts";
import { within } from "../e2e/until.ts";
import { spawn } from "./children.ts";
import { median } from "./stats.ts";
import type { Subject } from "./subject.ts";

/** A row of the table. */
export interface Row {
  readonly name: string;
  readonly unit: string;
  /** Whether more is better; less is, unless given. */
  readonly moreIsBetter?: boolean;
  /** How many digits its numbers have behind the point; 2 unless given. */
  readonly digits?: number;
}

/** A part of a round. Those after it go on from where it leaves the shim. */
export interface Step {
  readonly rows: readonly Row[];
  /** How often it is done in each round; once unless given. */
  readonly times?: number;
  /** Gives a sample for each of the rows. */
  measure(subject: Subject): Promise<readonly number[]>;
}

/** How much is measured. */
export interface Extent {
  /** What the container writes, in bytes. */
  readonly bytes: number;
}

/** What `--check` looks at. */
export const FIRST_REPLY: Row = { name: "exec to first reply", unit: "ms" };
export const STDOUT: Row = { name: "stdout, 64 KiB writes", unit: "MB/s", moreIsBetter: true, digits: 0 };

/** Calls of which one sample is the median. */
const ROUND_TRIPS = 300;
const EXECS = 3;
const BLOCK = 64 * 1024;
/** How long the slowest shim may take for the bytes, in ms. */
const BYTES_TIMEOUT_MS = 60_000;

/** The steps of a round. */
export function steps({ bytes }: Extent): readonly Step[] {
  return [
    { rows: [FIRST_REPLY], measure: async (subject) => [await subject.startTimed()] },
    {
      rows: [{ name: "private dirty after start", unit: "MiB" }],
      measure: (subject) => Promise.resolve([subject.privateDirty()]),
    },
    {
      rows: [{ name: "ShimInfo round trip, p50", unit: "µs", digits: 0 }],
      measure: async (subject) => [await roundTrip(() => subject.shimPid())],
    },
    {
      rows: [{ name: "create", unit: "ms", digits: 1 }],
      measure: async (subject) => {
        const { paths } = await subject.heldFifos();
        return [await timed(() => subject.create(paths))];
      },
    },
    {
      rows: [{ name: "start", unit: "ms", digits: 1 }],
      measure: async (subject) => [await timed(() => subject.startProcess())],
    },
    {
      rows: [{ name: "State round trip, p50", unit: "µs", digits: 0 }],
      measure: async (subject) => [await roundTrip(() => subject.state())],
    },
    {
      rows: [{ name: "exec of `true`, whole", unit: "ms", digits: 1 }],
      times: EXECS,
      measure: async (subject) => {
        const id = newId();
        const { paths } = await subject.heldFifos(id);
        return [await timed(() => execToEnd(subject, id, ["true"], paths))];
      },
    },
    {
      rows: [STDOUT, { name: "shim's CPU for stdout", unit: "s/GB" }],
      measure: (subject) => output(subject, bytes),
    },
    {
      rows: [{ name: "private dirty after work", unit: "MiB" }],
      measure: (subject) => Promise.resolve([subject.privateDirty()]),
    },
    {
      rows: [{ name: "kill to Wait reply", unit: "ms", digits: 1 }],
      measure: async (subject) => {
        const wait = subject.wait();
        wait.catch(() => {}); // until it is awaited below
        await subject.state(); // the call above has arrived
        return [await timed(() => Promise.all([wait, subject.kill(Signal.SIGKILL)]).then(() => wait))];
      },
    },
    {
      rows: [{ name: "delete", unit: "ms", digits: 1 }],
      measure: async (subject) => [await timed(() => subject.delete())],
    },
    {
      rows: [{ name: "SIGTERM to gone", unit: "ms" }],
      measure: async (subject) => [await timed(() => subject.end("SIGTERM"))],
    },
  ];
}

let ids = 0;

/** A name for a process that no other has. */
function newId(): string {
  return `e${++ids}`;
}

/** In ms. */
async function timed(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

/** The median of calls one after another, in µs. */
async function roundTrip(call: () => Promise<unknown>): Promise<number> {
  const samples: number[] = [];
  for (let i = 0; i < ROUND_TRIPS; i++) samples.push(await timed(call) * 1000);
  return median(samples);
}

async function execToEnd(
  subject: Subject,
  id: string,
  args: readonly string[],
  stdio: Parameters<Subject["exec"]>[2],
): Promise<void> {
  await subject.exec(id, args, stdio);
  await subject.startProcess(id);
  const { status } = await subject.wait(id);
  if (status !== 0) throw new Error(`${args.join(" ")} ended with ${status}`);
  await subject.deleteProcess(id);
}

/**
 * A process of the container that writes, as soon as it is told to, what another process reads as fast as it can.
 *
 * @returns MB/s from that moment to the reader's end of file, and the shim's CPU time in s per GB
 */
async function output(subject: Subject, bytes: number): Promise<readonly [number, number]> {
  const id = newId();
  const fifos = await subject.fifos(id);
  const stdin = subject.hold(fifos.stdin);
  subject.hold(fifos.stderr);
  const report = `${subject.folder}/${id}-read`;
  const read = `LC_ALL=C exec dd of=/dev/null bs=1M <'${fifos.stdout}' 2>'${report}'`;
  const reader = spawn({ args: ["sh", "-c", read], descriptors: [null, null, 2] });
  try {
    await subject.exec(id, ["sh", "-c", `read go; exec dd if=/dev/zero bs=${BLOCK} count=${bytes / BLOCK}`], fifos);
    await subject.startProcess(id);
    const cpu = subject.cpuTime();
    const start = performance.now();
    fds.write(stdin, new TextEncoder().encode("\n"));
    await within("the end of the output", reader.status, BYTES_TIMEOUT_MS);
    const seconds = (performance.now() - start) / 1000;
    const used = subject.cpuTime() - cpu;
    const said = await Deno.readTextFile(report);
    if (!said.includes(`\n${bytes} bytes `)) {
      throw new Error(`${bytes} bytes were written, but the reader says ${said}`);
    }
    await subject.wait(id);
    await subject.deleteProcess(id);
    return [bytes / 1e6 / seconds, used / (bytes / 1e9)];
  } finally {
    if (isAlive(reader.pid)) Deno.kill(reader.pid, "SIGKILL");
  }
}
