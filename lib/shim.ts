/** The shim of one container: puts its parts together. Whose process it lives in, and with how many others, is not its to know. */

import { since } from "../ffi/clock.ts";
import { Connection, Listener } from "../ffi/connection.ts";
import { O, open, write } from "../ffi/fd.ts";
import { openPidfd } from "../ffi/pidfd.ts";
import { ensureFifo } from "../ffi/pipe.ts";
import { Signal, signalName } from "../ffi/signals.ts";
import { ADDRESS_LIMIT, isOwnUser, peerCredentials } from "../ffi/socket.ts";
import { within } from "./async.ts";
import type { Options } from "./cli.ts";
import type { Subjects } from "./dump.ts";
import { messageOf, textOf } from "./errors.ts";
import { type Envelope, EventQueue, type Publisher } from "./events/queue.ts";
import { bounded, type Logger, observed, openLog, type Report } from "./log.ts";
import type { Fields } from "./logrus.ts";
import type { Place } from "./place.ts";
import { type Exit, type Parent, Reaper } from "./reaper.ts";
import { CallFile, type Part } from "./record/calls.ts";
import { Commands } from "./record/commands.ts";
import { KeptConnection } from "./record/connection.ts";
import { type Keeper, Role, type Shelf, SHIM_SLOT, unkept } from "./record/keeper.ts";
import type { ShimRecord, TroubleRecord } from "./record/record.ts";
import { Recorder } from "./record/recorder.ts";
import { oneForEach } from "./record/same.ts";
import { StateFile } from "./record/state_file.ts";
import { type Describer, INSPECT_SERVICE, inspection } from "./service/inspection.ts";
import { LazyService } from "./service/lazy.ts";
import { type Calls, crashOf, type KeeperOfAnother, type Past, takeOver } from "./takeover.ts";
import { type Call, type ConnectionOptions, Server } from "./ttrpc/server.ts";

/** Mode of the log FIFOs. */
const LOG_MODE = 0o700;
/** How long a line about the death of another process waits, in ms. */
const CRASH_LINE_DELAY_MS = 50;
const DUMP_FILE = "shim.dump.log";
/** How much of a field is kept of the last error, in UTF-16 code units. */
const MAX_KEPT = 1000;
/** How long lines of level debug are kept at most when nobody calls, in ms. */
const START_TIMEOUT_MS = 1000;
const US_PER_MS = 1000;
/** How long nothing is accepted after a failure, in ms. */
const ACCEPT_DELAY_MS = 100;
/** How long calls are waited for that change something, when another process is to go on, in ms. */
const LEAVE_TIMEOUT_MS = 5000;
/** How long the end waits for calls that are being answered, and for each command of the runtime, in ms. */
const SHUTDOWN_TIMEOUT_MS = 10_000;

/** The process that containerd has started for the container, and what it was started with. */
export interface Identity {
  /** Its flags. */
  readonly options: Options;
  /** What ShimInfo answers. */
  readonly pid: number;
  /** Its working directory, the bundle's. */
  readonly cwd: string;
  /** When it was started, in ns of CLOCK_MONOTONIC, where that is known. */
  readonly entered: bigint | undefined;
  /** Starts and reaps the children. */
  readonly parent: Parent;
  /** Where another process would find what it needs to go on; none does, unless given. */
  readonly keeper?: KeeperOfAnother;
  /** Tells the build of the executable that this process is, where another build may go on. */
  readonly build?: bigint;
}

/** What each line of a shim's log has. */
export function fieldsOf({ options, cwd, pid }: Pick<Identity, "options" | "cwd" | "pid">): Fields {
  // A bundle has its container's name.
  return { id: cwd.slice(cwd.lastIndexOf("/") + 1), namespace: options.namespace, path: cwd, pid };
}

/** A container that has not been started: what is to be removed of it when its shim dies. */
export interface Unstarted {
  /** The container's. */
  readonly id: string;
  /** Where its bundle is, as long as containerd has not put it aside. */
  readonly bundle: string;
  /** The runtime's command line, up to a command. */
  readonly runtime: readonly string[];
  /** The runtime's process that creates it; 0 when it is not known whether there is one, undefined when it has been created. */
  readonly creator: number | undefined;
  /** Its first process, once it has been created; 0 when it has none. */
  readonly init: number;
  /** Takes off what has been mounted for it, wherever its bundle is by then; to be called once. */
  readonly unmount: () => Promise<void>;
}

