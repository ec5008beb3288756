/** Pseudoterminals, from their master's side: pty(7), ioctl_tty(2). */

import { check, Errno, errno, libc, SystemError } from "./libc.ts";

const c = libc({
  ioctl: [["i32", "u64", "buffer"], "i32"],
  poll: [["buffer", "usize", "i32"], "i32"],
});

/** asm-generic/ioctls.h */
const TCGETS = 0x5401n;
const TIOCGPGRP = 0x540fn;
const TIOCSWINSZ = 0x5414n;
const TIOCGSID = 0x5429n;

/** struct termios of asm-generic/termbits.h, and where its local modes and its special characters are. */
const TERMIOS_SIZE = 36;
const LOCAL_MODES = 12;
const CHARACTERS = 17;
/** termios(3) */
const ICANON = 2;
const VEOF = 4;

/**
 * Sets a terminal's size, in characters; its foreground process group is told by SIGWINCH.
 *
 * @throws {SystemError}
 */
export function setWindowSize(fd: number, columns: number, rows: number): void {
  // struct winsize: rows, columns, and pixels, which nobody knows
  const size = new Uint16Array([rows, columns, 0, 0]);
  check(c().ioctl(fd, TIOCSWINSZ, new Uint8Array(size.buffer)), "ioctl TIOCSWINSZ of descriptor", fd);
}

/** struct pollfd of poll(2), where what is asked for and what is there are in it, and the flag. */
const POLLFD_SIZE = 8;
const POLLFD = { events: 4, revents: 6 } as const;
const POLLIN = 1;

/**
 * Whether something has been printed on a terminal that has not been read from its master yet. Not so of read(2) and splice(2),
 * whose EIO may have been overtaken, and whose EAGAIN may be about where the bytes go.
 *
 * @throws {SystemError}
 */
export function hasOutput(fd: number): boolean {
  const pollfd = new Uint8Array(POLLFD_SIZE);
  const view = new DataView(pollfd.buffer);
  view.setInt32(0, fd, true);
  view.setInt16(POLLFD.events, POLLIN, true);
  check(c().poll(pollfd, 1n, 0), "poll of descriptor", fd);
  return (view.getInt16(POLLFD.revents, true) & POLLIN) !== 0;
}

/** What is done with what is typed: termios(3). */
export interface InputMode {
  /** Whether it is read by lines (ICANON), and not as it comes. */
  readonly isCanonical: boolean;
  /** The character that ends a file (VEOF); 0 where there is none. */
  readonly endOfFile: number;
}

/**
 * A terminal's input mode.
 *
 * @throws {SystemError}
 */
export function inputMode(fd: number): InputMode {
  const termios = new Uint8Array(TERMIOS_SIZE);
  check(c().ioctl(fd, TCGETS, termios), "ioctl TCGETS of descriptor", fd);
  return {
    isCanonical: (new DataView(termios.buffer).getUint32(LOCAL_MODES, true) & ICANON) !== 0,
    endOfFile: termios[CHARACTERS + VEOF]!,
  };
}

/**
 * The session whose controlling terminal it is, which is the pid of its leader; 0 when there is none.
 *
 * @throws {SystemError}
 */
export function sessionOf(fd: number): number {
  return pidOf(fd, TIOCGSID, "TIOCGSID");
}

/**
 * A terminal's foreground process group; 0 when there is none.
 *
 * @throws {SystemError}
 */
export function foregroundOf(fd: number): number {
  return pidOf(fd, TIOCGPGRP, "TIOCGPGRP");
}

function pidOf(fd: number, request: bigint, name: string): number {
  const pid = new Int32Array(1);
  if (c().ioctl(fd, request, new Uint8Array(pid.buffer)) === 0) return pid[0]!;
  if (errno() === Errno.ENOTTY) return 0;
  throw new SystemError(`ioctl ${name} of descriptor`, errno(), fd);
}
