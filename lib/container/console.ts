/** The terminal of a process: the runtime makes it, and sends its master here. */

import * as fds from "../../ffi/fd.ts";
import { peekDescriptor } from "../../ffi/fd_passing.ts";
import { setWindowSize } from "../../ffi/pty.ts";
import { listenOn } from "../../ffi/socket.ts";
import { statDescriptor } from "../../ffi/stat.ts";
import { Role } from "../record/keeper.ts";
import type { StreamsRecord } from "../record/record.ts";
import type { ProcessStdio } from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { Copier } from "./copier.ts";
import { isFifo, openFifoToRead, openFile, openOutput } from "./endpoint.ts";
import { Logger } from "./logger.ts";
import { leaveToReader, Stream } from "./stream.ts";
import type { ProcessStreams, StdioConfig, StdioOptions } from "./streams.ts";

/** A terminal between a process and the FIFOs that containerd has made for it, or a file or logger for its output. */
export class ConsoleStdio implements ProcessStreams {
  readonly stdio: ProcessStdio;
  readonly #config: StdioConfig;
  readonly #options: StdioOptions;
  readonly #folder: string;
  #socket: number | undefined;
  /** Where output goes, until it does. */
  #output: { readonly fd: number; readonly toFile: boolean } | undefined;
  /** What takes the output, if that is no FIFO. */
  #taker: Logger | Copier | undefined;
  #master: number | undefined;
  #stdin: Stream | undefined;
  #stdout: Stream | undefined;
  #stdinWriter: number | undefined;
  #stdinClosed = false;
  #closed = false;

  private constructor(config: StdioConfig, options: StdioOptions, folder: string) {
    this.#config = config;
    this.#options = options;
    this.#folder = folder;
    this.stdio = { consoleSocket: `${folder}/pty.sock` };
  }

