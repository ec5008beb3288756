/** The shim of one container: puts its parts together. Whose process it lives in, and with how many others, is not its to know. */

import { since } from "../ffi/clock.ts";
import { Connection, Listener } from "../ffi/connection.ts";
import { close, O, open, write } from "../ffi/fd.ts";
import { ensureFifo, unreadBytes } from "../ffi/pipe.ts";
import { Signal, signalName } from "../ffi/signals.ts";
import { ADDRESS_LIMIT, isOwnUser, peerCredentials } from "../ffi/socket.ts";
import { within } from "./async.ts";
import type { Options } from "./cli.ts";
import type { Subjects } from "./dump.ts";
import { messageOf } from "./errors.ts";
import { EventQueue, type Publisher } from "./events/queue.ts";
import { type Logger, openLog } from "./log.ts";
import type { Place } from "./place.ts";
import { type Parent, Reaper } from "./reaper.ts";
import { LazyService } from "./service/lazy.ts";
import { Server } from "./ttrpc/server.ts";

/** Mode of the log FIFOs. */
const LOG_MODE = 0o700;
/** How long a reader of the log has to take a dump before it is also written to a file of the bundle, in ms. */
const DUMP_DELAY_MS = 200;
const DUMP_FILE = "shim.dump.log";
/** How long lines of level debug are kept at most when nobody calls, in ms. */
const START_TIMEOUT_MS = 1000;
const US_PER_MS = 1000;
/** How long nothing is accepted after a failure, in ms. */
const ACCEPT_DELAY_MS = 100;
/** How long the end waits for calls that are being answered, in ms. */
const SHUTDOWN_TIMEOUT_MS = 10_000;

/** The process that containerd has started for the container, and what it was started with. */
export interface Identity {
  readonly options: Options;
  readonly pid: number;
  /** Its working directory, the bundle's. */
  readonly cwd: string;
  /** When it was started, in ns of CLOCK_MONOTONIC, where that is known. */
  readonly entered: bigint | undefined;
  /** Where temporary files go, unless it is where Deno puts them. */
  readonly temporary?: string | undefined;
  /** Starts and reaps the children. */
  readonly parent: Parent;
}

/** The shim of one container. */
export class Shim {
  readonly log: Logger;
  readonly reaper: Reaper;
  readonly #place: Place;
  readonly #identity: Identity;
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
    this.#logs = openLogs(options.workdir || cwd);
    this.log = this.#openLog();
    this.log.debug("log opened");
    if (options.namespace === "") {
      this.#closeLogs();
      throw new Error("shim namespace cannot be empty");
    }
    const { log } = this;
    this.reaper = new Reaper({ timer, poller, log, parent: identity.parent, onStart: place.noteWork });
    this.#events = new EventQueue(lazyPublisher(() => this.#loadPublisher()), timer, log);
    this.#service = new LazyService({ pid: identity.pid, load: () => this.#loadService() });
    this.#server = new Server(this.#service.services, {
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
    const onError = (error: unknown) => {
      this.log.error("accept failed", { error });
      // Out of descriptors, say: the next attempt would fail as soon.
      this.#place.timer(ACCEPT_DELAY_MS, () => listener.retry());
    };
    listener.accept(this.#place.poller, (fd) => this.#accepted(fd), onError);
    if (debug) this.#place.timer(START_TIMEOUT_MS, this.#started.resolve);
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
      calls: this.#server.inFlight,
      processes: this.#service.processes,
      events: this.#events,
      since: this.#since,
    };
  }

  /**
   * Closes all that is open for the container, and does nothing more for it: its process has ended. The container lives on,
   * and is containerd's to clean up.
   */
  abandon(): void {
    if (this.#abandoned) return;
    this.#abandoned = true;
    this.#closeListener();
    this.reaper.abandon(new Error("the container's shim has ended"));
    this.#events.stop();
    this.#service.abandon();
    this.#server.abort();
    this.#closeLogs();
  }

  #accepted(fd: number): void {
    const { log } = this;
    const peer = peerCredentials(fd);
    if (!isOwnUser(peer)) {
      log.warn("connection refused: not this shim's user", { ...peer });
      close(fd);
      return;
    }
    log.debug("connection accepted", { peer: peer.pid });
    this.#server.serveConnection(new Connection(this.#place.poller, fd));
    // It may be a containerd that was away.
    this.#events.retry();
  }

  async #end(): Promise<void> {
    if (this.#ending) return;
    this.#ending = true;
    this.#closeListener();
    // Its waiters are answered when the container has ended, below.
    await within(
      this.#place.timer,
      SHUTDOWN_TIMEOUT_MS,
      this.#server.shutdown({ doNotAwait: ({ method }) => method === "Wait" }),
    );
    try {
      await this.#service.end();
    } catch (error) {
      this.log.error("something is left of the container", { error });
    }
    await this.#server.close();
    this.#ended.resolve();
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
    const { poller, timer, noteWork } = this.#place;
    const { options, cwd, temporary } = this.#identity;
    const { ShimService } = await import("./service/shim.ts");
    noteWork();
    return new ShimService(
      { poller, timer, reaper: this.reaper, log: this.log, temporary: temporary ? { dir: temporary } : undefined },
      {
        namespace: options.namespace,
        cwd,
        workdir: options.workdir || cwd,
        runtimeRoot: options["runtime-root"],
        criu: options.criu,
        systemdCgroup: options["systemd-cgroup"],
      },
      this.#events,
    );
  }

  async #dump(): Promise<void> {
    const { describe, describeProcess } = await import("./dump.ts");
    const { cwd } = this.#identity;
    const text = describe(this.subjects, this.#place.describe?.() ?? describeProcess(this.#place.poller));
    for (const line of text) this.log.info(line);
    this.#place.timer(DUMP_DELAY_MS, () => {
      // What is still there has no reader: it would be lost with this process.
      const [logFifo] = this.#logs;
      if (logFifo === undefined || unreadBytes(logFifo) === 0) return;
      Deno.writeTextFileSync(`${cwd}/${DUMP_FILE}`, text.join("\n") + "\n");
    });
  }

  #openLog(): Logger {
    const { options, cwd, pid, entered } = this.#identity;
    const encoder = new TextEncoder();
    return openLog({
      // A FIFO that is full, because nobody reads it, refuses the line: it is lost, and nothing waits.
      write: (line) => this.#logs.length > 0 && void write(this.#logs[0]!, encoder.encode(line)),
      debug: options.debug,
      fields: { pid, path: cwd, namespace: options.namespace },
      sinceStart: options.debug && entered !== undefined ? since(entered) : undefined,
      started: this.#started.promise,
    });
  }

  #closeLogs(): void {
    for (const fd of this.#logs.splice(0)) close(fd);
  }
}

/** A way to containerd that is loaded when there is something to tell. */
function lazyPublisher(load: () => Promise<Publisher>): Publisher {
  let loading: Promise<Publisher> | undefined;
  const loaded = () => loading ??= load();
  return {
    publish: async (envelope) => (await loaded()).publish(envelope),
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
function openLogs(folder: string): number[] {
  const opened: number[] = [];
  try {
    for (const name of ["stdout", "stderr"]) {
      const path = `${folder}/shim.${name}.log`;
      ensureFifo(path, LOG_MODE);
      opened.push(open(path, O.RDWR | O.NONBLOCK));
    }
    return opened;
  } catch (error) {
    opened.forEach(close);
    throw error;
  }
}
