/** containerd's v1 Shim service: a request in, a call of the container, a reply out. */

import { containerd, google } from "../api/mod.js";
import { timestamp } from "../api/time.ts";
import { within } from "../async.ts";
import { Signal } from "../../ffi/signals.ts";
import { Container } from "../container/container.ts";
import type { Context } from "../container/context.ts";
import type { Process, ProcessExit } from "../container/process.ts";
import type { State } from "../container/state.ts";
import { messageOf } from "../errors.ts";
import type { EventQueue } from "../events/queue.ts";
import { Runc } from "../runtime/runc.ts";
import type { Handler } from "../ttrpc/server.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import type { Loaded } from "./lazy.ts";

const v1 = containerd.runtime.linux.shim.v1;
const { Status } = containerd.v1.types;
const { Empty } = google.protobuf;

/** What the shim was started with, as far as its service needs it. */
export interface ServiceConfig {
  readonly namespace: string;
  /** Where `log.json` is: the bundle's directory. */
  readonly cwd: string;
  /** Where large temporary data goes. */
  readonly workdir: string;
  readonly runtimeRoot: string;
  readonly criu: string;
  readonly systemdCgroup: boolean;
}

/** How long Delete waits for containerd to have taken the exit event, in ms: it ends the shim right after. */
const EVENT_TIMEOUT_MS = 2000;
/** How long the end of the shim waits for the container's, in ms. */
const END_TIMEOUT_MS = 10_000;

/** A message type of the generated code. */
interface Type<T> {
  decode(bytes: Uint8Array): T;
}
interface Encoder<T> {
  encode(message: T): { finish(): Uint8Array };
}

/** The service for one container. ShimInfo is answered before this is there: see lazy.ts. */
export class ShimService implements Loaded {
  readonly methods: ReadonlyMap<string, Handler>;
  readonly #context: Context;
  readonly #config: ServiceConfig;
  readonly #events: EventQueue;
  /** The container, from its creation to its deletion. */
  #container: Container | undefined;
  /** Its creation, while that goes on. */
  #creating: Promise<unknown> | undefined;

  constructor(context: Context, config: ServiceConfig, events: EventQueue) {
    this.#context = context;
    this.#config = config;
    this.#events = events;
    this.methods = this.#methods();
  }

  get processes(): Process[] {
    return this.#container?.processes ?? [];
  }

  abandon(): void {
    for (const process of this.processes) process.abandon();
  }

