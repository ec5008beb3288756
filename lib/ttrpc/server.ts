/**
 * The answering side of ttrpc: requests in, handlers called, replies out. Nothing in this folder knows of containers, or looks into
 * a payload.
 */
import { ttrpc } from "../api/ttrpc.js";
import { messageOf } from "../errors.ts";
import { type Deadline, Deadlines } from "./deadline.ts";
import {
  type Conn,
  type FrameSink,
  FrameWriter,
  isDisconnect,
  isPeerGone,
  MAX_PAYLOAD,
  MAX_UNSENT,
  MessageType,
  readFrames,
} from "./frame.ts";
import { Code, StatusError } from "./status.ts";

/** How many calls of one connection may be in flight unless the options say otherwise. */
const DEFAULT_MAX_IN_FLIGHT = 16384;

/** How long a peer that does not read may hold up the end of the server unless the options say otherwise, in ms. */
const DEFAULT_FLUSH_TIMEOUT_MS = 5000;

/** Field number of the payload in the Response message. */
const RESPONSE_PAYLOAD = 2;

/** A request that is being answered. */
export interface Call {
  /** The full name of the service. */
  readonly service: string;
  /** The name in the service. */
  readonly method: string;
  /** When the request was read, on the clock of `performance.now()`, in ms. */
  readonly startedAt: number;
  /**
   * Aborted with a {@linkcode StatusError} when the deadline passes or the connection closes before the call has been
   * answered. It is made when it is first read: a handler that has no use for it pays nothing.
   */
  readonly signal: AbortSignal;
  /** What the journal knows it by, from when its handler has returned a promise. */
  readonly id: number | undefined;
  /** The pid of the peer, as {@linkcode ConnectionOptions.peer} has it. */
  readonly peer: number | undefined;
  /** Settled when its answer has been written, or its connection is closed. */
  readonly answered: Promise<void>;
  /** Whether the peer has yet to read something that it has been sent, where that can be told. */
  isUnread(): boolean;
}

/** A call whose handler has not ended. */
export interface CallInFlight extends Call {
  /** Resolves when it has, and its reply is queued. */
  readonly ended: Promise<void> | undefined;
}

/**
 * Answers one method.
 *
 * The payload is valid until the handler returns or first awaits, because its memory is then used for the next
 * request: decode it first. What is returned now is copied at once, what a promise gives when it gives it.
 * A {@linkcode StatusError} becomes the answer, any other error is answered UNKNOWN with its message.
 */
export type Handler = (payload: Uint8Array, call: Call) => Uint8Array | Promise<Uint8Array>;

/** Handlers by service name and method name. */
export type Services = ReadonlyMap<string, Methods>;

/** A service's handlers, looked up at each request. */
export type Methods = Pick<ReadonlyMap<string, Handler>, "get">;

/** The answer to a call of a method that its service does not have. */
export function unimplemented(service: string, method: string): StatusError {
  return new StatusError(Code.UNIMPLEMENTED, `Cannot call ${service}/${method}: the service has no such method`);
}

/** Where calls are noted that are not answered at once, for another process to go on with. */
export interface Journal {
  /**
   * Notes a call by its request, and gives it a number.
   *
   * @param hangs how many processes have hung that had it before them; none, unless given
   */
  begin(connection: number, stream: number, request: Uint8Array, hangs?: number): number;
  /** Notes that it has its answer, or that nobody waits for one. */
  answered(id: number): void;
  /** Forgets it: its handler has ended. */
  end(id: number): void;
}

/** A call that another process has begun with. */
export interface BegunCall {
  /** What the journal knows it by. */
  readonly id: number;
  /** What its answer goes to. */
  readonly stream: number;
  /** As it came: the message Request. */
  readonly request: Uint8Array;
  /** When its request was read, on the clock of `performance.now()`, in ms. */
  readonly startedAt: number;
  /** Whether nobody waits for an answer any more. */
  readonly isAnswered: boolean;
  /** Why a method is not gone on with, if it is not. */
  readonly refusal?: (method: string) => string | undefined;
}

/** Options of {@linkcode Server.serveConnection}. */
export interface ConnectionOptions {
  /** What the journal knows the connection by. */
  readonly number?: number;
  /** The pid of its peer, for handlers. */
  readonly peer?: number | undefined;
  /** In the order in which they have come. */
  readonly begun?: readonly BegunCall[];
  /**
   * How many processes have hung that had before them what waits to be read, where another has stopped: such a request is noted before
   * its handler is called, which may be what it has stopped in.
   */
  readonly suspects?: number | undefined;
}

