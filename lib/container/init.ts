/** The first process of a container, and with it the container as the OCI runtime sees it. */

import { messageOf } from "../errors.ts";
import { Signal } from "../../ffi/signals.ts";
import { within } from "../async.ts";
import type { Exit } from "../reaper.ts";
import {
  type CheckpointOptions,
  type CriuOptions,
  type ProcessStdio,
  type Runc,
  RuntimeError,
} from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { ownsPidNamespace, PID_FILE, readPidFile, removeIfThere } from "./bundle.ts";
import type { Context } from "./context.ts";
import { withCriu } from "./criu.ts";
import { frozenCgroup, requireThawed } from "./freezer.ts";
import { INIT_SLOT } from "../record/keeper.ts";
import type { InitRecord } from "../record/record.ts";
import { PipeBudget } from "./pipe_budget.ts";
import { type ExitListener, Process, type ProcessExit, stateOf } from "./process.ts";
import { removeEmptyCgroups, sharingPidNamespace } from "./remains.ts";
import { unmountAll } from "./rootfs.ts";
import { asked, isGone, killError, runtimeError } from "./runtime_errors.ts";
import { INIT, type State, StateMachine } from "./state.ts";
import type { ProcessStreams, StdioConfig } from "./streams.ts";

/** What an init process is created from. */
export interface InitConfig {
  /** The container's id too. */
  readonly id: string;
  /** containerd's. */
  readonly namespace: string;
  /** The bundle's directory, absolute. */
  readonly bundle: string;
  /** Where large temporary data goes. */
  readonly workdir: string;
  /** Where its streams go. */
  readonly stdio: StdioConfig;
  /** Where the rootfs has been mounted; empty when it is somebody else's. */
  readonly rootfs: string;
  /** See {@link CreateOptions} of the runtime. */
  readonly noPivotRoot: boolean;
  /** See {@link CreateOptions} of the runtime. */
  readonly noNewKeyring: boolean;
  /** Who owns the pipes of its streams, and of those of its execs. */
  readonly uid: number;
  /** Their group. */
  readonly gid: number;
  /** The checkpoint that it is restored from, if it is. */
  readonly checkpoint?: CriuOptions | undefined;
}

/**
 * How long after its creation a container's input waits for Start before it is opened, in ms.
 *
 * `ctr` can close a task's input only once it has been told of the task, and forgets an end of file that comes before;
 * what it opens itself in the background, it reads from at once.
 */
const STDIN_DELAY_MS = 1000;

/** How long the end of init is kept back until what is left of its container has been killed, in ms. */
const REST_TIMEOUT_MS = 10_000;

/** How long Delete of a container that never ran waits for its process to be reaped, in ms. */
const REAP_TIMEOUT_MS = 1000;

/** How long a process may take to be seen that the runtime has started and has been killed before it said so, in ms. */
const LOST_DELAY_MS = 200;

/** An init process. */
export class Init extends Process {
  readonly #config: InitConfig;
  readonly #runc: Runc;
  readonly #onExit: ExitListener;
  /** What its container's pipes may hold. */
  override readonly budget = new PipeBudget(() => this.exit === undefined ? this.pid : 0);
  #stdinTimer: Disposable | undefined;
  #ownsPidNamespace = true;
  /** How it has ended, as long as that is not told. */
  #ending: ProcessExit | undefined;

  /** One that is to be created: see {@link create}. */
  constructor(
    context: Context,
    config: InitConfig,
    runc: Runc,
    onExit: ExitListener,
    initial: State = config.checkpoint === undefined ? "created" : "createdCheckpoint",
  ) {
    super(context, config.id, config.stdio, new StateMachine(INIT, initial));
    this.#config = config;
    this.#runc = runc;
    this.#onExit = onExit;
  }

