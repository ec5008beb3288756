/**
 * Frames: how ttrpc messages lie on a byte stream.
 *
 * A header of 10 bytes (payload length u32, stream id u32, type u8, flags u8; big-endian), then the payload.
 */

/** Size of a frame's header, in bytes. */
export const HEADER_SIZE = 10;

/** The largest payload a frame may have, in bytes. */
export const MAX_PAYLOAD = 4 * 1024 * 1024;

/**
 * How many bytes may wait for a peer that does not read before no more work is taken on for it.
 *
 * At least one frame of the largest size fits.
 */
export const MAX_UNSENT = 8 * 1024 * 1024;

/** The values of a header's type byte. */
export const MessageType = { REQUEST: 1, RESPONSE: 2 } as const;

/** One of the values in {@linkcode MessageType}. */
export type MessageType = typeof MessageType[keyof typeof MessageType];

/** What an idle connection keeps for reading, in bytes; nearly every frame of a shim fits. */
const READ_BUFFER_SIZE = 8 * 1024;

/** What an idle connection keeps for writing at most, in bytes. */
const WRITE_BUFFER_SIZE = 4 * 1024;

const EMPTY = new Uint8Array(0);

/** What frames travel on: a connection of Deno's, or one that is like it. */
export interface Conn extends Pick<Deno.Conn, "read" | "write" | "close"> {
  /** Settled when the peer has closed its end, where that can be told without reading or writing. */
  readonly gone?: Promise<void>;
  /** How many of the bytes that have been written the peer has not read, where that can be told. */
  unread?(): number;
  /** Told of so many bytes, the first of those that have been read, that they have been dealt with. */
  take?(count: number): void;
  /** Given more of a frame of so many bytes, or less, which is to be kept until {@link endPart}, and is taken then. */
  keepPart?(bytes: Uint8Array, total: number): void;
  /** Forgets what was kept: the frame has been dealt with. */
  endPart?(): void;
  /** Given the header of a frame that is passed over, and how much of its payload has been; until {@link endPart}. */
  passOver?(header: Uint8Array, passed: number): void;
  /** The part of a frame that another process has kept, before what is read next. */
  readonly part?: Uint8Array | undefined;
  /** How much of the payload has been passed over of the frame that the part is the header of. */
  readonly passed?: number | undefined;
}

/** Where {@linkcode readFrames} puts what it reads. */
export interface FrameSink {
  /** Whether reading is over: nothing more is read or handed on once this is true. */
  readonly stopped: boolean;
  /** Takes a frame. The payload is a view of the read buffer and must not be used after the return. */
  onFrame(stream: number, payload: Uint8Array): void;
  /** Told of a frame whose payload of `length` bytes passed {@linkcode MAX_PAYLOAD} and was thrown away. */
  onOversized(stream: number, length: number): void;
  /** Told when all frames that came with one read have been handed on. */
  onBatchEnd(): void;
  /** Asked before each frame: a promise if the frame has to wait for it. */
  backpressure(): Promise<void> | undefined;
}

/**
 * Reads frames until the peer shuts down its writing side or the sink stops.
 *
 * Frames of any type but `wanted` are passed over. Payloads that are passed over or too large are never held in memory.
 * The buffer grows for a frame that needs it and shrinks afterwards. The connection stays the caller's to close.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 *
 * // Five bytes for stream 1, of a type that is wanted, and half a header.
 * const sent = [new Uint8Array([0, 0, 0, 5, 0, 0, 0, 1, 1, 0, ...new TextEncoder().encode("hello"), 0, 0])];
 * const read = (buffer: Uint8Array) => {
 *   const bytes = sent.shift();
 *   if (bytes) buffer.set(bytes);
 *   return Promise.resolve(bytes?.length ?? null);
 * };
 * const got: unknown[] = [];
 * await readFrames({ read, write: () => Promise.resolve(0), close: () => {} }, MessageType.REQUEST, {
 *   stopped: false,
 *   onFrame: (stream, payload) => got.push([stream, new TextDecoder().decode(payload)]),
 *   onOversized: (stream, length) => got.push([stream, length]),
 *   onBatchEnd: () => {},
 *   backpressure: () => undefined,
 * });
 * assertEquals(got, [[1, "hello"]]);
 * ```
 *
 * @throws what `conn.read` throws
 */
