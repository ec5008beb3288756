/**
 * Unix sockets that a {@link Poller} waits for: the listening one, and its connections, whose descriptors and peers are known.
 *
 * Deno's own would not say whom they are connected to, nor take a socket that was inherited, without another being exchanged
 * under its number; and in a process with many of them, finding each costs more than all that is done with it.
 */

import * as fds from "./fd.ts";
import { Errno, errno, libc, SystemError } from "./libc.ts";
import { Event, type Poller } from "./poll.ts";
import { isListening, listenOn, MSG_NOSIGNAL, MSG_PEEK, peekFromStart, unreadByPeer } from "./socket.ts";

const c = libc({
  // ssize_t; but nothing as large as an i32 is asked for.
  recv: [["i32", "buffer", "usize", "i32"], "i32"],
  send: [["i32", "buffer", "usize", "i32"], "i32"],
});

/** How much is taken at once of what has been looked at, in bytes. */
const TAKE = 65_536;

/** A listening socket. */
export class Listener {
  readonly #fd: number;
  readonly #path: string | undefined;

  private constructor(fd: number, path?: string) {
    this.#fd = fd;
    this.#path = path;
  }

  /**
   * Listens on a path, or on an abstract address (one that begins with NUL).
   *
   * @throws {SystemError} EADDRINUSE
   */
  static listen(path: string): Listener {
    return new Listener(listenOn(path), path.startsWith("\0") ? undefined : path);
  }

  /**
   * A listening Unix socket that somebody else has made, which is the listener's from then on.
   *
   * @throws {Error} when `fd` is none
   */
  static of(fd: number): Listener {
    if (!isListening(fd)) {
      throw new Error(`descriptor ${fd} is not a listening Unix socket: inherit one, or name one with -socket`);
    }
    fds.setNonblocking(fd);
    fds.setCloexec(fd);
    return new Listener(fd);
  }

  #poller: Poller | undefined;

  /** The socket: the listener's. */
  get fd(): number {
    return this.#fd;
  }

