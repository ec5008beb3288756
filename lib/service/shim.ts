/**
 * containerd's v1 Shim service: a request in, a call of the container, a reply out. All that is known of messages of the API is
 * known here; nothing here starts a program.
 */

import { containerd, google } from "../api/mod.js";
import { timestamp } from "../api/time.ts";
import { within } from "../async.ts";
import { Signal } from "../../ffi/signals.ts";
import { Container } from "../container/container.ts";
import type { Init } from "../container/init.ts";
import { ownsPidNamespace, PID_FILE, readPidFile } from "../container/bundle.ts";
import type { Context } from "../container/context.ts";
import type { Process, ProcessExit } from "../container/process.ts";
import type { State } from "../container/state.ts";
import { messageOf } from "../errors.ts";
import type { EventQueue } from "../events/queue.ts";
import { INIT_SLOT, Role } from "../record/keeper.ts";
import type { AnswerRecord, ContainerRecord } from "../record/record.ts";
import { oneForEach } from "../record/same.ts";
import { Runc } from "../runtime/runc.ts";
import type { Call, Handler } from "../ttrpc/server.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { ExitOrder, type PendingExit } from "./exit_order.ts";
import type { Loaded } from "./lazy.ts";
import { type Any, criuOptionsOf, decode, jsonOf, optionsOf, requireId, stdioOf, type Type } from "./requests.ts";

const v1 = containerd.runtime.linux.shim.v1;
const { Status } = containerd.v1.types;
const { Empty } = google.protobuf;

/** What the shim was started with, as far as its service needs it. */
export interface ServiceConfig {
  /** containerd's. */
  readonly namespace: string;
  /** The bundle's directory. */
  readonly cwd: string;
  /** Where large temporary data goes. */
  readonly workdir: string;
  /** The flag -runtime-root. */
  readonly runtimeRoot: string;
  /** The flag -criu. */
  readonly criu: string;
  /** The flag -systemd-cgroup. */
  readonly systemdCgroup: boolean;
  /** The flag -containerd-binary. */
  readonly containerd: string;
}

/**
 * How long Delete waits for containerd to have taken the exit event, and for the reaping of all, in ms: it ends the shim right
 * after. So long Start waits, while many events do.
 */
const EVENT_TIMEOUT_MS = 2000;
/** How long the end of the shim waits for the container's, in ms. */
const END_TIMEOUT_MS = 10_000;

/** What writes a message, in the generated code. */
interface Encoder<T> {
  encode(message: T): { finish(): Uint8Array };
}

/** Where answers are written down together with what a call has changed, if they are. */
export interface Committer {
  /** Writes the answer down before it is sent. */
  commit(call: number | undefined, answer: Omit<AnswerRecord, "call">): void;
  /** The answer that another process has found. */
  answerOf(call: number | undefined): AnswerRecord | undefined;
}

/** What a call that changes something gives back. */
interface Change<Response> {
  readonly response: Response;
  /** What is done before it is answered, and may as well not be. */
  readonly last?: () => Promise<void>;
}

/** The service for one container. ShimInfo is answered before this is there: see lazy.ts. */
export class ShimService implements Loaded {
  /** See {@link Loaded}. */
  readonly methods: ReadonlyMap<string, Handler>;
  readonly #context: Context;
  readonly #config: ServiceConfig;
  readonly #events: EventQueue;
  readonly #order: ExitOrder;
  /** The container, from its creation to its deletion. */
  #container: Container | undefined;
  /** Its creation, while that goes on. */
  #creating: Promise<unknown> | undefined;
  /** The one that is being created, or of whose creation another process has had a part. */
  #unmade: Container | undefined;
  readonly #committer: Committer | undefined;

