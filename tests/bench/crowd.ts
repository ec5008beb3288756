/** Shims of one kind with an idle container each, among which one is measured. */

import { disown, own } from "./owned.ts";
import { Subject, type SubjectOptions } from "./subject.ts";

/** How many are started, or ended, at the same time. */
const BATCH = 4;

/** Some shims. */
export class Crowd {
  readonly subjects: Subject[] = [];
  readonly #options: SubjectOptions;

  constructor(options: SubjectOptions) {
    this.#options = options;
  }

  /** Starts shims, each with a container that does nothing. */
  async grow(count: number): Promise<void> {
    await inBatches(Array.from({ length: count }), async () => {
      const subject = own(new Subject(this.#options));
      this.subjects.push(subject);
      await subject.prepare();
      await subject.startTimed();
      await subject.runIdle();
    });
  }

  /** Ends all of them. */
  async disperse(): Promise<void> {
    await inBatches(this.subjects.splice(0), disown);
  }
}

async function inBatches<T>(all: readonly T[], action: (each: T) => Promise<void>): Promise<void> {
  const left = [...all];
  const next = async () => {
    while (left.length > 0) await action(left.shift()!);
  };
  await Promise.all(Array.from({ length: BATCH }, next));
}
