/** The children of this process: each is reaped once, and whoever waits for it learns how it ended. */

import { type Exit as Reaped, kill, reap, spawn, type SpawnOptions } from "../ffi/process.ts";
import { Signal } from "../ffi/signals.ts";
import type { Timer } from "./async.ts";

/** A child's end. */
export interface Exit extends Reaped {
  /** When it was reaped. */
  readonly at: Date;
}

/** Options of {@link Reaper.run}. */
export interface RunOptions extends SpawnOptions {
  /** When it is ended by SIGKILL, in ms. */
  readonly timeoutMs?: number;
}

/** Starts a program and waits for its end. */
export type Run = (options: RunOptions) => Promise<Exit>;

/** Told of an exit, once. */
export type ExitHandler = (exit: Exit) => void;

/** Reaps children. One for each process: children belong to the process. */
export class Reaper {
  readonly #handlers = new Map<number, ExitHandler>();
  /** Exits of children that nobody had asked for when they were reaped, kept while someone may yet ask. */
  readonly #unclaimed = new Map<number, Exit>();
  readonly #timer: Timer;
  #holds = 0;

  /** @param timer for {@link run} */
  constructor(timer: Timer) {
    this.#timer = timer;
  }

  /**
   * Reaps every child that has ended: to be called at each SIGCHLD.
   *
   * @throws what a handler does, after every child has been reaped and every handler told
   */
  collect(): void {
    const at = new Date();
    const exits: Exit[] = [];
    for (let ended = reap(); ended !== undefined; ended = reap()) exits.push({ ...ended, at });
    const errors: unknown[] = [];
    for (const exit of exits) {
      const handler = this.#handlers.get(exit.pid);
      if (handler === undefined) {
        if (this.#holds > 0) this.#unclaimed.set(exit.pid, exit);
        continue;
      }
      this.#handlers.delete(exit.pid);
      try {
        handler(exit);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }

  /**
   * Keeps the exits of children whose pid is not known yet, until disposed of: a process that runc has started may end
   * before runc has written down its pid.
   */
  hold(): Disposable {
    this.#holds++;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        // Kept longer, an exit could be taken for that of a later process of the same pid.
        if (--this.#holds === 0) this.#unclaimed.clear();
      },
    };
  }

  /** Has `handler` told when the child `pid` has ended: at once, when it has already and was held. */
  watch(pid: number, handler: ExitHandler): void {
    const exit = this.#unclaimed.get(pid);
    if (exit === undefined) {
      this.#handlers.set(pid, handler);
    } else {
      this.#unclaimed.delete(pid);
      handler(exit);
    }
  }

  /**
   * Starts a child and waits for its end.
   *
   * @throws {SystemError} when it cannot be started
   */
  run(options: RunOptions): Promise<Exit> {
    const { promise, resolve } = Promise.withResolvers<Exit>();
    // Nothing is reaped between these two: reaping waits for its own turn.
    const pid = spawn(options);
    this.watch(pid, resolve);
    if (options.timeoutMs === undefined) return promise;
    const timer = this.#timer(options.timeoutMs, () => kill(pid, Signal.SIGKILL));
    return promise.finally(() => timer[Symbol.dispose]());
  }
}