  /** One without a container: {@link restore} gives it what there was. */
  constructor(context: Context, config: ServiceConfig, events: EventQueue, committer?: Committer) {
    this.#context = context;
    this.#committer = committer;
    this.#config = config;
    this.#events = events;
    this.#order = new ExitOrder({
      timer: context.timer,
      hasRunningExec: () => this.#container?.execs.some(({ pid, exit }) => pid !== 0 && exit === undefined) === true,
      isContainerd: (pid) => isProgram(pid, config.containerd),
      publish: (exit) => this.#publishExit(exit),
    });
    this.methods = this.#methods();
  }

  get processes(): Process[] {
    return this.#container?.processes ?? [];
  }

  get record(): ContainerRecord | undefined {
    const record = (this.#container ?? this.#unmade)?.record;
    if (record === undefined) return undefined;
    const { exits, starting } = this.#order.record;
    return {
      ...record,
      exits: exits.map(this.#exitRecord),
      starting: starting.map(this.#startRecord),
    };
  }

  readonly #exitRecord = oneForEach(({ id, pid, status, at }: PendingExit) => ({ id, pid, status, at: at.getTime() }));

  readonly #startRecord = oneForEach(({ id, at }: Pick<PendingExit, "id" | "at">) => ({ id, at: at.getTime() }));

  restore(record: ContainerRecord): void {
    const runc = this.#runc(record.runtime);
    const container = Container.restore(this.#context, record, runc, this.#onExit);
    if (record.isCreated) this.#container = container;
    else this.#unmade = container;
    const { init: { id: containerId }, exits = [], starting = [] } = record;
    this.#order.restore({
      exits: exits.map(({ at, ...exit }) => ({ ...exit, containerId, at: new Date(at) })),
      starting: starting.map(({ id, at }) => ({ id, at: new Date(at) })),
    });
  }

  async salvage(): Promise<void> {
    const { cwd, namespace, workdir } = this.#config;
    const id = cwd.slice(cwd.lastIndexOf("/") + 1);
    const runc = this.#runc("runc");
    const { status } = await runc.state(id);
    const state = status === "created" || status === "running" || status === "paused" ? status : "stopped";
    // The runtime does not tell it of one that has ended.
    const pid = readPidFile(`${cwd}/${PID_FILE}`);
    const terminal = this.#context.keeper.brought(INIT_SLOT, Role.TERMINAL) !== undefined;
    const stdio = { stdin: "", stdout: "", stderr: "", terminal };
    this.restore({
      runtime: runc.program,
      isCreated: true,
      mounts: [],
      init: {
        ...{ id, namespace, workdir, stdio, state, pid, bundle: cwd, rootfs: `${cwd}/rootfs` },
        ...{ exit: undefined, ending: undefined, isStdinClosed: true, checkpoint: undefined },
        ...{ noPivotRoot: false, noNewKeyring: false, uid: 0, gid: 0 },
        ownsPidNamespace: ownsPidNamespace(cwd, this.#context.log),
        // What has been kept for it tells which streams there were.
        streams: { slot: INIT_SLOT, folder: undefined, loggers: [] },
      },
      execs: [],
      ...{ exits: undefined, starting: undefined },
    });
  }

  restored(): void {
    // A call that was to create it would have gone on by now.
    const container = this.#unmade;
    if (container === undefined || this.#creating !== undefined) return;
    this.#make(container).catch((error) => {
      this.#context.log.error("a container could not be created, of whose creation nobody waits for the end", {
        error,
      });
    }).finally(() => this.#context.save());
  }

  abandon(isHandedOver: boolean): void {
    this.#order.stop();
    const container = this.#container ?? this.#unmade;
    for (const process of container?.processes ?? []) process.abandon(isHandedOver);
  }

  holdMounts(): () => Promise<void> {
    return this.#container?.holdMounts() ?? (() => Promise.resolve());
  }

  async end(): Promise<void> {
    await this.#creating?.catch(() => {});
    const container = this.#container;
    if (container === undefined) return;
    const { init } = container;
    if (init.exit === undefined && init.state !== "created") {
      const killed = init.kill(Signal.SIGKILL, true).catch((error) => {
        if (!(error instanceof StatusError) || error.code !== Code.NOT_FOUND) {
          this.#context.log.error("failed to kill the container", { error });
        }
      });
      await within(this.#context.timer, END_TIMEOUT_MS, killed);
      await this.#endInit(init);
    }
    try {
      await (await this.#delete()).last();
      await this.#reaped();
    } catch (error) {
      // The runtime would have ended it.
      await this.#endInit(init);
      throw error;
    }
  }

  /** Has a container's first process end, also where the runtime cannot be had to end it. */
  async #endInit(init: Init): Promise<void> {
    // One that was to be restored has never run.
    if (init.pid === 0 || init.exit !== undefined) return;
    try {
      this.#context.reaper.kill(init.pid, Signal.SIGKILL);
    } catch {
      // Its end is on its way.
    }
    await within(this.#context.timer, END_TIMEOUT_MS, Promise.resolve(init.wait()));
  }

  #methods(): Map<string, Handler> {
    return new Map([
      ["State", method(v1.StateRequest, v1.StateResponse, ({ id }) => this.#state(id))],
      ["Create", this.#change(v1.CreateTaskRequest, v1.CreateTaskResponse, (request) => this.#create(request))],
      [
        "Start",
        this.#change(v1.StartRequest, v1.StartResponse, ({ id }, call) => this.#start(id, call), ({ id }) => id),
      ],
      ["Delete", this.#change(Empty, v1.DeleteResponse, () => this.#delete())],
      [
        "DeleteProcess",
        this.#change(v1.DeleteProcessRequest, v1.DeleteResponse, ({ id }) => this.#deleteProcess(id), ({ id }) => id),
      ],
      ["ListPids", method(v1.ListPidsRequest, v1.ListPidsResponse, () => this.#listPids())],
      ["Pause", this.#change(Empty, Empty, () => done(this.#created().init.pause()))],
      ["Resume", this.#change(Empty, Empty, () => done(this.#created().init.resume()))],
      ["Checkpoint", this.#change(v1.CheckpointTaskRequest, Empty, (request) => done(this.#checkpoint(request)))],
      [
        "Kill",
        this.#change(v1.KillRequest, Empty, ({ id, signal, all }) => done(this.#kill(id, signal, all)), ({ id }) => id),
      ],
      ["Exec", this.#change(v1.ExecProcessRequest, Empty, (request) => done(this.#exec(request)))],
      ["ResizePty", method(v1.ResizePtyRequest, Empty, ({ id, width, height }) => this.#resizePty(id, width, height))],
      ["Update", this.#change(v1.UpdateTaskRequest, Empty, ({ resources }) => done(this.#update(resources)))],
      [
        "CloseIO",
        this.#change(v1.CloseIORequest, Empty, ({ id, stdin }) => done(Promise.resolve(this.#closeIO(id, stdin)))),
      ],
      ["Wait", method(v1.WaitRequest, v1.WaitResponse, ({ id }, { signal }) => this.#wait(id, signal))],
    ]);
  }

  /**
   * A handler of what changes something: what has become of it is written down together with the answer, and if another
   * process has got so far, that is the answer.
   *
   * @param scope gives the id of the process that it is for, where that is not the container's own
   */
  #change<Request, Response>(
    request: Type<Request>,
    response: Encoder<Response>,
    make: (request: Request, call: Call) => Promise<Change<Response>>,
    idOf: (request: Request) => string = () => "",
  ): Handler {
    const { commands } = this.#context;
    return async (payload, call) => {
      // The server notes the call first, and the payload is valid until then.
      const decoded = decode(request, payload.slice(), "request");
      await undefined;
      const found = this.#committer?.answerOf(call.id);
      if (found !== undefined) {
        await this.#reaped();
        return payloadOf(found);
      }
      const scope = this.#scopeOf(idOf(decoded));
      try {
        const { response: made, last } = await make(decoded, call);
        const answer = response.encode(made).finish();
        commands.settle(scope);
        this.#commit(call, { payload: answer.toBase64(), code: Code.OK, message: "" });
        await last?.();
        await this.#reaped();
        return answer;
      } catch (error) {
        commands.settle(scope);
        const code = error instanceof StatusError ? error.code : Code.UNKNOWN;
        this.#commit(call, { payload: undefined, code, message: messageOf(error) });
        await this.#reaped();
        throw error;
      }
    };
  }

  /**
   * Waits, where there is no container (any more), until all that has ended is reaped: containerd kills the shim as soon as it
   * has the reply to Delete, or to a Create that has failed, and may be a process 1 that does not reap.
   */
  async #reaped(): Promise<void> {
    if (this.#container !== undefined) return;
    await within(this.#context.timer, EVENT_TIMEOUT_MS, this.#context.reaper.settled());
  }

  #commit({ id }: Call, answer: Omit<AnswerRecord, "call">): void {
    this.#committer?.commit(id, answer);
  }

  #scopeOf(id: string): string {
    return this.#container?.find(id)?.scope ?? "";
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
    this.#order.prove(id);
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
    const begun = this.#unmade;
    if (begun !== undefined && begun.id === request.id) return await this.#make(begun);
    const container = new Container(
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
      this.#runc(request.runtime || "runc"),
      this.#onExit,
    );
    return await this.#make(container);
  }

  async #make(container: Container) {
    this.#unmade = container;
    const creating = container.create();
    this.#creating = creating;
    try {
      await creating;
      this.#container = container;
    } finally {
      this.#creating = this.#unmade = undefined;
    }
    return { response: { pid: container.init.pid } };
  }

  #runc(command: string): Runc {
    const { reaper, commands } = this.#context;
    return new Runc({
      command,
      root: `${this.#config.runtimeRoot}/${this.#config.namespace}`,
      criu: this.#config.criu,
      systemdCgroup: this.#config.systemdCgroup,
      cwd: this.#config.cwd,
      run: ({ key, ...options }) => key === undefined ? reaper.run(options) : commands.run({ key, ...options }),
    });
  }

  readonly #onExit = ({ containerId, id, pid }: Process, { status, at }: ProcessExit) =>
    this.#order.exited({ containerId, id, pid, status, at });

  async #start(id: string, call: Call) {
    const process = this.#process(id);
    const room = this.#events.room();
    if (room !== undefined) await within(this.#context.timer, EVENT_TIMEOUT_MS, room);
    await this.#order.starting(id, call, () => process.start());
    return { response: { id, pid: process.pid } };
  }

  async #delete() {
    const { init } = this.#created();
    await init.delete();
    this.#order.flush();
    this.#container = undefined;
    return {
      response: { pid: init.pid, ...exitOf(init.exit) },
      // The exit is known before the deletion is: containerd ends this process as soon as it has the reply.
      last: () => within(this.#context.timer, EVENT_TIMEOUT_MS, this.#events.flush()),
    };
  }

  async #deleteProcess(id: string) {
    if (id === this.#container?.id) {
      throw new StatusError(Code.INVALID_ARGUMENT, "cannot delete init process with DeleteProcess");
    }
    this.#process(id);
    this.#order.prove(id);
    const exec = await this.#container!.deleteExec(id);
    return { response: { pid: exec.pid, ...exitOf(exec.exit) } };
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

  async #checkpoint(request: containerd.runtime.linux.shim.v1.CheckpointTaskRequest): Promise<void> {
    const { init } = this.#created();
    const options = optionsOf(request.options, "CheckpointOptions", containerd.linux.runc.CheckpointOptions);
    const imagePath = request.path || options.imagePath;
    if (!imagePath) throw new StatusError(Code.INVALID_ARGUMENT, "no path for the checkpoint");
    await init.checkpoint({
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

  #update(resources: Any | null | undefined): Promise<void> {
    const { init } = this.#created();
    return init.update(jsonOf(resources, "resources"));
  }

  #closeIO(id: string, stdin: boolean): void {
    const process = this.#process(id);
    if (stdin) process.closeStdin();
  }

  #wait(id: string, givenUp: AbortSignal) {
    const exit = this.#process(id).wait(givenUp);
    return exit instanceof Promise ? exit.then(exitOf) : exitOf(exit);
  }

  #publishExit({ containerId, id, pid, status, at }: PendingExit): void {
    this.#events.push({
      at: new Date(),
      namespace: this.#config.namespace,
      topic: "/tasks/exit",
      type: "containerd.events.TaskExit",
      value: containerd.events.TaskExit.encode({
        containerId,
        id,
        pid,
        exitStatus: status,
        exitedAt: timestamp(at),
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

/** Whether a process runs a program, by the path of its executable: proc_pid_exe(5). */
function isProgram(pid: number, path: string): boolean {
  try {
    // It may have been replaced since.
    return Deno.readLinkSync(`/proc/${pid}/exe`).replace(/ \(deleted\)$/, "") === path;
  } catch {
    return false;
  }
}

/** What a call gives back that has nothing to say. */
async function done(promise: Promise<void>): Promise<Change<google.protobuf.Empty>> {
  await promise;
  return { response: {} as google.protobuf.Empty };
}

/** @throws {StatusError} when the answer is one */
function payloadOf({ payload, code, message }: AnswerRecord): Uint8Array {
  if (payload === undefined) throw new StatusError(code as Code, message);
  return Uint8Array.fromBase64(payload);
}

/** A handler that decodes its request, and encodes what `answer` gives; nothing is an empty message. */
function method<Request, Response>(
  request: Type<Request>,
  response: Encoder<Response>,
  answer: (request: Request, call: Call) => Response | void | Promise<Response | void>,
): Handler {
  const encode = (message: Response | void) => response.encode(message ?? {} as Response).finish();
  return (payload, call) => {
    const answered = answer(decode(request, payload, "request"), call);
    return answered instanceof Promise ? answered.then(encode) : encode(answered);
  };
}

function exitOf(exit: ProcessExit | undefined) {
  return exit === undefined ? {} : { exitStatus: exit.status, exitedAt: timestamp(exit.at) };
}
