/** The calling side of ttrpc. */
import { ttrpc } from "../api/ttrpc.js";
import { messageOf } from "../errors.ts";
import { type Deadline, Deadlines } from "./deadline.ts";
import {
  type Conn,
  type FrameSink,
  FrameWriter,
  isDisconnect,
  MAX_PAYLOAD,
  MAX_UNSENT,
  MessageType,
  readFrames,
} from "./frame.ts";
import { Code, StatusError } from "./status.ts";

const LAST_CODE = Code.UNAUTHENTICATED;

/** Options of {@linkcode Client.call}. */
export interface CallOptions {
  /** What goes with the call beside its payload. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** Time until the call fails with DEADLINE_EXCEEDED, in ms; the server is told of it. Without one it waits for ever. */
  readonly timeoutMs?: number;
  /** Makes the call fail with CANCELED; the server is not told. */
  readonly signal?: AbortSignal;
}

interface PendingCall {
  readonly what: string;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: StatusError) => void;
  deadline?: Deadline;
  unlisten?: () => void;
}

/** Calls methods of a server over one connection; any number at a time. */
export class Client implements Disposable {
  readonly #conn: Conn;
  readonly #writer: FrameWriter;
  readonly #calls = new Map<number, PendingCall>();
  readonly #deadlines = new Deadlines();
  readonly #closed = Promise.withResolvers<void>();
  #nextStream = 1;
  #closeReason: StatusError | undefined;

  /** Resolves when the connection is closed, by either side; never rejects. */
  readonly closed: Promise<void> = this.#closed.promise;

  /**
   * Begins to read.
   *
   * @param conn belongs to the client from now on, which closes it when the peer does
   */
  constructor(conn: Conn) {
    this.#conn = conn;
    this.#writer = new FrameWriter(conn, (error) => this.#onBroken(error));
    this.#read();
  }

