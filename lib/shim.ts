/** The shim: puts the parts together and runs them. The only place that knows all of them. */

import { sinceEntry } from "../ffi/clock.ts";
import { O, open, write } from "../ffi/fd.ts";
import { ensureFifo, unreadBytes } from "../ffi/pipe.ts";
import { Poller } from "../ffi/poll.ts";
import { becomeSubreaper, closeOnExecFrom, restoreOpenFilesLimit } from "../ffi/process.ts";
import { Signal, signalName } from "../ffi/signals.ts";
import { Listener, ownCredentials } from "../ffi/socket.ts";
import { after } from "../ffi/timer.ts";
import { sleep, type Timer, within } from "./async.ts";
import type { Options } from "./cli.ts";
import { messageOf } from "./errors.ts";
import { EventQueue, type Publisher } from "./events/queue.ts";
import { Housekeeping } from "./housekeeping.ts";
import { type Logger, openLog } from "./log.ts";
import { Reaper } from "./reaper.ts";
import { LazyService } from "./service/lazy.ts";
import { blockEverywhere, receive, receiveFromDeno } from "./signals.ts";
import { Server } from "./ttrpc/server.ts";

/** The descriptor that containerd passes the listening socket as. */
const INHERITED_SOCKET = 3;
/** What a Unix socket's address can be, in bytes: sun_path of unix(7), less what marks an abstract one and its end. */
const ADDRESS_LIMIT = 106;
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

/**
 * Runs the shim until it is told to end.
 *
 * @returns the exit code
 * @throws {Error} when it cannot start; the message says why
 */
