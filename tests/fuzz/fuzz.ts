/** Sends cases to a shim, and fails when anybody else could notice. */

import { messageOf } from "../../lib/errors.ts";
import { IS_OURS, REPOSITORY, SHIM } from "../e2e/env.ts";
import { type Case, makeCase } from "./case.ts";
import { Player } from "./player.ts";
import { concat } from "../../lib/bytes.ts";
import { describe, load, save } from "./report.ts";
import { type Subject, withSubject } from "./subject.ts";
import { execOf, framesOf } from "./traffic.ts";

/** Options of {@linkcode fuzz}. */
export interface FuzzOptions {
  readonly seed: number;
  /** How many cases there are at most. */
  readonly cases: number;
  /** For how long cases are begun with. */
  readonly seconds: number;
  /** The number of the only case, if there is one. */
  readonly only?: number | undefined;
  /** Methods that are not called. */
  readonly without: readonly string[];
  /** A file with the cases, instead of the seed's. */
  readonly replay?: string | undefined;
}

/** How many connections there are at a time. */
const WORKERS = 32;

/** After how many cases it is looked whether all is well. */
const BATCH = 1000;

/** After how many cases a shim has seen everything that it keeps something of, and how many a run has that tells how much. */
const WARM_UP = 20_000;
const LONG_RUN = 100_000;

/** Where cases are written that have done harm. */
const HARM_FILE = `${REPOSITORY}/build/fuzz.json`;

/** How many ms pass between two lines about how far it has got. */
const TELL_MS = 10_000;

/** Something has been noticed. */
class Harm extends Error {
  override readonly name = "Harm";
  /** The cases that may have done it. */
  readonly cases: readonly Case[];

  constructor(message: string, cases: readonly Case[], cause?: unknown) {
    super(message, { cause });
    this.cases = cases;
  }
}

/**
 * Runs cases against the shim under test.
 *
 * @throws {Error} which names the case that has done harm, as far as that can be found out
 */
export async function fuzz(options: FuzzOptions): Promise<void> {
  const { seed, replay, only, cases, seconds } = options;
  console.log(
    `seed ${seed}, ${replay ?? (only === undefined ? `up to ${cases} cases, or ${seconds} s` : `case ${only}`)}`,
  );
  try {
    await withSubject((subject) => new Run(subject, options).run());
  } catch (error) {
    if (!(error instanceof Harm)) throw error;
    throw await explain(error, options);
  }
}

/** Finds out which case has done harm, by doing one after the other, and says so. */
async function explain(harm: Harm, { seed, without, replay }: FuzzOptions): Promise<Error> {
  let { cases } = harm;
  if (cases.length > 1) {
    console.log(`${harm.message}; it is one of ${cases.length} cases: looking for it`);
    try {
      await withSubject((subject) => playOneByOne(subject, cases));
    } catch (error) {
      if (error instanceof Harm) cases = error.cases;
    }
  }
  save(HARM_FILE, cases);
  const [first] = cases;
  const what = cases.length === 1 && first !== undefined
    ? describe(first)
    : `it takes more than one of the cases ${first?.number} to ${cases.at(-1)?.number}`;
  const left = without.length > 0 ? ` --without ${without}` : "";
  const again = replay === undefined && cases.length === 1 ? `--seed ${seed} --case ${first?.number}${left}, or ` : "";
  return new Error(
    `seed ${seed}: ${harm.message}\n${what}\nTo see it again: deno task fuzz ${again}--replay ${HARM_FILE}`,
    { cause: harm.cause },
  );
}

async function playOneByOne(subject: Subject, cases: readonly Case[]): Promise<void> {
  const player = new Player(subject.shim.socketPath, IS_OURS);
  for (const each of cases) {
    try {
      await player.play(each);
      player.close();
      await subject.deleteExecs(execsOf(each));
      await subject.expectWell();
    } catch (error) {
      throw new Harm(messageOf(error), [each], error);
    }
  }
}

