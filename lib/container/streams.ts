/** The standard streams of a process, with a terminal or without. */

import type { Shelf } from "../record/keeper.ts";
import type { StreamsRecord } from "../record/record.ts";
import type { ProcessStdio } from "../runtime/runc.ts";
import type { Context } from "./context.ts";
import type { PipeBudget } from "./pipe_budget.ts";

/** Where a process's streams go, as containerd says it: a path or a URI each, empty for none. */
export interface StdioConfig {
  /** What input comes from: a FIFO. */
  readonly stdin: string;
  /** What output goes to: a FIFO, a file, or a URI. */
  readonly stdout: string;
  /** The same for errors; nothing with a terminal. */
  readonly stderr: string;
  /** Whether all three are one terminal. */
  readonly terminal: boolean;
}

/** What streams need to know of their process. */
export interface StdioOptions {
  /** The shim's. */
  readonly context: Context;
  /** The process's id, for a logger. */
  readonly id: string;
  /** containerd's, for a logger. */
  readonly namespace: string;
  /** The working directory of a logger. */
  readonly bundle: string;
  /** Who owns the pipes, so that a process that is not root can open /dev/stdout again. */
  readonly uid: number;
  /** Their group. */
  readonly gid: number;
  /** How large the pipes of its output may be: what is in them is charged to its container. */
  readonly budget: PipeBudget;
  /** Where its descriptors are kept; the streams' from then on. */
  readonly shelf: Shelf;
}

/** What the streams of a process have in common. */
export interface ProcessStreams {
  /** What the process is to be started with. */
  readonly stdio: ProcessStdio;
  /** Closes here what only the process is to have: to be called when it has been started, or has not. */
  closeChildEnds(): void;
  /**
   * Has output go where it belongs, once: after the runtime has started the process, for what it says when it cannot is
   * not the process's.
   *
   * @throws {Error} when there is no terminal
   */
  connectOutput(): Promise<void> | void;
  /**
   * Has input come from its FIFO, once, after {@link connectOutput}; until then a client that opens it to write is kept
   * waiting.
   *
   * @throws {SystemError} when it cannot be opened
   */
  connectStdin(): Promise<void>;
  /** What another process needs to go on with them; undefined once they have been closed. */
  readonly record: StreamsRecord | undefined;
  /**
   * Told that the process has ended: passes on the output that is there now, as far as its readers take it. A terminal's output
   * ends with that; a pipe's, when nobody has it open any more.
   */
  processEnded(): void;
  /** Settled when all output has been passed on and its readers have been told. */
  readonly drained: Promise<void>;
  /** Ends standard input: the process sees end of file once every other writer has gone too. */
  closeStdin(): void;
  /** Sets the size of its terminal, in characters, if it has one. */
  resize(columns: number, rows: number): void;
  /** Bytes moved so far, by stream. */
  readonly moved: Readonly<Record<string, number>>;
  /** Closes what is open here: another process goes on with it. */
  handOver(): void;
  /** Closes what is still open, and ends what has been started for it; settled when that has ended. */
  close(): Promise<void>;
}