  async end(): Promise<void> {
    await this.#creating?.catch(() => {});
    const container = this.#container;
    if (container === undefined) return;
    const { init } = container;
    if (init.exit === undefined && init.state !== "created") {
      const killed = init.kill(Signal.SIGKILL, true).catch((error) => {
        if (!(error instanceof StatusError) || error.code !== Code.NOT_FOUND) {
          this.#context.log.error("failed to kill the container", { id: init.id, error });
        }
      });
      await within(this.#context.timer, END_TIMEOUT_MS, killed);
      // One that was to be restored has never run.
      if (init.pid !== 0) await within(this.#context.timer, END_TIMEOUT_MS, Promise.resolve(init.wait()));
    }
    await this.#delete();
  }

  #methods(): Map<string, Handler> {
    return new Map([
      ["State", method(v1.StateRequest, v1.StateResponse, ({ id }) => this.#state(id))],
      ["Create", method(v1.CreateTaskRequest, v1.CreateTaskResponse, (request) => this.#create(request))],
      ["Start", method(v1.StartRequest, v1.StartResponse, ({ id }) => this.#start(id))],
      ["Delete", method(Empty, v1.DeleteResponse, () => this.#delete())],
      ["DeleteProcess", method(v1.DeleteProcessRequest, v1.DeleteResponse, ({ id }) => this.#deleteProcess(id))],
      ["ListPids", method(v1.ListPidsRequest, v1.ListPidsResponse, () => this.#listPids())],
      ["Pause", method(Empty, Empty, () => this.#created().init.pause())],
      ["Resume", method(Empty, Empty, () => this.#created().init.resume())],
      ["Checkpoint", method(v1.CheckpointTaskRequest, Empty, (request) => this.#checkpoint(request))],
      ["Kill", method(v1.KillRequest, Empty, ({ id, signal, all }) => this.#kill(id, signal, all))],
      ["Exec", method(v1.ExecProcessRequest, Empty, (request) => this.#exec(request))],
      ["ResizePty", method(v1.ResizePtyRequest, Empty, ({ id, width, height }) => this.#resizePty(id, width, height))],
      ["Update", method(v1.UpdateTaskRequest, Empty, ({ resources }) => this.#update(resources))],
      ["CloseIO", method(v1.CloseIORequest, Empty, ({ id, stdin }) => this.#closeIO(id, stdin))],
      ["Wait", method(v1.WaitRequest, v1.WaitResponse, ({ id }) => this.#wait(id))],
    ]);
  }

  /** @throws {StatusError} FAILED_PRECONDITION */
  #created(): Container {
    if (this.#container !== undefined) return this.#container;
    throw new StatusError(Code.FAILED_PRECONDITION, "container must be created");
  }

  /** @throws {StatusError} NOT_FOUND */
  #process(id: string): Process {
    if (this.#container !== undefined) return this.#container.process(id);
    throw new StatusError(Code.NOT_FOUND, `process ${id} does not exist`);
  }

  #state(id: string): containerd.runtime.linux.shim.v1.StateResponse.$Properties {
    const process = this.#process(id);
    const { stdin, stdout, stderr, terminal } = process.stdio;
    return {
      id,
      bundle: this.#container!.init.config.bundle,
      pid: process.pid,
      status: STATUS[process.state],
      stdin,
      stdout,
      stderr,
      terminal,
      ...exitOf(process.exit),
    };
  }

  async #create(request: containerd.runtime.linux.shim.v1.CreateTaskRequest) {
    if (this.#container !== undefined || this.#creating !== undefined) {
      throw new StatusError(Code.ALREADY_EXISTS, "this shim has its container already");
    }
    requireId(request.id);
    const options = optionsOf(request.options, "CreateOptions", containerd.linux.runc.CreateOptions);
    const imagePath = request.checkpoint || options.criuImagePath;
    const runc = new Runc({
      command: request.runtime || "runc",
      root: `${this.#config.runtimeRoot}/${this.#config.namespace}`,
      log: `${this.#config.cwd}/log.json`,
      criu: this.#config.criu,
      systemdCgroup: this.#config.systemdCgroup,
      cwd: this.#config.cwd,
      run: (options) => this.#context.reaper.run(options),
    });
    const creating = Container.create(
      this.#context,
      {
        id: request.id,
        namespace: this.#config.namespace,
        bundle: request.bundle,
        workdir: this.#config.workdir,
        stdio: stdioOf(request),
        mounts: request.rootfs.map(({ type, source, options }) => ({
          type: type ?? "",
          source: source ?? "",
          options: options ?? [],
        })),
        noPivotRoot: options.noPivotRoot,
        noNewKeyring: options.noNewKeyring,
        uid: options.ioUid,
        gid: options.ioGid,
        // CRIU finds the images of a parent by what it has left among those of the checkpoint.
        checkpoint: imagePath ? { ...criuOptionsOf(options), imagePath, workPath: options.criuWorkPath } : undefined,
      },
      runc,
      (process, exit) => this.#publishExit(process, exit),
    );
    this.#creating = creating;
    try {
      this.#container = await creating;
    } finally {
      this.#creating = undefined;
    }
    return { pid: this.#container.init.pid };
  }

  async #start(id: string) {
    const process = this.#process(id);
    await process.start();
    return { id, pid: process.pid };
  }

  async #delete() {
    const { init } = this.#created();
    await init.delete();
    this.#container = undefined;
    // The exit is known before the deletion is: containerd ends this process as soon as it has the reply.
    await within(this.#context.timer, EVENT_TIMEOUT_MS, this.#events.flush());
    return { pid: init.pid, ...exitOf(init.exit) };
  }

  async #deleteProcess(id: string) {
    if (id === this.#container?.id) {
      throw new StatusError(Code.INVALID_ARGUMENT, "cannot delete init process with DeleteProcess");
    }
    this.#process(id);
    const exec = await this.#container!.deleteExec(id);
    return { pid: exec.pid, ...exitOf(exec.exit) };
  }

  async #listPids() {
    const container = this.#created();
    const pids = await container.init.pids();
    return {
      processes: pids.map((pid) => {
        const known = container.processes.find((process) => process.pid === pid);
        if (known === undefined) return { pid };
        const value = containerd.linux.runc.ProcessDetails.encode({ execId: known.id }).finish();
        return { pid, info: { type_url: "containerd.linux.runc.ProcessDetails", value } };
      }),
    };
  }

  #checkpoint(request: containerd.runtime.linux.shim.v1.CheckpointTaskRequest): Promise<void> {
    const { init } = this.#created();
    const options = optionsOf(request.options, "CheckpointOptions", containerd.linux.runc.CheckpointOptions);
    const imagePath = request.path || options.imagePath;
    if (!imagePath) throw new StatusError(Code.INVALID_ARGUMENT, "no path for the checkpoint");
    return init.checkpoint({
      ...criuOptionsOf(options),
      imagePath,
      workPath: options.workPath,
      leaveRunning: !options.exit,
    });
  }

  #kill(id: string, signal: number, all: boolean): Promise<void> {
    const process = id === "" ? this.#created().init : this.#process(id);
    return process.kill(signal, all);
  }

  async #exec(request: containerd.runtime.linux.shim.v1.ExecProcessRequest): Promise<void> {
    const container = this.#created();
    requireId(request.id);
    await container.exec({
      id: request.id,
      stdio: stdioOf(request),
      spec: jsonOf(request.spec, "spec"),
    });
  }

  #resizePty(id: string, width: number, height: number): void {
    if (id === "") throw new StatusError(Code.INVALID_ARGUMENT, "id not provided");
    this.#process(id).resize(width, height);
  }

  #update(resources: google.protobuf.Any.$Properties | null | undefined): Promise<void> {
    const { init } = this.#created();
    return init.update(jsonOf(resources, "resources"));
  }

  #closeIO(id: string, stdin: boolean): void {
    const process = this.#process(id);
    if (stdin) process.closeStdin();
  }

  #wait(id: string) {
    const exit = this.#process(id).wait();
    return exit instanceof Promise ? exit.then(exitOf) : exitOf(exit);
  }

  #publishExit(process: Process, exit: ProcessExit): void {
    this.#events.push({
      at: new Date(),
      namespace: this.#config.namespace,
      topic: "/tasks/exit",
      type: "containerd.events.TaskExit",
      value: containerd.events.TaskExit.encode({
        containerId: process.containerId,
        id: process.id,
        pid: process.pid,
        exitStatus: exit.status,
        exitedAt: timestamp(exit.at),
      }).finish(),
    });
  }
}

const STATUS: Readonly<Record<State, containerd.v1.types.Status>> = {
  created: Status.CREATED,
  createdCheckpoint: Status.CREATED,
  running: Status.RUNNING,
  pausing: Status.PAUSING,
  paused: Status.PAUSED,
  stopped: Status.STOPPED,
  deleted: Status.STOPPED,
};

/** A handler that decodes its request, and encodes what `answer` gives; nothing is an empty message. */
function method<Request, Response>(
  request: Type<Request>,
  response: Encoder<Response>,
  answer: (request: Request) => Response | void | Promise<Response | void>,
): Handler {
  const encode = (message: Response | void) => response.encode(message ?? {} as Response).finish();
  return (payload) => {
    const answered = answer(decode(request, payload, "request"));
    return answered instanceof Promise ? answered.then(encode) : encode(answered);
  };
}

/** @throws {StatusError} INVALID_ARGUMENT when the bytes are no such message */
function decode<T>(type: Type<T>, bytes: Uint8Array, what: string): T {
  try {
    return type.decode(bytes);
  } catch (cause) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} cannot be decoded: ${messageOf(cause)}`, { cause });
  }
}

function exitOf(exit: ProcessExit | undefined) {
  return exit === undefined ? {} : { exitStatus: exit.status, exitedAt: timestamp(exit.at) };
}

/**
 * An Any whose value is a message of the runc runtime's options; nothing is a message without anything set.
 *
 * @throws {StatusError} INVALID_ARGUMENT when it is something else
 */
function optionsOf<T>(any: google.protobuf.Any.$Properties | null | undefined, name: string, type: Type<T>): T {
  const url = any?.type_url ?? "";
  if (url !== "" && url.replace(/.*\//, "") !== `containerd.linux.runc.${name}`) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the options are not ${name} but ${url}`);
  }
  return decode(type, any?.value ?? new Uint8Array(), name);
}

/** What the options of a creation and of a checkpoint have in common. */
function criuOptionsOf(
  options: Pick<
    containerd.linux.runc.CheckpointOptions,
    "openTcp" | "externalUnixSockets" | "terminal" | "fileLocks" | "cgroupsMode" | "emptyNamespaces"
  >,
) {
  return {
    tcpEstablished: options.openTcp,
    externalUnixSockets: options.externalUnixSockets,
    shellJob: options.terminal,
    fileLocks: options.fileLocks,
    manageCgroupsMode: options.cgroupsMode,
    emptyNamespaces: options.emptyNamespaces,
  };
}

function stdioOf({ stdin, stdout, stderr, terminal }: {
  readonly stdin: string;
  readonly stdout: string;
  readonly stderr: string;
  readonly terminal: boolean;
}) {
  return { stdin, stdout, stderr, terminal };
}

/**
 * An Any whose value is a JSON object.
 *
 * @throws {StatusError} INVALID_ARGUMENT when it is none
 */
function jsonOf(any: google.protobuf.Any.$Properties | null | undefined, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(any?.value ?? new Uint8Array()));
  } catch (cause) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} is not JSON: ${messageOf(cause)}`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} is not a JSON object`);
  }
  return value as Record<string, unknown>;
}

/**
 * Ids become names of files in the bundle.
 *
 * @throws {StatusError} INVALID_ARGUMENT
 */
function requireId(id: string): void {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(id)) {
    throw new StatusError(
      Code.INVALID_ARGUMENT,
      `id ${JSON.stringify(id)} is not of letters, digits, and . _ - between them`,
    );
  }
}
