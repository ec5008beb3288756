/**
 * Texts by their keys, in a file in memory that outlives this process. A change writes what has changed, and is there as a whole
 * or not at all, whenever this process is killed.
 *
 *     header | room | entry | entry | entry
 *                   start                 end
 *
 * A change appends entries, and then the header says that they are there: one write within a page, which the kernel does not
 * interrupt. The last entry of a key counts. When more of the file is out of date than is not, what is not is copied to where
 * there is room, and the header says so; only then is the old part given back. Nothing but what the header spans is looked at.
 */

import { concat } from "../bytes.ts";
import * as fds from "../../ffi/fd.ts";
import { MemoryFile } from "../../ffi/memfd.ts";
import { checksum } from "./checksum.ts";
import { RECORD_VERSION } from "./record.ts";

/** At the beginning of the header. */
const MAGIC = new TextEncoder().encode("SHIMSTAT");
/**
 * The size of the header, in bytes, and where its fields are: u32 the version, the host and the checksum, which is that of all
 * before it; u64 the build; f64 the others; little-endian. Other builds read the version, the host and the build.
 */
const HEADER_SIZE = 44;
const FIELD = { version: 8, host: 12, build: 16, start: 24, end: 32, sum: 40 } as const;
/** Where entries begin at least, in bytes: the header has a page of its own. */
const FIRST = 4096;
/** The size of a page, in bytes: what is given back of a file. */
const PAGE = 4096;
/** An entry: u32 the length of its key and of its text; both, in UTF-8; and u32 the checksum of all that. Lengths are in bytes. */
const LENGTHS_SIZE = 8;
const SUM_SIZE = 4;
/** The length of the text of a key that is not there any more. */
const REMOVED = 0xffff_ffff;
/** How much may be out of date in any case, in bytes. */
const SLACK = 16_384;

/** Whose the file is. */
export interface Owner {
  /** The pid of the host that has written last; 0 when it has given the file up. */
  readonly host: number;
  /** Its build. */
  readonly build: bigint;
}

/** Texts by their keys, in the order in which the keys came; undefined takes a key away. */
export type Change = ReadonlyMap<string, string | undefined>;

/** What is in a file. */
export interface Content {
  /** Who has written it. */
  readonly owner: Owner;
  /** Texts by their keys. */
  readonly texts: ReadonlyMap<string, string>;
}

/** What changes a file: see ffi/fd.ts. */
export type Writer = Pick<typeof fds, "writeAllAt" | "punchHole" | "truncate">;

/** Where an entry is, from the beginning of the file, in bytes. */
interface Place {
  readonly at: number;
  readonly length: number;
}

/** The file. */
export class StateFile {
  /** Whoever made or opened the file closes it. */
  readonly fd: number;
  /** What the header spans; nothing, where there is none. */
  #start = FIRST;
  #end = FIRST;
  /** Where the entries are that count, since {@link replace}. */
  #places = new Map<string, Place>();
  /** How long they are together, in bytes. */
  #used = 0;

  readonly #writer: Writer;

  private constructor(fd: number, writer: Writer) {
    this.fd = fd;
    this.#writer = writer;
  }

  /**
   * An empty file; its descriptor is the caller's.
   *
   * @throws {SystemError}
   */
  static create(writer: Writer = fds): StateFile {
    return new StateFile(new MemoryFile("state").fd, writer);
  }

