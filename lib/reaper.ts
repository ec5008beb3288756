/** The children of this process: each is reaped once, and whoever waits for it learns how it ended. */

import { close } from "../ffi/fd.ts";
import { exitStatusOf, openPidfd } from "../ffi/pidfd.ts";
import { Event, type Poller } from "../ffi/poll.ts";
import { type Exit as Reaped, kill, reap, spawn, type SpawnOptions } from "../ffi/process.ts";
import { Signal } from "../ffi/signals.ts";
import { messageOf } from "./errors.ts";
import { sleep, type Timer } from "./async.ts";
import type { Logger } from "./log.ts";

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

/** The status of a process that has ended in a way that nobody can tell. */
const UNKNOWN_STATUS = 255;
/** How often, and after how many ms, the kernel is asked for the status of a process that another is about to reap. */
const STATUS_TRIES = 10;
const STATUS_DELAY_MS = 50;

/** A process whose exit somebody waits for. */
interface Watched {
  readonly handler: ExitHandler;
  /** Tells that it has ended, if no SIGCHLD does; ours to close. */
  readonly pidfd?: number;
}

/** Options of {@link Reaper}. */
export interface ReaperOptions {
  readonly timer: Timer;
  readonly poller: Poller;
  readonly log: Logger;
  /** Told that a child has been started that is waited for. */
  readonly onStart: () => void;
}

/** Reaps children. One for each process: children belong to the process. */
export class Reaper {
  readonly #watched = new Map<number, Watched>();
  /** Exits of children that nobody had asked for when they were reaped, kept while someone may yet ask. */
  readonly #unclaimed = new Map<number, Exit>();
  readonly #options: ReaperOptions;
  #holds = 0;

  constructor(options: ReaperOptions) {
    this.#options = options;
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
      const watched = this.#watched.get(exit.pid);
      if (watched === undefined) {
        if (this.#holds > 0) this.#unclaimed.set(exit.pid, exit);
        continue;
      }
      try {
        this.#tell(watched, exit);
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

  /**
   * Has `handler` told when a process has ended that the OCI runtime has started: at once, when it has already and was
   * held. It should be a child of this process; should another have become its parent, or have reaped it, that is found
   * out by itself, and logged, and its status is the true one where the kernel tells it, and otherwise
   * {@link UNKNOWN_STATUS}.
   */
  watch(pid: number, handler: ExitHandler): void {
    const exit = this.#unclaimed.get(pid);
    if (exit !== undefined) {
      this.#unclaimed.delete(pid);
      handler(exit);
      return;
    }
    let watched: Watched = { handler };
    this.#watched.set(pid, watched);
    try {
      const pidfd = openPidfd(pid);
      if (pidfd === undefined) {
        this.#options.log.warn("a process had been reaped by another before it was known", { pid });
        this.#tell(watched, { pid, status: UNKNOWN_STATUS, at: new Date() });
        return;
      }
      watched = { handler, pidfd };
      this.#watched.set(pid, watched);
      this.#options.poller.add(pidfd, Event.IN, () => {
        // It is our child, as a rule, and this is the same news as SIGCHLD.
        this.collect();
        if (this.#watched.get(pid) === watched) this.#endedElsewhere(pid, watched);
      });
    } catch (error) {
      this.#options.log.warn("a process is watched by SIGCHLD alone", { pid, error: messageOf(error) });
    }
  }

  /** A watched process has ended that is no child of ours, or that something else has reaped. */
  async #endedElsewhere(pid: number, watched: Watched): Promise<void> {
    const at = new Date();
    let status;
    for (let tries = 0; status === undefined && tries < STATUS_TRIES; tries++) {
      if (tries > 0) await sleep(this.#options.timer, STATUS_DELAY_MS);
      // Its parent may have ended too, and left it to us.
      if (this.#watched.get(pid) !== watched) return;
      status = exitStatusOf(watched.pidfd!);
    }
    this.#options.log.warn("a process has ended that another has reaped", { pid, status: status ?? "unknown" });
    this.#tell(watched, { pid, status: status ?? UNKNOWN_STATUS, at });
  }

  #tell({ handler, pidfd }: Watched, exit: Exit): void {
    this.#watched.delete(exit.pid);
    if (pidfd !== undefined) {
      this.#options.poller.remove(pidfd);
      close(pidfd);
    }
    handler(exit);
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
    this.#watched.set(pid, { handler: resolve });
    this.#options.onStart();
    if (options.timeoutMs === undefined) return promise;
    const timer = this.#options.timer(options.timeoutMs, () => kill(pid, Signal.SIGKILL));
    return promise.finally(() => timer[Symbol.dispose]());
  }
}