/** Options of {@linkcode Server}. */
export interface ServerOptions {
  /** Calls in flight on one connection before the next are answered RESOURCE_EXHAUSTED; 16384 unless given. */
  readonly maxInFlight?: number;
  /** How long `shutdown` and `close` wait for a peer to take its replies, in ms; 5000 unless given. */
  readonly flushTimeoutMs?: number;
  /**
   * Told of what nobody expected: errors of handlers that are no StatusError (with the call), and errors of a
   * connection other than that its peer went away. Must not throw.
   */
  readonly onError?: (error: unknown, call?: Call) => void;
  /** Told of calls that take longer than their handler's first await. */
  readonly journal?: Journal | undefined;
  /** Told of each call whose reply, or error, has just been queued. Must not throw. */
  readonly onAnswer?: ((call: Call) => void) | undefined;
}

/** Options of {@linkcode Server.shutdown}. */
export interface ShutdownOptions {
  /** Picks the calls that are not waited for. */
  readonly doNotAwait?: (call: Call) => boolean;
}

/**
 * Serves connections. Who may connect is up to the caller, who accepts them.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { Client } from "./client.ts";
 *
 * const echo = new Map([["Echo", (payload: Uint8Array) => payload]]);
 * const server = new Server(new Map([["test.v1.Test", echo]]));
 * const path = `\0${crypto.randomUUID()}`;
 * using listener = Deno.listen({ transport: "unix", path });
 * listener.accept().then((conn) => server.serveConnection(conn));
 *
 * using client = new Client(await Deno.connect({ transport: "unix", path }));
 * assertEquals(await client.call("test.v1.Test", "Echo", new Uint8Array([1, 2])), new Uint8Array([1, 2]));
 * await server.shutdown();
 * ```
 */
export class Server {
  readonly #shared: Shared;
  readonly #connections = new Set<Connection>();
  #stopping = false;