  #listen(): void {
    this.#socket = listenOn(`${this.#folder}/pty.sock`);
    this.#options.shelf.keep(Role.CONSOLE_SOCKET, this.#socket);
  }

  /** Goes on with the streams of another process: what of them is kept is on the shelf. */
  static restore(
    config: StdioConfig,
    options: StdioOptions,
    { folder = "", loggers }: StreamsRecord,
    isStdinClosed: boolean,
  ): ConsoleStdio {
    const { shelf } = options;
    const stdio = new ConsoleStdio(config, options, folder);
    stdio.#stdinClosed = isStdinClosed;
    stdio.#socket = shelf.find(Role.CONSOLE_SOCKET);
    stdio.#master = shelf.find(Role.TERMINAL);
    const [logger] = loggers;
    if (logger !== undefined) {
      const { uri, pid } = logger;
      stdio.#taker = (Copier.isCopier(uri) ? Copier : Logger).restore(uri, pid, options);
    }
    const to = shelf.find(Role.STDOUT_TO);
    // A file: of a host of 0.1, which had no copiers.
    if (to !== undefined) stdio.#output = { fd: to, toFile: statDescriptor(to).isFile };
    stdio.#stdinWriter = shelf.find(Role.STDIN_WRITER);
    if (isStdinClosed) stdio.closeStdin();
    const from = shelf.find(Role.STDIN_FROM);
    if (from !== undefined && stdio.#master !== undefined) stdio.#connect(from, stdio.#master);
    return stdio;
  }

  get record(): StreamsRecord | undefined {
    if (this.#closed) return undefined;
    return {
      slot: this.#options.shelf.slot,
      folder: this.#socket === undefined ? undefined : this.#folder,
      loggers: this.#taker?.isRunning ? [{ uri: this.#taker.uri, pid: this.#taker.pid }] : [],
    };
  }

  /**
   * Opens the socket that the runtime sends the terminal to, in a folder that only this user may enter, and the streams'
   * other ends.
   *
   * @throws {SystemError | Error} when one cannot be opened, or a logger not started
   * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known, and input that is no FIFO
   */
  static async open(config: StdioConfig, options: StdioOptions): Promise<ConsoleStdio> {
    if (config.stdin !== "" && !isFifo(config.stdin)) {
      throw new StatusError(Code.INVALID_ARGUMENT, `the input of a terminal is no FIFO: ${config.stdin}`);
    }
    const folder = Deno.makeTempDirSync({ prefix: "pty", ...options.context.temporary });
    const stdio = new ConsoleStdio(config, options, folder);
    try {
      stdio.#listen();
      if (config.stdout !== "") await stdio.#openOutput(config.stdout);
      return stdio;
    } catch (error) {
      await stdio.close();
      throw error;
    }
  }

  async #openOutput(target: string): Promise<void> {
    const { shelf, context } = this.#options;
    const output = await openOutput(target, shelf, Role.STDOUT_TO, context.timer);
    if (output.kind === "fifo") {
      this.#output = { fd: output.fd, toFile: false };
    } else if (output.kind === "logger") {
      const logger = await Logger.start(output.uri, this.#options);
      this.#taker = logger;
      this.#keepPipe(logger.takeOutput("stdout"));
      logger.closeOutputs();
    } else if (Copier.isPossible(context)) {
      const { copier, end } = await Copier.start(output.file, this.#options);
      this.#taker = copier;
      this.#keepPipe(end);
    } else {
      const fd = openFile(output.file);
      shelf.keep(Role.STDOUT_TO, fd);
      this.#output = { fd, toFile: true };
    }
  }

  /** Has output go to a pipe, which is kept. */
  #keepPipe(fd: number): void {
    this.#options.shelf.keep(Role.STDOUT_TO, fd);
    this.#output = { fd, toFile: false };
    fds.setNonblocking(fd);
  }

  closeChildEnds(): void {
    // The process's side of the terminal has never been here.
  }

  async connectOutput(): Promise<void> {
    const master = this.#master ??= await this.#receive();
    if (this.#output === undefined) return;
    const { fd, toFile } = this.#output;
    const from = fds.duplicate(master);
    this.#output = undefined;
    this.#stdout = new Stream(this.#options.context.poller, from, fd, {
      fromTerminal: true,
      toFile,
      close: (each) => each === from ? fds.close(each) : this.#options.shelf.close(each),
    });
  }

  /** The terminal, which the runtime has sent before it said that the process is started. */
  async #receive(): Promise<number> {
    const { shelf } = this.#options;
    const connection = shelf.find(Role.CONSOLE_CONNECTION) ??
      (this.#socket && await shelf.accept(Role.CONSOLE_CONNECTION, this.#socket));
    if (connection === undefined) throw new Error("nobody has connected to send a terminal");
    // It stays in the connection: nothing else would have it, if this process ended now.
    const master = peekDescriptor(connection);
    shelf.keep(Role.TERMINAL, master);
    fds.setNonblocking(master);
    shelf.close(connection);
    this.#closeSocket();
    return master;
  }

  async connectStdin(): Promise<void> {
    const master = this.#master;
    if (master === undefined || this.#config.stdin === "" || this.#stdin !== undefined || this.#isOpening) return;
    this.#isOpening = true;
    const { shelf } = this.#options;
    const fifo = await openFifoToRead(this.#config.stdin, shelf, Role.STDIN_FROM);
    // Meanwhile.
    if (this.#closed) return shelf.close(fifo);
    this.#connect(fifo, master);
  }

  #isOpening = false;

  #connect(fifo: number, master: number): void {
    const { shelf, context } = this.#options;
    const to = fds.duplicate(master);
    // Held open here, so that a client that detaches does not end the input.
    if (!this.#stdinClosed && this.#stdinWriter === undefined) {
      this.#stdinWriter = fds.open(this.#config.stdin, fds.O.WRONLY | fds.O.NONBLOCK);
      shelf.keep(Role.STDIN_WRITER, this.#stdinWriter);
    }
    this.#stdin = new Stream(context.poller, fifo, to, {
      close: (each) => each === to ? fds.close(each) : shelf.close(each),
    });
  }

  flush(): void {
    this.#stdout?.flush();
  }

  get drained(): Promise<void> {
    return Promise.all([this.#stdout?.done, this.#taker?.ended]).then(() => {});
  }

  closeStdin(): void {
    this.#stdinClosed = true;
    if (this.#stdinWriter !== undefined) this.#options.shelf.close(this.#stdinWriter);
    this.#stdinWriter = undefined;
  }

  resize(columns: number, rows: number): void {
    if (this.#master !== undefined) setWindowSize(this.#master, columns, rows);
  }

  get moved(): Record<string, number> {
    return { stdin: this.#stdin?.bytes ?? 0, stdout: this.#stdout?.bytes ?? 0 };
  }

  handOver(): void {
    this.#closeHere();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closeSocket();
    const { context, id } = this.#options;
    leaveToReader(this.#stdout, { log: context.log, id, name: "terminal" });
    this.#closeHere();
    await this.#taker?.stop();
  }

  #closeHere(): void {
    this.#closed = true;
    this.#stdin?.close();
    this.#stdout?.close();
    this.#output = this.#master = this.#stdinWriter = undefined;
    // With the last of our masters: what still has the terminal is hung up on.
    this.#options.shelf.release();
  }

  #closeSocket(): void {
    if (this.#socket === undefined) return;
    this.#options.shelf.close(this.#socket);
    this.#socket = undefined;
    Deno.removeSync(this.#folder, { recursive: true });
  }
}