export async function readFrames(conn: Conn, wanted: MessageType, sink: FrameSink): Promise<void> {
  const small = new Uint8Array(READ_BUFFER_SIZE);
  const smallView = new DataView(small.buffer);
  let buffer = small;
  let view = smallView;
  // The bytes read and not yet handed on are buffer[start, end).
  let start = 0;
  let end = 0;
  // What is left of a payload to throw away, and whose it is if the sink is to know.
  let skip = 0;
  let oversized: { stream: number; length: number } | undefined;
  // The header of the frame whose payload is thrown away, whether that has been noted, and what another process has thrown
  // away of it.
  let header: Uint8Array | undefined;
  let noted: Uint8Array | undefined;
  let passed = conn.passed ?? 0;
  // How many of the bytes at the buffer's beginning have been kept as a part.
  let kept = 0;
  if (conn.part) {
    kept = end = conn.part.length;
    buffer = new Uint8Array(end + READ_BUFFER_SIZE);
    buffer.set(conn.part);
    view = new DataView(buffer.buffer);
  }

  for (;;) {
    const count = await conn.read(end === 0 ? buffer : buffer.subarray(end));
    if (count === null) return;
    end += count;
    // How many bytes that have been dealt with are not in the buffer any more.
    let moved = 0;

    for (;;) {
      if (sink.stopped) return;
      if (skip > 0) {
        const thrown = Math.min(skip, end - start);
        start += thrown;
        skip -= thrown;
        if (skip > 0) break;
      }
      if (oversized) {
        sink.onOversized(oversized.stream, oversized.length);
        oversized = undefined;
      }
      const wait = sink.backpressure();
      if (wait) {
        await wait;
        continue;
      }
      if (end - start < HEADER_SIZE) break;
      const length = view.getUint32(start);
      const stream = view.getUint32(start + 4);
      const type = view.getUint8(start + 8);
      if (type !== wanted || length > MAX_PAYLOAD) {
        if (conn.passOver) header = buffer.slice(start, start + HEADER_SIZE);
        start += HEADER_SIZE;
        skip = length - passed;
        passed = 0;
        if (type === wanted) oversized = { stream, length };
        continue;
      }
      const size = HEADER_SIZE + length;
      if (end - start < size) {
        // Room for as much again as has come: that more will come has only been said.
        const room = Math.min(size, Math.max(READ_BUFFER_SIZE, 2 * (end - start)));
        if (room > buffer.length) {
          const large = new Uint8Array(room);
          large.set(buffer.subarray(start, end));
          buffer = large;
          view = new DataView(large.buffer);
          end -= start;
          moved += start;
          start = 0;
        }
        break;
      }
      sink.onFrame(stream, buffer.subarray(start + HEADER_SIZE, start + size));
      start += size;
    }
    sink.onBatchEnd();

    const dealtWith = moved + start;
    if (skip === 0) header = undefined;
    if (dealtWith > 0 && kept > 0 || noted && noted !== header) conn.endPart?.();
    if (header) conn.passOver?.(header, new DataView(header.buffer).getUint32(0) - skip);
    noted = header;
    conn.take?.(Math.max(0, dealtWith - kept));
    kept = Math.max(0, kept - dealtWith);
    // What is left of a frame that is not whole is not left where it has come from either: a peer that has filled the
    // socket is told of room only when three quarters of it are free (unix_writable() in net/unix/af_unix.c).
    const rest = end - start;
    if (rest > kept && conn.keepPart) {
      const total = rest >= HEADER_SIZE ? view.getUint32(start) : MAX_PAYLOAD;
      conn.keepPart(buffer.subarray(start + kept, end), HEADER_SIZE + total);
      conn.take?.(rest - kept);
      kept = rest;
    }

    if (start === end) {
      // A larger buffer has no more room than for the one frame it was made for, so nothing is left in it here.
      buffer = small;
      view = smallView;
      end = 0;
    } else if (start > 0) {
      buffer.copyWithin(0, start, end);
      end -= start;
    }
    start = 0;
  }
}

/**
 * Queues frames and writes them: all that is queued goes out with one write, and while that is under way the next
 * ones gather. The connection stays the caller's to close.
 */
export class FrameWriter {
  readonly #conn: Conn;
  readonly #onError: (error: unknown) => void;
  // Queued bytes are #out[0, #queued); #sending counts those a write in progress has yet to bring out.
  #out: Uint8Array = EMPTY;
  #queued = 0;
  #sending = 0;
  #spare: Uint8Array | undefined;
  #writing = false;
  #scheduled = false;
  #stopped = false;
  #waiting: { limit: number; resolve: () => void }[] = [];

  /**
   * Writes to a connection, which nobody else writes to.
   *
   * @param onError told once when a write fails; what was queued is gone, and so is all that is appended later
   */
  constructor(conn: Conn, onError: (error: unknown) => void) {
    this.#conn = conn;
    this.#onError = onError;
  }

  /** How many bytes the peer has not taken yet. */
  get unsent(): number {
    return this.#queued + this.#sending;
  }

  /** Queues a frame with a copy of `payload`, which must not be longer than {@linkcode MAX_PAYLOAD}. */
  append(stream: number, type: MessageType, payload: Uint8Array): void {
    const at = this.#begin(stream, type, payload.length);
    if (at >= 0) this.#out.set(payload, at);
  }

