/**
 * A container: its init process, and the processes that were added to it. Nothing in this folder sees a message of the API: its
 * errors have ttrpc's codes, and that is all.
 */

import { close, O, open } from "../../ffi/fd.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import type { Context } from "./context.ts";
import { Exec, type ExecConfig } from "./exec.ts";
import { Init, type InitConfig } from "./init.ts";
import type { ExitListener, Process } from "./process.ts";
import { settle } from "./calls.ts";
import { type Mount, mountAll, unmountAll } from "./rootfs.ts";
import type { ContainerRecord, ExecRecord } from "../record/record.ts";
import type { Runc } from "../runtime/runc.ts";

/** What a container is created from. */
export interface ContainerConfig extends Omit<InitConfig, "rootfs"> {
  /** Mounted on the bundle's rootfs in order; none when the rootfs is somebody else's. */
  readonly mounts: readonly Mount[];
}

/** Name of the rootfs directory. */
const ROOTFS = "rootfs";
/** Mode of the rootfs directory: what is in it is found by those who may, and listed by root. */
const ROOTFS_MODE = 0o711;

/** A container that has been created. */
export class Container {
  /** The process that the container was created with, and ends with. */
  readonly init: Init;
  readonly #context: Context;
  readonly #onExit: ExitListener;
  readonly #execs = new Map<string, Exec>();
  /** What has been written down of each, and those of which that may be something else by now: there may be thousands at rest. */
  readonly #written = new Map<Exec, ExecRecord>();
  readonly #changing = new Set<Exec>();
  /** What of {@link #written} has been given last; undefined when that is something else by now. */
  #records: ExecRecord[] | undefined;

  /** Where the mounts go; empty when there are none. */
  readonly #rootfs: string;
  readonly #mounts: readonly Mount[];
  readonly #runc: Runc;
  #isCreated = false;

