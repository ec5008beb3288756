/** Processes as descriptors: pidfd_open(2). Readable when the process has ended, whosever child it is. */

import { check, Errno, errno, libc, SystemError } from "./libc.ts";
import { exitStatus, statOf } from "./process.ts";

const c = libc({
  syscall: [["i32", "i32", "u32", "pointer", "u32"], "i32"],
  ioctl: [["i32", "u64", "buffer"], "i32"],
});

/** pidfd_open(2): its number on every architecture. */
const SYS_PIDFD_OPEN = 434;
/** pidfd_send_signal(2), likewise. */
const SYS_PIDFD_SEND_SIGNAL = 424;
/** PIDFD_GET_INFO of linux/pidfd.h, Linux 6.13: _IOWR(0xFF, 11, struct pidfd_info) with 64 bytes of it. */
const PIDFD_GET_INFO = 0xc040_ff0bn;
const INFO_SIZE = 64;
/** Bit of its mask that asks for the exit status, and says that there is one; Linux 6.15. */
const PIDFD_INFO_EXIT = 1n << 3n;
/** Where the status word of wait(2) is in it. */
const EXIT_CODE_OFFSET = 60;

/**
 * A descriptor for a process, close-on-exec; the caller owns it.
 *
 * @returns undefined when there is no such process
 * @throws {SystemError} see {@link hasNoPidfds}; EMFILE
 */
export function openPidfd(pid: number): number | undefined {
  const fd = c().syscall(SYS_PIDFD_OPEN, pid, 0, null, 0);
  if (fd >= 0) return fd;
  const error = errno();
  if (error === Errno.ESRCH) return undefined;
  throw new SystemError("pidfd_open of process", error, pid);
}

/** Whether it is because of this system that {@link openPidfd} has failed: Linux before 5.3, or a filter that knows none other. */
export function hasNoPidfds(error: unknown): boolean {
  return error instanceof SystemError && (error.errno === Errno.ENOSYS || error.errno === Errno.EPERM);
}

/**
 * Sends a signal to a process, which is never another of the same pid.
 *
 * @throws {SystemError} ESRCH when it has ended and been reaped
 */
export function sendSignal(pidfd: number, signal: number): void {
  check(c().syscall(SYS_PIDFD_SEND_SIGNAL, pidfd, signal, null, 0), "pidfd_send_signal to descriptor", pidfd);
}

/**
 * How a process has ended that somebody else has reaped: its exit code, or 128 + the signal that ended it.
 *
 * @returns undefined as long as nobody has reaped it, and where the kernel does not tell (before Linux 6.15)
 */
export function exitStatusOf(pidfd: number): number | undefined {
  const info = new Uint8Array(INFO_SIZE);
  const view = new DataView(info.buffer);
  view.setBigUint64(0, PIDFD_INFO_EXIT, true);
  if (c().ioctl(pidfd, PIDFD_GET_INFO, info) === -1) return undefined;
  if ((view.getBigUint64(0, true) & PIDFD_INFO_EXIT) === 0n) return undefined;
  return exitStatus(view.getInt32(EXIT_CODE_OFFSET, true));
}

/**
 * How a process has ended, in words, as far as the kernel tells.
 *
 * @param pid its number, where that is known: as long as nobody has reaped it, proc_pid_stat(5) tells
 */
export function describeEnd(pidfd: number, pid = 0): string {
  const status = exitStatusOf(pidfd) ?? zombieStatus(pid);
  if (status === undefined) return "unknown";
  return status > 128 ? `signal ${status - 128}` : `status ${status}`;
}

/** The exit status of a process that nobody has reaped yet. */
function zombieStatus(pid: number): number | undefined {
  const fields = statOf(pid);
  return fields[0] === "Z" ? exitStatus(Number(fields.at(-1))) : undefined;
}
