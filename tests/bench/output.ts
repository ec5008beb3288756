/** A container's output: how fast it is moved, and what that costs the shim. */

import * as fds from "../../ffi/fd.ts";
import { within } from "../e2e/until.ts";
import { type Child, killIfAlive, spawn } from "./children.ts";
import type { Extent } from "./extent.ts";
import { newId, type Row, type Step } from "./row.ts";
import { openBothEnds, type Paths, type Subject } from "./subject.ts";
import { growth } from "./usage.ts";

/** Sizes of what a container writes at once, in bytes. */
const LARGE = 64 * 1024;
const SMALL = 100;
const MANY_STREAMS = 16;
/** How many of the small blocks dd takes at once, so that hardly any of its time goes into reading zeros. */
const SMALL_READ_AHEAD = 640;
/** How long the slowest shim may take for the bytes, in ms. */
const BYTES_TIMEOUT_MS = 120_000;
/** What a terminal shows besides: the line that the process waits for, typed. */
const ECHO_BYTES = "\r\n".length;

/** What is written, to where. */
export interface Flow {
  readonly terminal: boolean;
  /** How many processes write at the same time, each to a FIFO of its own. */
  readonly streams: number;
  /** What each writes at once, in bytes. */
  readonly block: number;
  /** What all write together, in bytes. */
  readonly bytes: number;
}

/** A flow's two rows: the speed, and the shim's CPU time. */
function rowsOf({ terminal, streams, block }: Omit<Flow, "bytes">): readonly [Row, Row] {
  const what = terminal ? "terminal" : "stdout";
  const how = `${streams === 1 ? "" : `${streams} streams, `}${block === LARGE ? "64 KiB" : `${block} B`} writes`;
  return [
    { name: `${what}, ${how}`, unit: "MB/s", moreIsBetter: true, digits: block === LARGE && !terminal ? 0 : 1 },
    { name: `CPU for ${what}, ${how}`, unit: "s/GB" },
  ];
}

const kinds = [false, true].flatMap((terminal) =>
  [1, MANY_STREAMS].flatMap((streams) =>
    [LARGE, SMALL].map((block) => {
      const kind = { terminal, streams, block };
      return { ...kind, rows: rowsOf(kind) };
    })
  )
);

/** The rows of all flows, those for the speed and those for the CPU time. */
export const FLOW_ROWS: {
  readonly speed: Readonly<Record<"stdout" | "terminal", readonly Row[]>>;
  readonly cpu: Readonly<Record<"stdout" | "terminal", readonly Row[]>>;
} = {
  speed: { stdout: rowsFor(false, 0), terminal: rowsFor(true, 0) },
  cpu: { stdout: rowsFor(false, 1), terminal: rowsFor(true, 1) },
};

/** A single stream with large writes comes first. */
function rowsFor(terminal: boolean, at: 0 | 1): Row[] {
  return kinds.filter((each) => each.terminal === terminal).map(({ rows }) => rows[at]);
}

/** The steps: the shim has a container that runs. */
export function outputSteps({ bytes }: Extent): Step<Subject>[] {
  return kinds.map(({ rows, ...kind }) => {
    const size = kind.terminal
      ? (kind.block === LARGE ? bytes.terminalLarge : bytes.terminalSmall)
      : (kind.block === LARGE ? bytes.large : bytes.small);
    return { rows, measure: (subject) => flow(subject, { ...kind, bytes: size }) };
  });
}

/** Single large writes of a pipe. */
export function largeFlow(bytes: number): Flow {
  return { terminal: false, streams: 1, block: LARGE, bytes };
}

/**
 * Processes of the container write, as soon as they are told to, what as many other processes read as fast as they can.
 *
 * @returns MB/s from that moment to the last reader's end of file, and the shim's CPU time in s per GB
 */
export async function flow(subject: Subject, { streams, ...kind }: Flow): Promise<readonly [number, number]> {
  const readAhead = kind.block === SMALL ? SMALL_READ_AHEAD : 1;
  const reads = Math.floor(kind.bytes / streams / kind.block / readAhead);
  const all: Stream[] = [];
  try {
    for (let i = 0; i < streams; i++) {
      const id = newId();
      const stream = new Stream(subject, id, await subject.fifos(id));
      all.push(stream);
      await stream.start({ ...kind, readAhead, reads });
    }
    const cpu = subject.cpuTime();
    const start = performance.now();
    for (const each of all) each.go();
    await within("the end of the output", Promise.all(all.map((each) => each.read())), BYTES_TIMEOUT_MS);
    const seconds = (performance.now() - start) / 1000;
    const used = growth(cpu, subject.cpuTime());
    for (const each of all) await each.end();
    const bytes = reads * readAhead * kind.block * streams;
    return [bytes / 1e6 / seconds, used / (bytes / 1e9)];
  } finally {
    for (const each of all) each.close();
  }
}

/** A process of the container that writes, and another that reads. */
class Stream {
  readonly #subject: Subject;
  readonly #id: string;
  readonly #paths: Paths;
  /** Both ends of stdin, and of stderr where there is one. */
  readonly #held: number[];
  readonly #report: string;
  #reader: Child | undefined;
  #expected = 0;

  constructor(subject: Subject, id: string, paths: Paths) {
    this.#subject = subject;
    this.#id = id;
    this.#paths = paths;
    this.#report = `${subject.folder}/${id}-read`;
    this.#held = [openBothEnds(paths.stdin), openBothEnds(paths.stderr)];
  }

  /** Starts both; the writer waits for a line. */
  async start(
    { terminal, block, readAhead, reads }: {
      readonly terminal: boolean;
      readonly block: number;
      /** How many blocks it takes at once, and how often. */
      readonly readAhead: number;
      readonly reads: number;
    },
  ): Promise<void> {
    this.#expected = block * readAhead * reads + (terminal ? ECHO_BYTES : 0);
    const { stdin, stdout } = this.#paths;
    const read = `LC_ALL=C exec dd of=/dev/null bs=1M <'${stdout}' 2>'${this.#report}'`;
    this.#reader = spawn({ args: ["sh", "-c", read], descriptors: [null, null, 2] });
    // A terminal's zeros pass as they are; what dd says of them in the end must not be among them.
    const sizes = `ibs=${block * readAhead} obs=${block} count=${reads}`;
    const write = `read go; exec dd if=/dev/zero ${sizes} 2>/dev/null`;
    const stdio = terminal ? { stdin, stdout, terminal } : this.#paths;
    await this.#subject.exec(this.#id, ["sh", "-c", write], stdio);
    await this.#subject.startProcess(this.#id);
  }

  /** Tells the writer to begin. */
  go(): void {
    fds.write(this.#held[0]!, new TextEncoder().encode("\n"));
  }

  /** Waits until all has been read. */
  async read(): Promise<void> {
    await this.#reader!.status;
    const said = await Deno.readTextFile(this.#report);
    if (!said.includes(`\n${this.#expected} bytes `)) {
      throw new Error(`${this.#expected} bytes were written, but the reader says ${said}`);
    }
  }

  /** Waits until the writer has ended, and has the shim forget it. */
  async end(): Promise<void> {
    const { status } = await this.#subject.wait(this.#id);
    if (status !== 0) throw new Error(`the writer ended with ${status}`);
    await this.#subject.deleteProcess(this.#id);
  }

  /** Gives up what this process has of it. */
  close(): void {
    if (this.#reader) killIfAlive(this.#reader.pid);
    this.#held.splice(0).forEach(fds.close);
  }
}
