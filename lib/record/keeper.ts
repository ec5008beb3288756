/**
 * Descriptors that outlive the process which has opened them: where somebody else has them open too, who outlives it, and
 * gives them to the next.
 */

import * as fds from "../../ffi/fd.ts";
import { accept } from "../../ffi/socket.ts";

/** What a descriptor is to what it belongs to. */
export const Role = {
  /** Of a connection. */
  CONNECTION: 0,
  /** Of a process's standard streams: what input comes from, the pipe that it goes to, and a writer that keeps it open. */
  STDIN_FROM: 0,
  STDIN_TO: 1,
  STDIN_WRITER: 2,
  /** What output comes from, and what it goes to. */
  STDOUT_FROM: 3,
  STDOUT_TO: 4,
  STDERR_FROM: 5,
  STDERR_TO: 6,
  /** Of a process with a terminal: the socket that the runtime connects to, its connection, and the terminal that came by it. */
  CONSOLE_SOCKET: 5,
  CONSOLE_CONNECTION: 6,
  TERMINAL: 7,
  /** Of a shim. */
  CALLS: 0,
  LOG_STDOUT: 1,
  LOG_STDERR: 2,
  HOST: 3,
  STATE: 4,
  CALLS_MADE: 5,
} as const;

/** How many roles there are. */
export const ROLES = 8;

/** The place of what is the shim's own. */
export const SHIM_SLOT = 0;
/** The place of the container's init process. */
export const INIT_SLOT = 1;

/** Where descriptors are kept. */
export interface Keeper {
  /** A place for the descriptors of one thing: the one of this number, or one that is free. */
  place(slot?: number): Shelf;
  /** What has been brought from another process for a place and a role, if nobody has asked for it yet. */
  brought(slot: number, role: number): number | undefined;
}

/** The descriptors of one thing, by their roles. They are to be closed by {@link close} or {@link release}. */
export interface Shelf {
  /** The number of this place. */
  readonly slot: number;
  /**
   * Fails where not all that may be put here could be kept.
   *
   * @throws {SystemError} EMFILE
   */
  assertKept(): void;
  /**
   * open(2), close-on-exec: kept from the moment it is open.
   *
   * @param first flags that it is opened with for a moment before: if that fails, so does this
   * @throws {SystemError}
   */
  open(role: number, path: string, flags: number, first?: number): Promise<number>;
  /**
   * A connection that waits on a listening socket, nonblocking and close-on-exec; kept from the moment it is accepted.
   *
   * @returns undefined when none waits
   * @throws {SystemError}
   */
  accept(role: number, listener: number): Promise<number | undefined>;
  /** Has a descriptor kept that is open here; it is this place's from then on. */
  keep(role: number, fd: number): void;
  /** What has been kept in this role, if it is. */
  find(role: number): number | undefined;
  /** Closes a descriptor, wherever it is kept. */
  close(fd: number): void;
  /** Closes all that is left, and gives the place up. */
  release(): void;
}

/** Where nobody outlives this process. */
export const unkept: Keeper = { place: () => new OwnShelf(), brought: () => undefined };

class OwnShelf implements Shelf {
  readonly slot = 0;
  readonly #fds = new Map<number, number>();

  assertKept(): void {}

  open(role: number, path: string, flags: number, first?: number): Promise<number> {
    const before = first === undefined ? undefined : fds.open(path, first);
    try {
      const fd = fds.open(path, flags);
      this.#fds.set(role, fd);
      return Promise.resolve(fd);
    } finally {
      if (before !== undefined) fds.close(before);
    }
  }

  accept(role: number, listener: number): Promise<number | undefined> {
    const fd = accept(listener);
    if (fd !== undefined) this.#fds.set(role, fd);
    return Promise.resolve(fd);
  }

  keep(role: number, fd: number): void {
    this.#fds.set(role, fd);
  }

  find(role: number): number | undefined {
    return this.#fds.get(role);
  }

  close(fd: number): void {
    for (const [role, each] of this.#fds) {
      if (each === fd) this.#fds.delete(role);
    }
    fds.close(fd);
  }

  release(): void {
    for (const fd of this.#fds.values()) fds.close(fd);
    this.#fds.clear();
  }
}
