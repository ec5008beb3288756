/**
 * A copier: a process that moves bytes between a container's pipe and a file of the host.
 *
 * A container is given no descriptor of a file of the host: by /proc/self/fd it could change the file's mode, truncate it, or
 * write to what it is only to read. And open(2), mkdir(2) and write(2) of a path may wait: of a FIFO without a reader, a frozen
 * file system, a server that does not answer. So a child of the container's own process does them, which is this executable's
 * entry alone (lib/standalone/entry.c). As it has the pipe's other end, it goes on when the shim or its host has ended.
 */

import * as fds from "../../ffi/fd.ts";
import { SystemError } from "../../ffi/libc.ts";
import { pipe } from "../../ffi/pipe.ts";
import { Event } from "../../ffi/poll.ts";
import { Signal } from "../../ffi/signals.ts";
import { within } from "../async.ts";
import type { Exit } from "../reaper.ts";
import type { Context } from "./context.ts";
import type { StdioOptions } from "./streams.ts";

/** What is done with a file: it is read, appended to, or made with its folders and appended to. */
export type FileMode = "read" | "append" | "create";

/** A file of the host that is a process's input or output. */
export interface HostFile {
  /** Where it is. */
  readonly path: string;
  /** What is done with it. */
  readonly mode: FileMode;
}

/** What it is called in the list of processes; and the word by which the entry knows it: lib/standalone/entry.c. */
const NAME = "containerd-shim-copy";
const COPY = "copy";

/** How long opening the file may take, in ms: as long as a logger's start. */
const OPEN_TIMEOUT_MS = 60_000;
/** How long a copier may take to write what it has, once nobody here has its pipe, and to end by SIGKILL, in ms. */
const END_TIMEOUT_MS = 200;
const KILL_TIMEOUT_MS = 1000;
/** The least exit status that is no error of a system call: of a program that has not been started, or a signal. */
const NO_ERROR = 127;

/** What the record calls a copier, and where that names an input. */
const SCHEME = "file:";
const INPUT = "#stdin";

/** A copier that runs. */
export class Copier {
  /** What the record calls it. */
  readonly uri: string;
  readonly #context: Context;
  readonly #process: string;
  readonly #file: HostFile;
  #pid = 0;
  #isStopping = false;
  /** Whether the file has been opened: before, its exit status is the error of that. */
  #isOpen = false;
  #ended = false;
  readonly #exit = Promise.withResolvers<Exit>();

  private constructor({ context, id }: Pick<StdioOptions, "context" | "id">, file: HostFile) {
    this.uri = uriOf(file);
    this.#context = context;
    this.#process = id;
    this.#file = file;
  }

  /** Whether copiers can be started here: this executable has an entry of ours. */
  static isPossible({ reaper }: Context): boolean {
    return reaper.executable !== undefined;
  }

  /**
   * Starts a copier, and waits until it has opened the file.
   *
   * @returns it, and the end of the pipe that the container's process is to have; the caller owns that
   * @throws {SystemError} when the file cannot be opened: EISDIR for an input that is a directory
   * @throws {Error} when it cannot be started, or takes too long; it ends by itself then
   */
  static async start(
    file: HostFile,
    options: StdioOptions,
  ): Promise<{ readonly copier: Copier; readonly end: number }> {
    const { reaper } = options.context;
    const copier = new Copier(options, file);
    const { read, write } = pipe();
    const [own, end] = file.mode === "read" ? [write, read] : [read, write];
    try {
      const opened = pipe();
      const started = Promise.withResolvers<number>();
      // Where the shim ends, or its container's process has, whoever waits here is told.
      const run = reaper.run({
        program: reaper.executable!,
        args: [NAME, COPY, file.mode, file.path],
        descriptors: [own, opened.write],
        environment: [],
        started: started.resolve,
        onExit: (exit) => copier.#onExit(exit),
      });
      run.catch(started.reject);
      try {
        copier.#pid = await started.promise;
      } catch (error) {
        fds.close(opened.read);
        throw error;
      } finally {
        fds.close(opened.write);
        fds.close(own);
      }
      await copier.#opened(opened.read, run);
    } catch (error) {
      fds.close(end);
      throw error;
    }
    return { copier, end };
  }

