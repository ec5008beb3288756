/**
 * When containerd is told of an exit: after the start of the same process, and init's after those of its execs.
 *
 * containerd's runtime v1 publishes the start of a process itself, when Start has been answered, and asks for the process's
 * state next (runtime/v1/linux, services/tasks: Start). So that request proves that the start is out, however busy the machine
 * is. From other clients it may never come: for them an exit is due some time after they have read the answer.
 */

import type { Timer } from "../async.ts";
import type { Call } from "../ttrpc/server.ts";

/** An exit that containerd has not been told of. */
export interface PendingExit {
  /** The container's id, which is init's. */
  readonly containerId: string;
  /** The id of the process. */
  readonly id: string;
  /** As the kernel has it. */
  readonly pid: number;
  /** As a shell has it: 128 and the signal's number, if it was one. */
  readonly status: number;
  /** When it was reaped. */
  readonly at: Date;
}

/** Options of {@link ExitOrder}. */
export interface ExitOrderOptions {
  /** Waits. */
  readonly timer: Timer;
  /** Whether some process that was added to the container runs. */
  readonly hasRunningExec: () => boolean;
  /** Whether a process, by its pid, is the containerd that events go to. */
  readonly isContainerd: (pid: number) => boolean;
  /** Sends an exit. */
  readonly publish: (exit: PendingExit) => void;
}

/** What another process needs to go on. */
export interface ExitOrderRecord {
  /** Exits that are held back. */
  readonly exits: readonly PendingExit[];
  /** Processes that containerd has had started, and has not proved to have told of; and when that was called. */
  readonly starting: readonly { readonly id: string; readonly at: Date }[];
}

/**
 * How long an exit comes after the answer to Start at least, in ms: `containerd publish`, by which Go's shim sends it, takes as
 * long. It is waited for in steps: on a busy machine each of them takes longer, as that program would.
 */
const STEP_MS = 5;
const STEPS = 4;
/** How often the answer is looked for that a client has not read, and the end of what is waited for, in ms. */
const LOOK_MS = 50;
/** How long an exit is held back at most when the proof of the start, or the end of an exec, does not come, in ms. */
const LIMIT_MS = 5000;

/** A Start that has been called; one whose process ends later is soon forgotten. */
interface PendingStart {
  readonly id: string;
  readonly at: Date;
  /** Whether its caller asks for the state when the start is out. */
  readonly isByContainerd: boolean;
  /** On the clock of `performance.now()`; undefined before. */
  answeredAt?: number;
  /** Whether the client has yet to read the answer. */
  isUnread?: () => boolean;
  /** How many steps an exit has waited for it. */
  steps: number;
  isProved: boolean;
}

/** An exit that is held back, and since when, on the clock of `performance.now()`. */
interface HeldExit {
  readonly exit: PendingExit;
  readonly since: number;
}

/** Holds exits back until containerd may be told of them. */
export class ExitOrder {
  readonly #options: ExitOrderOptions;
  readonly #starts = new Set<PendingStart>();
  /** In the order in which they became known. */
  #held: HeldExit[] = [];
  #timer: Disposable | undefined;

  /** Holds nothing back before a process is started. */
  constructor(options: ExitOrderOptions) {
    this.#options = options;
  }