  /** The file of another process, to be read; to be written, only once all of it has been replaced. */
  static of(fd: number): StateFile {
    const file = new StateFile(fd, fds);
    const header = readHeader(fd);
    if (header?.isWhole && header.version === RECORD_VERSION) ({ start: file.#start, end: file.#end } = header);
    return file;
  }

  /**
   * What has been written.
   *
   * @returns undefined when nothing has been, or it has been forgotten
   * @throws {Error} which says what is wrong with it: it is of another version, or has been cut, or changed
   */
  read(): Content | undefined {
    const header = readHeader(this.fd);
    if (header === undefined) return undefined;
    if (header.version !== undefined && header.version !== RECORD_VERSION) {
      throw new Error(`it is of version ${header.version}, and this shim reads versions up to ${RECORD_VERSION}`);
    }
    if (!header.isWhole) throw new Error("it is not what was written");
    const { start, end, host, build } = header;
    const bytes = new Uint8Array(end - start);
    if (fds.readAt(this.fd, bytes, start) !== bytes.length) throw new Error("it is not whole");
    return { owner: { host, build }, texts: textsOf(bytes) };
  }

  /**
   * Writes in place of all that there is.
   *
   * @throws {SystemError} ENOSPC, EFBIG; what there was is there still
   */
  replace(content: Change, owner: Owner): void {
    const entries = [...content].map(([key, text]) => ({ key, bytes: entryOf(key, text) }));
    this.#moveTo(entries, owner);
  }

  /**
   * Writes behind what there is.
   *
   * @throws {SystemError} ENOSPC, EFBIG; what there was is there still
   */
  change(change: Change, owner: Owner): void {
    const entries = [...change].map(([key, text]) => ({ key, text, bytes: entryOf(key, text) }));
    this.#writer.writeAllAt(this.fd, concat(entries.map(({ bytes }) => bytes)), this.#end);
    const end = entries.reduce((sum, { bytes }) => sum + bytes.length, this.#end);
    this.#writeHeader(this.#start, end, owner);
    let at = this.#end;
    for (const { key, text, bytes: { length } } of entries) {
      this.#used -= this.#places.get(key)?.length ?? 0;
      if (text === undefined) {
        this.#places.delete(key);
      } else {
        this.#places.set(key, { at, length });
        this.#used += length;
      }
      at += length;
    }
    this.#end = end;
    if (end - this.#start - this.#used > Math.max(SLACK, this.#used)) this.#compact(owner);
  }

  /** Has nothing be found: what is there is not true any more. */
  forget(): void {
    this.#writer.writeAllAt(this.fd, new Uint8Array(HEADER_SIZE), 0);
  }

  #compact(owner: Owner): void {
    const all = new Uint8Array(this.#end - this.#start);
    if (fds.readAt(this.fd, all, this.#start) !== all.length) return;
    const entries = [...this.#places].map(([key, { at, length }]) => {
      const from = at - this.#start;
      return { key, bytes: all.subarray(from, from + length) };
    });
    try {
      this.#moveTo(entries, owner);
    } catch {
      // There is no room for both. It goes on where it is, as long as that can be.
    }
  }

  #moveTo(entries: readonly { readonly key: string; readonly bytes: Uint8Array }[], owner: Owner): void {
    const content = concat(entries.map(({ bytes }) => bytes));
    const isRoomBefore = FIRST + content.length <= this.#start;
    const start = isRoomBefore || this.#end === this.#start ? FIRST : Math.ceil(this.#end / PAGE) * PAGE;
    const end = start + content.length;
    this.#writer.writeAllAt(this.fd, content, start);
    this.#writeHeader(start, end, owner);
    [this.#start, this.#end, this.#used] = [start, end, content.length];
    this.#places = new Map();
    let at = start;
    for (const { key, bytes: { length } } of entries) {
      this.#places.set(key, { at, length });
      at += length;
    }
    if (start > FIRST) this.#writer.punchHole(this.fd, FIRST, start - FIRST);
    this.#writer.truncate(this.fd, end);
  }

  #writeHeader(start: number, end: number, { host, build }: Owner): void {
    const header = new Uint8Array(HEADER_SIZE);
    const view = new DataView(header.buffer);
    header.set(MAGIC);
    view.setUint32(FIELD.version, RECORD_VERSION, true);
    view.setUint32(FIELD.host, host, true);
    view.setBigUint64(FIELD.build, build, true);
    view.setFloat64(FIELD.start, start, true);
    view.setFloat64(FIELD.end, end, true);
    view.setUint32(FIELD.sum, checksum(header.subarray(0, FIELD.sum)), true);
    this.#writer.writeAllAt(this.fd, header, 0);
  }
}

/** What a header says. */
export interface Header extends Owner {
  /** Whether it is as it was written: of another version, that cannot be told. */
  readonly isWhole: boolean;
  /** The version of what is written; undefined when this is no header of ours. */
  readonly version: number | undefined;
  /** Where entries begin, in bytes. */
  readonly start: number;
  /** Where they end. */
  readonly end: number;
}

/** The header of a file; undefined when there is none. */
export function readHeader(fd: number): Header | undefined {
  const header = new Uint8Array(HEADER_SIZE);
  if (fds.readAt(fd, header, 0) !== HEADER_SIZE || header.every((byte) => byte === 0)) return undefined;
  const view = new DataView(header.buffer);
  const isOurs = MAGIC.every((byte, i) => header[i] === byte);
  return {
    isWhole: isOurs && checksum(header.subarray(0, FIELD.sum)) === view.getUint32(FIELD.sum, true),
    version: isOurs ? view.getUint32(FIELD.version, true) : undefined,
    host: view.getUint32(FIELD.host, true),
    build: view.getBigUint64(FIELD.build, true),
    start: view.getFloat64(FIELD.start, true),
    end: view.getFloat64(FIELD.end, true),
  };
}

function entryOf(key: string, text: string | undefined): Uint8Array {
  const encoder = new TextEncoder();
  const [keyBytes, textBytes] = [encoder.encode(key), encoder.encode(text)];
  const bytes = new Uint8Array(LENGTHS_SIZE + keyBytes.length + textBytes.length + SUM_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, keyBytes.length, true);
  view.setUint32(4, text === undefined ? REMOVED : textBytes.length, true);
  bytes.set(keyBytes, LENGTHS_SIZE);
  bytes.set(textBytes, LENGTHS_SIZE + keyBytes.length);
  const sumAt = bytes.length - SUM_SIZE;
  view.setUint32(sumAt, checksum(bytes.subarray(0, sumAt)), true);
  return bytes;
}

/** @throws {Error} when any byte is not what was written */
function textsOf(bytes: Uint8Array<ArrayBuffer>): Map<string, string> {
  const texts = new Map<string, string>();
  const decoder = new TextDecoder();
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length;) {
    const rest = bytes.length - at;
    if (rest < LENGTHS_SIZE + SUM_SIZE) throw new Error("it is not what was written");
    const [keyLength, length] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
    const textAt = at + LENGTHS_SIZE + keyLength;
    const sumAt = textAt + (length === REMOVED ? 0 : length);
    if (sumAt + SUM_SIZE > bytes.length || view.getUint32(sumAt, true) !== checksum(bytes.subarray(at, sumAt))) {
      throw new Error("it is not what was written");
    }
    const key = decoder.decode(bytes.subarray(at + LENGTHS_SIZE, textAt));
    if (length === REMOVED) texts.delete(key);
    else texts.set(key, decoder.decode(bytes.subarray(textAt, sumAt)));
    at = sumAt + SUM_SIZE;
  }
  return texts;
}
