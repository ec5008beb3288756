/** The terminal of a process: the runtime makes it, and sends its master here. */

import * as fds from "../../ffi/fd.ts";
import { listenForDescriptors, receiveDescriptor } from "../../ffi/fd_passing.ts";
import { setWindowSize } from "../../ffi/pty.ts";
import type { ProcessStdio } from "../runtime/runc.ts";
import { openFifoToRead, openFifoToWrite } from "./stdio.ts";
import { Stream } from "./stream.ts";
import type { ProcessStreams, StdioConfig, StdioOptions } from "./streams.ts";

/** A terminal between a process and the FIFOs that containerd has made for it. */
export class ConsoleStdio implements ProcessStreams {
  readonly stdio: ProcessStdio;
  readonly #config: StdioConfig;
  readonly #options: StdioOptions;
  readonly #folder: string;
  #socket: number | undefined;
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
    this.#socket = listenForDescriptors(consoleSocket);
  }

  /**
   * Opens the socket that the runtime sends the terminal to, in a folder that only this user may enter.
   *
   * @throws {SystemError}
   */
  static open(config: StdioConfig, options: StdioOptions): ConsoleStdio {
    const folder = Deno.makeTempDirSync({ prefix: "pty" });
    try {
      return new ConsoleStdio(config, options, folder);
    } catch (error) {
      Deno.removeSync(folder, { recursive: true });
      throw error;
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
    if (this.#config.stdout === "") return;
    const fifo = openFifoToWrite(this.#config.stdout);
    this.#stdout = new Stream(this.#options.poller, fds.duplicate(master), fifo);
  }

  connectStdin(): void {
    const master = this.#master;
    if (master === undefined || this.#config.stdin === "" || this.#stdin !== undefined) return;
    const fifo = openFifoToRead(this.#config.stdin);
    this.#stdin = new Stream(this.#options.poller, fifo, fds.duplicate(master));
    // Held open here, so that a client that detaches does not end the input.
    if (!this.#stdinClosed) this.#stdinWriter = fds.open(this.#config.stdin, fds.O.WRONLY | fds.O.NONBLOCK);
  }

  get drained(): Promise<void> {
    return this.#stdout?.done ?? Promise.resolve();
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

  [Symbol.dispose](): void {
    this.#closeSocket();
    this.closeStdin();
    this.#stdin?.close();
    this.#stdout?.close();
    // The last of our masters: what still has the terminal is hung up on.
    if (this.#master !== undefined) fds.close(this.#master);
    this.#master = undefined;
  }

  #closeSocket(): void {
    if (this.#socket === undefined) return;
    fds.close(this.#socket);
    this.#socket = undefined;
    Deno.removeSync(this.#folder, { recursive: true });
  }
}
