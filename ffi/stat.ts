/** What a path names: statx(2). Deno.statSync makes dates of its times, for which it reads the time zone's file. */

import { check, cstring, Errno, errno, libc } from "./libc.ts";

const c = libc({ syscall: [["i32", "i32", "buffer", "i32", "u32", "buffer"], "i32"] });

/** statx(2): its number, for glibc has no function of that name before 2.28. */
const SYS_STATX = Deno.build.arch === "x86_64" ? 332 : 291;
/** From linux/fcntl.h and linux/stat.h. */
const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const AT_STATX_DONT_SYNC = 0x4000;
const STATX_TYPE = 0x1;
const STATX_SIZE = 0x200;
/** struct statx: its size, and where stx_mode (u16) and stx_size (u64) are. */
const STATX_BYTES = 256;
const MODE_OFFSET = 28;
const SIZE_OFFSET = 40;
/** inode(7) */
const S_IFMT = 0o170000;
const S_IFIFO = 0o010000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFCHR = 0o020000;
const S_IFSOCK = 0o140000;
const S_IFLNK = 0o120000;

/** A file, as far as anyone here wants to know. */
export interface Stat {
  /** A pipe without a name is one too. */
  readonly isFifo: boolean;
  /** A folder. */
  readonly isDirectory: boolean;
  /** A regular file. */
  readonly isFile: boolean;
  /** As a terminal is. */
  readonly isCharacterDevice: boolean;
  /** Of any family. */
  readonly isSocket: boolean;
  /** One that has not been followed: of a descriptor of O_PATH. */
  readonly isSymbolicLink: boolean;
  /** In bytes. */
  readonly size: number;
}

/**
 * What is at a path, symbolic links followed.
 *
 * @returns undefined when there is nothing
 * @throws {SystemError}
 */
export function stat(path: string): Stat | undefined {
  const buffer = new Uint8Array(STATX_BYTES);
  const result = c().syscall(SYS_STATX, AT_FDCWD, cstring(path), 0, STATX_TYPE | STATX_SIZE, buffer);
  if (result === -1 && errno() === Errno.ENOENT) return undefined;
  check(result, "stat", path);
  return decode(buffer);
}

/**
 * What a descriptor is, as far as the kernel knows without asking a server: it does not wait.
 *
 * @throws {SystemError}
 */
export function statDescriptor(fd: number): Stat {
  const buffer = new Uint8Array(STATX_BYTES);
  const flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC;
  const result = c().syscall(SYS_STATX, fd, cstring(""), flags, STATX_TYPE | STATX_SIZE, buffer);
  check(result, "stat of descriptor", fd);
  return decode(buffer);
}

function decode(buffer: Uint8Array<ArrayBuffer>): Stat {
  const view = new DataView(buffer.buffer);
  const type = view.getUint16(MODE_OFFSET, true) & S_IFMT;
  return {
    isFifo: type === S_IFIFO,
    isDirectory: type === S_IFDIR,
    isFile: type === S_IFREG,
    isCharacterDevice: type === S_IFCHR,
    isSocket: type === S_IFSOCK,
    isSymbolicLink: type === S_IFLNK,
    size: Number(view.getBigUint64(SIZE_OFFSET, true)),
  };
}
