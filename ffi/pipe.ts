/** Pipes and FIFOs, and moving bytes between them inside the kernel. */

import { check, cstring, Errno, errno, libc, SystemError } from "./libc.ts";
import * as fds from "./fd.ts";

const c = libc({
  pipe2: [["buffer", "i32"], "i32"],
  splice: [["i32", "pointer", "i32", "pointer", "usize", "u32"], "i32"],
  mkfifo: [["buffer", "u32"], "i32"],
  fcntl: [["i32", "i32", "i32"], "i32"],
  ioctl: [["i32", "u64", "buffer"], "i32"],
  fchown: [["i32", "u32", "u32"], "i32"],
});

/** splice(2), from linux/splice.h. */
const SPLICE_F_MOVE = 1;
const SPLICE_F_NONBLOCK = 2;
/** fcntl(2) */
const F_SETPIPE_SZ = 1031;
const F_GETPIPE_SZ = 1032;
/** ioctl(2), asm-generic/ioctls.h */
const FIONREAD = 0x541bn;

/** Size of a new pipe, in bytes: pipe(7). */
export const PIPE_SIZE = 65_536;

/** Both ends of a pipe. */
export interface Pipe {
  /** The end that is read from. */
  readonly read: number;
  /** The end that is written to. */
  readonly write: number;
}

/**
 * A pipe, both ends close-on-exec and blocking; the caller owns both.
 *
 * @throws {SystemError}
 */
export function pipe(): Pipe {
  const ends = new Int32Array(2);
  check(c().pipe2(new Uint8Array(ends.buffer), fds.O.CLOEXEC), "pipe2");
  return { read: ends[0]!, write: ends[1]! };
}

/**
 * Moves up to `length` bytes from one descriptor to another, one of them a pipe, without waiting.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import * as fds from "./fd.ts";
 *
 * const from = pipe();
 * const to = pipe();
 * fds.write(from.write, new TextEncoder().encode("output"));
 * assertEquals(splice(from.read, to.write, 1 << 20), 6);
 * assertEquals([unreadBytes(from.read), unreadBytes(to.read)], [0, 6]);
 * for (const fd of [from.read, from.write, to.read, to.write]) fds.close(fd);
 * ```
 *
 * @returns how many; 0 when the input is at its end and has no writer; -1 when the input is empty or the output full
 * @throws {SystemError} EPIPE when the output has no reader
 */
export function splice(from: number, to: number, length: number): number {
  for (;;) {
    const count = c().splice(from, null, to, null, BigInt(length), SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (count >= 0) return count;
    const error = errno();
    if (error === Errno.EAGAIN) return -1;
    if (error !== Errno.EINTR) {
      throw new SystemError("splice to descriptor", error, to);
    }
  }
}

/** How much {@link copy} moves at once, in bytes: all that a terminal holds. */
const COPY_SIZE = 65_536;
/** What {@link SystemError} calls the writer's part of {@link copy}. */
export const WRITE_CALL = "write to descriptor";
let buffer: Uint8Array<ArrayBuffer> | undefined;

/**
 * Moves up to `length` bytes to a descriptor that is never full, a file, for those that {@link splice} does not take.
 *
 * @returns as {@link splice} does
 * @throws {SystemError} the reader's, or the writer's: ENOSPC; what had been read is lost then
 */
export function copy(from: number, to: number, length: number): number {
  buffer ??= new Uint8Array(COPY_SIZE);
  const count = fds.read(from, buffer.subarray(0, length));
  if (count === 0) return 0;
  if (count < 0) {
    const error = errno();
    if (error === Errno.EAGAIN || error === Errno.EINTR) return -1;
    throw new SystemError("read of descriptor", error, from);
  }
  for (let at = 0; at < count;) at += check(fds.write(to, buffer.subarray(at, count)), WRITE_CALL, to);
  return count;
}

/**
 * Makes a FIFO; one that is there already is left as it is.
 *
 * @throws {SystemError}
 */
export function ensureFifo(path: string, mode: number): void {
  if (c().mkfifo(cstring(path), mode) === 0) return;
  if (errno() !== Errno.EEXIST) {
    throw new SystemError("mkfifo", errno(), path);
  }
}

/**
 * Asks for a pipe of `size` bytes at least; it stays as it is when the system does not grant that (pipe(7), pipe-max-size and
 * pipe-user-pages-soft), which is asked of nobody with CAP_SYS_RESOURCE.
 */
export function growPipe(fd: number, size: number): boolean {
  return pipeSize(fd) >= size || c().fcntl(fd, F_SETPIPE_SZ, size) !== -1;
}

/**
 * How many bytes a pipe can hold, if all its pages are full: what is written or spliced in pieces may take a page for each.
 *
 * @throws {SystemError} EBADF when it is no pipe
 */
export function pipeSize(fd: number): number {
  return check(c().fcntl(fd, F_GETPIPE_SZ, 0), "fcntl F_GETPIPE_SZ of descriptor", fd);
}

/**
 * How many bytes are in a pipe that nobody has read yet.
 *
 * @throws {SystemError}
 */
export function unreadBytes(fd: number): number {
  const count = new Int32Array(1);
  check(c().ioctl(fd, FIONREAD, new Uint8Array(count.buffer)), "ioctl FIONREAD of descriptor", fd);
  return count[0]!;
}

/**
 * fchown(2): gives the file of a descriptor to a user and a group.
 *
 * @throws {SystemError}
 */
export function changeOwner(fd: number, uid: number, gid: number): void {
  check(c().fchown(fd, uid, gid), "fchown of descriptor", fd);
}
