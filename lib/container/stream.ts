/** Bytes on their way from one descriptor to another, inside the kernel where it can. */

import { close } from "../../ffi/fd.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { copy, growPipe, splice } from "../../ffi/pipe.ts";
import { Event, type Poller } from "../../ffi/poll.ts";

/** Asked of the kernel at once, in bytes: as much as a pipe may hold without privilege. */
const PIECE = 1 << 20;
/**
 * The same of a terminal, which holds 4 KiB and is filled again while it is read. The kernel gets pages for all that is
 * asked for before it looks what there is.
 */
const TERMINAL_PIECE = 16_384;
/** Moved in one turn before the other streams have theirs, in bytes and in calls. */
const TURN_BYTES = 16 << 20;
const TURN_CALLS = 64;
/** Size of a new pipe, in bytes: pipe(7). */
const PIPE_SIZE = 65_536;

/** Options of {@link Stream}. */
export interface StreamOptions {
  /** Whether the first descriptor is a terminal. */
  readonly fromTerminal?: boolean;
  /** Whether the second descriptor is a file that is opened to append: splice(2) refuses those. */
  readonly toFile?: boolean;
}

/**
 * Moves bytes from a pipe, FIFO or terminal to another, or to a file, until the first is at its end or the second has no
 * reader. One of the two must be a pipe or FIFO, or the second a file. It owns both descriptors, which must be
 * nonblocking, and closes them then.
 */
export class Stream {
  readonly #poller: Poller;
  readonly #from: number;
  readonly #to: number;
  readonly #toFile: boolean;
  readonly #piece: number;
  readonly #done = Promise.withResolvers<void>();
  #open = true;
  /** Whether there is nothing to grow, or no more. */
  #grown: boolean;
  #bytes = 0;

  /**
   * Starts moving.
   *
   * @throws {SystemError} when the descriptors cannot be watched; they are closed then
   */
  constructor(poller: Poller, from: number, to: number, { fromTerminal = false, toFile = false }: StreamOptions = {}) {
    this.#poller = poller;
    this.#from = from;
    this.#to = to;
    this.#toFile = toFile;
    this.#piece = fromTerminal ? TERMINAL_PIECE : PIECE;
    this.#grown = toFile || fromTerminal;
    const pump = () => this.#pump();
    try {
      poller.add(from, Event.IN, pump);
      // A file takes whatever comes, and epoll(7) takes no file.
      if (!toFile) poller.add(to, Event.OUT, pump);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Settled when everything has been moved, or the stream was closed. */
  get done(): Promise<void> {
    return this.#done.promise;
  }

  /** How many bytes have been moved. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Ends the stream where it is and closes its descriptors; nothing, when it is at its end. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const fd of [this.#from, this.#to]) {
      this.#poller.remove(fd);
      close(fd);
    }
    this.#done.resolve();
  }

  #pump(): void {
    let moved = 0;
    for (let calls = 0; this.#open; calls++) {
      if (moved >= TURN_BYTES || calls >= TURN_CALLS) {
        this.#poller.again(this.#from);
        return;
      }
      let count: number;
      try {
        count = (this.#toFile ? copy : splice)(this.#from, this.#to, this.#piece);
      } catch (error) {
        this.close();
        // No reader is left, or, of a terminal, no process that has it open: what it had printed has been moved by then.
        if (error instanceof SystemError && (error.errno === Errno.EPIPE || error.errno === Errno.EIO)) return;
        throw error;
      }
      if (count < 0) return;
      if (count === 0) return this.close();
      this.#bytes += count;
      moved += count;
      if (!this.#grown && moved >= PIPE_SIZE) this.#grow();
    }
  }

  /** Larger pipes, once a full one has been seen: fewer turns for the same bytes. */
  #grow(): void {
    this.#grown = true;
    growPipe(this.#from, PIECE);
    growPipe(this.#to, PIECE);
  }
}
