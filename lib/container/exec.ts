/** A process that was added to a container. */

import { Errno, SystemError } from "../../ffi/libc.ts";
import { Signal } from "../../ffi/signals.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { RuntimeError } from "../runtime/runc.ts";
import { readPidFile, removeIfThere, writeNewFile } from "./bundle.ts";
import type { Context } from "./context.ts";
import { requireThawed } from "./freezer.ts";
import type { Init } from "./init.ts";
import type { PipeBudget } from "./pipe_budget.ts";
import type { ExecRecord, ProcessRecord } from "../record/record.ts";
import { sameForSame } from "../record/same.ts";
import { type ExitListener, Process, stateOf, type TerminalSize } from "./process.ts";
import { runtimeError } from "./runtime_errors.ts";
import { EXEC, type State, StateMachine } from "./state.ts";
import type { StdioConfig } from "./streams.ts";

/** What an exec process is made from. */
export interface ExecConfig {
  /** No other process of the container has it. */
  readonly id: string;
  /** Where its streams go. */
  readonly stdio: StdioConfig;
  /** The OCI Process, as JSON can write it. */
  readonly spec: Readonly<Record<string, unknown>>;
}

/** The status of a process that could not be started, as a shell has it for a command that is not found. */
const NOT_STARTED = 255;

/** An exec process. */
export class Exec extends Process {
  /** The OCI Process. */
  #spec: ExecConfig["spec"];
  readonly #init: Init;
  readonly #onExit: ExitListener;

  /** One that has been added: nothing is started, and no stream open, before {@link start}. */
  constructor(context: Context, config: ExecConfig, init: Init, onExit: ExitListener, initial: State = "created") {
    super(context, config.id, config.stdio, new StateMachine(EXEC, initial));
    this.#spec = config.spec;
    this.size = sizeOf(config.spec);
    this.#init = init;
    this.#onExit = onExit;
  }

  /** Goes on where another process has stopped. */
  static restore(context: Context, record: ExecRecord, init: Init, onExit: ExitListener): Exec {
    const { id, stdio, spec = {} } = record;
    const exec = new Exec(context, { id, stdio, spec }, init, onExit, stateOf(record));
    exec.restoreProcess(record, init.config);
    if (exec.pid !== 0 && exec.exit === undefined) exec.#watch();
    return exec;
  }

  /** What another process needs to go on with it: the same object as long as that is the same. */
  get record(): ExecRecord {
    return this.#recorded(this.processRecord, this.pid === 0 && this.exit === undefined ? this.#spec : undefined);
  }

  readonly #recorded = sameForSame((process: ProcessRecord, spec: ExecRecord["spec"]): ExecRecord => (
    { ...process, id: this.id, spec }
  ));

  /** The path of its pid file. */
  override get scope(): string {
    return this.#pidFile;
  }

  /** Its init's id. */
  override get containerId(): string {
    return this.#init.id;
  }

  /** Its container's. */
  protected override get budget(): PipeBudget {
    return this.#init.budget;
  }

  /** While the container is paused, so are all its processes. */
  override get state(): State {
    const { state } = this.#init;
    return state === "paused" || state === "pausing" ? state : super.state;
  }

  /** Before its start it is for the runtime to set, so that the process finds it there. */
  override resize(columns: number, rows: number): void {
    super.resize(columns, rows);
    if (this.pid !== 0 || !this.stdio.terminal) return;
    this.#spec = { ...this.#spec, consoleSize: { width: columns, height: rows } };
    this.context.save();
  }

  /** Opens its streams, and has the runtime start it; when that fails it has ended, with a status. */
  override start(): Promise<void> {
    return this.serialize("start", () => this.#init.adding(() => this.#start()));
  }

  async #start(): Promise<void> {
    // Another process has started it and not said so: this one watches it already, or knows how it has ended.
    if (this.pid !== 0) return;
    const { reaper } = this.context;
    const { bundle } = this.#init.config;
    const process = `${bundle}/${this.id}.process.json`;
    using _hold = reaper.hold();
    let started = false;
    try {
      const streams = await this.openStreams(this.#init.config);
      try {
        // What another process has begun with is reading it.
        if (!this.hasBegun) {
          const spec = JSON.stringify({ ...this.#spec, terminal: this.stdio.terminal });
          writeNewFile(process, spec);
        }
        await this.#init.runc.exec(this.#init.id, {
          stdio: streams.stdio,
          pidFile: this.#pidFile,
          process,
        });
        started = true;
        await streams.connectOutput();
        await streams.connectStdin();
        this.pid = readPidFile(this.#pidFile);
      } finally {
        streams.closeChildEnds();
        removeIfThere(process);
      }
    } catch (error) {
      if (started || (error instanceof RuntimeError && error.killed)) this.#killStarted();
      await this.streams?.close();
      // Whoever waits for it is not left waiting, and it can be deleted.
      this.setExited({ status: NOT_STARTED, at: new Date() });
      throw runtimeError("OCI runtime exec failed", error);
    }
    this.machine.become("running");
    this.#watch();
  }

  #watch(): void {
    this.context.reaper.watch(this.pid, (exit) => {
      this.setExited(exit);
      this.#onExit(this, exit);
    });
  }

  /** Ends a process that runs but is not to: it has no streams, or its runtime has not come to its end. */
  #killStarted(): void {
    try {
      this.context.reaper.kill(readPidFile(this.#pidFile), Signal.SIGKILL);
    } catch (error) {
      if (error instanceof SystemError && error.errno === Errno.ESRCH) return;
      // There is no pid, as far as the runtime has told.
      this.#init.noteLost();
    }
  }

  /** Sends a signal to its own pid: `all` is for a container. */
  override kill(signal: number, _all: boolean): Promise<void> {
    return this.serialize("kill", () => {
      if (this.pid === 0 && this.exit === undefined) {
        throw new StatusError(Code.FAILED_PRECONDITION, "process not created");
      }
      this.signal(signal);
      // One whose container is paused is known to end when that is resumed.
      if (signal === Signal.SIGKILL && this.state !== "paused") requireThawed(this.pid);
      return Promise.resolve();
    });
  }

  /**
   * Removes what is left of it. Its output has 2 s to be read first.
   *
   * @throws {StatusError} FAILED_PRECONDITION while it runs
   */
  delete(): Promise<void> {
    return this.serialize("delete", async () => {
      await this.drained();
      await this.streams?.close();
      removeIfThere(this.#pidFile);
      this.machine.become("deleted");
    });
  }

  get #pidFile(): string {
    // An exec may be called "init" or "shim", and init.pid is the container's, shim.pid containerd's.
    const name = this.id === "init" || this.id === "shim" ? `.${this.id}` : this.id;
    return `${this.#init.config.bundle}/${name}.pid`;
  }
}

/** The size that an OCI Process says its terminal is to have. */
function sizeOf({ consoleSize }: ExecConfig["spec"]): TerminalSize | undefined {
  const { width, height } = (consoleSize ?? {}) as { readonly width?: unknown; readonly height?: unknown };
  return typeof width === "number" && typeof height === "number" ? { columns: width, rows: height } : undefined;
}
