/** Bytes on their way from one descriptor to another, inside the kernel where it can. */

import { close, write } from "../../ffi/fd.ts";
import { Errno, errno, SystemError } from "../../ffi/libc.ts";
import { copy, growPipe, PIPE_SIZE, pipeSize, splice, unreadBytes, WRITE_CALL } from "../../ffi/pipe.ts";
import { Event, type Poller } from "../../ffi/poll.ts";
import { hasOutput } from "../../ffi/pty.ts";
import { after } from "../../ffi/timer.ts";
import type { Logger } from "../log.ts";
import type { PipeBudget } from "./pipe_budget.ts";

/** Asked of the kernel at once, in bytes: as much as a pipe may hold without privilege (pipe(7), pipe-max-size). */
const PIECE = 1 << 20;
/** Size of pipes that are made larger, in bytes: what is in both fits into one of them then. See {@link Stream.moveRest}. */
const LARGE = PIECE / 2;
/**
 * The same of a terminal, which holds 4 KiB and is filled again while it is read. The kernel gets pages for all that is
 * asked for before it looks what there is.
 */
const TERMINAL_PIECE = 16_384;
/** Moved in one turn before the other streams have theirs, in bytes and in calls. */
const TURN_BYTES = 1 << 20;
const TURN_CALLS = 16;

/**
 * When somebody writes in small pieces: so many calls in a row have moved less than so many bytes each, and no turn of theirs
 * has come later than so many ms after the one before. The stream is left alone for some ms then, so that more comes
 * together, and again as long as it does: the same bytes cost a fifth of the CPU time. Nobody types so fast, and the larger
 * pipes hold more than anybody writes in that time.
 */
const SMALL_CALLS = 64;
const SMALL_PIECE = 16_384;
const SMALL_PAUSE_MS = 1;
/** For how long it is left alone, in ms: the shorter the more has come, between these two. */
const SHORTEST_MS = 1;
const LONGEST_MS = 8;
/** What comes together in that time, in bytes: with less than the first it is over. */
const ENOUGH = 4096;
const LITTLE = 65_536;
const MUCH = 262_144;

/**
 * How long what has been typed waits when nobody has the terminal open, before it is tried again, in ms: longer each time. The
 * kernel does not tell when somebody opens it, but whoever does prints something, as a rule.
 */
const SHORTEST_RETRY_MS = 50;
const LONGEST_RETRY_MS = 1000;
/** More than a terminal holds, in bytes: what others print on it when its process has ended is not waited for. */
const TERMINAL_REST = 1 << 20;

/** Options of {@link Stream}. */
export interface StreamOptions {
  /** Which of the two is the master of a terminal, if one is. */
  readonly terminal?: "from" | "to";
  /** Told when bytes have been moved. */
  readonly onMoved?: () => void;
  /** Gives what is written after all else, when the first descriptor is at its end; nothing, unless given. */
  readonly last?: () => Uint8Array<ArrayBuffer>;
  /** Whether the first descriptor is a file: it always has something, or is at its end. */
  readonly fromFile?: boolean;
  /** Whether the second descriptor is a file that is opened to append: splice(2) refuses those. */
  readonly toFile?: boolean;
  /** What says how large its pipes may be; as large as they are ever made, unless given. */
  readonly budget?: PipeBudget | undefined;
  /** Closes one of the two; close(2), unless given. */
  readonly close?: (fd: number) => void;
}

/**
 * Moves bytes from a pipe, FIFO or terminal to another, or to a file, until the first is at its end or the second has no
 * reader. One of the two must be a pipe or FIFO, or the second a file. It owns both descriptors, which must be
 * nonblocking, and closes them then.
 *
 * A terminal has no end of its own: that nobody has it open (EIO) is so for a moment, between two lines of a process that opens
 * it for each. {@link endTerminal} says when it is over.
 */
export class Stream {
  readonly #poller: Poller;
  readonly #from: number;
  readonly #to: number;
  /** That of the two which is watched in any case. */
  readonly #watched: number;
  readonly #toFile: boolean;
  readonly #terminal: "from" | "to" | undefined;
  readonly #onMoved: (() => void) | undefined;
  readonly #last: (() => Uint8Array<ArrayBuffer>) | undefined;
  readonly #piece: number;
  readonly #done = Promise.withResolvers<void>();
  readonly #close: (fd: number) => void;
  #open = true;
  readonly #budget: PipeBudget | undefined;
  /** How much more than others the pipes may hold, as the budget has it, in bytes. */
  #counted = 0;
  /** Whether the pipes have been made as large as they may ever be; undefined as long as that has not been tried. */
  #isLarge: boolean | undefined;
  /** For small pieces: how many calls in a row have been for one, and when the last of them were. */
  #smallCalls = 0;
  #wokenAt = 0;
  /** Set while it is left alone. */
  #timer: Disposable | undefined;
  /** Set while nobody has the terminal open that something has been typed for. */
  #retry: Disposable | undefined;
  #retryMs = SHORTEST_RETRY_MS;
  /** Whether the process of the terminal has ended; and how many bytes are moved at the most, then. */
  #isOver = false;
  #limit = Infinity;
  /** What of the last is still to be written, once all else has been. */
  #rest: Uint8Array<ArrayBuffer> | undefined;
  /** Whether the last bytes for a file could not be written. */
  #isLosing = false;
  #bytes = 0;

