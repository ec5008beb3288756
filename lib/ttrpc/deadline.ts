/**
 * The longest delay of a timer, in ms: one that is not needed any more stays until it has fired. What is later takes
 * several.
 */
const MAX_TIMER_MS = 10_000;

/** A moment to be told of; made by {@linkcode Deadlines.add}. */
export interface Deadline {
  /** On the clock of `performance.now()`, in ms. */
  readonly atMs: number;
  /** Called once, unless it is removed before. */
  readonly onPassed: () => void;
}

/**
 * Any number of deadlines on one timer.
 *
 * The timer is AbortSignal.timeout, because the first setTimeout of a process makes Deno load its Node compatibility
 * (5 to 13 ms and 2 MB here). Such a timer can't be taken back, so one is shared by as many deadlines as possible; while
 * nobody listens to it, it does not keep the process alive.
 */
export class Deadlines {
  readonly #pending = new Set<Deadline>();
  readonly #onTimer = () => this.#expire();
  #timer: { readonly signal: AbortSignal; readonly atMs: number } | undefined;

  /** Calls `onPassed` once, at `atMs` or soon after, unless the deadline is removed before. */
  add(atMs: number, onPassed: () => void): Deadline {
    const deadline = { atMs, onPassed };
    // A timer that fired while nobody listened is of no more use.
    if (!this.#timer || this.#timer.signal.aborted || atMs < this.#timer.atMs) this.#arm(atMs);
    else if (this.#pending.size === 0) this.#listen();
    this.#pending.add(deadline);
    return deadline;
  }

  /** Makes sure that a deadline is not told of any more. */
  remove(deadline: Deadline): void {
    if (this.#pending.delete(deadline) && this.#pending.size === 0) this.#unlisten();
  }

  #arm(atMs: number): void {
    this.#unlisten();
    const now = performance.now();
    const delay = Math.min(Math.max(0, Math.ceil(atMs - now)), MAX_TIMER_MS);
    this.#timer = { signal: AbortSignal.timeout(delay), atMs: Math.min(atMs, now + delay) };
    this.#listen();
  }

  #listen(): void {
    this.#timer?.signal.addEventListener("abort", this.#onTimer);
  }

  #unlisten(): void {
    this.#timer?.signal.removeEventListener("abort", this.#onTimer);
  }

  #expire(): void {
    this.#timer = undefined;
    const now = performance.now();
    let next = Infinity;
    const passed: Deadline[] = [];
    for (const deadline of this.#pending) {
      if (deadline.atMs <= now) passed.push(deadline);
      else next = Math.min(next, deadline.atMs);
    }
    if (next < Infinity) this.#arm(next);
    for (const deadline of passed.sort((a, b) => a.atMs - b.atMs)) {
      if (!this.#pending.has(deadline)) continue; // removed by one before it
      this.remove(deadline);
      deadline.onPassed();
    }
  }
}
