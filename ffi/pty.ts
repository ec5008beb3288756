/** Pseudoterminals, from their master's side: ioctl_tty(2). */

import { check, libc } from "./libc.ts";

const c = libc({ ioctl: [["i32", "u64", "buffer"], "i32"] });

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
