/** What an init process and an exec process have in common. */

import { Errno, SystemError } from "../../ffi/libc.ts";
import { Signal } from "../../ffi/signals.ts";
import type { Exit } from "../reaper.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { within } from "../async.ts";
import type { ProcessRecord, StreamsRecord } from "../record/record.ts";
import { removeIfThere } from "./bundle.ts";
import { ConsoleStdio } from "./console.ts";
import type { Context } from "./context.ts";
import type { PipeBudget } from "./pipe_budget.ts";
import { killError } from "./runtime_errors.ts";
import type { Action, State, StateMachine } from "./state.ts";
import { PipeStdio } from "./stdio.ts";
import type { ProcessStreams, StdioConfig, StdioOptions } from "./streams.ts";

/** How long the end of a process's output is waited for before it is closed, in ms. */
const DRAIN_TIMEOUT_MS = 2000;

/** What a shell adds to the number of the signal that has ended a process. */
const SIGNALLED = 128;

/** What streams need to know of their process's container. */
export type StreamsConfig = Omit<StdioOptions, "context" | "id" | "budget" | "shelf">;

/** How a process ended. */
export type ProcessExit = Pick<Exit, "status" | "at">;

/** The size of a terminal, in characters. */
export interface TerminalSize {
  /** How wide it is. */
  readonly columns: number;
  /** How high it is. */
  readonly rows: number;
}

/** Told that a process of a container has ended, after its state says so. */
export type ExitListener = (process: Process, exit: ProcessExit) => void;

/** The state that a process is in which has been in another when a process before this one has written it down. */
export function stateOf({ state }: Pick<ProcessRecord, "state">): State {
  // It is paused once more.
  return state === "pausing" ? "running" : state;
}

/** A process of a container. */
export abstract class Process {
  /** No other process of the container has it. */
  readonly id: string;
  /** Where its streams go, as containerd has said. */
  readonly stdio: StdioConfig;
  /** The shim's. */
  protected readonly context: Context;
  /** What it may do now. */
  protected readonly machine: StateMachine;
  /** None before its start, and when all are closed. */
  protected streams: ProcessStreams | undefined;
  #pid = 0;
  #stdinClosed = false;
  #exit: ProcessExit | undefined;
  readonly #waiting = new Set<(exit: ProcessExit) => void>();
  #last: Promise<unknown> = Promise.resolve();
  /** Whether its streams have been opened by another process, for a start that goes on here. */
  #hasStreams = false;

  /**
   * A process that has no pid yet.
   *
   * @param machine its states, with the one that it begins in
   */
  constructor(context: Context, id: string, stdio: StdioConfig, machine: StateMachine) {
    this.context = context;
    this.id = id;
    this.stdio = stdio;
    this.machine = machine;
  }

  /** The container that it belongs to. */
  abstract get containerId(): string;

  /** What its container's pipes may hold. */
  protected abstract get budget(): PipeBudget;

  /** What its commands are known by: see {@link Commands}. */
  abstract get scope(): string;

  /** What another process needs to go on with it. */
  protected get processRecord(): ProcessRecord {
    return {
      stdio: this.stdio,
      state: this.machine.state,
      pid: this.#pid,
      exit: this.#exit && { status: this.#exit.status, at: this.#exit.at.getTime() },
      isStdinClosed: this.#stdinClosed,
      streams: this.streams?.record,
    };
  }

  /** Goes on where another process has stopped. */
  protected restoreProcess(record: ProcessRecord, config: StreamsConfig): void {
    const { pid, exit, isStdinClosed, streams } = record;
    this.#pid = pid;
    this.#stdinClosed = isStdinClosed;
    if (exit !== undefined) this.#exit = { status: exit.status, at: new Date(exit.at) };
    if (streams === undefined) return;
    if (pid === 0 && !this.hasBegun) {
      // They were for a start that has not been begun: it opens its own.
      if (streams.folder !== undefined) removeIfThere(streams.folder, { recursive: true });
      return;
    }
    this.#restoreStreams(streams, config);
  }

