/** The terminal of a process: the runtime makes it, and sends its master here. */

import * as fds from "../../ffi/fd.ts";
import { peekDescriptor } from "../../ffi/fd_passing.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { foregroundOf, inputMode, sessionOf, setWindowSize } from "../../ffi/pty.ts";
import { Signal } from "../../ffi/signals.ts";
import { listenIn } from "../../ffi/socket.ts";
import { statDescriptor } from "../../ffi/stat.ts";
import { Role } from "../record/keeper.ts";
import type { StreamsRecord } from "../record/record.ts";
import { sameForSame } from "../record/same.ts";
import type { ProcessStdio } from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { removeIfThere } from "./bundle.ts";
import { Copier } from "./copier.ts";
import { isFifo, openFifoToRead, openFile, openOutput, openWriter } from "./endpoint.ts";
import { Logger } from "./logger.ts";
import { leaveToReader, Stream } from "./stream.ts";
import type { ProcessStreams, StdioConfig, StdioOptions } from "./streams.ts";

/** What follows a process's id in the name of its socket's folder in the bundle, and the mode of that: it is this user's alone. */
const FOLDER_ENDING = ".pty";
const FOLDER_MODE = 0o700;
/** The name of the socket in it. */
const SOCKET = "pty.sock";

/** How long after the end of a terminal's input it is looked at whether its process has taken note, in ms: longer each time. */
const SHORTEST_END_CHECK_MS = 2000;
const LONGEST_END_CHECK_MS = 60_000;

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
  /** Set when the end of input has been typed, until the process has ended. */
  #inputEndTimer: Disposable | undefined;
  /** What the terminal is to have when it comes. */
  #size: { readonly columns: number; readonly rows: number } | undefined;
  /** Whether the process has ended. */
  #isOver = false;
  #closed = false;

  private constructor(config: StdioConfig, options: StdioOptions, folder: string) {
    this.#config = config;
    this.#options = options;
    this.#folder = folder;
    // The runtime runs in the bundle, whose path may be longer than that of a socket. A folder that is elsewhere is of version 0.1.
    const { bundle } = options;
    const place = folder.startsWith(`${bundle}/`) ? folder.slice(bundle.length + 1) : folder;
    this.stdio = { consoleSocket: `${place}/${SOCKET}` };
  }

  #listen(): void {
    // What is there has been left by a host that has died.
    removeIfThere(this.#folder, { recursive: true });
    Deno.mkdirSync(this.#folder, { mode: FOLDER_MODE });
    this.#socket = listenIn(this.#folder, SOCKET);
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
    // Its end may have been typed, or it is connected later.
    else if (isStdinClosed) stdio.#checkInputEnd();
    return stdio;
  }

  get record(): StreamsRecord | undefined {
    if (this.#closed) return undefined;
    const folder = this.#socket === undefined ? undefined : this.#folder;
    return this.#recorded(folder, this.#taker?.isRunning ? this.#taker : undefined);
  }

  readonly #recorded = sameForSame((folder: string | undefined, taker: Logger | Copier | undefined): StreamsRecord => (
    { slot: this.#options.shelf.slot, folder, loggers: taker ? [{ uri: taker.uri, pid: taker.pid }] : [] }
  ));

  /**
   * Opens the socket that the runtime sends the terminal to, in a folder of the bundle that only this user may enter, and the
   * streams' other ends.
   *
   * @throws {SystemError | Error} when one cannot be opened, or a logger not started
   * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known, and input that is no FIFO
   */
  static async open(config: StdioConfig, options: StdioOptions): Promise<ConsoleStdio> {
    const { stdin } = config;
    const stdio = new ConsoleStdio(config, options, `${options.bundle}/${options.id}${FOLDER_ENDING}`);
    try {
      if (stdin !== "" && !await isFifo(stdin, options.shelf, Role.STDIN_FROM)) {
        throw new StatusError(Code.INVALID_ARGUMENT, `the input of a terminal is no FIFO: ${stdin}`);
      }
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
      terminal: "from",
      toFile,
      // Whoever prints something may read, too.
      onMoved: () => this.#stdin?.retry(),
      close: (each) => each === from ? fds.close(each) : this.#options.shelf.close(each),
    });
    if (this.#isOver) this.#stdout.endTerminal();
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
    if (this.#size !== undefined) setWindowSize(master, this.#size.columns, this.#size.rows);
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
    this.#inputEndTimer?.[Symbol.dispose]();
    const to = fds.duplicate(master);
    if (!this.#stdinClosed && this.#stdinWriter === undefined) {
      this.#stdinWriter = openWriter(fifo);
      shelf.keep(Role.STDIN_WRITER, this.#stdinWriter);
    }
    this.#stdin = new Stream(context.poller, fifo, to, {
      terminal: "to",
      last: () => endOfInput(to),
      close: (each) => each === to ? fds.close(each) : shelf.close(each),
    });
    if (this.#isOver) this.#stdin.endTerminal();
    this.#stdin.done.then(() => this.#checkInputEnd());
  }

  /**
   * Sees to it that the process comes to the end of its input, which has been typed. Who reads lines has it typed again: nothing
   * says whether it has been read, and input that has ended does so for each who reads it. Who takes keys as they come is hung
   * up on.
   */
  #checkInputEnd(ms = SHORTEST_END_CHECK_MS): void {
    if (this.#closed || this.#isOver || !this.#stdinClosed || this.#config.stdin === "") return;
    this.#inputEndTimer?.[Symbol.dispose]();
    this.#inputEndTimer = this.#options.context.timer(ms, () => {
      const master = this.#master;
      if (master === undefined || this.#typeEnd(master)) this.#checkInputEnd(Math.min(2 * ms, LONGEST_END_CHECK_MS));
      else this.#hangUpOn(master);
    });
  }

  /** @returns false when nobody would take that for an end */
  #typeEnd(master: number): boolean {
    const { isCanonical, endOfFile } = inputMode(master);
    if (!isCanonical || endOfFile === 0) return false;
    // Where that cannot be done, nobody reads now.
    fds.write(master, new Uint8Array([endOfFile]));
    return true;
  }

  /** Does what the kernel does when a line is cut, but that output is passed on still. */
  #hangUpOn(master: number): void {
    const { log, reaper } = this.#options.context;
    const [session, foreground] = [sessionOf(master), foregroundOf(master)];
    log.debug("a terminal whose input has ended is hung up", { process: this.#options.id, session, foreground });
    // The second is a group, of which the session's leader may be one. 0 is none, and 1 would stand for all processes.
    const targets = session === foreground ? [-foreground] : [session, -foreground];
    for (const target of targets.filter((each) => Math.abs(each) > 1)) {
      try {
        for (const signal of [Signal.SIGHUP, Signal.SIGCONT]) reaper.kill(target, signal);
      } catch (error) {
        if (!(error instanceof SystemError && error.errno === Errno.ESRCH)) throw error;
      }
    }
  }

  processEnded(): void {
    this.#isOver = true;
    this.#inputEndTimer?.[Symbol.dispose]();
    this.#stdin?.endTerminal();
    this.#stdout?.endTerminal();
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
    if (this.#master === undefined) this.#size = { columns, rows };
    else setWindowSize(this.#master, columns, rows);
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
    this.#inputEndTimer?.[Symbol.dispose]();
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
    removeIfThere(this.#folder, { recursive: true });
  }
}

/**
 * What is typed when no more will be: the character that ends a file, if there is one. Of a line that has begun, the first of two
 * is the end of that.
 *
 * @throws {SystemError}
 */
function endOfInput(master: number): Uint8Array<ArrayBuffer> {
  const { endOfFile } = inputMode(master);
  return endOfFile === 0 ? new Uint8Array() : new Uint8Array([endOfFile, endOfFile]);
}
