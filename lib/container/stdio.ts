/** The standard streams of a process that has no terminal. */

import * as fds from "../../ffi/fd.ts";
import { changeOwner, pipe } from "../../ffi/pipe.ts";
import { statDescriptor } from "../../ffi/stat.ts";
import { Role } from "../record/keeper.ts";
import type { StreamsRecord } from "../record/record.ts";
import type { ProcessDescriptors } from "../runtime/runc.ts";
import { Copier, type HostFile, uriOf } from "./copier.ts";
import { isFifo, openFifoToRead, openFile, openOutput, type Output, takesBoth } from "./endpoint.ts";
import { Logger } from "./logger.ts";
import { leaveToReader, Stream, type StreamOptions } from "./stream.ts";
import type { ProcessStreams, StdioConfig, StdioOptions } from "./streams.ts";

type OutputName = "stdout" | "stderr";

/** The roles of an output's two ends. */
const ENDS = {
  stdout: { from: Role.STDOUT_FROM, to: Role.STDOUT_TO },
  stderr: { from: Role.STDERR_FROM, to: Role.STDERR_TO },
} as const;

/**
 * Pipes between a process and the FIFOs that containerd has made for it, or files, or loggers.
 *
 * The other end of each FIFO is held open here too: a client that detaches stalls the process, or leaves its input
 * open, until it comes back.
 */