  /**
   * Starts moving.
   *
   * @throws {SystemError} when the descriptors cannot be watched; they are closed then
   */
  constructor(poller: Poller, from: number, to: number, options: StreamOptions = {}) {
    const { fromFile = false, toFile = false, terminal } = options;
    this.#close = options.close ?? close;
    this.#poller = poller;
    this.#from = from;
    this.#to = to;
    this.#watched = fromFile ? to : from;
    this.#toFile = toFile;
    this.#terminal = terminal;
    this.#onMoved = options.onMoved;
    this.#last = options.last;
    this.#budget = options.budget;
    this.#piece = terminal === "from" ? TERMINAL_PIECE : PIECE;
    const neverGrows = toFile || terminal === "from";
    if (neverGrows) this.#isLarge = false;
    const wake = () => this.#wake();
    try {
      // A host that has died may have made them large.
      if (!neverGrows) this.#countPipes();
      // A file takes whatever comes, and epoll(7) takes no file.
      if (!fromFile) poller.addBulk(from, Event.IN, wake);
      if (!toFile) poller.addBulk(to, Event.OUT, wake);
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

  /** Moves what is there now, for a turn, and not when the others have had theirs. */
  flush(): void {
    this.#pump();
  }

  /**
   * The process of the terminal has ended: output ends when what it has printed has been moved, whoever else has the terminal
   * open, and what is typed for nobody is thrown away.
   */
  endTerminal(): void {
    this.#isOver = true;
    if (this.#terminal === "from") this.#limit = this.#bytes + TERMINAL_REST;
    this.#pump();
  }

  /** Tries again at once to type what waits for somebody to have the terminal open. */
  retry(): void {
    if (this.#retry !== undefined) this.#pump();
  }

  /**
   * Moves what is there to the second descriptor's reader, though he has not read what there was before, for a stream that is
   * about to be closed: a FIFO is made as large as that takes. Nothing, when it is at its end.
   *
   * @returns how many bytes wait for the reader, and how many are lost, because the system does not grant so large a FIFO
   * @throws {SystemError}
   */
  moveRest(): { readonly unread: number; readonly lost: number } {
    if (!this.#open) return { unread: 0, lost: 0 };
    if (this.#toFile) {
      this.#pump();
      return { unread: 0, lost: 0 };
    }
    // Whoever still writes is not waited for; and a terminal does not say how much there is.
    let left = this.#terminal === "from" ? PIECE : unreadBytes(this.#from);
    let hasRoom = false;
    while (left > 0) {
      const count = this.#spliceIfThere(Math.min(left, this.#piece));
      if (count === 0) break;
      if (count > 0) {
        this.#bytes += count;
        left -= count;
        hasRoom = false;
        continue;
      }
      // There is nothing, if it is not for want of room.
      if (hasRoom) break;
      // A piece takes a page, however small it is: pipe(7) counts pages.
      hasRoom = growPipe(this.#to, 2 * pipeSize(this.#to));
      if (!hasRoom) return { unread: unreadBytes(this.#to), lost: unreadBytes(this.#from) };
    }
    return { unread: unreadBytes(this.#to), lost: 0 };
  }

  /** As {@link splice}: 0 also when nobody has the terminal open, or the reader has gone. */
  #spliceIfThere(length: number): number {
    try {
      return splice(this.#from, this.#to, length);
    } catch (error) {
      if (error instanceof SystemError && (error.errno === Errno.EIO || error.errno === Errno.EPIPE)) return 0;
      throw error;
    }
  }

  /** Ends the stream where it is and closes its descriptors; nothing, when it is at its end. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#timer?.[Symbol.dispose]();
    this.#retry?.[Symbol.dispose]();
    this.#count(0);
    for (const fd of [this.#from, this.#to]) {
      this.#poller.remove(fd);
      this.#close(fd);
    }
    this.#done.resolve();
  }

  #wake(): void {
    if (this.#timer) return;
    const { calls, moved } = this.#pump();
    const now = performance.now();
    const isSmall = moved < calls * SMALL_PIECE && now - this.#wokenAt < SMALL_PAUSE_MS;
    this.#wokenAt = now;
    this.#smallCalls = isSmall ? this.#smallCalls + calls : 0;
    if (this.#smallCalls < SMALL_CALLS) return;
    this.#smallCalls = 0;
    if (this.#open && this.#grow()) this.#gather(SHORTEST_MS);
  }

  /** Lets bytes come together, as long as enough do. */
  #gather(ms: number): void {
    this.#timer = after(this.#poller, ms, () => this.#gathered(ms));
    this.#poller.pause(this.#watched);
  }

  #gathered(ms: number): void {
    this.#timer = undefined;
    const { moved } = this.#pump();
    if (!this.#open) return;
    if (moved > MUCH) this.#gather(Math.max(ms / 2, SHORTEST_MS));
    else if (moved >= LITTLE) this.#gather(ms);
    else if (moved >= ENOUGH) this.#gather(Math.min(2 * ms, LONGEST_MS));
    else this.#poller.again(this.#watched);
  }

  /** Moves what is there, for a turn. */
  #pump(): { readonly calls: number; readonly moved: number } {
    let [calls, moved] = [0, 0];
    while (this.#open) {
      if (moved >= TURN_BYTES || calls >= TURN_CALLS) {
        this.#poller.again(this.#watched);
        break;
      }
      calls++;
      let count: number;
      try {
        count = this.#move();
      } catch (error) {
        const reason = error instanceof SystemError ? error.errno : undefined;
        if (reason === Errno.EIO && this.#terminal !== undefined && this.#waitForTerminal()) break;
        if (this.#toFile && error instanceof SystemError && error.call === WRITE_CALL) {
          // The disk is full, say. What has been read is lost; the process is not to be kept waiting for room.
          if (this.#isLosing) continue;
          this.#isLosing = true;
          this.#poller.again(this.#watched);
          throw error;
        }
        this.close();
        // No reader is left, or no process that has had the terminal.
        if (reason === Errno.EPIPE || reason === Errno.EIO) break;
        throw error;
      }
      if (count < 0) {
        if (this.#isEmpty()) this.close();
        break;
      }
      this.#bytes += count;
      if (count === 0 || this.#bytes >= this.#limit) {
        this.close();
        break;
      }
      this.#isLosing = false;
      moved += count;
      if (moved >= PIPE_SIZE) this.#grow();
    }
    if (moved > 0) this.#hasMoved();
    return { calls, moved };
  }

  /** @returns how many bytes have been moved; 0 at the end, and -1 when it is to be tried again */
  #move(): number {
    const count = (this.#toFile ? copy : splice)(this.#from, this.#to, this.#piece);
    return count === 0 ? this.#writeLast() : count;
  }

  #writeLast(): number {
    this.#rest ??= this.#last?.() ?? new Uint8Array();
    if (this.#rest.length === 0) return 0;
    const count = write(this.#to, this.#rest);
    if (count < 0) {
      if (errno() === Errno.EAGAIN) return -1;
      throw new SystemError(WRITE_CALL, errno(), this.#to);
    }
    this.#rest = this.#rest.subarray(count);
    return count;
  }

  /**
   * Nobody has the terminal open. The kernel will tell of output; what has been typed is tried again.
   *
   * @returns whether there is anything to wait for
   */
  #waitForTerminal(): boolean {
    if (this.#terminal === "from") return !this.#isEmpty();
    if (this.#isOver) return false;
    this.#retry ??= after(this.#poller, this.#retryMs, () => {
      this.#retry = undefined;
      this.#retryMs = Math.min(2 * this.#retryMs, LONGEST_RETRY_MS);
      this.#pump();
    });
    return true;
  }

  /** Whether the process of the terminal has ended, and all that it has printed has been moved. */
  #isEmpty(): boolean {
    return this.#isOver && this.#terminal === "from" && !hasOutput(this.#from);
  }

  #hasMoved(): void {
    this.#retry?.[Symbol.dispose]();
    this.#retry = undefined;
    this.#retryMs = SHORTEST_RETRY_MS;
    this.#onMoved?.();
  }

  /**
   * Larger pipes, once a full one has been seen: fewer turns for the same bytes.
   *
   * @returns whether they are
   */
  #grow(): boolean {
    if (this.#isLarge !== undefined) return this.#isLarge;
    const pipes = [this.#from, this.#to];
    const size = this.#budget ? this.#budget.sizeFor(LARGE, pipes.length, this.#counted) : LARGE;
    if (size === undefined) return false;
    const hasGrown = size > 0 && pipes.map((fd) => growPipe(fd, size)).every(Boolean);
    this.#countPipes();
    return this.#isLarge = hasGrown && size === LARGE;
  }

  #countPipes(): void {
    if (this.#budget === undefined) return;
    const more = [this.#from, this.#to].map((fd) => Math.max(pipeSize(fd) - PIPE_SIZE, 0));
    this.#count(more.reduce((sum, each) => sum + each, 0));
  }

  #count(bytes: number): void {
    this.#budget?.count(bytes - this.#counted);
    this.#counted = bytes;
  }
}

/** Has what a process has printed wait for its reader, when its stream is about to be closed, and says what becomes of it. */
export function leaveToReader(
  stream: Stream | undefined,
  { log, id, name }: { readonly log: Logger; readonly id: string; readonly name: string },
): void {
  const about = { process: id, stream: name };
  try {
    const { unread, lost } = stream?.moveRest() ?? { unread: 0, lost: 0 };
    if (lost > 0) log.error("output is lost that there was no room for", { ...about, bytes: lost });
    if (unread > 0) {
      log.warn("output has not been read: it waits for whoever has its FIFO open", { ...about, bytes: unread });
    }
  } catch (error) {
    log.error("output could not be passed on", { ...about, error });
  }
}