/** The shim of one container. */
export class Shim {
  /** Its lines have the container's id and namespace. */
  readonly log: Logger;
  /** Knows the container's processes. */
  readonly reaper: Reaper;
  readonly #place: Place;
  readonly #identity: Identity;
  readonly #shelf: Shelf;
  readonly #keeper: Keeper;
  readonly #commands: Commands;
  /** Where another process finds what it needs to go on, and calls that it has begun with. */
  readonly #calls: Calls | undefined;
  readonly #recorder: Recorder | undefined;
  /** How often a process that has had this shim has died. */
  #crashes: ShimRecord["crashes"] = { count: 0, at: 0, reason: "" };
  /** Writes to the log's FIFO alone. */
  readonly #lines: Logger;
  /** Takes errors and warnings for the log of the system: each with a bound, so that the one cannot be what keeps out the other. */
  readonly #reports: { readonly error: Report; readonly warning: Report };
  /** Settled when that has taken them. */
  #reported: Promise<unknown> = Promise.resolve();
  /** The last of each. */
  #lastError: TroubleRecord | undefined;
  #lastWarning: TroubleRecord | undefined;
  readonly #logs: number[];
  readonly #since = performance.now();
  readonly #events: EventQueue;
  readonly #service: LazyService;
  readonly #server: Server;
  readonly #started = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<void>();
  #listener: Listener | undefined;
  #ending = false;
  #abandoned = false;

