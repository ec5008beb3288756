/** Processes in containers that print numbered lines, read as they come. */

import { assertEquals } from "@std/assert";
import type { Reader } from "./fifo.ts";
import { NumberedLines } from "./numbered.ts";
import { until } from "./until.ts";

const NEWLINE = 0x0a;
const RETURN = 0x0d;

/** Reads what a script of numbered.ts prints, until it ends. */
export class Printed {
  /** How many lines each stream has had. */
  readonly #seen: number[];
  readonly #counts: Promise<number[]>;
  #problem: Error | undefined;

  /** @param streams the outputs of one process; a terminal's returns do not count */
  constructor(...streams: readonly Reader[]) {
    this.#seen = streams.map(() => 0);
    this.#counts = Promise.all(streams.map((each, i) => this.#read(each, i)));
    this.#counts.catch((error) => this.#problem ??= error);
  }

  async #read(stream: Reader, index: number): Promise<number> {
    const lines = new NumberedLines();
    for (let bytes = await stream.read(); bytes; bytes = await stream.read()) {
      lines.take(bytes.filter((byte) => byte !== RETURN));
      this.#seen[index]! += bytes.filter((byte) => byte === NEWLINE).length;
    }
    return lines.end();
  }

  /**
   * Waits until each stream has had so many more lines.
   *
   * @throws {Error} when a line has been lost, repeated, moved or torn
   */
  async goesOn(more = 1): Promise<void> {
    const seen = [...this.#seen];
    const hasMore = () => this.#problem !== undefined || this.#seen.every((count, i) => count >= seen[i]! + more);
    await until("more lines come", hasMore);
    if (this.#problem) throw this.#problem;
  }

  /**
   * Waits for the end of all streams.
   *
   * @returns how many lines each has had, all of them, each once and in order
   * @throws {Error} when a line has been lost, repeated, moved or torn, or they have had not as many
   */
  async ended(): Promise<number> {
    const counts = await this.#counts;
    assertEquals(new Set(counts).size, 1, `the streams have had ${counts.join(" and ")} lines`);
    return counts[0]!;
  }
}

/** What a shim logs, read as it comes. */
export class Log {
  #text = "";
  readonly #ended: Promise<void>;

  constructor(stream: Reader) {
    this.#ended = this.#read(stream);
    this.#ended.catch(() => {});
  }

  async #read(stream: Reader): Promise<void> {
    const decoder = new TextDecoder();
    for (let bytes = await stream.read(); bytes; bytes = await stream.read()) {
      this.#text += decoder.decode(bytes, { stream: true });
    }
  }

  /** All that has come. */
  get text(): string {
    return this.#text;
  }

  /** All of it: waits until nothing else comes. */
  async all(): Promise<string> {
    await this.#ended;
    return this.#text;
  }

  /** Waits until more has come than now that has this in it, and gives that. */
  async next(expected: RegExp): Promise<string> {
    const { length } = this.#text;
    return await until(`the log has ${expected}`, () => {
      const text = this.#text.slice(length);
      return expected.test(text) && text;
    });
  }
}
