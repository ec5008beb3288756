/** Writes down what another process needs to go on with a shim, and reads it. */

import * as fds from "../../ffi/fd.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Journal } from "../ttrpc/server.ts";
import type { CallFile } from "./calls.ts";
import { Changes, recordOf } from "./changes.ts";
import { decodeOldFile, oldVersionOf, readOldFile, removeOldFile } from "./old_file.ts";
import { type AnswerRecord, canReadVersion, RECORD_VERSION, type ShimRecord } from "./record.ts";
import { type Header, readHeader, type StateFile } from "./state_file.ts";

/** Options of {@link Recorder}. */
export interface RecorderOptions {
  /** Where it is written down. */
  readonly file: StateFile;
  /** The bundle, where a build before version 3 has written it down. */
  readonly bundle: string;
  /** Where each call is noted. */
  readonly calls: CallFile;
  /** Told once when nothing can be written. */
  readonly log: Logger;
  /** See {@link Poller.afterTurn}. */
  readonly afterTurn: (callback: () => void) => void;
  /** What is to be written down but for the answers: see {@link Changes} for the objects in it. */
  readonly describe: () => Omit<ShimRecord, "answers">;
}

/** The record of one shim. */
export class Recorder implements Journal {
  readonly #options: RecorderOptions;
  /** Knows what has been written down; undefined where all is to be. */
  #changes: Changes | undefined;
  /** Who has written it, as that says. */
  #host: number | undefined;
  /** Whether there is a file of a build before version 3. */
  #hasOldFile = false;
  /** Answers of calls that are not at their end. */
  readonly #answers = new Map<number, AnswerRecord>();
  #hasFailed = false;

  /** Writes nothing before something has changed. */
  constructor(options: RecorderOptions) {
    this.#options = options;
  }

  #isOver = false;

  /** Writes nothing down any more: it is another process's. */
  stop(): void {
    this.#isOver = true;
    this.#options.calls.stop();
  }

  /** Whether nothing is to be written down yet. */
  #isHeld = false;

  /** Writes nothing down until disposed of: it is being found out what there is. */
  hold(): Disposable {
    this.#isHeld = true;
    return { [Symbol.dispose]: () => this.#isHeld = false };
  }

  /** Told when all has been written down. */
  readonly #awaiting: (() => void)[] = [];

  /** Writes all of it down. Where that cannot be done, the shim works on, and says so once. */
  save(): void {
    try {
      if (!this.#isOver && !this.#isHeld) this.#save();
    } finally {
      for (const saved of this.#awaiting.splice(0)) saved();
    }
  }

  /** The same at the end of this turn, unless it is done before: an answer may come of it. */
  saveAfterTurn(saved: () => void): void {
    this.#awaiting.push(saved);
    this.#options.afterTurn(() => {
      if (this.#awaiting.length > 0) this.save();
    });
  }

  #save(): void {
    const { file, log, describe, bundle } = this.#options;
    try {
      this.#write({ ...describe(), answers: [...this.#answers.values()] });
      this.#hasFailed = false;
    } catch (error) {
      // What was true before is not to be believed, and next time all is to be written.
      file.forget();
      this.#changes = undefined;
      if (!this.#hasFailed) {
        log.error("another process could not go on with this shim: its state cannot be written down", { error });
      }
      this.#hasFailed = true;
    }
    if (this.#hasOldFile) removeOldFile(bundle);
    this.#hasOldFile = false;
  }

  #write(record: ShimRecord): void {
    const { file } = this.#options;
    const owner = { host: record.host, build: BigInt(record.build) };
    if (this.#changes === undefined) {
      this.#changes = new Changes();
      file.replace(this.#changes.of(record), owner);
    } else {
      const changed = this.#changes.of(record);
      if (changed.size > 0 || owner.host !== this.#host) file.change(changed, owner);
    }
    this.#host = owner.host;
  }

  /**
   * What another process has written down.
   *
   * @returns undefined when nothing has been
   * @throws {Error} when it cannot be believed
   */
  read(): ShimRecord | undefined {
    const { file, bundle } = this.#options;
    try {
      const content = file.read();
      if (content !== undefined) return recordOf(content);
      this.#hasOldFile = true;
      const written = readOldFile(bundle);
      this.#hasOldFile = written !== undefined;
      return written === undefined ? undefined : decodeOldFile(written);
    } catch (cause) {
      throw new Error(`the shim's state cannot be believed: ${messageOf(cause)}`, { cause });
    }
  }

  /** Whether what has been read is in a file of a build before version 3, which is removed when it has been written down here. */
  get hasOldFile(): boolean {
    return this.#hasOldFile;
  }

  /** Writes down what a call has changed, together with its answer. */
  commit(call: number | undefined, answer: Omit<AnswerRecord, "call">): void {
    if (call !== undefined) this.#answers.set(call, { call, ...answer });
    this.save();
  }

  /** The answer that another process has found for a call. */
  answerOf(call: number | undefined): AnswerRecord | undefined {
    return call === undefined ? undefined : this.#answers.get(call);
  }

  /** Takes over what another process has found. */
  inherit(answers: readonly AnswerRecord[]): void {
    for (const each of answers) {
      this.#answers.set(each.call, each);
      this.#options.calls.skipTo(each.call);
    }
  }

  begin(connection: number, stream: number, request: Uint8Array, hangs?: number): number {
    return this.#options.calls.begin(connection, stream, request, hangs);
  }

  answered(id: number): void {
    if (!this.#isOver) this.#options.calls.answered(id);
  }

  end(id: number): void {
    this.#answers.delete(id);
    if (!this.#isOver) this.#options.calls.end(id);
  }
}

/**
 * Whether this build can go on with what has been written down, as far as its version tells.
 *
 * @param path leads to the file in memory, where there is one
 * @param bundle where a build before version 3 has written
 */
export function canRead(path: string, bundle: string): boolean {
  try {
    const header = headerAt(path);
    if (header !== undefined) return header.version === RECORD_VERSION;
    const written = readOldFile(bundle);
    return written === undefined || canReadVersion(oldVersionOf(written));
  } catch {
    return false;
  }
}

/**
 * Whether a host of a build has taken over what is written down; also when it is not there any more, nor the process that has
 * kept it.
 *
 * @param path see {@link canRead}
 */
export function hasBeenTakenOver(path: string, build: bigint): boolean {
  try {
    const header = headerAt(path);
    return header === undefined || header.isWhole && header.host !== 0 && header.build === build;
  } catch {
    return false;
  }
}

/** @throws {SystemError} */
function headerAt(path: string): Header | undefined {
  let fd;
  try {
    fd = fds.open(path, fds.O.RDONLY | fds.O.NONBLOCK);
  } catch (error) {
    if (error instanceof SystemError && error.errno === Errno.ENOENT) return undefined;
    throw error;
  }
  try {
    return readHeader(fd);
  } finally {
    fds.close(fd);
  }
}