  /**
   * Has it told whenever a connection waits, until {@link close}: one may be accepted then, and {@link retry} tells of the
   * next.
   *
   * @throws {SystemError}
   */
  watch(poller: Poller, onWaiting: () => void): void {
    this.#poller = poller;
    poller.add(this.#fd, Event.IN, onWaiting);
  }

  /** Looks again who waits. */
  retry(): void {
    this.#poller?.again(this.#fd);
  }

  /** Stops listening; a socket that {@link listen} has made in the file system is removed. */
  close(): void {
    this.#poller?.remove(this.#fd);
    this.#poller = undefined;
    fds.close(this.#fd);
    if (this.#path === undefined) return;
    try {
      Deno.removeSync(this.#path);
    } catch {
      // Somebody else has.
    }
  }
}

/** A read that waits, or a write. */
interface Waiting<T> {
  readonly buffer: Uint8Array<ArrayBuffer>;
  readonly resolve: (result: T) => void;
  readonly reject: (error: Error) => void;
}

/** Options of {@link Connection}. */
export interface ConnectionOptions {
  /**
   * Whether what is read stays in the socket, for somebody else to read if this process cannot go on, until it is taken by
   * {@link Connection.take}.
   */
  readonly peeks?: boolean;
  /** Closes the socket, which is nobody else's, unless given. */
  readonly close?: (fd: number) => void;
}

/** A connected stream socket, read and written as Deno's are. One read and one write at a time. */
export class Connection {
  readonly #fd: number;
  readonly #poller: Poller;
  #open = true;
  /** Whether there may be something to read: nothing has said otherwise since the last event. */
  #readable = true;
  /** Whether the peer sends nothing more: there is no further event to wait for. */
  #hungUp = false;
  readonly #gone = Promise.withResolvers<void>();
  #reading: Waiting<number | null> | undefined;
  #writing: Waiting<number> | undefined;
  readonly #flags: number;
  readonly #close: (fd: number) => void;

  /**
   * Reads and writes a connected socket.
   *
   * @param fd nonblocking; the connection's from then on
   * @throws {SystemError} when it cannot be watched; it is closed then
   */
  constructor(poller: Poller, fd: number, { peeks = false, close = fds.close }: ConnectionOptions = {}) {
    this.#fd = fd;
    this.#poller = poller;
    this.#flags = peeks ? MSG_PEEK : 0;
    this.#close = close;
    try {
      if (peeks) peekFromStart(fd);
      poller.add(fd, Event.IN | Event.OUT | Event.RDHUP, (events) => this.#wake(events));
    } catch (error) {
      close(fd);
      throw error;
    }
  }

  /**
   * Reads what is there, or comes next.
   *
   * @returns how many bytes; null at the end
   * @throws {Deno.errors.ConnectionReset | Deno.errors.Interrupted | SystemError} Interrupted when it has been closed here
   */
  read(buffer: Uint8Array): Promise<number | null> {
    return new Promise((resolve, reject) => {
      this.#reading = { buffer: buffer as Uint8Array<ArrayBuffer>, resolve, reject };
      if (!this.#open) this.#interrupt();
      else if (this.#readable) this.#read();
    });
  }

  /**
   * Writes as much as there is room for, waiting for some. Of nothing there is always room, also while a write waits: that
   * is how it is asked whether the peer has gone.
   *
   * @returns how many bytes
   * @throws {Deno.errors.BrokenPipe | Deno.errors.ConnectionReset | Deno.errors.Interrupted | SystemError}
   */
  write(buffer: Uint8Array): Promise<number> {
    return new Promise((resolve, reject) => {
      if (buffer.length === 0 && this.#open) {
        const count = c().send(this.#fd, buffer as Uint8Array<ArrayBuffer>, 0n, MSG_NOSIGNAL);
        return count < 0 ? reject(failure("send to", errno(), this.#fd)) : resolve(0);
      }
      this.#writing = { buffer: buffer as Uint8Array<ArrayBuffer>, resolve, reject };
      if (!this.#open) this.#interrupt();
      else this.#write();
    });
  }

  /** Takes so many bytes from the socket that have been read, where it peeks. */
  take(count: number): void {
    if (this.#flags === 0) return;
    for (let left = count; left > 0 && this.#open;) {
      const taken = c().recv(this.#fd, scratch ??= new Uint8Array(TAKE), BigInt(Math.min(left, TAKE)), 0);
      if (taken <= 0) return;
      left -= taken;
    }
  }

  /** How many of the bytes that have been written the peer has not read; 0 when the connection has been closed here. */
  unread(): number {
    return this.#open ? unreadByPeer(this.#fd) : 0;
  }

  /** Settled when the peer has closed its end, also where nothing is read or written; never, if this end is closed first. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  /** Closes it; what waits is interrupted. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#poller.remove(this.#fd);
    this.#close(this.#fd);
    this.#interrupt();
  }

  #interrupt(): void {
    const error = new Deno.errors.Interrupted("the connection has been closed");
    this.#reading?.reject(error);
    this.#writing?.reject(error);
    this.#reading = this.#writing = undefined;
  }

  #wake(events: number): void {
    if (events & Event.HUP) this.#gone.resolve();
    if (events & ~Event.OUT) {
      this.#readable = true;
      if (events & ~(Event.IN | Event.OUT)) this.#hungUp = true;
      if (this.#reading) this.#read();
    }
    if (this.#writing && events & ~Event.IN) this.#write();
  }

  #read(): void {
    const { buffer, resolve, reject } = this.#reading!;
    const count = c().recv(this.#fd, buffer, BigInt(buffer.length), this.#flags);
    if (count < 0) {
      const error = errno();
      if (error === Errno.EAGAIN) {
        this.#readable = false;
        return;
      }
      if (error === Errno.EINTR) return this.#read();
      this.#reading = undefined;
      return reject(failure("recv from", error, this.#fd));
    }
    this.#reading = undefined;
    if (count === buffer.length) {
      // There may be more, and a peer that writes faster than it is read would be read for ever: others have their turn first.
      this.#readable = false;
      this.#poller.again(this.#fd);
    } else if (!this.#hungUp) {
      // That was all: the next is an event.
      this.#readable = false;
    }
    resolve(count === 0 ? null : count);
  }

  #write(): void {
    const { buffer, resolve, reject } = this.#writing!;
    const count = c().send(this.#fd, buffer, BigInt(buffer.length), MSG_NOSIGNAL);
    if (count < 0) {
      const error = errno();
      if (error === Errno.EAGAIN) return;
      if (error === Errno.EINTR) return this.#write();
      this.#writing = undefined;
      return reject(failure("send to", error, this.#fd));
    }
    this.#writing = undefined;
    resolve(count);
  }
}

/** Where {@link Connection.take} puts what nobody wants any more. */
let scratch: Uint8Array<ArrayBuffer> | undefined;

/** The error as Deno's sockets have it, where they have one of its own. */
function failure(call: string, error: number, fd: number): Error {
  const failed = new SystemError(`${call} descriptor`, error, fd);
  if (error === Errno.EPIPE) return new Deno.errors.BrokenPipe(failed.message, { cause: failed });
  if (error === Errno.ECONNRESET) return new Deno.errors.ConnectionReset(failed.message, { cause: failed });
  return failed;
}
