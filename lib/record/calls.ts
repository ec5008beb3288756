/**
 * Calls that are being answered, in a file in memory that outlives this process: another goes on with them.
 *
 * Nothing of it gets to a disk, and a call that is answered at once is never in it. The file is a row of entries, each of
 * them a header and room for a content; one that is free is used again.
 */

import { monotonic } from "../../ffi/clock.ts";
import * as fds from "../../ffi/fd.ts";
import { MemoryFile } from "../../ffi/memfd.ts";
import { checksum } from "./checksum.ts";

/** At the beginning of the file. */
const MAGIC = new TextEncoder().encode("SHIMCAL1");
/** The header of an entry, in bytes, and where its fields are: f64 the time, u32 all others; little-endian. */
const HEADER_SIZE = 48;
const FIELD = {
  room: 0,
  kind: 4,
  id: 8,
  connection: 12,
  stream: 16,
  tries: 20,
  /** u16; the tries have the other half of their word. */
  hangs: 22,
  /** In ms since the epoch: for hosts of 0.1, which know no other. */
  time: 24,
  length: 32,
  sum: 36,
  /** In ms of CLOCK_MONOTONIC, which nobody sets; 0 where a host of 0.1 has written it. */
  at: 40,
} as const;
/** Kinds of entries. */
const Kind = { FREE: 0, CALL: 1, ANSWERED: 2, PART: 3 } as const;
/** The least room for a content, in bytes; more is a power of two times that. */
const LEAST_ROOM = 208;
/** How much room is given back when it is free, in bytes: it is memory, and the file lives as long as the container. */
const LARGE_ROOM = 8192;
/** The longest that anything is believed to be, in bytes: more than a frame. */
const MOST_ROOM = 1 << 24;

/** A call as it is found again. */
export interface CallRecord {
  /** No other call of the file has it. */
  readonly id: number;
  /** The place of its connection. */
  readonly connection: number;
  /** Its stream on that connection: ttrpc's. */
  readonly stream: number;
  /** When its request was read, in ms of CLOCK_MONOTONIC. */
  readonly at: number;
  /** How many processes in a row have died soon after they had gone on with it. */
  readonly tries: number;
  /** How many processes have hung while they were answering it. */
  readonly hangs: number;
  /** Whether it has its answer, and is only not at its end. */
  readonly isAnswered: boolean;
  /** The request, as it came. */
  readonly payload: Uint8Array<ArrayBuffer>;
}

/** The part of a frame that has been read. */
export interface Part {
  /** The place of its connection. */
  readonly connection: number;
  /** From the beginning of its header. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** How much has been passed over of what comes behind it. */
  readonly passed: number;
}

interface Entry {
  readonly at: number;
  readonly room: number;
}

/** The file. */
export class CallFile {
  /** Whoever made or opened the file closes it. */
  readonly fd: number;
  #end = MAGIC.length;
  readonly #free: Entry[] = [];
  readonly #calls = new Map<number, Entry>();
  readonly #parts = new Map<number, Entry & { length: number }>();
  #lastId = 0;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * An empty file; its descriptor is the caller's.
   *
   * @throws {SystemError}
   */
  static create(): CallFile {
    const { fd } = new MemoryFile("calls");
    fds.writeAt(fd, MAGIC, 0);
    return new CallFile(fd);
  }

  /**
   * The file as another process has left it; what is not whole in it is passed over.
   *
   * @param isAlive whether a connection is still there: what has been read of a frame of another is forgotten
   * @throws {Error} when it is no such file
   */
  static open(fd: number): { file: CallFile; calls: CallRecord[]; parts: Part[] } {
    const file = new CallFile(fd);
    const calls: CallRecord[] = [];
    const parts: Part[] = [];
    const magic = new Uint8Array(MAGIC.length);
    if (fds.readAt(fd, magic, 0) !== MAGIC.length || magic.some((byte, i) => byte !== MAGIC[i])) {
      throw new Error("it is no file of calls");
    }
    const header = new Uint8Array(HEADER_SIZE);
    const view = new DataView(header.buffer);
    for (;;) {
      const at = file.#end;
      if (fds.readAt(fd, header, at) !== HEADER_SIZE) break;
      const get = (field: number) => view.getUint32(field, true);
      const entry = { at, room: get(FIELD.room) };
      if (entry.room < LEAST_ROOM || entry.room > MOST_ROOM) break;
      file.#end += HEADER_SIZE + entry.room;
      const payload = new Uint8Array(Math.min(get(FIELD.length), entry.room));
      const isWhole = fds.readAt(fd, payload, at + HEADER_SIZE) === payload.length;
      const [kind, id, connection] = [get(FIELD.kind), get(FIELD.id), get(FIELD.connection)];
      file.#lastId = Math.max(file.#lastId, id);
      if (kind === Kind.PART && isWhole) {
        file.#parts.set(connection, { ...entry, length: payload.length });
        parts.push({ connection, bytes: payload, passed: get(FIELD.tries) });
      } else if ((kind === Kind.CALL || kind === Kind.ANSWERED) && isWhole && checksum(payload) === get(FIELD.sum)) {
        file.#calls.set(id, entry);
        calls.push({
          id,
          connection,
          stream: get(FIELD.stream),
          at: view.getFloat64(FIELD.at, true) || monotonic() - (Date.now() - view.getFloat64(FIELD.time, true)),
          tries: view.getUint16(FIELD.tries, true),
          hangs: view.getUint16(FIELD.hangs, true),
          isAnswered: kind === Kind.ANSWERED,
          payload,
        });
      } else {
        file.#release(entry);
      }
    }
    return { file, calls: calls.sort((a, b) => a.id - b.id), parts };
  }

