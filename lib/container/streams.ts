/** The standard streams of a process, with a terminal or without. */

import type { ProcessStdio } from "../runtime/runc.ts";
import { ConsoleStdio } from "./console.ts";
import { PipeStdio } from "./stdio.ts";
import type { StdioConfig, StdioOptions } from "./stdio.ts";

/** What the streams of a process have in common. Disposing of them closes what is still open. */
export interface ProcessStreams extends Disposable {
  /** What the process is to be started with. */
  readonly stdio: ProcessStdio;
  /** Closes here what only the process is to have: to be called when it has been started, or has not. */
  closeChildEnds(): void;
  /**
   * Has output go where it belongs, once: after the runtime has started the process, for what it says when it cannot is
   * not the process's.
   *
   * @throws {Error} when there is no terminal, or an output cannot be opened
   */
  connectOutput(): void;
  /**
   * Has input come from its FIFO, once, after {@link connectOutput}; until then a client that opens it to write is kept
   * waiting.
   *
   * @throws {SystemError} when it cannot be opened
   */
  connectStdin(): void;
  /** Settled when all output has been passed on and its readers have been told. */
  readonly drained: Promise<void>;
  /** Ends standard input: the process sees end of file once every other writer has gone too. */
  closeStdin(): void;
  /** Sets the size of its terminal, in characters, if it has one. */
  resize(columns: number, rows: number): void;
  /** Bytes moved so far, by stream. */
  readonly moved: Readonly<Record<string, number>>;
}

/**
 * Opens the streams that a process is to be started with.
 *
 * @throws {SystemError} when one cannot be opened
 * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known
 */
export function openStreams(config: StdioConfig, options: StdioOptions): ProcessStreams {
  return config.terminal ? ConsoleStdio.open(config, options) : PipeStdio.open(config, options);
}