export class PipeStdio implements ProcessStreams {
  /** Descriptors that only the process is to have once it has been started. */
  readonly #childEnds: number[] = [];
  readonly #descriptors: [number | null, number | null, number | null] = [null, null, null];
  readonly #streams = new Map<string, Stream>();
  /** By what containerd calls them: one may take both outputs. */
  readonly #loggers = new Map<string, Logger>();
  /** By what the record calls them: one may take both outputs, and keeps the order in which they were printed. */
  readonly #copiers = new Map<string, Copier>();
  /** Output that does not move yet. */
  readonly #waiting: {
    readonly name: OutputName;
    readonly from: number;
    readonly to: number;
    readonly options?: StreamOptions | undefined;
  }[] = [];
  /** The write end of the pipe of standard input, as long as nothing comes through it. */
  #stdinPipe: number | undefined;
  #stdinWriter: number | undefined;
  #stdinClosed = false;
  #closed = false;
  readonly #config: StdioConfig;
  readonly #options: StdioOptions;

  private constructor(config: StdioConfig, options: StdioOptions) {
    this.#config = config;
    this.#options = options;
  }

  /**
   * Opens the streams, and starts the loggers that they go to.
   *
   * @throws {SystemError | Error} when one cannot be opened or started
   * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known
   */
  static async open(config: StdioConfig, options: StdioOptions): Promise<PipeStdio> {
    const stdio = new PipeStdio(config, options);
    const { stdin, stdout } = config;
    const stderr = config.stderr || (takesBoth(stdout) ? stdout : "");
    try {
      if (stdin !== "") await stdio.#openStdin(stdin);
      await stdio.#openOutputs(stdout, stderr);
      for (const logger of stdio.#loggers.values()) logger.closeOutputs();
      return stdio;
    } catch (error) {
      await stdio.close();
      throw error;
    }
  }

  /** Goes on with the streams of another process: what of them is kept is on the shelf. */
  static restore(
    config: StdioConfig,
    options: StdioOptions,
    { loggers }: StreamsRecord,
    isStdinClosed: boolean,
  ): PipeStdio {
    const stdio = new PipeStdio(config, options);
    stdio.#stdinClosed = isStdinClosed;
    for (const name of ["stdout", "stderr"] as const) {
      const [from, to] = [stdio.#find(ENDS[name].from), stdio.#find(ENDS[name].to)];
      if (from !== undefined && to !== undefined) stdio.#waiting.push({ name, from, to });
      // One that is there without the other was being closed.
      else [from, to].forEach((fd) => fd !== undefined && options.shelf.close(fd));
    }
    const [from, to] = [stdio.#find(Role.STDIN_FROM), stdio.#find(Role.STDIN_TO)];
    stdio.#stdinWriter = stdio.#find(Role.STDIN_WRITER);
    if (isStdinClosed) stdio.closeStdin();
    if (from !== undefined && to !== undefined) {
      if (stdio.#stdinWriter === undefined && !isStdinClosed) stdio.#openStdinWriter();
      stdio.#stream("stdin", from, to);
    } else if (from !== undefined) {
      options.shelf.close(from);
      stdio.closeStdin();
    } else {
      stdio.#stdinPipe = to;
    }
    for (const { uri, pid } of loggers) {
      if (Copier.isCopier(uri)) stdio.#copiers.set(uri, Copier.restore(uri, pid, options));
      else stdio.#loggers.set(uri, Logger.restore(uri, pid, options));
    }
    return stdio;
  }

  /** A pipe or FIFO that has been kept. */
  #find(role: number): number | undefined {
    const { shelf, context } = this.#options;
    const fd = shelf.find(role);
    if (fd === undefined || statDescriptor(fd).isFifo) return fd;
    context.log.error("what has been kept for a stream is no pipe", { process: this.#options.id, role });
    shelf.close(fd);
    return undefined;
  }

  get record(): StreamsRecord | undefined {
    if (this.#closed) return undefined;
    const takers = [...this.#loggers.values(), ...this.#copiers.values()].filter(({ isRunning }) => isRunning);
    const loggers = takers.map(({ uri, pid }) => ({ uri, pid }));
    return { slot: this.#options.shelf.slot, folder: undefined, loggers };
  }

  get stdio(): { readonly descriptors: ProcessDescriptors } {
    return { descriptors: this.#descriptors };
  }

  closeChildEnds(): void {
    for (const fd of this.#childEnds.splice(0)) fds.close(fd);
  }

  processEnded(): void {
    for (const name of ["stdout", "stderr"]) this.#streams.get(name)?.flush();
  }

  get drained(): Promise<void> {
    const outputs = ["stdout", "stderr"].map((name) => this.#streams.get(name)?.done);
    const loggers = [...this.#loggers.values()].map(({ ended }) => ended);
    const copiers = [...this.#copiers.values()].filter(({ isForOutput }) => isForOutput).map(({ ended }) => ended);
    return Promise.all([...outputs, ...loggers, ...copiers]).then(() => {});
  }

  resize(): void {
    // There is no terminal.
  }

  get moved(): Record<string, number> {
    return Object.fromEntries([...this.#streams].map(([name, stream]) => [name, stream.bytes]));
  }

  closeStdin(): void {
    this.#stdinClosed = true;
    if (this.#stdinWriter === undefined) return;
    this.#options.shelf.close(this.#stdinWriter);
    this.#stdinWriter = undefined;
  }

  handOver(): void {
    this.#closeHere();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    const { context, id } = this.#options;
    for (const name of ["stdout", "stderr"]) leaveToReader(this.#streams.get(name), { log: context.log, id, name });
    this.#closeHere();
    await Promise.all([...this.#loggers.values(), ...this.#copiers.values()].map((each) => each.stop()));
  }

  #closeHere(): void {
    this.#closed = true;
    this.closeChildEnds();
    for (const stream of this.#streams.values()) stream.close();
    this.#stdinPipe = this.#stdinWriter = undefined;
    this.#waiting.length = 0;
    this.#options.shelf.release();
  }

  async #openStdin(path: string): Promise<void> {
    if (!isFifo(path)) return await this.#openInputFile({ path, mode: "read" });
    const { read, write } = pipe();
    this.#stdinPipe = write;
    this.#options.shelf.keep(Role.STDIN_TO, write);
    this.#givePipe(0, read);
    fds.setNonblocking(write);
  }

  async #openInputFile(file: HostFile): Promise<void> {
    if (Copier.isPossible(this.#options.context)) return this.#givePipe(0, await this.#copier(file));
    const { shelf } = this.#options;
    const from = openFile(file);
    shelf.keep(Role.STDIN_FROM, from);
    const { read, write } = pipe();
    shelf.keep(Role.STDIN_TO, write);
    this.#givePipe(0, read);
    fds.setNonblocking(write);
    this.#stream("stdin", from, write, { fromFile: true });
  }

  connectOutput(): void {
    for (const { name, from, to, options } of this.#waiting.splice(0)) this.#stream(name, from, to, options);
  }

  async connectStdin(): Promise<void> {
    const pipe = this.#stdinPipe;
    if (pipe === undefined) return;
    this.#stdinPipe = undefined;
    const { shelf } = this.#options;
    let fifo: number;
    try {
      fifo = await openFifoToRead(this.#config.stdin, shelf, Role.STDIN_FROM);
    } catch (error) {
      if (!this.#closed) shelf.close(pipe);
      throw error;
    }
    // Meanwhile.
    if (this.#closed) return shelf.close(fifo);
    this.#stream("stdin", fifo, pipe);
    // After the read end: without a reader, a writer that does not wait is refused.
    if (!this.#stdinClosed) this.#openStdinWriter();
  }

  #openStdinWriter(): void {
    const fd = fds.open(this.#config.stdin, fds.O.WRONLY | fds.O.NONBLOCK);
    this.#stdinWriter = fd;
    this.#options.shelf.keep(Role.STDIN_WRITER, fd);
  }

  /** Opens both before either is connected: who opens them may be another process, which is asked once. */
  async #openOutputs(stdout: string, stderr: string): Promise<void> {
    const { shelf, context } = this.#options;
    const open = (name: OutputName, target: string) =>
      target === "" ? undefined : openOutput(target, shelf, ENDS[name].to, context.timer);
    const opened = await Promise.allSettled([open("stdout", stdout), open("stderr", stderr)]);
    const failures = opened.filter((each) => each.status === "rejected").map(({ reason }) => reason);
    for (const [i, result] of opened.entries()) {
      if (result.status === "rejected" || result.value === undefined) continue;
      // A FIFO that is not connected is on the shelf, which is closed with the rest.
      if (failures.length > 0) break;
      await this.#connectOutput(i === 0 ? 1 : 2, result.value).catch((error) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  async #connectOutput(number: 1 | 2, output: Output): Promise<void> {
    const { shelf } = this.#options;
    const name = number === 1 ? "stdout" : "stderr";
    if (output.kind === "file") {
      if (Copier.isPossible(this.#options.context)) return this.#givePipe(number, await this.#copier(output.file));
      const fd = openFile(output.file);
      shelf.keep(ENDS[name].to, fd);
      return this.#giveOutput(number, name, fd, { toFile: true });
    }
    if (output.kind === "logger") {
      let logger = this.#loggers.get(output.uri);
      if (logger === undefined) {
        logger = await Logger.start(output.uri, this.#options);
        this.#loggers.set(output.uri, logger);
      }
      this.#givePipe(number, logger.takeOutput(name));
      return;
    }
    this.#giveOutput(number, name, output.fd);
  }

  #giveOutput(number: 1 | 2, name: OutputName, to: number, options?: StreamOptions): void {
    const ends = pipe();
    this.#options.shelf.keep(ENDS[name].from, ends.read);
    this.#waiting.push({ name, from: ends.read, to, options });
    this.#givePipe(number, ends.write);
    fds.setNonblocking(ends.read);
  }

  /** The process's end of the pipe to or from a copier of a file, which is started if there is none yet; the caller owns it. */
  async #copier(file: HostFile): Promise<number> {
    const uri = uriOf(file);
    const [, stdout] = this.#descriptors;
    if (this.#copiers.has(uri) && stdout !== null) return fds.duplicate(stdout);
    const { copier, end } = await Copier.start(file, this.#options);
    this.#copiers.set(uri, copier);
    return end;
  }

  #givePipe(number: 0 | 1 | 2, fd: number): void {
    this.#giveToProcess(number, fd);
    changeOwner(fd, this.#options.uid, this.#options.gid);
  }

  #giveToProcess(number: 0 | 1 | 2, fd: number): void {
    this.#descriptors[number] = fd;
    this.#childEnds.push(fd);
  }

  #stream(name: string, from: number, to: number, options?: StreamOptions): void {
    const { context, shelf } = this.#options;
    // What is typed is charged to whoever has typed it.
    const budget = name === "stdin" ? undefined : this.#options.budget;
    const close = (fd: number) => shelf.close(fd);
    this.#streams.set(name, new Stream(context.poller, from, to, { ...options, budget, close }));
  }
}