  /**
   * Queues a frame whose payload is a protobuf message with nothing but the bytes field number `field` (1 to 15) in it:
   * the same as encoding that message, without the copy in between.
   *
   * @returns whether it was queued; not if the message would be longer than {@linkcode MAX_PAYLOAD}
   */
  appendBytesField(stream: number, type: MessageType, field: number, bytes: Uint8Array): boolean {
    if (bytes.length === 0) {
      this.#begin(stream, type, 0); // proto3 leaves an empty field out
      return true;
    }
    let prefix = 2;
    for (let rest = bytes.length >>> 7; rest > 0; rest >>>= 7) prefix++;
    const size = prefix + bytes.length;
    if (size > MAX_PAYLOAD) return false;
    let at = this.#begin(stream, type, size);
    if (at < 0) return true;
    const out = this.#out;
    out[at++] = field << 3 | 2; // wire type 2: a length, then as many bytes
    let rest = bytes.length;
    for (; rest > 127; rest >>>= 7) out[at++] = rest & 127 | 128;
    out[at++] = rest;
    out.set(bytes, at);
    return true;
  }

  /** Starts writing what is queued, unless that has been started. */
  flush(): void {
    if (this.#queued > 0 && !this.#writing) this.#write();
  }

  /** Flushes when the code that runs now has ended, so that what it will still append goes out together. */
  flushSoon(): void {
    if (this.#scheduled || this.#writing) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.flush();
    });
  }

  /** Resolves when at most `limit` bytes are unsent; also when the writer has been stopped or has failed. */
  unsentAtMost(limit: number): Promise<void> {
    if (this.unsent <= limit) return Promise.resolve();
    this.flush();
    return new Promise((resolve) => this.#waiting.push({ limit, resolve }));
  }

  /** Throws away what is queued and all that is appended from now on. */
  stop(): void {
    this.#stopped = true;
    this.#out = EMPTY;
    this.#spare = undefined;
    this.#queued = 0;
    this.#sending = 0;
    this.#wake();
  }

  /** Queues a header and makes room for its payload; returns where in #out that goes, or -1 if nothing is queued any more. */
  #begin(stream: number, type: MessageType, length: number): number {
    if (this.#stopped) return -1;
    let at = this.#queued;
    const end = at + HEADER_SIZE + length;
    if (end > this.#out.length) this.#grow(end);
    const out = this.#out;
    out[at++] = length >>> 24;
    out[at++] = length >>> 16;
    out[at++] = length >>> 8;
    out[at++] = length;
    out[at++] = stream >>> 24;
    out[at++] = stream >>> 16;
    out[at++] = stream >>> 8;
    out[at++] = stream;
    out[at++] = type;
    out[at++] = 0;
    this.#queued = end;
    return at;
  }

  #grow(needed: number): void {
    const spare = this.#spare;
    this.#spare = undefined;
    const old = this.#out;
    // Doubling keeps the cost of moving a growing queue in proportion; a frame alone gets what it needs.
    this.#out = spare && spare.length >= needed
      ? spare
      : new Uint8Array(Math.max(needed, 2 * old.length, WRITE_BUFFER_SIZE));
    this.#out.set(old.subarray(0, this.#queued));
  }

  async #write(): Promise<void> {
    this.#writing = true;
    try {
      while (this.#queued > 0) {
        const buffer = this.#out;
        let chunk = buffer.subarray(0, this.#queued);
        this.#out = EMPTY;
        this.#queued = 0;
        this.#sending = chunk.length;
        for (;;) {
          const count = await this.#conn.write(chunk);
          if (this.#stopped) return;
          this.#sending -= count;
          if (this.#waiting.length > 0) this.#wake();
          if (this.#sending === 0) break;
          chunk = chunk.subarray(count);
        }
        if (buffer.length <= WRITE_BUFFER_SIZE) this.#spare = buffer;
      }
    } catch (error) {
      if (this.#stopped) return;
      this.stop();
      this.#onError(error);
    } finally {
      this.#writing = false;
    }
  }

  #wake(): void {
    const unsent = this.unsent;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const waiter of waiting) {
      if (unsent <= waiter.limit) waiter.resolve();
      else this.#waiting.push(waiter);
    }
  }
}

/**
 * Whether the peer has closed its end, as opposed to having shut down its writing side only.
 *
 * To be asked after end of file, when reading cannot tell the two apart: on a Unix socket a write of no bytes fails with
 * EPIPE in the first case and does nothing in the second.
 */
export async function isPeerGone(conn: Conn): Promise<boolean> {
  try {
    await conn.write(EMPTY);
    return false;
  } catch {
    return true;
  }
}

/** Whether an error of a read or a write only says that the peer has gone away. */
export function isDisconnect(error: unknown): boolean {
  return error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.ConnectionReset;
}