  /**
   * Calls a method and gives the payload of its answer, which is the caller's. The request's payload is copied at once.
   *
   * ```ts
   * import { assertEquals, assertRejects } from "@std/assert";
   * import { Code, StatusError } from "./status.ts";
   *
   * const nobody = { read: () => Promise.resolve(null), write: () => Promise.resolve(0), close: () => {} };
   * using client = new Client(nobody);
   * await client.closed;
   * const error = await assertRejects(() => client.call("test.v1.Test", "Echo", new Uint8Array()), StatusError);
   * assertEquals(error.code, Code.UNAVAILABLE);
   * ```
   *
   * @throws {StatusError} what the server answered; DEADLINE_EXCEEDED and CANCELED, see the options; UNAVAILABLE if the
   * connection is closed, or closes before the answer has come; RESOURCE_EXHAUSTED if the request or its answer is too
   * large, or too much is waiting for a server that does not read; INTERNAL if the answer does not parse
   */
  call(service: string, method: string, payload: Uint8Array, options: CallOptions = {}): Promise<Uint8Array> {
    const what = `${service}/${method}`;
    const { timeoutMs, signal, metadata = {} } = options;
    if (this.#closeReason) {
      return Promise.reject(unavailable(what, this.#closeReason));
    }
    if (signal?.aborted) return Promise.reject(canceled(what, signal));
    if (timeoutMs !== undefined && !(timeoutMs > 0)) {
      return Promise.reject(deadlineExceeded(what, timeoutMs));
    }
    const request = ttrpc.Request.encode({
      service,
      method,
      payload,
      timeoutNano: timeoutMs === undefined ? 0 : Math.ceil(timeoutMs * 1e6),
      metadata: Object.entries(metadata).map(([key, value]) => ({ key, value })),
    }).finish();
    const obstacle = request.length > MAX_PAYLOAD
      ? `the request of ${request.length} bytes is over the limit of ${MAX_PAYLOAD} bytes`
      : this.#writer.unsent + request.length > MAX_UNSENT
      ? `${this.#writer.unsent} bytes are waiting for a server that does not read`
      : undefined;
    if (obstacle) {
      return Promise.reject(new StatusError(Code.RESOURCE_EXHAUSTED, `Cannot call ${what}: ${obstacle}`));
    }

    return new Promise((resolve, reject) => {
      const stream = this.#takeStream();
      const call: PendingCall = { what, resolve, reject };
      this.#calls.set(stream, call);
      if (timeoutMs !== undefined) {
        call.deadline = this.#deadlines.add(
          performance.now() + timeoutMs,
          () => this.#settle(stream)?.reject(deadlineExceeded(what, timeoutMs)),
        );
      }
      if (signal) {
        const onAbort = () => this.#settle(stream)?.reject(canceled(what, signal));
        signal.addEventListener("abort", onAbort);
        call.unlisten = () => signal.removeEventListener("abort", onAbort);
      }
      this.#writer.append(stream, MessageType.REQUEST, request);
      this.#writer.flushSoon();
    });
  }

  /** Closes the connection at once. Calls without an answer fail with UNAVAILABLE. */
  close(): void {
    this.#end("the client closed the connection");
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  async #read(): Promise<void> {
    const isClosed = () => this.#closeReason !== undefined;
    const sink: FrameSink = {
      get stopped() {
        return isClosed();
      },
      onFrame: (stream, payload) => this.#onResponse(stream, payload),
      onOversized: (stream, length) => this.#onOversized(stream, length),
      onBatchEnd: () => {},
      backpressure: () => undefined,
    };
    try {
      await readFrames(this.#conn, MessageType.RESPONSE, sink);
      this.#end("the server closed the connection");
    } catch (error) {
      this.#onBroken(error);
    }
  }

  #onResponse(stream: number, payload: Uint8Array): void {
    const call = this.#settle(stream);
    if (!call) return; // the answer of a call that has been given up
    let response: ttrpc.Response;
    try {
      response = ttrpc.Response.decode(payload);
    } catch (cause) {
      const message = `Cannot parse the answer of ${call.what}: ${messageOf(cause)}`;
      return call.reject(new StatusError(Code.INTERNAL, message, { cause }));
    }
    const code = response.status?.code ?? Code.OK;
    if (code === Code.OK) return call.resolve(new Uint8Array(response.payload));
    const known = code > 0 && code <= LAST_CODE ? code as Code : Code.UNKNOWN;
    call.reject(new StatusError(known, response.status?.message ?? ""));
  }

  #onOversized(stream: number, length: number): void {
    const call = this.#settle(stream);
    if (!call) return;
    const message =
      `Cannot take the answer of ${call.what}: its ${length} bytes are over the limit of ${MAX_PAYLOAD} bytes`;
    call.reject(new StatusError(Code.RESOURCE_EXHAUSTED, message));
  }

  #onBroken(error: unknown): void {
    const gone = isDisconnect(error);
    this.#end(gone ? "the server closed the connection" : `the connection broke: ${messageOf(error)}`, error);
  }

  #end(reason: string, cause?: unknown): void {
    if (this.#closeReason) return;
    this.#closeReason = new StatusError(Code.UNAVAILABLE, reason, { cause });
    this.#writer.stop();
    this.#conn.close();
    for (const [stream, call] of [...this.#calls]) {
      this.#settle(stream);
      call.reject(unavailable(call.what, this.#closeReason));
    }
    this.#closed.resolve();
  }

  /** Takes a call off the pending ones, whoever ends it. */
  #settle(stream: number): PendingCall | undefined {
    const call = this.#calls.get(stream);
    if (!call) return undefined;
    this.#calls.delete(stream);
    if (call.deadline) this.#deadlines.remove(call.deadline);
    call.unlisten?.();
    return call;
  }

  #takeStream(): number {
    let stream = this.#nextStream;
    while (this.#calls.has(stream)) stream = (stream + 2) >>> 0;
    this.#nextStream = (stream + 2) >>> 0; // after the last odd u32 comes 1 again
    return stream;
  }
}

function unavailable(what: string, cause: StatusError): StatusError {
  return new StatusError(Code.UNAVAILABLE, `Cannot call ${what}: ${cause.message}`, { cause });
}

function deadlineExceeded(what: string, timeoutMs: number): StatusError {
  return new StatusError(Code.DEADLINE_EXCEEDED, `Cannot call ${what}: no answer within ${timeoutMs} ms`);
}

function canceled(what: string, { reason: cause }: AbortSignal): StatusError {
  return new StatusError(Code.CANCELED, `Cannot call ${what}: the caller gave it up`, { cause });
}