export async function run(options: Options): Promise<number> {
  const cwd = Deno.cwd();
  const started = Promise.withResolvers<void>();
  const { log, logFifo } = openLogs(options, cwd, started.promise);
  log.debug("log opened");
  if (options.namespace === "") throw new Error("shim namespace cannot be empty");
  surviveErrors(log);
  becomeSubreaper();
  restoreOpenFilesLimit();
  const unblocked = await blockEverywhere();
  log.debug("signals blocked");
  const poller = await Poller.open((error) => log.error("a descriptor's handler failed", { error }));
  log.debug("event loop joined");
  const timer = (ms: number, callback: () => void) => after(poller, ms, callback);
  const housekeeping = new Housekeeping({
    timer,
    giveBack: async () => (await import("../ffi/memory.ts")).giveBackMemory(),
  });
  const reaper = new Reaper({ timer, poller, log, onStart: () => housekeeping.noteWork() });
  const ended = Promise.withResolvers<void>();
  const onSignal = (signal: number) => {
    switch (signal) {
      case Signal.SIGCHLD:
        return reaper.collect();
      case Signal.SIGTERM:
      case Signal.SIGINT:
        return ended.resolve();
      case Signal.SIGUSR1:
        return dump();
      case Signal.SIGPIPE:
        return;
      default:
        return log.debug("signal ignored", { signal: signalName(signal) });
    }
  };
  if (unblocked.length === 0) {
    receive(poller, onSignal);
  } else {
    receiveFromDeno(onSignal);
    log.warn("signals come by Deno's listeners: some threads do not block them", { threads: unblocked });
  }
  const events = new EventQueue(
    lazyPublisher(async () => {
      const { publisher } = await import("./events/publish.ts");
      return publisher({
        address: options.address,
        binary: options["containerd-binary"],
        run: (options) => reaper.run(options),
      });
    }),
    timer,
    log,
  );
  const service = new LazyService({
    load: async () => {
      const { ShimService } = await import("./service/shim.ts");
      housekeeping.noteWork();
      return new ShimService(
        { poller, reaper, timer, log },
        {
          namespace: options.namespace,
          cwd,
          workdir: options.workdir || cwd,
          runtimeRoot: options["runtime-root"],
          criu: options.criu,
          systemdCgroup: options["systemd-cgroup"],
        },
        events,
      );
    },
  });
  const server = new Server(service.services, {
    onError: (error, call) => log.error("call failed", { method: call?.method, error }),
    onAnswer: !options.debug ? undefined : ({ method, startedAt }) => {
      log.debug("call answered", { method, us: Math.round((performance.now() - startedAt) * US_PER_MS) });
      started.resolve();
    },
  });
  const dump = async () => {
    const { describe } = await import("./dump.ts");
    const text = describe({ calls: server.inFlight, processes: service.processes, events, poller });
    for (const line of text) log.info(line);
    timer(DUMP_DELAY_MS, () => {
      // What is still there has no reader: it would be lost with this process.
      if (unreadBytes(logFifo) > 0) Deno.writeTextFileSync(`${cwd}/${DUMP_FILE}`, text.join("\n") + "\n");
    });
  };
  const listener = listen(options.socket);
  log.debug("serving api on unix socket", { socket: options.socket || "[inherited from parent]" });
  accept(listener, server, events, timer, log);
  if (options.debug) timer(START_TIMEOUT_MS, started.resolve);

  await ended.promise;
  listener.close();
  // Its waiters are answered when the container has ended, below.
  await within(
    timer,
    SHUTDOWN_TIMEOUT_MS,
    server.shutdown({ doNotAwait: ({ method }) => method === "Wait" }),
  );
  try {
    await service.end();
  } catch (error) {
    log.error("something is left of the container", { error });
  }
  await server.close();
  return 0;
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

function listen(socket: string): Listener {
  if (socket === "") {
    const listener = Listener.inherit(INHERITED_SOCKET);
    // What else was inherited is not for this process's children.
    closeOnExecFrom(INHERITED_SOCKET);
    return listener;
  }
  const path = socket.startsWith("unix://") ? socket.slice("unix://".length) : `\0${socket}`;
  if (new TextEncoder().encode(path).length > ADDRESS_LIMIT) {
    throw new Error(`${JSON.stringify(socket)}: unix socket path too long (> ${ADDRESS_LIMIT})`);
  }
  closeOnExecFrom(INHERITED_SOCKET);
  try {
    return Listener.listen(path);
  } catch (cause) {
    throw new Error(`cannot listen on ${JSON.stringify(socket)}: ${messageOf(cause)}`, { cause });
  }
}

async function accept(
  listener: Listener,
  server: Server,
  events: EventQueue,
  timer: Timer,
  log: Logger,
): Promise<void> {
  const own = ownCredentials();
  for (;;) {
    let accepted;
    try {
      accepted = await listener.accept();
    } catch (error) {
      if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) return;
      log.error("accept failed", { error });
      // Out of descriptors, say: the next attempt would fail as soon.
      await sleep(timer, ACCEPT_DELAY_MS);
      continue;
    }
    const { conn, peer } = accepted;
    if (peer.uid !== own.uid || peer.gid !== own.gid) {
      log.warn("connection refused: not this shim's user", { ...peer });
      conn.close();
      continue;
    }
    log.debug("connection accepted", { peer: peer.pid });
    server.serveConnection(conn);
    // It may be a containerd that was away.
    events.retry();
  }
}

/** One request's or one descriptor's trouble does not end the shim: the container would be without its parent. */
function surviveErrors(log: Logger): void {
  addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    log.error("unhandled rejection", { error: messageOf(event.reason), stack: (event.reason as Error)?.stack });
  });
  addEventListener("error", (event) => {
    event.preventDefault();
    log.error("uncaught exception", { error: event.message, stack: (event.error as Error)?.stack });
  });
}

/**
 * Opens the log FIFOs, both ends of each for life: a containerd that has gone means no EPIPE, and finds them again.
 *
 * @throws {SystemError}
 */
function openLogs(
  options: Options,
  cwd: string,
  started: Promise<void>,
): { readonly log: Logger; readonly logFifo: number } {
  const folder = options.workdir || cwd;
  const [stdout] = ["stdout", "stderr"].map((name) => {
    const path = `${folder}/shim.${name}.log`;
    ensureFifo(path, LOG_MODE);
    return open(path, O.RDWR | O.NONBLOCK);
  });
  const encoder = new TextEncoder();
  const log = openLog({
    // A FIFO that is full, because nobody reads it, refuses the line: it is lost, and nothing waits.
    write: (line) => void write(stdout!, encoder.encode(line)),
    debug: options.debug,
    fields: { pid: Deno.pid, path: cwd, namespace: options.namespace },
    sinceStart: options.debug ? sinceEntry() : undefined,
    started,
  });
  return { log, logFifo: stdout! };
}
