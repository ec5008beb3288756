/** The terminal of a process: the runtime makes it, and sends its master here. */

import * as fds from "../../ffi/fd.ts";
import { receiveDescriptor } from "../../ffi/fd_passing.ts";
import { setWindowSize } from "../../ffi/pty.ts";
import { listenOn } from "../../ffi/socket.ts";
import type { ProcessStdio } from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import { isFifo, openFifoToRead, openOutput } from "./endpoint.ts";
import { Logger } from "./logger.ts";
import { Stream } from "./stream.ts";
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
  #logger: Logger | undefined;
  #master: number | undefined;
  #stdin: Stream | undefined;
  #stdout: Stream | undefined;
  #stdinWriter: number | undefined;
  #stdinClosed = false;

  private constructor(config: StdioConfig, options: StdioOptions, folder: string) {
    this.#config = config;
    this.#options = options;
    this.#folder = folder;
    const consoleSocket = `${folder}/pty.sock`;
    this.stdio = { consoleSocket };
    this.#socket = listenOn(consoleSocket);
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
    let stdio;
    try {
      stdio = new ConsoleStdio(config, options, folder);
    } catch (error) {
      Deno.removeSync(folder, { recursive: true });
      throw error;
    }
    try {
      if (config.stdout !== "") await stdio.#openOutput(config.stdout);
      return stdio;
    } catch (error) {
      await stdio.close();
      throw error;
    }
  }

  async #openOutput(target: string): Promise<void> {
    const output = await openOutput(target, this.#options.context.timer);
    if (output.kind === "logger") {
      this.#logger = await Logger.start(output.uri, this.#options);
      const fd = this.#logger.takeOutput("stdout");
      this.#output = { fd, toFile: false };
      fds.setNonblocking(fd);
      this.#logger.closeOutputs();
    } else {
      this.#output = { fd: output.fd, toFile: output.kind === "file" };
    }
  }

  closeChildEnds(): void {
    // The process's side of the terminal has never been here.
  }

  connectOutput(): void {
    // The runtime has sent it before it said that the process is started.
    const master = receiveDescriptor(this.#socket!);
    this.#master = master;
    this.#closeSocket();
    fds.setNonblocking(master);
    if (this.#output === undefined) return;
    const { fd, toFile } = this.#output;
    const from = fds.duplicate(master);
    this.#output = undefined;
    this.#stdout = new Stream(this.#options.context.poller, from, fd, { fromTerminal: true, toFile });
  }

  connectStdin(): void {
    const master = this.#master;
    if (master === undefined || this.#config.stdin === "" || this.#stdin !== undefined) return;
    const fifo = openFifoToRead(this.#config.stdin);
    this.#stdin = new Stream(this.#options.context.poller, fifo, fds.duplicate(master));
    // Held open here, so that a client that detaches does not end the input.
    if (!this.#stdinClosed) this.#stdinWriter = fds.open(this.#config.stdin, fds.O.WRONLY | fds.O.NONBLOCK);
  }

  flush(): void {
    this.#stdout?.flush();
  }

  get drained(): Promise<void> {
    return Promise.all([this.#stdout?.done, this.#logger?.ended]).then(() => {});
  }

  closeStdin(): void {
    this.#stdinClosed = true;
    if (this.#stdinWriter !== undefined) fds.close(this.#stdinWriter);
    this.#stdinWriter = undefined;
  }

  resize(columns: number, rows: number): void {
    if (this.#master !== undefined) setWindowSize(this.#master, columns, rows);
  }

  get moved(): Record<string, number> {
    return { stdin: this.#stdin?.bytes ?? 0, stdout: this.#stdout?.bytes ?? 0 };
  }

  async close(): Promise<void> {
    this.#closeSocket();
    this.closeStdin();
    this.#stdin?.close();
    this.#stdout?.close();
    if (this.#output !== undefined) fds.close(this.#output.fd);
    this.#output = undefined;
    // The last of our masters: what still has the terminal is hung up on.
    if (this.#master !== undefined) fds.close(this.#master);
    this.#master = undefined;
    await this.#logger?.stop();
  }

  #closeSocket(): void {
    if (this.#socket === undefined) return;
    fds.close(this.#socket);
    this.#socket = undefined;
    Deno.removeSync(this.#folder, { recursive: true });
  }
}
