/** The children of one shim: each is reaped once, and whoever waits for it learns how it ended. */

import { close } from "../ffi/fd.ts";
import { exitStatusOf, hasNoPidfds, openPidfd, sendSignal } from "../ffi/pidfd.ts";
import { Errno, SystemError } from "../ffi/libc.ts";
import { Event, type Poller } from "../ffi/poll.ts";
import { type ChildOptions, type Exit as Reaped, kill, parentOf } from "../ffi/process.ts";
import { Signal } from "../ffi/signals.ts";
import { messageOf } from "./errors.ts";
import { sleep, type Timer } from "./async.ts";
import type { Logger } from "./log.ts";

/** A child's end. */
export interface Exit extends Reaped {
  /** When it was reaped. */
  readonly at: Date;
}

/** What a child is started with, and who is told of it. */
export interface StartOptions extends ChildOptions {
  /** Told what its start is numbered with, before it is started: where another process does that. */
  readonly numbered?: (serial: number) => void;
}

/** Options of {@link Reaper.run}. */
export interface RunOptions extends StartOptions {
  /** Told its pid, before its end can be. */
  readonly started?: (pid: number) => void;
  /** Told of its end, before anything is written down about that. */
  readonly onExit?: (exit: Exit) => void;
  /** When it is ended by SIGKILL, in ms. */
  readonly timeoutMs?: number;
}

/** Starts a program and waits for its end. */
export type Run = (options: RunOptions) => Promise<Exit>;

/** Told of an exit, once. */
export type ExitHandler = (exit: Exit) => void;

/** The process whose children these are: this one, or another that starts and reaps them for it. */
export interface Parent {
  /**
   * Starts a child, and calls `started` with its pid before any exit of it is told.
   *
   * @throws {SystemError} when it cannot be started
   */
  spawn(options: StartOptions, started: (pid: number) => void): Promise<void> | void;
  /** Reaps one child that has ended, where it is this process that reaps; the other tells by {@link Reaper.ended}. */
  reap(): Reaped | undefined;
  /** Settled when all children that have ended have been reaped: where that is another's to do. */
  settled?(): Promise<void>;
  /** Whether a process is its child, and has not been reaped: where that is another's to do. */
  isChild?(pid: number): boolean;
  /**
   * Has the exit of a process told that the parent has not started itself, also when that has ended since {@link hold}: where
   * another reaps, which tells only of those that it knows.
   */
  watch?(pid: number): void;
  /** Has a process forgotten that is watched. */
  unwatch?(pid: number): void;
  /** Has the exits of all children kept from now on, for {@link watch}; or forgotten, and no more kept. */
  hold?(holds: boolean): void;
  /** What a child executes to be this executable's entry, whatever has become of the file's name; none, where it has no entry. */
  readonly executable: string | undefined;
  /** How long the news of an exit may be on its way when the process's pidfd has told already, in ms. */
  readonly delayMs: number;
}

/** Children of this process itself, where those of a shim are another's. */
export interface OwnChildren {
  /**
   * Runs a program to its end; gives its exit status.
   *
   * @throws {SystemError} when it cannot be started
   */
  run(options: ChildOptions): Promise<number>;
  /** Settled when a process has ended, whose ever it is. */
  ended(pid: number): Promise<void>;
}

/** How long a child may run where others have hung, once it is limited, in ms. */
const HANGING_LIMIT_MS = 2000;
/** The status of a process that has ended in a way that nobody can tell. */
const UNKNOWN_STATUS = 255;
/** How often, and after how many ms, the kernel is asked for the status of a process that another is about to reap. */
const STATUS_TRIES = 10;
const STATUS_DELAY_MS = 50;

/** A process whose exit somebody waits for. */
interface Watched {
  readonly handler: ExitHandler;
  /** Told instead when nobody will learn of its end any more. */
  readonly abandoned?: (error: Error) => void;
  /** Tells that it has ended, if no SIGCHLD does; ours to close. */
  readonly pidfd?: number;
}

/** Options of {@link Reaper}. */
export interface ReaperOptions {
  /** Ends what takes too long. */
  readonly timer: Timer;
  /** Watches pidfds. */
  readonly poller: Poller;
  /** Told of exits that came in another way than SIGCHLD. */
  readonly log: Logger;
  /** Starts the children, and reaps them. */
  readonly parent: Parent;
  /** Told that a child has been started that is waited for. */
  readonly onStart: () => void;
}

/** Knows the children of a shim. One for each process that has children: they belong to the process. */
export class Reaper {
  readonly #watched = new Map<number, Watched>();
  /** Exits of children that nobody had asked for when they were reaped, kept while someone may yet ask. */
  readonly #unclaimed = new Map<number, Exit>();
  readonly #options: ReaperOptions;
  #holds = 0;
  /** Whether this system has no pidfds: that is found out, and logged, once. */
  #hasNoPidfds = false;
  /** How long a child may run that is waited for, in ms. */
  #limitMs: number | undefined;
  #abandoned: { readonly reason: Error | undefined } | undefined;

  /** Knows of no child yet, whatever the parent has. */
  constructor(options: ReaperOptions) {
    this.#options = options;
  }

