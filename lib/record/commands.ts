/**
 * Commands, of the OCI runtime above all, that have been started and whose outcome has not become that of a call: another
 * process that makes the same call again waits for what has been started, and starts nothing twice.
 */

import { SystemError } from "../../ffi/libc.ts";
import type { Exit, RunOptions } from "../reaper.ts";
import type { CommandRecord } from "./record.ts";
import { oneForEach, sameForSame } from "./same.ts";

/** A command, to be known again. */
export interface CommandOptions extends RunOptions {
  /** What it is. */
  readonly key: string;
  /** Whose process it is for: see {@link Commands.settle}. */
  readonly scope: string;
  /** How much is in the runtime's log before it is started, in bytes. */
  readonly logged: number;
}

/** How a command has ended. */
export interface Outcome {
  /** As {@link Exit} has it. */
  readonly status: number;
  /** How much was in the runtime's log before, in bytes. */
  readonly logged: number;
}

/** Where commands are run. */
export interface Runner {
  /** Starts a program, and waits for its end. */
  run(options: RunOptions): Promise<Exit>;
  /** Waits for the end of a child that another process has had started. */
  runOn(pid: number, onExit: (exit: Exit) => void): Promise<Exit>;
}

type Entry =
  & {
    -readonly [K in keyof CommandRecord]: CommandRecord[K];
  }
  & {
    /** Started by another process than this, and not asked for yet. */
    isInherited?: boolean;
    error?: Error;
    /** Its end, where another process has started it. */
    exit?: Promise<Exit>;
  };

/** The commands of one container. */
export class Commands {
  readonly #runner: Runner;
  readonly #entries = new Set<Entry>();

  /**
   * None has been started yet.
   *
   * @param runner starts what has not been started
   */
  constructor(runner: Runner) {
    this.#runner = runner;
  }

  /** Runs a command, or waits for the one that has been started. */
  async run({ key, scope, logged, ...options }: CommandOptions): Promise<Outcome> {
    const inherited = this.#inherited(key, scope);
    if (inherited !== undefined) {
      if (inherited.pid > 0) options.started?.(inherited.pid);
      return await this.#runOn(inherited);
    }
    const entry: Entry = { key, scope, serial: 0, pid: 0, logged, status: undefined };
    this.#entries.add(entry);
    try {
      const { status } = await this.#runner.run({
        ...options,
        numbered: (serial) => entry.serial = serial,
        started: (pid) => {
          entry.pid = pid;
          options.started?.(pid);
        },
        onExit: (exit) => entry.status = exit.status,
      });
      return { status, logged };
    } catch (error) {
      this.#entries.delete(entry);
      throw error;
    }
  }

  async #runOn(entry: Entry): Promise<Outcome> {
    entry.isInherited = false;
    const { logged, error } = entry;
    if (error !== undefined) throw error;
    const status = entry.status ?? (await entry.exit!).status;
    return { status, logged };
  }

  #inherited(key: string, scope: string): Entry | undefined {
    for (const each of this.#entries) {
      if (each.isInherited && each.key === key && each.scope === scope) return each;
    }
    return undefined;
  }

  /** Whether another process has begun with something that is now to be done. */
  hasBegun(key: string, scope: string): boolean {
    return this.#inherited(key, scope) !== undefined;
  }

  /** Whether another process has begun with anything for somebody's process. */
  hasBegunFor(scope: string): boolean {
    for (const each of this.#entries) {
      if (each.isInherited && each.scope === scope) return true;
    }
    return false;
  }

  /** Whether a process is a command. */
  has(pid: number): boolean {
    for (const each of this.#entries) {
      if (each.pid === pid) return true;
    }
    return false;
  }

  /** Notes that something is about to be done that is no command, and of which nobody could tell whether it has been. */
  note(key: string, scope: string): void {
    this.#entries.add({ key, scope, serial: 0, pid: 0, logged: 0, status: undefined });
  }

  /** Forgets what has ended of somebody's process: it is part of what the process is now. */
  settle(scope: string): void {
    for (const each of this.#entries) {
      if (each.scope === scope && !each.isInherited && (each.status !== undefined || each.serial === 0 || each.error)) {
        this.#entries.delete(each);
      }
    }
  }

  /**
   * Takes over what another process has started.
   *
   * @param last its last start of a child, as far as the parent has got with it
   */
  inherit(records: readonly CommandRecord[], last: { serial: number; pid: number; error: number }): void {
    for (const each of records) {
      const entry: Entry = { ...each, isInherited: true };
      if (each.serial > last.serial) continue; // It has not been started, nor will it be.
      if (each.serial === last.serial && each.serial > 0) {
        entry.pid = last.pid;
        if (last.error !== 0) entry.error = new SystemError("start of", last.error, each.key);
      }
      // Now: later it may have ended, and been told of.
      if (entry.pid > 0 && entry.status === undefined) {
        entry.exit = this.#runner.runOn(entry.pid, (exit) => entry.status = exit.status);
        entry.exit.catch(() => {});
      } else if (entry.serial > 0 && entry.status === undefined) {
        entry.error ??= new Error(`it is not known what has become of ${each.key}, which another process has started`);
      }
      this.#entries.add(entry);
    }
  }

  /** Forgets what has been inherited and nobody has asked for. */
  disinherit(): void {
    for (const each of this.#entries) {
      if (each.isInherited) this.#entries.delete(each);
    }
  }

  /** What another process needs, so as not to start them again. */
  get records(): CommandRecord[] {
    return Array.from(this.#entries, (each) => this.#recorded(each)(each.serial, each.pid, each.status));
  }

  readonly #recorded = oneForEach(({ key, scope, logged }: Entry) =>
    sameForSame((serial: number, pid: number, status: number | undefined): CommandRecord => (
      { key, scope, serial, pid, logged, status }
    ))
  );
}