  /** Goes on where another process has stopped. */
  static restore(context: Context, record: InitRecord, runc: Runc, onExit: ExitListener): Init {
    const { id, namespace, bundle, workdir, rootfs, noPivotRoot, noNewKeyring, uid, gid, stdio, checkpoint } = record;
    const config = { id, namespace, bundle, workdir, rootfs, noPivotRoot, noNewKeyring, uid, gid, stdio };
    const init = new Init(
      context,
      { ...config, checkpoint: checkpoint as CriuOptions | undefined },
      runc,
      onExit,
      stateOf(record),
    );
    init.#ownsPidNamespace = record.ownsPidNamespace;
    init.restoreProcess(record, config);
    if (init.pid === 0) return init;
    if (record.ending !== undefined) {
      init.#exited({ pid: init.pid, status: record.ending.status, at: new Date(record.ending.at) });
    } else if (init.exit === undefined) {
      context.reaper.watch(init.pid, (exit) => init.#exited(exit));
    }
    if (init.machine.state === "created") init.#connectInputLater();
    return init;
  }

  /** What another process needs to go on with it. */
  get record(): InitRecord {
    const { id, namespace, bundle, workdir, rootfs, noPivotRoot, noNewKeyring, uid, gid, checkpoint } = this.#config;
    return {
      ...this.processRecord,
      ...{ id, namespace, bundle, workdir, rootfs, noPivotRoot, noNewKeyring, uid, gid },
      checkpoint: checkpoint as InitRecord["checkpoint"],
      ownsPidNamespace: this.#ownsPidNamespace,
      ending: this.exit === undefined && this.#ending
        ? { status: this.#ending.status, at: this.#ending.at.getTime() }
        : undefined,
    };
  }

  /** Its own id. */
  override get containerId(): string {
    return this.id;
  }

  /** Empty: the runtime's commands for the container are for it. */
  override get scope(): string {
    return "";
  }

  /** Known before anything has been written down. */
  protected override get slot(): number {
    return INIT_SLOT;
  }

  /** The OCI runtime that the container was made with. */
  get runc(): Runc {
    return this.#runc;
  }

  /** What it was created from. */
  get config(): InitConfig {
    return this.#config;
  }

  /**
   * Has the runtime create the container. Its streams are open before, and closed again if it fails. Of one that is to be
   * restored there is nothing yet: not before it is started.
   *
   * @throws {StatusError} with the runtime's own last message
   */
  async create(): Promise<void> {
    if (this.#config.checkpoint !== undefined) return;
    const { id, bundle, noPivotRoot, noNewKeyring } = this.#config;
    await this.#make(
      "OCI runtime create failed",
      (stdio) => this.#runc.create(id, bundle, { stdio, pidFile: this.#pidFile, noPivotRoot, noNewKeyring }),
      () => this.#connectInputLater(),
    );
  }

  /** A client that is told of the creation may still be on its way to where it can close the input that it opens. */
  #connectInputLater(): void {
    this.#stdinTimer = this.context.timer(STDIN_DELAY_MS, () => {
      this.streams?.connectStdin().catch((error) => {
        this.context.log.error("the input of a process cannot be opened", { process: this.id, error });
      });
    });
  }

  /** Has the runtime start what it has created, or restore what has been checkpointed. */
  override start(): Promise<void> {
    return this.serialize("start", async () => {
      await (this.machine.state === "createdCheckpoint" ? this.#restore() : this.#start());
      // It may have ended by now.
      if (this.machine.canBecome("running")) this.machine.become("running");
    });
  }

  async #start(): Promise<void> {
    this.#stdinTimer?.[Symbol.dispose]();
    await this.streams?.connectStdin();
    await asked("start", this.#runc.start(this.id));
  }

  /** Has a container go on from its checkpoint. When that fails, nothing runs, and it can be tried again. */
  async #restore(): Promise<void> {
    const { id, bundle, noPivotRoot, checkpoint } = this.#config;
    await this.#make(
      "OCI runtime restore failed",
      (stdio) =>
        withCriu(
          "restore",
          this.#criuPlace(checkpoint!.workPath),
          (workPath) =>
            this.#runc.restore(id, bundle, { ...checkpoint!, workPath, stdio, pidFile: this.#pidFile, noPivotRoot }),
        ),
      (streams) => streams.connectStdin(),
    );
  }

  /**
   * Has a command of the runtime make the process, and watches it from then on. If it fails, nothing of it is left.
   *
   * @param what it is called in an error
   * @param connectInput called when output goes where it belongs
   */
  async #make(
    what: string,
    command: (stdio: ProcessStdio) => Promise<void>,
    connectInput: (streams: ProcessStreams) => Promise<void> | void,
  ): Promise<void> {
    const { bundle } = this.#config;
    const streams = await this.openStreams(this.#config);
    using _hold = this.context.reaper.hold();
    let exists = false;
    try {
      // A runtime that writes down none is not to be taken for one that has written down that of another container.
      if (!this.hasBegun) removeIfThere(this.#pidFile);
      const made = command(streams.stdio);
      // While runc works.
      this.#ownsPidNamespace = ownsPidNamespace(bundle, this.context.log);
      await made.finally(() => streams.closeChildEnds());
      exists = true;
      await streams.connectOutput();
      const pid = readPidFile(this.#pidFile);
      await connectInput(streams);
      this.pid = pid;
    } catch (error) {
      await streams.close();
      exists ||= error instanceof RuntimeError && error.killed;
      if (exists) await this.#removeUnmade();
      throw runtimeError(what, error);
    }
    this.context.reaper.watch(this.pid, (exit) => this.#exited(exit));
  }

  /** Removes what the runtime may have made of it before it failed. */
  async #removeUnmade(): Promise<void> {
    const { id, bundle } = this.#config;
    await this.#runc.delete(id, true).catch((error) => this.#logLeft(error));
    await removeEmptyCgroups(bundle, this.context.timer).catch((error) => this.#logLeft(error));
  }

  #logLeft(error: unknown): void {
    if (isGone(error)) return;
    this.context.log.error("a container that could not be made is left", { error });
  }

  get #pidFile(): string {
    return `${this.#config.bundle}/${PID_FILE}`;
  }

  #criuPlace(workPath: string | undefined) {
    const { bundle, workdir } = this.#config;
    return { workPath, workdir, bundle, log: this.context.log };
  }

  /** Has the runtime send a signal, to all of the container if so wanted. */
  override kill(signal: number, all: boolean): Promise<void> {
    return this.serialize("kill", async () => {
      if (this.exit !== undefined && !all && !this.hasBegun) this.alreadyFinished();
      try {
        await this.#runc.kill(this.id, signal, all);
      } catch (error) {
        const failure = killError(error);
        if (failure.code !== Code.NOT_FOUND || isGone(error) || !this.#mayBeSignalled) throw failure;
        // The runtime takes a process for ended whose first thread has; its other threads may live.
        this.signal(signal);
      }
      if (signal === Signal.SIGKILL) await this.#thaw();
    });
  }

  /** Whether its pid is its own: one whose end is being told has been reaped. */
  get #mayBeSignalled(): boolean {
    return this.pid !== 0 && (this.#ending === undefined || this.exit !== undefined);
  }

  /**
   * Has frozen processes go on that are to die: on cgroup v1 they die when they are thawed, not before. runc thaws them
   * itself; crun does not.
   *
   * @throws {StatusError} UNAVAILABLE when they stay frozen
   */
  async #thaw(): Promise<void> {
    if (this.#ending !== undefined) return;
    if (this.machine.state !== "paused" && frozenCgroup(this.pid) === undefined) return;
    try {
      await this.#runc.resume(this.id);
      if (this.machine.canBecome("running")) this.machine.become("running");
    } catch {
      // It has died already, or is frozen together with others.
    }
    requireThawed(this.pid);
  }

  /** Freezes every process of the container. */
  pause(): Promise<void> {
    return this.serialize("pause", async () => {
      if (this.machine.canBecome("pausing")) this.machine.become("pausing");
      try {
        await asked("pause", this.#runc.pause(this.id));
      } catch (error) {
        if (this.machine.canBecome("running")) this.machine.become("running");
        throw error;
      }
      if (this.machine.canBecome("paused")) this.machine.become("paused");
    });
  }

  /** Has a paused container go on. */
  resume(): Promise<void> {
    return this.serialize("resume", async () => {
      await asked("resume", this.#runc.resume(this.id));
      if (this.machine.canBecome("running")) this.machine.become("running");
    });
  }

  /**
   * Writes down all that its processes are, and ends them unless they are to run on.
   *
   * @throws {StatusError} which names CRIU's log
   */
  checkpoint(options: CheckpointOptions): Promise<void> {
    const command = (workPath: string) => this.#runc.checkpoint(this.id, { ...options, workPath });
    return this.serialize("checkpoint", () => (
      asked("checkpoint", withCriu("dump", this.#criuPlace(options.workPath), command))
    ));
  }

  /**
   * Removes the container: what the runtime holds, the streams, the mounts. Its output has 2 s to be read first.
   *
   * @throws {StatusError} FAILED_PRECONDITION while it runs
   */
  delete(): Promise<void> {
    return this.serialize("delete", async () => {
      this.#stdinTimer?.[Symbol.dispose]();
      const [removed] = await Promise.allSettled([this.#remove(), this.drained()]);
      await this.streams?.close();
      const { rootfs } = this.#config;
      if (rootfs !== "") {
        try {
          await unmountAll(this.context, rootfs);
        } catch (error) {
          throw new StatusError(Code.UNKNOWN, `failed rootfs umount: ${messageOf(error)}`);
        }
      }
      if (removed.status === "rejected") throw runtimeError("failed to delete task", removed.reason);
      this.machine.become("deleted");
    });
  }

  async #remove(): Promise<void> {
    const ran = this.machine.state !== "created";
    try {
      await this.#runc.delete(this.id);
    } catch (error) {
      // After a checkpoint, say, the runtime holds nothing any more.
      if (!isGone(error)) throw error;
    }
    if (!ran && this.pid !== 0) await within(this.context.timer, REAP_TIMEOUT_MS, Promise.resolve(this.wait()));
  }

  /**
   * Settled once a process may be added.
   *
   * @throws {StatusError} FAILED_PRECONDITION when none may
   */
  allowExec(): Promise<void> {
    return this.serialize("exec", () => Promise.resolve());
  }

  /** How many processes are being added. */
  #adding = 0;
  /** Whether the runtime may have added one that it has not told of. */
  #hasLost = false;

  /** Runs what adds a process, and watches it when it has been added. */
  async adding(add: () => Promise<void>): Promise<void> {
    this.#adding++;
    try {
      await add();
    } finally {
      this.#adding--;
      this.#endLost();
    }
  }

  /** Notes that the runtime may have added a process and has not told of it: nobody knows it, and it is not to run. */
  noteLost(): void {
    this.#hasLost = true;
    // What is only beginning to be one may be seen later.
    this.context.timer(LOST_DELAY_MS, () => {
      this.#hasLost = true;
      this.#endLost();
    });
  }

  #endLost(): void {
    // Those that are being added are not known yet either.
    if (!this.#hasLost || this.#adding > 0) return;
    this.#hasLost = false;
    // Without a pid namespace of its own, what a process of it has left to us could not be told from others.
    if (!this.#ownsPidNamespace || this.exit !== undefined) return;
    const { reaper, log } = this.context;
    for (const pid of sharingPidNamespace(this.pid).filter((pid) => reaper.isStray(pid))) {
      log.warn("a process that the runtime has started and not told of is ended", { child: pid });
      try {
        reaper.kill(pid, Signal.SIGKILL);
      } catch {
        // It has ended by itself.
      }
    }
  }

  /** Changes what the container may use: an OCI LinuxResources, as JSON can write it. */
  update(resources: Readonly<Record<string, unknown>>): Promise<void> {
    return this.serialize("update", () => asked("update", this.#runc.update(this.id, resources)));
  }

  /** The pids of all its processes. */
  async pids(): Promise<number[]> {
    try {
      return await this.#runc.ps(this.id);
    } catch (error) {
      // crun crashes where it finds none.
      if (this.exit !== undefined) return [];
      throw runtimeError("OCI runtime ps failed", error);
    }
  }

  async #exited(exit: Exit): Promise<void> {
    this.#ending = exit;
    const wasPaused = this.machine.state === "paused";
    if (!this.#ownsPidNamespace) {
      // What it leaves behind would live on: there is no pid namespace to end with it.
      const killed = this.#runc.kill(this.id, Signal.SIGKILL, true).catch((error) => {
        this.context.log.error("failed to kill what init has left behind", { error });
      });
      await within(this.context.timer, REST_TIMEOUT_MS, killed);
    }
    this.setExited(exit);
    this.#onExit(this, exit);
    if (!this.#ownsPidNamespace) this.context.save();
    if (wasPaused) {
      try {
        await this.#runc.resume(this.id);
      } catch (error) {
        if (isGone(error)) return;
        this.context.log.error("failed to resume a container that has ended while it was paused", { error });
      }
    }
  }
}
