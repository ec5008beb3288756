/** File descriptors: opening, duplicating, closing, and what /proc says of them. */

import { check, cstring, libc } from "./libc.ts";

const c = libc({
  open: [["buffer", "i32", "u32"], "i32"],
  close: [["i32"], "i32"],
  dup2: [["i32", "i32"], "i32"],
  fcntl: [["i32", "i32", "i32"], "i32"],
  // ssize_t; but nothing as large as an i32 is asked for.
  read: [["i32", "buffer", "usize"], "i32"],
  write: [["i32", "buffer", "usize"], "i32"],
  pread: [["i32", "buffer", "usize", "i64"], "isize"],
  pwrite: [["i32", "buffer", "usize", "i64"], "isize"],
  fallocate: [["i32", "i32", "i64", "i64"], "i32"],
  ftruncate: [["i32", "i64"], "i32"],
});

/** Flags of open(2), from asm-generic/fcntl.h. */
export const O = {
  RDONLY: 0,
  WRONLY: 0o1,
  RDWR: 0o2,
  CREAT: 0o100,
  NOCTTY: 0o400,
  APPEND: 0o2000,
  NONBLOCK: 0o4000,
  DIRECTORY: 0o200000,
  NOFOLLOW: 0o400000,
  CLOEXEC: 0o2000000,
  PATH: 0o10000000,
} as const;

/** The mode of a file that nobody else can read or write. */
export const OWNER_ONLY = 0o600;

/** Commands of fcntl(2), from linux/fcntl.h. */
const F_GETFL = 3;
const F_SETFL = 4;
const F_SETFD = 2;
const F_DUPFD_CLOEXEC = 1030;
const FD_CLOEXEC = 1;

/**
 * open(2), always with O_CLOEXEC. The caller owns the descriptor.
 *
 * @throws {SystemError}
 */
export function open(path: string, flags: number, mode = 0): number {
  return check(c().open(cstring(path), flags | O.CLOEXEC, mode), "open", path);
}

/**
 * close(2). The number may be another descriptor's as soon as this returns.
 *
 * @throws {SystemError} EBADF above all: two owners of one descriptor
 */
export function close(fd: number): void {
  check(c().close(fd), "close descriptor", fd);
}

/**
 * dup2(2): makes `to` another name of what `from` is. `to` has no FD_CLOEXEC afterwards; see {@link setCloexec}.
 *
 * @throws {SystemError}
 */
export function dup2(from: number, to: number): void {
  check(c().dup2(from, to), "dup2 of descriptor", from);
}

/**
 * A duplicate with close-on-exec and the lowest free number that is at least `least`; the caller owns it.
 *
 * @throws {SystemError}
 */
export function duplicate(fd: number, least = 0): number {
  return check(c().fcntl(fd, F_DUPFD_CLOEXEC, least), "fcntl F_DUPFD_CLOEXEC of descriptor", fd);
}

/**
 * Has execve(2) close a descriptor.
 *
 * @throws {SystemError}
 */
export function setCloexec(fd: number): void {
  check(c().fcntl(fd, F_SETFD, FD_CLOEXEC), "fcntl F_SETFD of descriptor", fd);
}

/**
 * Has calls not wait, on this descriptor and on all its duplicates.
 *
 * @throws {SystemError}
 */
export function setNonblocking(fd: number): void {
  const flags = check(c().fcntl(fd, F_GETFL, 0), "fcntl F_GETFL of", fd);
  check(c().fcntl(fd, F_SETFL, flags | O.NONBLOCK), "fcntl F_SETFL of descriptor", fd);
}

/** read(2): the number of bytes, 0 at end of file, -1 on failure (see errno). */
export function read(fd: number, buffer: Uint8Array<ArrayBuffer>): number {
  return c().read(fd, buffer, BigInt(buffer.length));
}

/** write(2): the number of bytes, -1 on failure (see errno). */
export function write(fd: number, buffer: Uint8Array<ArrayBuffer>): number {
  return c().write(fd, buffer, BigInt(buffer.length));
}

/** pwrite(2): writes at a place of a file, in bytes; the number of bytes, -1 on failure (see errno). */
export function writeAt(fd: number, buffer: Uint8Array<ArrayBuffer>, at: number): number {
  return Number(c().pwrite(fd, buffer, BigInt(buffer.length), BigInt(at)));
}

/**
 * Writes all of a content at a place of a file, in bytes.
 *
 * @throws {SystemError} ENOSPC, EFBIG
 */
export function writeAllAt(fd: number, content: Uint8Array<ArrayBuffer>, at: number): void {
  for (let done = 0; done < content.length;) {
    done += check(writeAt(fd, content.subarray(done), at + done), "pwrite to descriptor", fd);
  }
}

/**
 * ftruncate(2): has a file end there, in bytes.
 *
 * @throws {SystemError}
 */
export function truncate(fd: number, length: number): void {
  check(c().ftruncate(fd, BigInt(length)), "ftruncate of descriptor", fd);
}

/** pread(2): reads from a place of a file, in bytes; the number of bytes, fewer at its end, -1 on failure (see errno). */
export function readAt(fd: number, buffer: Uint8Array<ArrayBuffer>, at: number): number {
  return Number(c().pread(fd, buffer, BigInt(buffer.length), BigInt(at)));
}

/** fallocate(2): FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, from linux/falloc.h. */
const PUNCH_HOLE = 0x01 | 0x02;

/** Gives back the room that a part of a file takes, which is read as zeros from then on; false where that cannot be done. */
export function punchHole(fd: number, at: number, length: number): boolean {
  return c().fallocate(fd, PUNCH_HOLE, BigInt(at), BigInt(length)) === 0;
}

/** What a descriptor is, as /proc/self/fd shows it: `socket:[4711]`, `/run/x`; undefined when it is not open. */
export function describe(fd: number): string | undefined {
  try {
    return Deno.readLinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
}