  /** Whether the record means a copier by this. */
  static isCopier(uri: string): boolean {
    return uri.startsWith(SCHEME);
  }

  /** Goes on with a copier that another process has started. */
  static restore(uri: string, pid: number, options: Pick<StdioOptions, "context" | "id">): Copier {
    const isInput = uri.endsWith(INPUT);
    const path = decodeURIComponent(uri.slice(SCHEME.length, isInput ? -INPUT.length : undefined));
    const copier = new Copier(options, { path, mode: isInput ? "read" : "append" });
    copier.#pid = pid;
    copier.#isOpen = true;
    options.context.reaper.runOn(pid, (exit) => copier.#onExit(exit)).catch(() => {});
    return copier;
  }

  /** Its pid. */
  get pid(): number {
    return this.#pid;
  }

  /** Whether it has not ended. */
  get isRunning(): boolean {
    return !this.#ended;
  }

  /** Whether what a process prints goes to it. */
  get isForOutput(): boolean {
    return this.#file.mode !== "read";
  }

  /** Settled when it has ended: all that has been printed is in the file. */
  get ended(): Promise<unknown> {
    return this.#exit.promise;
  }

  #onExit(exit: Exit): void {
    this.#ended = true;
    if (this.#isOpen && !this.#isStopping && exit.status > 0 && exit.status < NO_ERROR) {
      this.#context.log.error("a file has not taken all that was printed, or given all that is in it", {
        process: this.#process,
        error: new SystemError(this.isForOutput ? "write" : "read", exit.status, this.#file.path),
      });
    }
    this.#exit.resolve(exit);
  }

  /** Waits until the file has been opened, or the process has ended, and closes the descriptor by which that is told. */
  async #opened(fd: number, run: Promise<Exit>): Promise<void> {
    const { poller, timer } = this.#context;
    const told = Promise.withResolvers<true>();
    let isTold: boolean | undefined;
    try {
      poller.add(fd, Event.IN, () => told.resolve(true));
      isTold = await within(timer, OPEN_TIMEOUT_MS, Promise.race([told.promise, run.then(() => true)]));
      // There is a byte, or the end of file: nothing to wait for.
      this.#isOpen = isTold === true && fds.read(fd, new Uint8Array(1)) === 1;
    } finally {
      poller.remove(fd);
      fds.close(fd);
    }
    const { path } = this.#file;
    if (!isTold) throw new Error(`${path} could not be opened within ${OPEN_TIMEOUT_MS / 1000} s`);
    if (this.#isOpen) return;
    const { status } = await run;
    if (status > 0 && status < NO_ERROR) throw new SystemError("open", status, path);
    throw new Error(`${path} is not opened: the process that was to has ended with status ${status}`);
  }

  /**
   * Has it end, if it has not: by itself, for nobody here has its pipe any more, or else by SIGKILL, when something still has
   * the pipe, or the file takes nothing. Settled when it has ended, or cannot.
   */
  async stop(): Promise<void> {
    const { timer, log, reaper } = this.#context;
    if (this.isForOutput) await within(timer, END_TIMEOUT_MS, this.ended);
    this.#isStopping = true;
    if (this.#ended) return;
    const about = { process: this.#process, file: this.#file.path, child: this.#pid };
    if (this.isForOutput) log.warn("what is printed from now on does not reach its file", about);
    // It is our child and not reaped: its pid is no one else's.
    reaper.kill(this.#pid, Signal.SIGKILL);
    await within(timer, KILL_TIMEOUT_MS, this.ended);
    if (this.isRunning) log.warn("a process that waits for a file cannot be ended", about);
  }
}

/** What the record calls the copier of a file: one for all outputs that go there. */
export function uriOf({ path, mode }: HostFile): string {
  return `${SCHEME}${encodeURIComponent(path)}${mode === "read" ? INPUT : ""}`;
}