  /** What another process needs to go on: the same objects as long as there is no other. */
  get record(): ExitOrderRecord {
    const starting = [...this.#starts].filter((each) => each.isByContainerd);
    return { exits: this.#held.map(({ exit }) => exit), starting };
  }

  /** Goes on where another process has stopped: as if each start had been answered just now. */
  restore({ exits, starting }: ExitOrderRecord): void {
    const answeredAt = performance.now();
    // It is not written down when a start is out: what was called long ago, is.
    const recent = starting.filter(({ at }) => Date.now() - at.getTime() < LIMIT_MS);
    for (const each of recent) this.#begin({ ...each, isByContainerd: true, answeredAt });
    for (const exit of exits) {
      this.#begin({ id: exit.id, at: exit.at, isByContainerd: false, answeredAt });
      this.exited(exit);
    }
  }

  /**
   * Runs what starts a process. Its exit is held back from now on, until the call has been answered and the start is out; not
   * when the start fails.
   */
  async starting(
    id: string,
    call: Pick<Call, "peer" | "answered" | "isUnread">,
    start: () => Promise<void>,
  ): Promise<void> {
    const { peer } = call;
    const isByContainerd = peer !== undefined && this.#options.isContainerd(peer);
    const pending = this.#begin({ id, at: new Date(), isByContainerd });
    try {
      await start();
    } catch (error) {
      this.#starts.delete(pending);
      this.#settle();
      throw error;
    }
    call.answered.then(() => {
      pending.answeredAt = performance.now();
      pending.isUnread = () => call.isUnread();
      this.#settle();
    });
  }

  #begin(start: Pick<PendingStart, "id" | "at" | "isByContainerd" | "answeredAt">): PendingStart {
    const pending = { ...start, steps: 0, isProved: false };
    this.#starts.add(pending);
    return pending;
  }

  /** To be called when the state of a process is asked for, or something else that is done when its start is out. */
  prove(id: string): void {
    for (const start of this.#starts) {
      if (start.id !== id || start.answeredAt === undefined) continue;
      start.isProved = true;
      this.#settle();
    }
  }

  /** Sends an exit, as soon as that may be. */
  exited(exit: PendingExit): void {
    const since = performance.now();
    for (const start of this.#starts) {
      const isLater = start.id === exit.id && since - (start.answeredAt ?? since) >= STEPS * STEP_MS;
      if (isLater) start.steps = STEPS;
    }
    this.#held.push({ exit, since });
    this.#settle();
  }

  /** Sends what is held back: init's exit last. */
  flush(): void {
    this.#starts.clear();
    const isInit = ({ exit }: HeldExit) => exit.id === exit.containerId;
    const held = this.#held.splice(0);
    for (const { exit } of [...held.filter((each) => !isInit(each)), ...held.filter(isInit)]) {
      this.#options.publish(exit);
    }
    this.stop();
  }

  /** Sends nothing more of what is known by now. */
  stop(): void {
    this.#held.length = 0;
    this.#starts.clear();
    this.#timer?.[Symbol.dispose]();
    this.#timer = undefined;
  }

  /** Sends what may be sent, and looks again later where something may not. */
  #settle(): void {
    if (this.#held.length === 0) return;
    const { publish } = this.#options;
    // Execs' first: init's may be due then.
    for (const isInit of [false, true]) {
      for (const held of this.#held.filter(({ exit }) => (exit.id === exit.containerId) === isInit)) {
        if (!this.#isDue(held)) continue;
        this.#held.splice(this.#held.indexOf(held), 1);
        for (const start of this.#starts) if (start.id === held.exit.id) this.#starts.delete(start);
        publish(held.exit);
      }
    }
    if (this.#held.length > 0) this.#timer ??= this.#wait();
  }

  #wait(): Disposable {
    const waiting = this.#held.flatMap(({ exit }) => this.#startsOf(exit))
      .filter(({ answeredAt, steps }) => answeredAt !== undefined && steps < STEPS);
    return this.#options.timer(waiting.length > 0 ? STEP_MS : LOOK_MS, () => {
      this.#timer = undefined;
      for (const start of waiting) if (!start.isUnread?.()) start.steps++;
      this.#settle();
    });
  }

  #startsOf({ id }: PendingExit): PendingStart[] {
    return [...this.#starts].filter((start) => start.id === id);
  }

  #isDue({ exit, since }: HeldExit): boolean {
    const now = performance.now();
    const isOut = ({ answeredAt, isUnread, steps, isProved, isByContainerd }: PendingStart) => {
      if (answeredAt === undefined) return false;
      if (now - answeredAt >= LIMIT_MS) return true;
      return steps >= STEPS && (isProved || !isByContainerd && !isUnread?.());
    };
    if (!this.#startsOf(exit).every(isOut)) return false;
    if (exit.id !== exit.containerId || now - since >= LIMIT_MS) return true;
    // A process that is being added has no pid yet: its start tells of it.
    const isAdding = [...this.#starts].some(({ id, answeredAt }) => id !== exit.id && answeredAt === undefined);
    return !isAdding && !this.#held.some((each) => each.exit.id !== exit.id) && !this.#options.hasRunningExec();
  }
}
