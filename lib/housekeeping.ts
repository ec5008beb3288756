/** When memory is given back that work has left behind: where nobody waits for it, and never for nothing. */

import type { Timer } from "./async.ts";

/** How long nothing has been done when what was done last is cleaned up after, in ms. */
const QUIET_MS = 500;
/** After how many children in a row it is not waited for any longer. */
const CHILDREN = 16;

/** Options of {@link Housekeeping}. */
export interface HousekeepingOptions {
  /** Waits for quiet. */
  readonly timer: Timer;
  /** Gives memory back, which takes a while. */
  readonly giveBack: () => void;
}

/**
 * Has memory given back when it has been quiet for a while after work, once; and under steady work now and then, when
 * a child has just been started, which does it while this process waits.
 */
export class Housekeeping {
  readonly #options: HousekeepingOptions;
  /** Whether there has been work, and how many children, since memory was last given back. */
  #isDirty = false;
  #children = 0;
  /** Whether there has been work since the timer was set. */
  #worked = false;
  #timer: Disposable | undefined;

  /** Nothing is given back before there has been work. */
  constructor(options: HousekeepingOptions) {
    this.#options = options;
  }

  /** To be called when work has been done that leaves memory behind. */
  noteWork(): void {
    this.#worked = this.#isDirty = true;
    this.#timer ??= this.#wait();
  }

  /** To be called when work has just been handed to a child, which is waited for. */
  noteChild(): void {
    this.noteWork();
    // Not before whoever has started the child is done with that; more may be started by then.
    if (++this.#children === CHILDREN) queueMicrotask(() => this.#giveBack());
  }

  #wait(): Disposable {
    this.#worked = false;
    return this.#options.timer(QUIET_MS, () => {
      this.#timer = undefined;
      if (this.#worked) this.#timer = this.#wait();
      else if (this.#isDirty) this.#giveBack();
    });
  }

  #giveBack(): void {
    this.#isDirty = false;
    this.#children = 0;
    this.#options.giveBack();
  }
}
