/** The standard streams of a process that has no terminal. */

import * as fds from "../../ffi/fd.ts";
import { changeOwner, pipe } from "../../ffi/pipe.ts";
import type { ProcessDescriptors } from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { Stream } from "./stream.ts";
import type { ProcessStreams, StdioConfig, StdioOptions } from "./streams.ts";

type OutputName = "stdout" | "stderr";

/**
 * Pipes between a process and the FIFOs that containerd has made for it.
 *
 * The other end of each FIFO is held open here too: a client that detaches stalls the process, or leaves its input
 * open, until it comes back.
 */
export class PipeStdio implements ProcessStreams {
  /** Descriptors that only the process is to have once it has been started. */
  readonly #childEnds: number[] = [];
  readonly #descriptors: [number | null, number | null, number | null] = [
    null,
    null,
    null,
  ];
  readonly #streams = new Map<string, Stream>();
  /** Output that does not move yet. */
  readonly #waiting: { readonly name: OutputName; readonly from: number; readonly to: number }[] = [];
  /** The write end of the pipe of standard input, as long as nothing comes through it. */
  #stdinPipe: number | undefined;
  #stdinWriter: number | undefined;
  #stdinClosed = false;
  readonly #config: StdioConfig;
  readonly #options: StdioOptions;

  private constructor(config: StdioConfig, options: StdioOptions) {
    this.#config = config;
    this.#options = options;
  }

  /**
   * Opens the streams.
   *
   * @throws {SystemError} when one cannot be opened
   * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known
   */
  static open(config: StdioConfig, options: StdioOptions): PipeStdio {
    const stdio = new PipeStdio(config, options);
    try {
      if (config.stdin !== "") stdio.#openStdin(config.stdin);
      if (config.stdout !== "") {
        stdio.#openOutput(1, "stdout", config.stdout);
      }
      // A log file is for both.
      const stderr = config.stderr || (schemeOf(config.stdout) === FILE_SCHEME ? config.stdout : "");
      if (stderr !== "") stdio.#openOutput(2, "stderr", stderr);
      return stdio;
    } catch (error) {
      stdio[Symbol.dispose]();
      throw error;
    }
  }

  get stdio(): { readonly descriptors: ProcessDescriptors } {
    return { descriptors: this.#descriptors };
  }

  closeChildEnds(): void {
    for (const fd of this.#childEnds.splice(0)) fds.close(fd);
  }

  get drained(): Promise<void> {
    const outputs = ["stdout", "stderr"].map((name) => this.#streams.get(name)?.done);
    return Promise.all(outputs).then(() => {});
  }

  resize(): void {
    // There is no terminal.
  }

  get moved(): Record<string, number> {
    return Object.fromEntries(
      [...this.#streams].map(([name, stream]) => [name, stream.bytes]),
    );
  }

  closeStdin(): void {
    this.#stdinClosed = true;
    if (this.#stdinWriter === undefined) return;
    fds.close(this.#stdinWriter);
    this.#stdinWriter = undefined;
  }

  [Symbol.dispose](): void {
    this.closeChildEnds();
    this.closeStdin();
    if (this.#stdinPipe !== undefined) fds.close(this.#stdinPipe);
    this.#stdinPipe = undefined;
    for (const { from, to } of this.#waiting.splice(0)) {
      fds.close(from);
      fds.close(to);
    }
    for (const stream of this.#streams.values()) stream.close();
  }

  #openStdin(path: string): void {
    if (!Deno.statSync(path).isFifo) {
      const file = fds.open(path, fds.O.RDONLY | fds.O.NOCTTY);
      this.#descriptors[0] = file;
      this.#childEnds.push(file);
      return;
    }
    const { read, write } = pipe();
    this.#descriptors[0] = read;
    this.#childEnds.push(read);
    this.#stdinPipe = write;
    changeOwner(read, this.#options.uid, this.#options.gid);
    fds.setNonblocking(write);
  }

  connectOutput(): void {
    for (const { name, from, to } of this.#waiting.splice(0)) this.#stream(name, from, to);
  }

  connectStdin(): void {
    const pipe = this.#stdinPipe;
    if (pipe === undefined) return;
    this.#stdinPipe = undefined;
    const path = this.#config.stdin;
    let fifo: number;
    try {
      fifo = openFifoToRead(path);
    } catch (error) {
      fds.close(pipe);
      throw error;
    }
    this.#stream("stdin", fifo, pipe);
    // After the read end: without a reader, a writer that does not wait is refused.
    if (!this.#stdinClosed) this.#stdinWriter = fds.open(path, fds.O.WRONLY | fds.O.NONBLOCK);
  }

  #openOutput(number: 1 | 2, name: OutputName, target: string): void {
    const path = pathOf(target);
    if (!Deno.statSync(path).isFifo) {
      // A file needs no one to stand between: its writer is never kept waiting, and never without a reader.
      const file = fds.open(path, fds.O.WRONLY | fds.O.APPEND | fds.O.NOCTTY);
      this.#descriptors[number] = file;
      this.#childEnds.push(file);
      return;
    }
    const fifo = openFifoToWrite(path);
    const { read, write } = pipe();
    this.#descriptors[number] = write;
    this.#childEnds.push(write);
    this.#waiting.push({ name, from: read, to: fifo });
    changeOwner(write, this.#options.uid, this.#options.gid);
    fds.setNonblocking(read);
  }

  #stream(name: string, from: number, to: number): void {
    this.#streams.set(name, new Stream(this.#options.poller, from, to));
  }
}

/** Modes of a log file that `file://` asks for, and of the folders that lead to it. */
const FILE_MODE = 0o644;
const FOLDER_MODE = 0o755;

/**
 * The path that an output goes to; the file of a `file://` is made, with its folders, if it is not there.
 *
 * @throws {SystemError | Error} when it cannot be made
 * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known
 */
function pathOf(target: string): string {
  const scheme = schemeOf(target);
  if (scheme === undefined) return target;
  if (scheme !== FILE_SCHEME) {
    throw new StatusError(Code.INVALID_ARGUMENT, `unknown STDIO scheme ${scheme} in ${JSON.stringify(target)}`);
  }
  const path = decodeURIComponent(new URL(target).pathname);
  Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")) || "/", { recursive: true, mode: FOLDER_MODE });
  fds.close(fds.open(path, fds.O.WRONLY | fds.O.APPEND | fds.O.CREAT | fds.O.NOCTTY, FILE_MODE));
  return path;
}

const FILE_SCHEME = "file";

/** The scheme of a URI; undefined for a path. */
function schemeOf(target: string): string | undefined {
  return /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(target)?.[1];
}

/**
 * Opens the FIFO of an input; the caller owns the descriptor.
 *
 * @throws {SystemError}
 */
export function openFifoToRead(path: string): number {
  return fds.open(path, fds.O.RDONLY | fds.O.NONBLOCK);
}

/**
 * Opens the FIFO of an output, both of its ends: a reader that goes away stalls the process. The caller owns the
 * descriptor.
 *
 * @throws {SystemError}
 */
export function openFifoToWrite(path: string): number {
  return fds.open(path, fds.O.RDWR | fds.O.NONBLOCK);
}