  /**
   * Serves nothing before it is given a connection.
   *
   * @param services all that can be called; looked up at each request
   */
  constructor(services: Services, options: ServerOptions = {}) {
    this.#shared = {
      services,
      calls: new Set(),
      deadlines: new Deadlines(),
      maxInFlight: options.maxInFlight ?? DEFAULT_MAX_IN_FLIGHT,
      onError: options.onError ?? (() => {}),
      onAnswer: options.onAnswer,
      journal: options.journal,
      flushTimeoutMs: options.flushTimeoutMs ?? DEFAULT_FLUSH_TIMEOUT_MS,
    };
  }

  /**
   * Serves a connection, which from now on belongs to the server. Resolves when it has been closed; never rejects.
   *
   * It is closed when the peer has closed it, when the peer has shut down its writing side and all its requests are
   * answered, when reading or writing fails, and by {@linkcode close}. After {@linkcode shutdown} it is closed at once.
   */
  async serveConnection(conn: Conn, options: ConnectionOptions = {}): Promise<void> {
    if (this.#stopping) {
      conn.close();
      return;
    }
    const connection = new Connection(conn, this.#shared, options);
    this.#connections.add(connection);
    for (const each of options.begun ?? []) connection.goOn(each);
    await connection.serve();
    this.#connections.delete(connection);
  }

  /** Goes on with a call whose connection is gone. */
  goOn(call: BegunCall): void {
    const nowhere: Conn = {
      read: () => Promise.resolve(null),
      write: (p) => Promise.resolve(p.length),
      close: () => {},
    };
    const connection = new Connection(nowhere, this.#shared);
    connection.goOn({ ...call, isAnswered: true });
  }

  /**
   * Reads no further requests, and resolves when the calls in flight have ended and their replies are written.
   *
   * With `doNotAwait` the connections stay open, so that the calls left out are still answered if they end before
   * {@linkcode close}. Without it nothing is left to answer, and the connections are closed too. A call whose deadline has
   * passed is in flight until its handler ends. May be called again, for instance to wait for more.
   */
  async shutdown(options: ShutdownOptions = {}): Promise<void> {
    const { doNotAwait } = options;
    this.#stopping = true;
    for (const connection of this.#connections) connection.stopReading();
    const awaited = [...this.#shared.calls].filter((call) => !doNotAwait?.(call));
    await Promise.all(awaited.map((call) => call.ended));
    if (doNotAwait) await this.#flush();
    else await this.close();
  }

  /** Writes the replies that are there, closes all connections and aborts what is still in flight. */
  async close(): Promise<void> {
    this.#stopping = true;
    for (const connection of this.#connections) connection.stopReading();
    await this.#flush();
    for (const connection of this.#connections) connection.end();
  }

  /** Closes all connections where they are, and aborts what is in flight. */
  abort(): void {
    this.#stopping = true;
    for (const connection of this.#connections) connection.end();
  }

  /** The calls whose handlers have not ended, also those that have been answered DEADLINE_EXCEEDED or lost their peer. */
  get inFlight(): Iterable<CallInFlight> {
    return this.#shared.calls;
  }

  async #flush(): Promise<void> {
    const { deadlines, flushTimeoutMs } = this.#shared;
    const timeout = Promise.withResolvers<void>();
    const deadline = deadlines.add(performance.now() + flushTimeoutMs, timeout.resolve);
    const flushed = Promise.all([...this.#connections].map((connection) => connection.flushed()));
    await Promise.race([flushed, timeout.promise]);
    deadlines.remove(deadline);
  }
}

/** What the connections of a server have in common. */
interface Shared extends Required<Omit<ServerOptions, "journal">>, Pick<ServerOptions, "journal"> {
  readonly services: Services;
  readonly calls: Set<ServerCall>;
  readonly deadlines: Deadlines;
}

class ServerCall implements CallInFlight {
  id: number | undefined;
  ended: Promise<void> | undefined;
  deadline: Deadline | undefined;
  #answered: PromiseWithResolvers<void> | undefined;
  readonly #connection: Pick<Connection, "peer" | "isUnread">;
  #controller: AbortController | undefined;
  #abortReason: StatusError | undefined;

  constructor(
    readonly service: string,
    readonly method: string,
    readonly stream: number,
    connection: Pick<Connection, "peer" | "isUnread">,
    readonly startedAt: number = performance.now(),
  ) {
    this.#connection = connection;
  }

  get peer(): number | undefined {
    return this.#connection.peer;
  }

  get answered(): Promise<void> {
    return (this.#answered ??= Promise.withResolvers()).promise;
  }

  isUnread(): boolean {
    return this.#connection.isUnread();
  }

  /** Settles {@linkcode answered}, where somebody has asked for it, when all that is queued by then has been written. */
  settleAnswered(writer: Pick<FrameWriter, "unsentAtMost">): void {
    if (this.#answered !== undefined) writer.unsentAtMost(0).then(this.#answered.resolve);
  }

  get signal(): AbortSignal {
    if (!this.#controller) {
      this.#controller = new AbortController();
      if (this.#abortReason) this.#controller.abort(this.#abortReason);
    }
    return this.#controller.signal;
  }

  abort(reason: StatusError): void {
    this.#abortReason = reason;
    this.#controller?.abort(reason);
  }
}

class Connection implements FrameSink {
  readonly #conn: Conn;
  readonly #shared: Shared;
  readonly #writer: FrameWriter;
  readonly #over = Promise.withResolvers<void>();
  /** Calls that have not been answered, by stream. */
  readonly #unanswered = new Map<number, ServerCall>();
  /** How many handlers have not ended. */
  #running = 0;
  #dispatching = false;
  #halfClosed = false;
  #ended = false;
  stopped = false;

  readonly #number: number;
  readonly peer: number | undefined;
  /** What another process has begun with, by stream: its request may come once more. */
  readonly #begun = new Map<number, Uint8Array>();
  /** See {@linkcode ConnectionOptions}; none, when what had waited has been read. */
  #suspects: number | undefined;

  constructor(conn: Conn, shared: Shared, { number = 0, peer, suspects }: ConnectionOptions = {}) {
    this.#conn = conn;
    this.#shared = shared;
    this.#number = number;
    this.peer = peer;
    this.#suspects = suspects;
    this.#writer = new FrameWriter(conn, (error) => this.#fail(error));
  }

  async serve(): Promise<void> {
    try {
      await readFrames(this.#conn, MessageType.REQUEST, this);
      if (!this.stopped) await this.#onEndOfFile();
    } catch (error) {
      this.#fail(error);
    }
    await this.#over.promise;
  }

  stopReading(): void {
    this.stopped = true;
  }

  isUnread(): boolean {
    return !this.#ended && (this.#conn.unread?.() ?? 0) > 0;
  }

  flushed(): Promise<void> {
    return this.#writer.unsentAtMost(0);
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.stopped = true;
    this.#writer.stop();
    this.#conn.close();
    for (const call of [...this.#unanswered.values()]) {
      this.#settle(call);
      this.#note(call, "answered");
      const what = `${call.service}/${call.method}`;
      call.abort(new StatusError(Code.CANCELED, `Cannot answer ${what}: the connection was closed`));
    }
    this.#over.resolve();
  }

  backpressure(): Promise<void> | undefined {
    if (this.#writer.unsent <= MAX_UNSENT) return undefined;
    return this.#writer.unsentAtMost(MAX_UNSENT);
  }

  onBatchEnd(): void {
    this.#suspects = undefined;
    this.#writer.flush();
  }

  /** Goes on with a call that another process has begun with. */
  goOn({ id, stream, request, startedAt, isAnswered, refusal: refusalOf }: BegunCall): void {
    const { service, method, payload, timeoutNano } = ttrpc.Request.decode(request);
    const call = new ServerCall(service, method, stream, this, startedAt);
    call.id = id;
    if (!isAnswered) this.#begun.set(stream, request);
    const handler = this.#shared.services.get(service)?.get(method);
    const refusal = refusalOf?.(method);
    if (refusal !== undefined || handler === undefined) {
      const message = refusal ?? `${service}/${method} is not known any more`;
      if (!isAnswered) this.#refuse(stream, Code.UNAVAILABLE, message);
      return this.#note(call, "end");
    }
    // Also what is answered at once: nothing else is to be done before all that has been begun goes on.
    const result = new Promise<Uint8Array>((resolve) => resolve(handler(payload, call)));
    this.#await(call, result, timeoutNano);
    if (isAnswered) this.#settle(call);
  }

  onOversized(stream: number, length: number): void {
    const message = `Cannot take a request of ${length} bytes on stream ${stream}: the limit is ${MAX_PAYLOAD} bytes`;
    this.#refuse(stream, Code.RESOURCE_EXHAUSTED, message);
  }

  onFrame(stream: number, payload: Uint8Array): void {
    // Replies given meanwhile are flushed at the end of the batch, without a microtask for it.
    this.#dispatching = true;
    this.#dispatch(stream, payload);
    this.#dispatching = false;
  }

  #dispatch(stream: number, payload: Uint8Array): void {
    if (stream % 2 === 0) {
      const message = `Cannot take a request on stream ${stream}: a stream opened by a client has an odd id`;
      return this.#refuse(stream, Code.INVALID_ARGUMENT, message);
    }
    if (this.#begun.size > 0) {
      const begun = this.#begun.get(stream);
      if (begun !== undefined && isEqual(begun, payload)) return;
      // What may come once more comes first, and clients count their streams upwards.
      if (stream > Math.max(...this.#begun.keys())) this.#begun.clear();
    }
    if (this.#unanswered.has(stream)) {
      const message = `Cannot take a request on stream ${stream}: the one before it has not been answered`;
      return this.#refuse(stream, Code.INVALID_ARGUMENT, message);
    }
    let request: ttrpc.Request;
    try {
      request = ttrpc.Request.decode(payload);
    } catch (error) {
      const message = `Cannot parse the request of ${payload.length} bytes on stream ${stream}: ${messageOf(error)}`;
      return this.#refuse(stream, Code.INVALID_ARGUMENT, message);
    }
    const { service, method } = request;
    const methods = this.#shared.services.get(service);
    const handler = methods?.get(method);
    if (!handler) {
      const message = methods
        ? unimplemented(service, method).message
        : `Cannot call ${service}/${method}: there is no such service`;
      return this.#refuse(stream, Code.UNIMPLEMENTED, message);
    }
    if (this.#running >= this.#shared.maxInFlight) {
      const message = `Cannot call ${service}/${method}: ${this.#running} calls are in flight on this connection`;
      return this.#refuse(stream, Code.RESOURCE_EXHAUSTED, message);
    }

    const call = new ServerCall(service, method, stream, this);
    const note = () => this.#shared.journal?.begin(this.#number, stream, payload, this.#suspects);
    if (this.#suspects !== undefined) call.id = note();
    let result: Uint8Array | Promise<Uint8Array>;
    try {
      result = handler(request.payload, call);
    } catch (error) {
      this.#replyError(call, error);
      return this.#note(call, "end");
    }
    if (result instanceof Uint8Array) {
      this.#reply(call, result);
      return this.#note(call, "end");
    }
    call.id ??= note();
    this.#await(call, result, request.timeoutNano);
  }

  #await(call: ServerCall, result: Promise<Uint8Array>, timeoutNano: number): void {
    this.#running++;
    this.#shared.calls.add(call);
    this.#unanswered.set(call.stream, call);
    if (timeoutNano > 0) {
      const timeoutMs = timeoutNano / 1e6;
      call.deadline = this.#shared.deadlines.add(call.startedAt + timeoutMs, () => this.#onDeadline(call, timeoutMs));
    }
    call.ended = result.then(
      (payload) => {
        if (this.#settle(call)) this.#reply(call, payload);
        this.#onHandlerEnd(call);
      },
      (error) => {
        if (this.#settle(call)) this.#replyError(call, error);
        else this.#report(error, call);
        this.#onHandlerEnd(call);
      },
    );
  }

  /** Takes the call off the unanswered ones; false if it has been answered, or lost its connection. */
  #settle(call: ServerCall): boolean {
    if (this.#unanswered.get(call.stream) !== call) return false;
    this.#unanswered.delete(call.stream);
    if (call.deadline) this.#shared.deadlines.remove(call.deadline);
    return true;
  }

  #onHandlerEnd(call: ServerCall): void {
    this.#running--;
    this.#shared.calls.delete(call);
    this.#note(call, "end");
    call.settleAnswered(this.#writer);
    this.#endIfIdle();
  }

  /** Has the journal know about a call, once its answer has been sent: until then another process would have to. */
  #note({ id }: ServerCall, what: "answered" | "end"): void {
    const { journal } = this.#shared;
    if (journal === undefined || id === undefined) return;
    this.#writer.unsentAtMost(0).then(() => journal[what](id));
  }

  #onDeadline(call: ServerCall, timeoutMs: number): void {
    if (!this.#settle(call)) return;
    const message = `Cannot answer ${call.service}/${call.method}: its deadline of ${timeoutMs} ms has passed`;
    this.#refuse(call.stream, Code.DEADLINE_EXCEEDED, message);
    this.#note(call, "answered");
    call.abort(new StatusError(Code.DEADLINE_EXCEEDED, message));
    this.#endIfIdle();
  }

  async #onEndOfFile(): Promise<void> {
    if (await isPeerGone(this.#conn)) return this.end();
    this.#halfClosed = true;
    // One that waits for an answer may go away before that: there is nothing to read that would tell.
    this.#conn.gone?.then(() => this.end());
    this.#endIfIdle();
  }

  /** Closes a connection that brings no more requests, once it has had its answers. */
  #endIfIdle(): void {
    if (!this.#halfClosed || this.#unanswered.size > 0) return;
    this.#writer.unsentAtMost(0).then(() => this.end());
  }

  #fail(error: unknown): void {
    if (this.#ended) return; // closing makes a pending read or write fail
    if (!isDisconnect(error)) this.#shared.onError(error);
    this.end();
  }

  #report(error: unknown, call: ServerCall): void {
    if (!(error instanceof StatusError)) this.#shared.onError(error, call);
  }

  #reply(call: ServerCall, payload: Uint8Array): void {
    const { stream } = call;
    if (!this.#writer.appendBytesField(stream, MessageType.RESPONSE, RESPONSE_PAYLOAD, payload)) {
      const message =
        `Cannot send the answer of ${call.service}/${call.method}: its ${payload.length} bytes do not fit into ${MAX_PAYLOAD} bytes`;
      return this.#refuse(stream, Code.RESOURCE_EXHAUSTED, message);
    }
    if (!this.#dispatching) this.#writer.flushSoon();
    this.#shared.onAnswer?.(call);
  }

  #replyError(call: ServerCall, error: unknown): void {
    const code = error instanceof StatusError ? error.code : Code.UNKNOWN;
    this.#refuse(call.stream, code, messageOf(error));
    this.#shared.onAnswer?.(call);
    this.#report(error, call);
  }

  #refuse(stream: number, code: Code, message: string): void {
    let payload = ttrpc.Response.encode({ status: { code, message } }).finish();
    if (payload.length > MAX_PAYLOAD) {
      const short = `${message.slice(0, 1000)}… (cut: the message is too long to be sent)`;
      payload = ttrpc.Response.encode({ status: { code, message: short } })
        .finish();
    }
    this.#writer.append(stream, MessageType.RESPONSE, payload);
    if (!this.#dispatching) this.#writer.flushSoon();
  }
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