  /** Sees to it that no call gets a number up to this one. */
  skipTo(id: number): void {
    this.#lastId = Math.max(this.#lastId, id);
  }

  /**
   * Notes a call, and gives it a number that none before it has had.
   *
   * @param hangs how many processes have hung that had its request before them
   */
  begin(connection: number, stream: number, payload: Uint8Array, hangs = 0): number {
    const id = ++this.#lastId;
    const entry = this.#take(payload.length);
    const bytes = new Uint8Array(HEADER_SIZE + payload.length);
    const view = new DataView(bytes.buffer);
    const set = (field: number, value: number) => view.setUint32(field, value, true);
    set(FIELD.room, entry.room);
    set(FIELD.kind, Kind.CALL);
    set(FIELD.id, id);
    set(FIELD.connection, connection);
    set(FIELD.stream, stream);
    view.setFloat64(FIELD.time, Date.now(), true);
    view.setFloat64(FIELD.at, monotonic(), true);
    set(FIELD.length, payload.length);
    set(FIELD.sum, checksum(payload));
    view.setUint16(FIELD.hangs, hangs, true);
    bytes.set(payload, HEADER_SIZE);
    fds.writeAt(this.fd, bytes, entry.at);
    this.#calls.set(id, entry);
    return id;
  }

  /** Notes that a call is gone on with. */
  resume({ id, tries }: CallRecord): void {
    this.#set16(this.#calls.get(id), FIELD.tries, tries + 1);
  }

  /** Notes how many processes have hung while they were answering a call. */
  hung({ id }: Pick<CallRecord, "id">, hangs: number): void {
    this.#set16(this.#calls.get(id), FIELD.hangs, hangs);
  }

  /** Notes that going on with calls has done no harm. */
  survived(calls: readonly CallRecord[]): void {
    for (const { id } of calls) this.#set16(this.#calls.get(id), FIELD.tries, 0);
  }

  /** Notes that a call has its answer. */
  answered(id: number): void {
    this.#set(this.#calls.get(id), FIELD.kind, Kind.ANSWERED);
  }

  /** Forgets a call, which is at its end. */
  end(id: number): void {
    const entry = this.#calls.get(id);
    if (entry === undefined) return;
    this.#calls.delete(id);
    this.#release(entry);
  }

  #isOver = false;

  /** Notes nothing more of what is read, and forgets nothing of it: it is another process's. */
  stop(): void {
    this.#isOver = true;
  }

  /** Notes what has been read of a frame of at most so many bytes, behind what has been noted of it before. */
  addPart(connection: number, bytes: Uint8Array, total: number): void {
    if (this.#isOver) return;
    let part = this.#parts.get(connection);
    if (part === undefined) {
      part = { ...this.#take(total), length: 0 };
      this.#parts.set(connection, part);
      const header = new Uint8Array(HEADER_SIZE);
      const view = new DataView(header.buffer);
      view.setUint32(FIELD.room, part.room, true);
      view.setUint32(FIELD.kind, Kind.PART, true);
      view.setUint32(FIELD.connection, connection, true);
      fds.writeAt(this.fd, header, part.at);
    }
    fds.writeAt(this.fd, new Uint8Array(bytes), part.at + HEADER_SIZE + part.length);
    part.length += bytes.length;
    this.#set(part, FIELD.length, part.length);
  }

  /** Notes that of a frame, whose header is this, so much has been passed over of its payload. */
  passOver(connection: number, header: Uint8Array, passed: number): void {
    if (this.#isOver) return;
    if (!this.#parts.has(connection)) this.addPart(connection, header, header.length);
    this.#set(this.#parts.get(connection), FIELD.tries, passed);
  }

  /** Forgets what has been read of a frame. */
  endPart(connection: number): void {
    const part = this.#parts.get(connection);
    if (part === undefined || this.#isOver) return;
    this.#parts.delete(connection);
    this.#release(part);
  }

  #take(length: number): Entry {
    // The smallest that is large enough: one of a frame whose length was not known is larger than any.
    const roomy = this.#free.filter(({ room }) => room >= length);
    if (roomy.length > 0) {
      const best = roomy.reduce((a, b) => b.room < a.room ? b : a);
      return this.#free.splice(this.#free.indexOf(best), 1)[0]!;
    }
    let room = LEAST_ROOM;
    while (room < length) room *= 2;
    const entry = { at: this.#end, room };
    this.#end += HEADER_SIZE + room;
    return entry;
  }

  #release({ at, room }: Entry): void {
    this.#set({ at, room }, FIELD.kind, Kind.FREE);
    if (room >= LARGE_ROOM) fds.punchHole(this.fd, at + HEADER_SIZE, room);
    this.#free.push({ at, room });
  }

  #set(entry: Entry | undefined, field: number, value: number): void {
    this.#write(entry, field, new Uint32Array([value]));
  }

  #set16(entry: Entry | undefined, field: number, value: number): void {
    this.#write(entry, field, new Uint16Array([value]));
  }

  #write(entry: Entry | undefined, field: number, value: Uint32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>): void {
    if (entry !== undefined) fds.writeAt(this.fd, new Uint8Array(value.buffer), entry.at + field);
  }
}