  #restoreStreams(record: StreamsRecord, config: StreamsConfig): void {
    const { context, id, stdio, budget } = this;
    const options = { ...config, context, id, budget, shelf: context.keeper.place(record.slot) };
    const streams = (stdio.terminal ? ConsoleStdio : PipeStdio).restore(stdio, options, record, this.#stdinClosed);
    this.streams = streams;
    this.#hasStreams = this.#pid === 0;
    if (this.#exit !== undefined) streams.processEnded();
    if (this.#pid === 0) return;
    Promise.resolve(streams.connectOutput()).catch((error) => {
      context.log.error("the output of a process is lost", { process: id, error });
    });
  }

  /** Its pid; 0 before it has one. It keeps it when it has ended. */
  get pid(): number {
    return this.#pid;
  }

  protected set pid(pid: number) {
    this.#pid = pid;
  }

  /** Where it is in its life. */
  get state(): State {
    return this.machine.state;
  }

  /** How it ended, if it has. */
  get exit(): ProcessExit | undefined {
    return this.#exit;
  }

  /** Bytes that have passed through its streams, by name. */
  get moved(): Readonly<Record<string, number>> {
    return this.streams?.moved ?? {};
  }

  /**
   * Settled when it has ended: at once, when it has already.
   *
   * @param givenUp aborted when nobody waits any more: a process may run for years, and is not to know of all who have
   * waited; its reason is what is thrown
   */
  wait(givenUp?: AbortSignal): ProcessExit | Promise<ProcessExit> {
    if (this.#exit !== undefined) return this.#exit;
    return new Promise((resolve, reject) => {
      if (givenUp?.aborted) return reject(givenUp.reason);
      this.#waiting.add(resolve);
      givenUp?.addEventListener("abort", () => {
        this.#waiting.delete(resolve);
        reject(givenUp.reason);
      });
    });
  }

  /** Records how it ended; once is enough. */
  setExited(exit: ProcessExit): void {
    if (this.#exit !== undefined) return;
    // Who learns of the end may look at the output right away, and not wait for what is on its way.
    try {
      this.streams?.processEnded();
    } catch (error) {
      this.context.log.error("output could not be passed on", { process: this.id, error });
    }
    this.#exit = exit;
    if (this.machine.canBecome("stopped")) this.machine.become("stopped");
    for (const resolve of this.#waiting) resolve(exit);
    this.#waiting.clear();
  }

  /** Has it run. */
  abstract start(): Promise<void>;

  /**
   * Sends it a signal.
   *
   * @throws {StatusError} NOT_FOUND when it has ended
   */
  abstract kill(signal: number, all: boolean): Promise<void>;

  /** Ends its standard input, as far as it is held open here, or would be. */
  closeStdin(): void {
    this.#stdinClosed = true;
    this.streams?.closeStdin();
  }

  /**
   * Closes its streams where they are; it is not watched any more.
   *
   * @param isHandedOver whether another process goes on with it
   */
  abandon(isHandedOver: boolean): void {
    if (isHandedOver) this.streams?.handOver();
    // What its loggers do is theirs: nobody waits.
    this.streams?.close().catch(() => {});
  }

  /** The size that its terminal begins with, in characters, as far as somebody has said so. */
  protected size: TerminalSize | undefined;

  /**
   * Sets the size of its terminal, in characters, also of one that it is yet to get; nothing, when it has none.
   *
   * @throws {StatusError} FAILED_PRECONDITION when it has ended
   */
  resize(columns: number, rows: number): void {
    this.machine.require("resize");
    this.size = { columns, rows };
    this.streams?.resize(columns, rows);
  }

  /**
   * Opens the streams that it is to be started with.
   *
   * @param config.uid and `gid` own what the process may want to open again
   * @throws {SystemError | Error} when one cannot be opened
   * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known
   */
  protected async openStreams(config: StreamsConfig): Promise<ProcessStreams> {
    if (this.#hasStreams) {
      this.#hasStreams = false;
      this.#resizeStreams();
      return this.streams!;
    }
    const { context, id, budget } = this;
    const options = { ...config, context, id, budget, shelf: context.keeper.place(this.slot) };
    const streams = await (this.stdio.terminal ? ConsoleStdio : PipeStdio).open(this.stdio, options);
    this.streams = streams;
    // A client may have said so before there was anything to close, or a terminal.
    if (this.#stdinClosed) streams.closeStdin();
    this.#resizeStreams();
    return streams;
  }

  #resizeStreams(): void {
    if (this.size !== undefined) this.streams!.resize(this.size.columns, this.size.rows);
  }

  /** Whether another process has begun with what is done first here. */
  protected get hasBegun(): boolean {
    return this.context.commands.hasBegunFor(this.scope);
  }

  /** Where its descriptors are kept, if that is not any place. */
  protected get slot(): number | undefined {
    return undefined;
  }

  /** Waits for its output to be passed on, but not for long: something else may hold it open. */
  protected drained(): Promise<unknown> {
    return within(this.context.timer, DRAIN_TIMEOUT_MS, this.streams?.drained);
  }

  /** Runs what changes this process one after the other, in the order of the calls. */
  protected serialize<T>(action: Action, run: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(() => {
      // What another process has begun with, was allowed then.
      if (!this.hasBegun) this.machine.require(action);
      return run();
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  /**
   * Sends a signal to its pid, without the runtime. Where a host has died that may have sent it already, only SIGKILL is sent
   * again, which does no harm.
   *
   * @throws {StatusError} NOT_FOUND when it has ended; UNAVAILABLE when it is not known whether the signal has been sent
   */
  protected signal(signal: number): void {
    const { commands, reaper, save } = this.context;
    const what = `signal ${signal}`;
    const hasBegun = commands.hasBegun(what, this.scope);
    if (hasBegun && this.exit?.status === SIGNALLED + signal) return;
    if (hasBegun && (this.exit !== undefined || signal !== Signal.SIGKILL)) {
      throw new StatusError(
        Code.UNAVAILABLE,
        `the shim's host has died when it was about to send signal ${signal} to process ${this.id}: it may have been sent`,
      );
    }
    if (this.exit !== undefined) this.alreadyFinished();
    commands.note(what, this.scope);
    save();
    try {
      reaper.kill(this.#pid, signal);
    } catch (error) {
      if (error instanceof SystemError && error.errno === Errno.ESRCH) this.alreadyFinished();
      throw killError(error);
    }
  }

  /**
   * Refuses what only a process that runs can be asked.
   *
   * @throws {StatusError} NOT_FOUND
   */
  protected alreadyFinished(): never {
    throw new StatusError(Code.NOT_FOUND, "process already finished");
  }
}
