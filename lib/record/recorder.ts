/** Writes down what another process needs to go on with a shim, and reads it. */

import { replaceFile } from "../../ffi/replace.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Journal } from "../ttrpc/server.ts";
import type { CallFile } from "./calls.ts";
import {
  type AnswerRecord,
  canReadVersion,
  decodeRecord,
  encodeRecord,
  RECORD_FILE,
  type ShimRecord,
  versionOf,
} from "./record.ts";

/** What the name of the other file ends with: see {@link replaceFile}. */
const SPARE = ".before";

/** Options of {@link Recorder}. */
export interface RecorderOptions {
  /** The bundle's folder. */
  readonly folder: string;
  /** Where each call is noted. */
  readonly calls: CallFile;
  /** Told once when nothing can be written. */
  readonly log: Logger;
  /** See {@link Poller.afterTurn}. */
  readonly afterTurn: (callback: () => void) => void;
  /** What is to be written down but for the answers. */
  readonly describe: () => Omit<ShimRecord, "answers">;
}

/** The record of one shim. */
export class Recorder implements Journal {
  readonly #options: RecorderOptions;
  readonly #path: string;
  /** Answers of calls that are not at their end. */
  readonly #answers = new Map<number, AnswerRecord>();
  #hasFailed = false;

  /** Writes nothing before something has changed. */
  constructor(options: RecorderOptions) {
    this.#options = options;
    this.#path = `${options.folder}/${RECORD_FILE}`;
    // It has been removed, and the container with it.
    this.#isOver = options.folder === "";
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
    const { log, describe } = this.#options;
    try {
      const content = encodeRecord({ ...describe(), answers: [...this.#answers.values()] });
      replaceFile(this.#path, `${this.#path}${SPARE}`, new TextEncoder().encode(content));
      this.#hasFailed = false;
    } catch (error) {
      if (this.#hasFailed) return;
      this.#hasFailed = true;
      // What was true before is not to be believed.
      this.#removeFiles();
      log.error("another process could not go on with this shim: its state cannot be written down", { error });
    }
  }

  /** Removes what has been written down, and writes nothing more: there is nothing to go on with. */
  remove(): void {
    this.stop();
    this.#removeFiles();
  }

  #removeFiles(): void {
    for (const ending of ["", SPARE]) {
      try {
        Deno.removeSync(`${this.#path}${ending}`);
      } catch {
        // Nothing has been written, or the whole folder has been removed.
      }
    }
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

/** Whether this build can go on with what has been written down in a folder, as far as its version tells. */
export function canRead(folder: string): boolean {
  try {
    return canReadVersion(versionOf(Deno.readTextFileSync(`${folder}/${RECORD_FILE}`)));
  } catch (error) {
    return error instanceof Deno.errors.NotFound;
  }
}

/** Whether a host of a build has taken over what is written down in a folder; also when nothing is there any more. */
export function hasBeenTakenOver(folder: string, build: bigint): boolean {
  try {
    const record = readRecord(folder);
    return record === undefined || record.host !== 0 && record.build === `${build}`;
  } catch {
    return false;
  }
}

/**
 * What has been written down in a folder.
 *
 * @returns undefined when nothing has been
 * @throws {Error} when it cannot be believed
 */
export function readRecord(folder: string): ShimRecord | undefined {
  if (folder === "") return undefined;
  let text: string;
  try {
    text = Deno.readTextFileSync(`${folder}/${RECORD_FILE}`);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw new Error(`the shim's state cannot be read: ${messageOf(error)}`, { cause: error });
  }
  try {
    return decodeRecord(text);
  } catch (cause) {
    throw new Error(`the shim's state cannot be believed: ${messageOf(cause)}`, { cause });
  }
}