  /**
   * Opens the log.
   *
   * @throws {Error} when it cannot, or what it was started with makes no shim
   */
  constructor(place: Place, identity: Identity) {
    const { timer, poller } = place;
    const { options, cwd } = identity;
    this.#place = place;
    this.#identity = identity;
    this.#keeper = identity.keeper ?? unkept;
    this.#shelf = this.#keeper.place(SHIM_SLOT);
    this.#logs = openLogs(options.workdir || cwd, this.#shelf);
    this.#lines = this.#openLog();
    this.#reports = { error: bounded(place.report), warning: bounded(place.report) };
    this.log = observed(this.#lines, (level, message, fields) => {
      this.#note(level, message, fields);
      const reported = this.#reports[level](level, message, fields, fieldsOf(identity));
      this.#reported = Promise.all([this.#reported, reported]);
    });
    this.log.debug("log opened");
    if (options.namespace === "") {
      this.#closeLogs();
      throw new Error("shim namespace cannot be empty");
    }
    const { log } = this;
    this.reaper = new Reaper({ timer, poller, log, parent: identity.parent, onStart: place.noteChild });
    this.#commands = new Commands(this.reaper);
    if (identity.keeper !== undefined) {
      this.#calls = this.#openCalls();
      this.#recorder = new Recorder({
        file: this.#openState(),
        bundle: cwd,
        calls: this.#calls.file,
        log,
        afterTurn: (callback) => poller.afterTurn(callback),
        describe: () => this.#describe(),
      });
    }
    const save = () => this.save();
    this.#events = new EventQueue(lazyPublisher(() => this.#loadPublisher()), timer, log, save);
    this.#service = new LazyService({ pid: identity.pid, load: () => this.#loadService() });
    const services = new Map([
      ...this.#service.services,
      [INSPECT_SERVICE, inspection(() => this.#loadDescription())] as const,
    ]);
    this.#server = new Server(services, {
      journal: this.#recorder,
      onError: (error, call) => log.error("call failed", { method: call?.method, error }),
      onAnswer: !options.debug ? undefined : ({ method, startedAt }) => {
        log.debug("call answered", { method, us: Math.round((performance.now() - startedAt) * US_PER_MS) });
        this.#started.resolve();
      },
    });
  }

  /** Settled when it has been told to end, and has: its container is gone, and all calls are answered. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /**
   * Serves the socket that the flags name, or the one that was inherited.
   *
   * @param inherited the shim's from then on, where it is used
   * @throws {Error} when it cannot be served
   */
  serve(inherited: number): void {
    const { socket, debug } = this.#identity.options;
    const listener = socket === "" ? Listener.of(inherited) : listen(socket);
    this.#listener = listener;
    this.log.debug("serving api on unix socket", { socket: socket || "[inherited from parent]" });
    listener.watch(this.#place.poller, () => this.#accept(listener));
    if (debug) this.#place.timer(START_TIMEOUT_MS, this.#started.resolve);
  }

  /** Has its log say what is wrong with the process, and not with this container in particular. */
  tell(message: string, fields: Fields): void {
    this.#lines.error(message, fields);
    this.#note("error", message, fields);
  }

  #note(level: "warning" | "error", message: string, fields: Fields): void {
    const kept = Object.entries(fields).map(([name, value]) => ({ name, value: textOf(value).slice(0, MAX_KEPT) }));
    const trouble = { at: Date.now(), message, fields: kept };
    if (level === "warning") {
      this.#lastWarning = trouble;
      return;
    }
    this.#lastError = trouble;
    // Before it is served, what another process has written down may not be known yet; at its end it is to be gone.
    if (this.#listener !== undefined) this.#recorder?.saveAfterTurn(() => {});
  }

  /** Writes down what another process needs to go on, where one may. */
  save(): void {
    this.#recorder?.save();
  }

  /** Tells of the exit of a child; `saved` is called when that is written down. To be called by a callback of the event loop's. */
  exited(exit: { readonly pid: number; readonly status: number }, saved: () => void): void {
    const isCommand = this.#commands.has(exit.pid);
    try {
      this.reaper.ended([exit]);
    } finally {
      if (isCommand && this.#recorder !== undefined) {
        // As a rule it is what a call waits for, which writes it down with its answer.
        this.#recorder.saveAfterTurn(saved);
      } else {
        // Who waits for it is told what the next process will say, too.
        this.save();
        saved();
      }
    }
  }

  #describe(): Omit<ShimRecord, "answers"> {
    return {
      crashes: this.#crashes,
      lastError: this.#lastError,
      lastWarning: this.#lastWarning,
      host: this.#isLeaving ? 0 : Deno.pid,
      build: `${this.#identity.build ?? 0n}`,
      serial: this.#identity.keeper!.serial,
      isEnding: this.#ending,
      container: this.#service.record,
      commands: this.#commands.records,
      events: this.#events.waiting.map(this.#eventRecord),
      unclaimed: this.reaper.unclaimed.map(this.#exitRecord),
    };
  }

  readonly #eventRecord = oneForEach(({ at, namespace, topic, type, value }: Envelope) => (
    { at: at.getTime(), namespace, topic, type, value: value.toBase64() }
  ));

  readonly #exitRecord = oneForEach(({ pid, status, at }: Exit) => ({ pid, status, at: at.getTime() }));

  /** Whether it is about to be another process's. */
  #isLeaving = false;

  /**
   * Gives it up to another process: takes on no more calls, waits a while for those that change something, writes
   * everything down, and closes what is open here. Whatever has not ended goes on there.
   *
   * @param last called when nothing more is to be told to the container's process
   */
  async leave(last: () => void): Promise<void> {
    this.#isDraining = true;
    this.#closeListener();
    await this.#answerCalls(LEAVE_TIMEOUT_MS);
    this.#isLeaving = true;
    this.save();
    this.#recorder?.stop();
    last();
    this.#giveUp(undefined);
  }

  /** Whether connections that come now are for another process. */
  #isDraining = false;
  /** Those that have come nevertheless. */
  readonly #late: Shelf[] = [];

  #openState(): StateFile {
    const fd = this.#shelf.find(Role.STATE);
    if (fd !== undefined) return StateFile.of(fd);
    const file = StateFile.create();
    this.#shelf.keep(Role.STATE, file.fd);
    return file;
  }

  #openCalls(): Calls {
    const fd = this.#shelf.find(Role.CALLS);
    try {
      if (fd !== undefined) return CallFile.open(fd);
    } catch (error) {
      this.log.error("the calls that were being answered are not known", { error });
      this.#shelf.close(fd!);
    }
    const file = CallFile.create();
    this.#shelf.keep(Role.CALLS, file.fd);
    return { file, calls: [], parts: [] };
  }

  /**
   * Goes on where another process has stopped: see {@link takeOver}.
   *
   * @param listen called when exits can be dealt with
   */
  takeOver(past: Past, listen: () => void): Promise<void> {
    return takeOver(
      {
        folder: this.#identity.cwd,
        keeper: this.#identity.keeper!,
        calls: this.#calls!,
        recorder: this.#recorder!,
        commands: this.#commands,
        reaper: this.reaper,
        service: this.#service,
        server: this.#server,
        events: this.#events,
        log: this.log,
        timer: this.#place.timer,
        found: (record) => {
          this.#lastError ??= record?.lastError;
          this.#lastWarning ??= record?.lastWarning;
          this.#noteCrash(record, past.isHung);
        },
        serve: (fd, shelf, options) => this.#serve(fd, shelf, { peer: peerCredentials(fd).pid, ...options }),
        onSignal: (signal) => this.onSignal(signal),
        end: () => this.#end(),
      },
      past,
      listen,
    );
  }

  #noteCrash(record: ShimRecord | undefined, isHung: boolean): void {
    const pidfd = this.#shelf.find(Role.HOST);
    const { crashes, line } = crashOf(record, pidfd, isHung);
    this.#crashes = crashes;
    // Calls come first: the first line of a log takes a while.
    this.#place.timer(CRASH_LINE_DELAY_MS, () => {
      if (this.#abandoned) return;
      if (line !== undefined && isHung) this.log.error("the host of this shim has hung, and was killed", line);
      else if (line !== undefined) this.log.warn("the host of this shim has died, and another goes on", line);
      this.save();
    });
    if (pidfd !== undefined) this.#shelf.close(pidfd);
    this.keepHost();
  }

  /** Has it known to the next process how this one ends. */
  keepHost(): void {
    try {
      const pidfd = openPidfd(Deno.pid);
      if (pidfd !== undefined) this.#shelf.keep(Role.HOST, pidfd);
    } catch (error) {
      // It is only told, and is nothing that a container needs.
      this.log.debug("how this host ends will not be known", { error });
    }
  }

  /** Does what a signal to the container's process asks for; SIGCHLD is for whoever reaps its children. */
  onSignal(signal: number): void {
    switch (signal) {
      case Signal.SIGTERM:
      case Signal.SIGINT:
        this.#end();
        return;
      case Signal.SIGUSR1:
        this.#dump();
        return;
      case Signal.SIGPIPE:
        return;
      default:
        this.log.debug("signal ignored", { signal: signalName(signal) });
    }
  }

  /** What a dump tells of. */
  get subjects(): Subjects {
    return {
      pid: this.#identity.pid,
      // Who asks knows that he does.
      calls: Array.from(this.#server.inFlight).filter(({ service }) => service !== INSPECT_SERVICE),
      processes: this.#service.processes,
      events: this.#events,
      crashes: this.#crashes,
      lastError: this.#lastError,
      lastWarning: this.#lastWarning,
      since: this.#since,
    };
  }

  /** Its container, as long as nobody has begun to start it, and the shim has not been told to end. */
  get unstarted(): Unstarted | undefined {
    const container = this.#service.record;
    if (container === undefined || this.#abandoned || this.#ending) return undefined;
    const { id, pid, state } = container.init;
    const commands = this.#commands.records;
    const creation = commands.find(({ key }) => key.startsWith("create "));
    const isStarted = state !== "created" && state !== "createdCheckpoint" ||
      commands.some(({ key }) => /^(start|restore) /.test(key));
    if (container.isCreated ? isStarted : creation === undefined) return undefined;
    const { "runtime-root": root, namespace, "systemd-cgroup": systemd } = this.#identity.options;
    const runtime = [container.runtime, "--root", `${root}/${namespace}`, ...(systemd ? ["--systemd-cgroup"] : [])];
    const creator = container.isCreated ? undefined : creation!.pid;
    return { id, bundle: this.#identity.cwd, runtime, creator, init: pid, unmount: this.#service.holdMounts() };
  }

  /**
   * Closes all that is open for the container, and does nothing more for it: its process has ended. The container lives on,
   * and is containerd's to clean up.
   */
  abandon(): void {
    this.#giveUp(new Error("the container's shim has ended"));
  }

  /** @param reason why whoever waits for something fails; he waits for ever, where another process goes on, unless given */
  #giveUp(reason: Error | undefined): void {
    if (this.#abandoned) return;
    this.#abandoned = true;
    this.#recorder?.stop();
    this.#closeListener();
    this.reaper.abandon(reason);
    this.#events.stop();
    this.#service.abandon(reason === undefined);
    for (const shelf of this.#late) shelf.release();
    this.#server.abort();
    this.#closeLogs();
  }

  async #accept(listener: Listener): Promise<void> {
    const shelf = this.#keeper.place();
    let fd;
    try {
      fd = await shelf.accept(Role.CONNECTION, listener.fd);
    } catch (error) {
      shelf.release();
      if (this.#listener !== listener) return;
      this.log.error("a connection cannot be accepted yet", { error });
      // Out of descriptors, say: the next attempt would fail as soon.
      this.#place.timer(ACCEPT_DELAY_MS, () => listener.retry());
      return;
    }
    if (fd === undefined || this.#abandoned) return shelf.release();
    if (this.#isDraining) return void this.#late.push(shelf);
    listener.retry();
    this.#accepted(fd, shelf);
  }

  #accepted(fd: number, shelf: Shelf): void {
    const { log } = this;
    let peer;
    try {
      peer = peerCredentials(fd);
    } catch (error) {
      log.error("connection refused: its peer is not known", { error });
      return shelf.release();
    }
    if (!isOwnUser(peer)) {
      log.warn("connection refused: not this shim's user", { peer: peer.pid, uid: peer.uid, gid: peer.gid });
      return shelf.release();
    }
    log.debug("connection accepted", { peer: peer.pid });
    this.#serve(fd, shelf, { peer: peer.pid });
    // It may be a containerd that was away.
    this.#events.retry();
  }

  #serve(
    fd: number,
    shelf: Shelf,
    { part, ...options }: ConnectionOptions & { readonly part?: Part | undefined },
  ): void {
    const calls = this.#calls?.file;
    const { poller } = this.#place;
    const connection = new Connection(poller, fd, { peeks: calls !== undefined, close: () => shelf.release() });
    const conn = calls === undefined ? connection : new KeptConnection(connection, calls, shelf.slot, part);
    // What many have left behind would stay until a child is started.
    this.#server.serveConnection(conn, { ...options, number: shelf.slot }).then(this.#place.noteWork);
  }

  async #end(): Promise<void> {
    if (this.#ending) return;
    this.#ending = true;
    this.save();
    this.#closeListener();
    this.reaper.limitRuns(SHUTDOWN_TIMEOUT_MS);
    // Its waiters are answered when the container has ended, below.
    await this.#answerCalls(SHUTDOWN_TIMEOUT_MS);
    try {
      await this.#service.end();
    } catch (error) {
      this.log.error("something is left of the container", { error });
    }
    await this.#server.close();
    this.#events.stop();
    this.reaper.endRuns();
    // Another process would end the rest.
    this.save();
    this.#recorder?.stop();
    // The process may end now.
    await this.#reported;
    this.#ended.resolve();
  }

  /** Takes on no more calls, and waits a while for those that are being answered, but for Wait. */
  #answerCalls(ms: number): Promise<void> {
    const isWait = ({ method }: Call) => method === "Wait";
    return within(this.#place.timer, ms, this.#server.shutdown({ doNotAwait: isWait }));
  }

  #closeListener(): void {
    this.#listener?.close();
    this.#listener = undefined;
  }

  async #loadPublisher(): Promise<Publisher> {
    const { address, "containerd-binary": binary } = this.#identity.options;
    const { publisher } = await import("./events/publish.ts");
    return publisher({ address, binary, run: (options) => this.reaper.run(options) });
  }

  async #loadService() {
    const { poller, timer, noteWork, children } = this.#place;
    const { options, cwd } = this.#identity;
    const { ShimService } = await import("./service/shim.ts");
    noteWork();
    return new ShimService(
      {
        ...{ poller, timer, reaper: this.reaper, log: this.log, keeper: this.#keeper, commands: this.#commands },
        ...{ shelf: this.#shelf, ownChildren: children },
        save: () => this.save(),
      },
      {
        namespace: options.namespace,
        cwd,
        workdir: options.workdir || cwd,
        runtimeRoot: options["runtime-root"],
        criu: options.criu,
        systemdCgroup: options["systemd-cgroup"],
        containerd: options["containerd-binary"],
      },
      this.#events,
      this.#recorder,
    );
  }

  async #loadDescription(): Promise<Describer> {
    const { describe, describeProcess } = await import("./dump.ts");
    const { host, poller } = this.#place;
    return (isWhole) => {
      // In a host, memory and descriptors are all its containers'.
      const process = isWhole && host === undefined ? describeProcess(poller) : undefined;
      return describe(this.subjects, { host: host?.(), process });
    };
  }

  async #dump(): Promise<void> {
    const { linesOf, writeDump } = await import("./dump.ts");
    const { cwd } = this.#identity;
    const text = linesOf((await this.#loadDescription())(true));
    for (const line of text) this.log.info(line);
    // Who reads the log may throw it away, as containerd does.
    try {
      if (cwd !== "") writeDump(`${cwd}/${DUMP_FILE}`, text.join("\n") + "\n");
    } catch (error) {
      this.log.warn("the dump cannot be written to a file", { error });
    }
  }

  #openLog(): Logger {
    const { options, entered } = this.#identity;
    const encoder = new TextEncoder();
    return openLog({
      // A FIFO that is full, because nobody reads it, refuses the line: it is lost, and nothing waits.
      write: (line) => this.#logs.length > 0 && void write(this.#logs[0]!, encoder.encode(line)),
      debug: options.debug,
      fields: fieldsOf(this.#identity),
      sinceStart: options.debug && entered !== undefined ? since(entered) : undefined,
      started: this.#started.promise,
    });
  }

  #closeLogs(): void {
    this.#logs.length = 0;
    this.#shelf.release();
  }
}

/** A way to containerd that is loaded when there is something to tell. */
function lazyPublisher(load: () => Promise<Publisher>): Publisher {
  let loading: Promise<Publisher> | undefined;
  const loaded = () => loading ??= load();
  return {
    publish: async (...events) => (await loaded()).publish(...events),
    reach: async () => (await loaded()).reach(),
  };
}

/** @throws {Error} */
function listen(socket: string): Listener {
  const path = socket.startsWith("unix://") ? socket.slice("unix://".length) : `\0${socket}`;
  if (new TextEncoder().encode(path).length > ADDRESS_LIMIT) {
    throw new Error(`${JSON.stringify(socket)}: unix socket path too long (> ${ADDRESS_LIMIT})`);
  }
  try {
    return Listener.listen(path);
  } catch (cause) {
    throw new Error(`cannot listen on ${JSON.stringify(socket)}: ${messageOf(cause)}`, { cause });
  }
}

/**
 * Opens the log FIFOs, both ends of each for life: a containerd that has gone means no EPIPE, and finds them again.
 *
 * @returns their descriptors, of standard output first
 * @throws {SystemError}
 */
function openLogs(folder: string, shelf: Shelf): number[] {
  try {
    return ([["stdout", Role.LOG_STDOUT], ["stderr", Role.LOG_STDERR]] as const).map(([name, role]) => {
      const brought = shelf.find(role);
      if (brought !== undefined) return brought;
      const path = `${folder}/shim.${name}.log`;
      ensureFifo(path, LOG_MODE);
      const fd = open(path, O.RDWR | O.NONBLOCK | O.NOFOLLOW);
      shelf.keep(role, fd);
      return fd;
    });
  } catch (error) {
    shelf.release();
    throw error;
  }
}