  /** One that is to be created: see {@link create}. */
  constructor(context: Context, { mounts, ...config }: ContainerConfig, runc: Runc, onExit: ExitListener, init?: Init) {
    this.#context = context;
    this.#onExit = onExit;
    this.#runc = runc;
    this.#mounts = mounts;
    this.#rootfs = mounts.length > 0 ? `${config.bundle}/${ROOTFS}` : "";
    this.init = init ?? new Init(context, { ...config, rootfs: this.#rootfs }, runc, onExit);
  }

  /** Goes on where another process has stopped. */
  static restore(context: Context, record: ContainerRecord, runc: Runc, onExit: ExitListener): Container {
    const init = Init.restore(context, record.init, runc, onExit);
    const container = new Container(context, { ...init.config, mounts: record.mounts }, runc, onExit, init);
    container.#isCreated = record.isCreated;
    for (const each of record.execs) {
      container.#add(Exec.restore(context, each, init, onExit));
    }
    return container;
  }

  /** What another process needs to go on with it. */
  get record(): Omit<ContainerRecord, "exits" | "starting"> {
    return {
      runtime: this.#runc.program,
      isCreated: this.#isCreated,
      mounts: this.#isCreated ? [] : this.#mounts.map((each) => ({ ...each, options: [...each.options] })),
      init: this.init.record,
      execs: this.#execRecords(),
    };
  }

  #execRecords(): ExecRecord[] {
    for (const exec of this.#changing) {
      const { record } = exec;
      if (this.#written.get(exec) !== record) this.#records = undefined;
      this.#written.set(exec, record);
      if (exec.isAtRest) this.#changing.delete(exec);
    }
    return this.#records ??= [...this.#written.values()];
  }

  #add(exec: Exec): void {
    this.#execs.set(exec.id, exec);
    exec.onChange = () => this.#changing.add(exec);
    exec.onChange();
  }

  /**
   * Mounts the rootfs and has the OCI runtime create the container; undoes all of it on failure.
   *
   * @throws {StatusError} with the runtime's own last message
   */
  async create(): Promise<void> {
    const context = this.#context;
    const rootfs = this.#rootfs;
    using bundle = rootfs === "" ? undefined : new HeldFolder(this.init.config.bundle);
    try {
      // Another process may have got so far.
      if (!context.commands.hasBegunFor(this.init.scope)) await this.#mount();
      await this.init.create();
      this.#isCreated = true;
    } catch (error) {
      if (bundle !== undefined) {
        await unmountAll(context, rootfs, bundle.fd).catch((cause) =>
          context.log.error("failed to undo the mounts of a container that was not created", { rootfs, error: cause })
        );
        bundle.removeIfMoved();
      }
      throw error;
    } finally {
      settle(context);
    }
  }

  async #mount(): Promise<void> {
    const rootfs = this.#rootfs;
    if (rootfs !== "") {
      try {
        Deno.mkdirSync(rootfs, { mode: ROOTFS_MODE });
      } catch (error) {
        if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      }
    }
    await mountAll(this.#context, this.#mounts, rootfs);
  }

  /**
   * Keeps hold of its mounts, whose bundle may be renamed.
   *
   * @returns takes them off, and lets go of the bundle; to be called once
   */
  holdMounts(): () => Promise<void> {
    if (this.#rootfs === "") return () => Promise.resolve();
    let held: HeldFolder;
    try {
      held = new HeldFolder(this.init.config.bundle);
    } catch {
      // It is gone, and what was mounted in it.
      return () => Promise.resolve();
    }
    return async () => {
      using bundle = held;
      await unmountAll(this.#context, this.#rootfs, bundle.fd);
      bundle.removeIfMoved();
    };
  }

  /** Its init's id. */
  get id(): string {
    return this.init.id;
  }

  /**
   * The process of this id: init, when it is the container's own.
   *
   * @throws {StatusError} NOT_FOUND
   */
  process(id: string): Process {
    const process = this.find(id);
    if (process !== undefined) return process;
    throw new StatusError(Code.NOT_FOUND, `process ${id} does not exist`);
  }

  /** The process of this id, if there is one. */
  find(id: string): Process | undefined {
    return id === this.id ? this.init : this.#execs.get(id);
  }

  /** The processes that were added to it. */
  get execs(): Exec[] {
    return [...this.#execs.values()];
  }

  /** All its processes, init first. */
  get processes(): Process[] {
    return [this.init, ...this.execs];
  }

  /**
   * Registers a process to be started in the container.
   *
   * @throws {StatusError} ALREADY_EXISTS when the id is in use, FAILED_PRECONDITION when the container does not run
   */
  async exec(config: ExecConfig): Promise<void> {
    this.#requireFree(config.id);
    await this.init.allowExec();
    this.#requireFree(config.id);
    this.#add(new Exec(this.#context, config, this.init, this.#onExit));
  }

  #requireFree(id: string): void {
    if (id === this.id || this.#execs.has(id)) {
      throw new StatusError(Code.ALREADY_EXISTS, `id ${id} is in use`);
    }
  }

  /**
   * Removes a process that was added, and gives what it was.
   *
   * @throws {StatusError} NOT_FOUND, or FAILED_PRECONDITION while it runs
   */
  async deleteExec(id: string): Promise<Exec> {
    const exec = this.#execs.get(id);
    if (exec === undefined) throw new StatusError(Code.NOT_FOUND, `process ${id} does not exist`);
    await exec.delete();
    this.#execs.delete(id);
    this.#changing.delete(exec);
    this.#written.delete(exec);
    this.#records = undefined;
    return exec;
  }
}

/**
 * A bundle while its container is created. Where the container's process dies meanwhile, containerd renames it, tries to
 * remove it, and fails as long as something is mounted in it.
 */
class HeldFolder implements Disposable {
  /** Names it, whatever it is called; owned by this object. */
  readonly fd: number;
  readonly #name: string;

  /** @throws {SystemError} */
  constructor(path: string) {
    this.fd = open(path, O.PATH | O.DIRECTORY);
    this.#name = this.#path;
  }

  get #path(): string {
    return Deno.readLinkSync(`/proc/self/fd/${this.fd}`);
  }

  /** Removes what containerd could not: empty folders. */
  removeIfMoved(): void {
    try {
      const name = this.#path;
      if (name === this.#name) return;
      Deno.removeSync(`${name}/${ROOTFS}`);
      Deno.removeSync(name);
    } catch {
      // They are not empty, or there are none.
    }
  }

  [Symbol.dispose](): void {
    close(this.fd);
  }
}
