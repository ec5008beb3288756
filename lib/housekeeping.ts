/** When memory is given back that work has left behind: where nobody waits for it, and never for nothing. */

import type { Timer } from "./async.ts";

/** How long nothing has been done when what was done last is cleaned up after, in ms. */
const QUIET_MS = 500;
/** After how much work in a row it is not waited for any longer. */
const PIECES = 16;

/** Options of {@link Housekeeping}. */
export interface HousekeepingOptions {
  readonly timer: Timer;
  /** Gives memory back, which takes a while. */
  readonly giveBack: () => void;
}

/**
 * Has memory given back when it has been quiet for a while after work, once; and under steady work now and then, at the
 * beginning of a piece of it, which is when a child does it and this process waits.
 */
export class Housekeeping {
  readonly #options: HousekeepingOptions;
  /** Pieces of work since memory was last given back. */
  #pieces = 0;
  /** Whether there has been work since the timer was set. */
  #worked = false;
  #timer: Disposable | undefined;

  constructor(options: HousekeepingOptions) {
    this.#options = options;
  }

  /** To be called when work has just been handed to a child, or has just been done that will not be done again. */
  noteWork(): void {
    this.#worked = true;
    this.#timer ??= this.#wait();
    // Not before whoever has started the child is done with that; more may be started by then.
    if (++this.#pieces === PIECES) queueMicrotask(() => this.#giveBack());
  }

  #wait(): Disposable {
    this.#worked = false;
    return this.#options.timer(QUIET_MS, () => {
      this.#timer = undefined;
      if (this.#worked) this.#timer = this.#wait();
      else if (this.#pieces > 0) this.#giveBack();
    });
  }

  #giveBack(): void {
    this.#pieces = 0;
    this.#options.giveBack();
  }
}
