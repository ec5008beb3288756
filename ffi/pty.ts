/** Pseudoterminals, from their master's side: pty(7), ioctl_tty(2). */

import { check, libc } from "./libc.ts";

const c = libc({
  ioctl: [["i32", "u64", "buffer"], "i32"],
  poll: [["buffer", "usize", "i32"], "i32"],
});

/** asm-generic/ioctls.h */
const TIOCSWINSZ = 0x5414n;

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
