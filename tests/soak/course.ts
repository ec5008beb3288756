/** What goes on at the same time, for as long as nothing has failed. */

import { messageOf } from "../../lib/errors.ts";
import { Seeded } from "../e2e/seeded.ts";
import { pause } from "../e2e/until.ts";

/** The longest that whoever works rests after each time, in ms: the machine is to have time for hosts. */
const MAX_REST_MS = 1000;

/** Work that is repeated, counted, and ended by a failure. */
export class Course {
  readonly random: Seeded;
  /** How often each kind of work has been done. */
  readonly counts = new Map<string, number>();
  readonly #failures: Error[] = [];
  readonly #begun = performance.now();
  readonly #milliseconds: number;
  #last = "nothing";

  constructor(seed: number, seconds: number) {
    this.random = new Seeded(seed);
    this.#milliseconds = seconds * 1000;
  }

  /** How much of the time has passed: from 0 to 1. */
  get passed(): number {
    return (performance.now() - this.#begun) / this.#milliseconds;
  }

  /** Seconds since the beginning. */
  get seconds(): number {
    return (performance.now() - this.#begun) / 1000;
  }

  get isOver(): boolean {
    return this.passed >= 1 || this.#failures.length > 0;
  }

  /** Says what has happened last that may be the reason of a failure. */
  note(what: string): void {
    this.#last = `${what} at ${this.seconds.toFixed(1)} s`;
  }

  /** Does some work until all is over. */
  async repeat(kind: string, work: (number: number) => Promise<void>, restMs = MAX_REST_MS): Promise<void> {
    for (let number = 1; !this.isOver; number++) {
      const begun = this.seconds;
      try {
        await work(number);
      } catch (cause) {
        const when = `begun at ${begun.toFixed(1)} s, failed at ${this.seconds.toFixed(1)} s, after ${this.#last}`;
        this.#failures.push(new Error(`${kind} ${number}, ${when}: ${messageOf(cause)}`, { cause }));
        return;
      }
      this.counts.set(kind, number);
      await pause(this.random.below(restMs));
    }
  }

  /** @throws {Error} with everything that has failed */
  throwFailures(): void {
    if (this.#failures.length === 0) return;
    throw new Error(this.#failures.map(({ message }) => message).join("\n"), { cause: this.#failures[0]!.cause });
  }
}