  /** Whether their parent has ended, or another process goes on with them: see {@link abandon}. */
  get isAbandoned(): boolean {
    return this.#abandoned !== undefined;
  }

  /** See {@link Parent}. */
  get executable(): string | undefined {
    return this.#options.parent.executable;
  }

  /**
   * Reaps every child that has ended: to be called at each SIGCHLD.
   *
   * @throws what a handler does, after every child has been reaped and every handler told
   */
  collect(): void {
    const { parent } = this.#options;
    const exits: Reaped[] = [];
    for (let ended = parent.reap(); ended !== undefined; ended = parent.reap()) exits.push(ended);
    this.ended(exits);
  }

  /**
   * Tells of children that have ended and been reaped, in this order.
   *
   * @throws what a handler does, after every handler has been told
   */
  ended(exits: readonly Reaped[]): void {
    const at = new Date();
    const errors: unknown[] = [];
    for (const each of exits) {
      const exit = { ...each, at };
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
    const { parent } = this.#options;
    if (this.#holds++ === 0) parent.hold?.(true);
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        // Kept longer, an exit could be taken for that of a later process of the same pid.
        if (--this.#holds > 0) return;
        this.#unclaimed.clear();
        parent.hold?.(false);
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
    if (this.#abandoned !== undefined) return;
    const exit = this.#unclaimed.get(pid);
    if (exit !== undefined) {
      this.#unclaimed.delete(pid);
      handler(exit);
      return;
    }
    let watched: Watched = { handler };
    this.#watched.set(pid, watched);
    this.#options.parent.watch?.(pid);
    if (this.#hasNoPidfds) return;
    try {
      const pidfd = openPidfd(pid);
      if (pidfd === undefined) {
        this.#reaped(pid, watched);
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
      this.#hasNoPidfds = hasNoPidfds(error);
      this.#options.log.warn("a process is watched by SIGCHLD alone", { child: pid, error: messageOf(error) });
    }
  }

  /** A process to be watched has ended and been reaped: by its parent, whose news are on their way, or by another. */
  async #reaped(pid: number, watched: Watched): Promise<void> {
    const { timer, parent, log } = this.#options;
    if (parent.delayMs > 0) await sleep(timer, parent.delayMs);
    if (this.#watched.get(pid) === watched) await this.settled();
    if (this.#watched.get(pid) !== watched) return;
    log.warn("a process had been reaped by another before it was known", { child: pid });
    parent.unwatch?.(pid);
    this.#tell(watched, { pid, status: UNKNOWN_STATUS, at: new Date() });
  }

  /** A watched process has ended that is no child of ours, or that something else has reaped. */
  async #endedElsewhere(pid: number, watched: Watched): Promise<void> {
    const at = new Date();
    let status;
    const { timer, parent } = this.#options;
    if (parent.delayMs > 0) await sleep(timer, parent.delayMs);
    // What the parent knows of it, it has told then.
    if (this.#watched.get(pid) === watched) await this.settled();
    for (let tries = 0; status === undefined && tries < STATUS_TRIES; tries++) {
      if (tries > 0) await sleep(timer, STATUS_DELAY_MS);
      // Its parent may have ended too, and left it to us.
      if (this.#watched.get(pid) !== watched) return;
      if (parent.isChild?.(pid)) {
        // The news will come.
        tries = 0;
        continue;
      }
      status = exitStatusOf(watched.pidfd!);
    }
    this.#options.log.warn("a process has ended that another has reaped", { child: pid, status: status ?? "unknown" });
    parent.unwatch?.(pid);
    this.#tell(watched, { pid, status: status ?? UNKNOWN_STATUS, at });
  }

  #tell(watched: Watched, exit: Exit): void {
    this.#forget(exit.pid, watched);
    watched.handler(exit);
  }

  #forget(pid: number, { pidfd }: Watched): void {
    this.#watched.delete(pid);
    if (pidfd === undefined) return;
    this.#options.poller.remove(pidfd);
    close(pidfd);
  }

  /**
   * Starts a child, and has `handler` told when it has ended; gives its pid.
   *
   * @throws {SystemError} when it cannot be started
   */
  start(options: StartOptions, handler: ExitHandler): Promise<number> {
    return this.#start(options, { handler });
  }

  async #start(options: StartOptions, watched: Watched, onStart?: (pid: number) => void): Promise<number> {
    if (this.#abandoned !== undefined) {
      const { reason } = this.#abandoned;
      // What waits here is done by another process.
      throw reason ?? await new Promise<never>(() => {});
    }
    let started = 0;
    await this.#options.parent.spawn(options, (pid) => {
      this.#watched.set(started = pid, watched);
      onStart?.(pid);
      this.#limit(pid, watched);
    });
    this.#options.onStart();
    return started;
  }

  /**
   * Starts a child and waits for its end.
   *
   * @throws {SystemError} when it cannot be started
   */
  async run(options: RunOptions): Promise<Exit> {
    const { end, watched } = awaited(options.onExit);
    const pid = await this.#start(options, watched, options.started);
    if (options.timeoutMs === undefined) return await end;
    using _timer = this.#options.timer(options.timeoutMs, () => this.#endRun(pid));
    return await end;
  }

  /**
   * Has no child of {@link run} and {@link runOn} run for longer than `ms` from now on: it is ended by SIGKILL. For a shim
   * that ends: one that hangs is not to keep it from that, nor to be left.
   */
  limitRuns(ms: number): void {
    this.#limitMs = ms;
    for (const [pid, watched] of this.#watched) this.#limit(pid, watched);
  }

  #limit(pid: number, watched: Watched): void {
    // Others are not run to their end.
    if (this.#limitMs === undefined || watched.abandoned === undefined) return;
    this.#options.timer(this.#limitMs, () => {
      if (this.#watched.get(pid) !== watched) return;
      this.#options.log.warn("a command hangs and is ended", { child: pid });
      this.#endRun(pid);
      // The next one is likely to hang as well.
      this.#limitMs = Math.min(this.#limitMs!, HANGING_LIMIT_MS);
    });
  }

  /** Ends every child of {@link run} and {@link runOn}, by SIGKILL: it is not to outlive the shim. */
  endRuns(): void {
    for (const [pid, { abandoned }] of this.#watched) if (abandoned !== undefined) this.#endRun(pid);
  }

  #endRun(pid: number): void {
    try {
      this.kill(pid, Signal.SIGKILL);
    } catch (error) {
      // Its end is on its way.
      if (!(error instanceof SystemError) || error.errno !== Errno.ESRCH) throw error;
    }
  }

  /**
   * Waits for the end of a child that another process has had started, and whose exit had not been dealt with when this one
   * began.
   *
   * @param onExit told of it, before anything is written down about that
   */
  runOn(pid: number, onExit: (exit: Exit) => void): Promise<Exit> {
    const { end, watched } = awaited(onExit);
    this.#watched.set(pid, watched);
    this.#limit(pid, watched);
    if (this.#options.parent.isChild?.(pid) !== true) this.#mayBeUnknown(pid, watched);
    return end;
  }

  /** A child that is waited for has been reaped: as a rule its parent is about to tell of it. */
  async #mayBeUnknown(pid: number, watched: Watched): Promise<void> {
    await this.settled();
    if (this.#watched.get(pid) !== watched) return;
    this.#options.log.warn("a command has ended in a way that nobody knows", { child: pid });
    this.#tell(watched, { pid, status: UNKNOWN_STATUS, at: new Date() });
  }

  /**
   * Settled when all children that have ended have been reaped, as soon as it is written down that they have: the parent may be
   * killed then, and nothing stays for a process above it that does not reap.
   */
  settled(): Promise<void> {
    return this.#options.parent.settled?.() ?? Promise.resolve();
  }

  /** Whether a process is a child, not reaped, that nobody has started or watches. */
  isStray(pid: number): boolean {
    if (this.#watched.has(pid)) return false;
    return this.#options.parent.isChild?.(pid) ?? parentOf(pid) === Deno.pid;
  }

  /** Exits that nobody has asked for yet, and that somebody may ask for. */
  get unclaimed(): Exit[] {
    return [...this.#unclaimed.values()];
  }

  /** Takes over exits that another process has been told of, and that somebody may ask for. */
  inherit(unclaimed: readonly Exit[]): void {
    for (const each of unclaimed) this.#unclaimed.set(each.pid, each);
  }

  /**
   * Sends a signal to a process that is watched, or that was started here; it is never another of the same pid. Nothing, when
   * it has ended and that has not been told yet.
   *
   * @throws {SystemError} ESRCH when there is no such process
   */
  kill(pid: number, signal: number): void {
    if (this.#abandoned !== undefined) throw new SystemError("kill of process", Errno.ESRCH, pid);
    const watched = this.#watched.get(pid);
    const { parent } = this.#options;
    if (watched?.pidfd === undefined) {
      // Another that reaps may have done so, and the pid be somebody else's: its end is about to be told.
      if (watched === undefined || parent.isChild?.(pid) !== false) kill(pid, signal);
      return;
    }
    try {
      sendSignal(watched.pidfd, signal);
    } catch (error) {
      // The same.
      if (parent.isChild === undefined || !(error instanceof SystemError && error.errno === Errno.ESRCH)) throw error;
    }
  }

  /**
   * Knows of no child any more. Whoever waits for one of {@link run} is told so, and whoever starts another.
   *
   * @param reason why: their parent has ended; nobody is told anything, and waits for ever, when another process goes on
   */
  abandon(reason: Error | undefined): void {
    this.#abandoned = { reason };
    for (const [pid, watched] of [...this.#watched]) {
      this.#forget(pid, watched);
      if (reason !== undefined) watched.abandoned?.(reason);
    }
  }
}

/** A process whose end is waited for, and that end. */
function awaited(onExit?: ExitHandler): { readonly end: Promise<Exit>; readonly watched: Watched } {
  const { promise, resolve, reject } = Promise.withResolvers<Exit>();
  const handler = (exit: Exit) => {
    onExit?.(exit);
    resolve(exit);
  };
  return { end: promise, watched: { handler, abandoned: reject } };
}
