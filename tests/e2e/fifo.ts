/** The test's end of a container's stdio. */

import { within } from "./until.ts";

/** How much is read at a time, in bytes. */
const READ_SIZE = 1 << 20;

/**
 * Reads a FIFO. What it has read is all that it has taken out: it may be closed, and another be opened, and nothing is lost.
 */
export class Reader implements Disposable {
  #file: Deno.FsFile | undefined;
  readonly #buffer = new Uint8Array(READ_SIZE);

  private constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  /** Opens a FIFO, as soon as it has a writer. */
  static async open(path: string): Promise<Reader> {
    return new Reader(await within(`a writer of ${path}`, Deno.open(path, { read: true })));
  }

  /** The next bytes, valid until the next call; undefined at the end of file. */
  async read(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    if (!this.#file) throw new Error("It has been closed");
    const count = await within("output, or its end", this.#file.read(this.#buffer));
    return count === null ? undefined : this.#buffer.subarray(0, count);
  }

  /** The next byte, and no more than that. */
  async byte(): Promise<number> {
    if (!this.#file) throw new Error("It has been closed");
    const byte = new Uint8Array(1);
    const count = await within("a byte of output", this.#file.read(byte));
    if (count === null) throw new Error("The output has ended");
    return byte[0]!;
  }

  /** Everything up to the end of file. */
  async text(): Promise<string> {
    const decoder = new TextDecoder();
    let text = "";
    for (let bytes = await this.read(); bytes; bytes = await this.read()) {
      text += decoder.decode(bytes, { stream: true });
    }
    return text + decoder.decode();
  }

  /** Reads up to the end of a line. */
  async line(): Promise<string> {
    const decoder = new TextDecoder();
    let text = "";
    while (!text.endsWith("\n")) {
      const bytes = await this.read();
      if (!bytes) throw new Error(`The output ends in the middle of a line: ${JSON.stringify(text)}`);
      text += decoder.decode(bytes, { stream: true });
    }
    return text;
  }

  /** Goes away. What has not been read stays in the FIFO. */
  close(): void {
    this.#file?.close();
    this.#file = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Writes to a FIFO. */
export class Writer implements Disposable {
  readonly #file: Deno.FsFile;

  private constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  /** Opens a FIFO, as soon as it has a reader. */
  static async open(path: string): Promise<Writer> {
    return new Writer(await within(`a reader of ${path}`, Deno.open(path, { write: true })));
  }

  async write(text: string): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) at += await within("room for input", this.#file.write(bytes.subarray(at)));
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}
