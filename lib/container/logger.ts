/** A logger: the program that a `binary://` URI names, started to take the output of one process. */

import * as fds from "../../ffi/fd.ts";
import { type Pipe, pipe } from "../../ffi/pipe.ts";
import { Event } from "../../ffi/poll.ts";
import { Signal } from "../../ffi/signals.ts";
import { within } from "../async.ts";
import { messageOf } from "../errors.ts";
import type { Exit } from "../reaper.ts";
import type { Context } from "./context.ts";
import type { StdioOptions } from "./streams.ts";

/** How long a logger may take to say that it is ready, in ms: it may have to reach another machine first. */
const READY_TIMEOUT_MS = 60_000;
/** How long a logger that has been told to end may take, in ms. */
const TERM_TIMEOUT_MS = 12_000;

/** A logger that runs. */
export class Logger {
  /** Its path, and its arguments. */
  readonly uri: string;
  readonly #context: Context;
  readonly #program: string;
  #pid = 0;
  readonly #exit = Promise.withResolvers<Exit>();
  #ended = false;
  #stopping = false;
  /** Write ends of the pipes that it reads; the caller's to take with {@link takeOutput}. */
  readonly #outputs: (number | undefined)[];

  private constructor(context: Context, uri: string, outputs: number[]) {
    this.uri = uri;
    this.#context = context;
    this.#program = decodeURIComponent(new URL(uri).pathname);
    this.#outputs = outputs;
  }

  #onExit(exit: Exit): void {
    this.#ended = true;
    if (!this.#stopping && exit.status !== 0) {
      this.#context.log.warn("a logger has ended", { logger: this.#program, child: exit.pid, status: exit.status });
    }
    this.#exit.resolve(exit);
  }

  /**
   * Starts a logger and waits until it is ready, which it says by closing its descriptor 5, or by writing to it.
   *
   * @param uri its path, and in the query its arguments: each key, then its value
   * @throws {Error} when it cannot be started, or is not ready in time
   */
  static async start(uri: string, { context, id, namespace, bundle }: StdioOptions): Promise<Logger> {
    const { searchParams } = new URL(uri);
    const args = [...new Set(searchParams.keys())].flatMap((key) => [key, searchParams.get(key)!]);
    // In the order of their numbers in the logger: standard output, standard error, ready.
    const pipes: Pipe[] = [];
    try {
      for (let i = 0; i < 3; i++) pipes.push(pipe());
    } catch (error) {
      for (const { read, write } of pipes) [read, write].forEach(fds.close);
      throw error;
    }
    const [stdout, stderr, ready] = pipes as [Pipe, Pipe, Pipe];
    const logger = new Logger(context, uri, [stdout.write, stderr.write]);
    try {
      logger.#pid = await context.reaper.start({
        args: [logger.#program, ...args],
        cwd: bundle,
        descriptors: [null, null, null, stdout.read, stderr.read, ready.write],
        environment: [`CONTAINER_ID=${id}`, `CONTAINER_NAMESPACE=${namespace}`],
      }, (exit) => logger.#onExit(exit));
    } catch (error) {
      [ready.read, stdout.write, stderr.write].forEach(fds.close);
      throw new Error(`failed to start logger ${uri}: ${messageOf(error)}`, { cause: error });
    } finally {
      [stdout.read, stderr.read, ready.write].forEach(fds.close);
    }
    try {
      await logger.#ready(ready.read);
    } catch (error) {
      await logger.stop();
      throw error;
    }
    return logger;
  }

  /** Goes on with a logger that another process has started. */
  static restore(uri: string, pid: number, { context }: Pick<StdioOptions, "context">): Logger {
    const logger = new Logger(context, uri, []);
    logger.#pid = pid;
    context.reaper.runOn(pid, (exit) => logger.#onExit(exit)).catch(() => {});
    return logger;
  }

  /** 0 before it has been started. */
  get pid(): number {
    return this.#pid;
  }

  /** Whether it has not ended. */
  get isRunning(): boolean {
    return !this.#ended;
  }

  /** Waits for the other end of a pipe to be closed or written to, and closes this end. */
  async #ready(fd: number): Promise<void> {
    const { poller, timer } = this.#context;
    const { promise, resolve } = Promise.withResolvers<void>();
    let isReady = false;
    try {
      poller.add(fd, Event.IN, () => {
        isReady = true;
        resolve();
      });
      await within(timer, READY_TIMEOUT_MS, promise);
    } finally {
      poller.remove(fd);
      fds.close(fd);
    }
    if (!isReady) throw new Error(`logger ${this.#program} was not ready within ${READY_TIMEOUT_MS / 1000} s`);
  }

  /** The write end of the pipe that is its descriptor 3 (standard output) or 4; the caller owns it from now on. */
  takeOutput(name: "stdout" | "stderr"): number {
    const index = name === "stdout" ? 0 : 1;
    const fd = this.#outputs[index]!;
    this.#outputs[index] = undefined;
    return fd;
  }

  /** Closes what nobody has taken: the logger reads an end of file there. */
  closeOutputs(): void {
    this.#outputs.splice(0).forEach((fd) => fd !== undefined && fds.close(fd));
  }

  /** Settled when it has ended. */
  get ended(): Promise<unknown> {
    return this.#exit.promise;
  }

  /** Has it end, if it has not: SIGTERM, and SIGKILL when it takes too long. */
  async stop(): Promise<void> {
    this.closeOutputs();
    this.#stopping = true;
    if (this.#ended) return;
    // It is our child and not reaped: its pid is no one else's.
    this.#context.reaper.kill(this.#pid, Signal.SIGTERM);
    await within(this.#context.timer, TERM_TIMEOUT_MS, this.ended);
    if (this.#ended) return;
    this.#context.log.warn("a logger that does not end is killed", { logger: this.#program, child: this.#pid });
    this.#context.reaper.kill(this.#pid, Signal.SIGKILL);
    await this.ended;
  }
}