/** The ids of the execs that a case may register. */
function execsOf({ chunks }: Case): string[] {
  return framesOf(concat(chunks)).map(execOf).filter((id) => id !== undefined);
}

/** One run. */
class Run {
  readonly #subject: Subject;
  readonly #options: FuzzOptions;
  readonly #player: Player;
  readonly #end: number;
  readonly #saved: readonly Case[] | undefined;
  readonly #last: number;
  #next: number;
  #first: number;

  constructor(subject: Subject, options: FuzzOptions) {
    const { seconds, cases, only, replay } = options;
    this.#subject = subject;
    this.#options = options;
    this.#player = new Player(subject.shim.socketPath, IS_OURS);
    this.#end = performance.now() + seconds * 1000;
    this.#saved = replay === undefined ? undefined : load(replay);
    this.#first = this.#next = only ?? 0;
    this.#last = only === undefined ? this.#saved?.length ?? cases : only + 1;
  }

  async run(): Promise<void> {
    const subject = this.#subject;
    const start = performance.now();
    await subject.expectWell();
    const isLong = this.#last - this.#next >= LONG_RUN;
    let before = subject.usage();
    let told = start;
    let playedMs = 0;
    let isWarm = false;
    while (this.#next < this.#last && performance.now() < this.#end) {
      const batchStart = performance.now();
      await this.#batch();
      playedMs += performance.now() - batchStart;
      if (isLong && !isWarm && this.#count >= WARM_UP) {
        isWarm = true;
        await subject.rest();
        before = { ...before, memory: subject.usage().memory };
      }
      if (performance.now() - told < TELL_MS) continue;
      told = performance.now();
      console.log(`${this.#count} cases, ${this.#rate(playedMs)}`);
    }
    const lasted = `${((performance.now() - start) / 1000).toFixed(1)} s`;
    await subject.expectNoMoreThan(before, isWarm);
    const { memory } = subject.usage();
    const lines = await subject.end();
    console.log(
      [
        `${SHIM.name}, ${subject.description}: ${this.#count} cases in ${lasted}, ${this.#rate(playedMs)}`,
        `${subject.execsLeft} execs of theirs deleted`,
        // Of a short run it has not been waited for that memory is given back.
        ...isWarm ? [`private memory ${before.memory} KiB after ${WARM_UP} cases, ${memory} KiB in the end`] : [],
        `the container has printed ${lines} lines, all there`,
      ].join("; "),
    );
  }

  get #count(): number {
    return this.#next - this.#first;
  }

  #rate(ms: number): string {
    return `${Math.round(this.#count / ms * 1000)} cases/s`;
  }

  #case(number: number): Case {
    return this.#saved?.[number] ?? makeCase(this.#options.seed, number, this.#options.without);
  }

  /** Plays some cases, and looks whether all is well. */
  async #batch(): Promise<void> {
    const subject = this.#subject;
    const end = Math.min(this.#last, this.#next + BATCH);
    const played: Case[] = [];
    const execs = new Set<string>();
    let isOver = false;
    const work = async () => {
      while (!isOver && this.#next < end) {
        const each = this.#case(this.#next++);
        played.push(each);
        for (const id of execsOf(each)) execs.add(id);
        try {
          await this.#player.play(each);
        } catch (error) {
          isOver = true;
          if (subject.isAlive) throw new Harm(messageOf(error), [each], error);
        }
        if (!subject.isAlive) isOver = true;
      }
    };
    await Promise.all(Array.from({ length: WORKERS }, work));
    this.#player.close();
    try {
      if (subject.isAlive) {
        await subject.deleteExecs(execs);
        await subject.expectWell();
        return;
      }
    } catch (error) {
      throw new Harm(messageOf(error), played, error);
    }
    throw new Harm("a process of the shim's has ended", played.slice(-2 * WORKERS));
  }
}
