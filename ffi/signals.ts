/**
 * Signals: the mask of every thread, and signalfd(2).
 *
 * A signalfd sees a signal sent to the process only if every thread blocks it: a thread that does not takes it and, there
 * being no handler, throws it away. The executable's entry blocks the signals before any thread is born. Under a plain
 * `deno run` there is no such entry, and Deno has threads before our first line: {@link blockInPool} reaches those.
 */

import * as fds from "./fd.ts";
import { check, Errno, errno, libc } from "./libc.ts";

const c = libc({
  // The calling thread's alone, as pthread_sigmask(3), which is in another library before glibc 2.32.
  sigprocmask: [["i32", "buffer", "buffer"], "i32"],
  signalfd: [["i32", "buffer", "i32"], "i32"],
});

/** Signal numbers of signal(7), the same on x86-64 and arm64. */
export const Signal = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGILL: 4,
  SIGTRAP: 5,
  SIGABRT: 6,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGSEGV: 11,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGSTKFLT: 16,
  SIGCHLD: 17,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGTSTP: 20,
  SIGTTIN: 21,
  SIGTTOU: 22,
  SIGURG: 23,
  SIGXCPU: 24,
  SIGXFSZ: 25,
  SIGVTALRM: 26,
  SIGPROF: 27,
  SIGWINCH: 28,
  SIGIO: 29,
  SIGPWR: 30,
  SIGSYS: 31,
} as const;

/** The last signal there is, of those of real time. */
export const LAST_SIGNAL = 64;

/** What signal(7) calls a signal; its number, for those of real time. */
export function signalName(signal: number): string {
  return Object.entries(Signal).find(([, number]) => number === signal)?.[0] ?? `${signal}`;
}

/** sigprocmask(2), signalfd(2). */
const SIG_BLOCK = 0;
const SIG_UNBLOCK = 1;
const SFD_NONBLOCK = 0o4000;
const SFD_CLOEXEC = 0o2000000;
/** sizeof(sigset_t) in glibc */
const SIGSET_SIZE = 128;
/** sizeof(struct signalfd_siginfo); ssi_signo is its first word */
const SIGINFO_SIZE = 128;

/** sigset_t with these signals in it. */
export function signalSet(signals: Iterable<number>): Uint8Array<ArrayBuffer> {
  const set = new Uint8Array(SIGSET_SIZE);
  for (const signal of signals) {
    const bit = signal - 1;
    set[bit >> 3]! |= 1 << (bit & 7);
  }
  return set;
}

/** sigset_t with every signal in it. */
export function fullSignalSet(): Uint8Array<ArrayBuffer> {
  return new Uint8Array(SIGSET_SIZE).fill(0xff);
}

/**
 * Blocks signals in the main thread and in those that it makes from now on.
 *
 * @throws {SystemError}
 */
export function block(signals: Iterable<number>): void {
  changeMask(SIG_BLOCK, signals);
}

/**
 * Lets signals through to the main thread again.
 *
 * @throws {SystemError}
 */
export function unblock(signals: Iterable<number>): void {
  changeMask(SIG_UNBLOCK, signals);
}

function changeMask(how: number, signals: Iterable<number>): void {
  check(c().sigprocmask(how, signalSet(signals), null), "sigprocmask");
}

/**
 * Whether the main thread blocks all of these.
 *
 * @throws {SystemError}
 */
export function areBlocked(signals: Iterable<number>): boolean {
  const mask = new Uint8Array(SIGSET_SIZE);
  check(c().sigprocmask(SIG_BLOCK, null, mask), "sigprocmask");
  return signalSet(signals).every((bits, i) => (mask[i]! & bits) === bits);
}

/** Calls at once that make every idle thread of the pool take one. */
const POOL_CALLS = 16;

/** Blocks signals in the threads that nonblocking FFI calls run on, which the main thread did not make: in most of them. */
export async function blockInPool(signals: Iterable<number>): Promise<void> {
  const set = signalSet(signals);
  const { symbols } = Deno.dlopen("libc.so.6", {
    sigprocmask: {
      parameters: ["i32", "buffer", "pointer"],
      result: "i32",
      nonblocking: true,
    },
  });
  await Promise.all(Array.from({ length: POOL_CALLS }, () => symbols.sigprocmask(SIG_BLOCK, set, null)));
}

/** Threads of this process, by id. */
export interface Threads {
  /** Those that do not block all of the signals asked for. */
  readonly unblocked: number[];
  /**
   * Those that block everything, because they are only being born: the C library has a new thread block all signals
   * until it runs and takes its creator's mask. That may be a while on a busy machine, and what it will block then does
   * not show yet.
   */
  readonly starting: number[];
}

/** Every signal but SIGKILL and SIGSTOP, which nothing blocks, and those of the C library and of real time. */
const EVERYTHING = 0x7ffb_feffn;

/** How the threads of this process stand to these signals; a signalfd sees them if none is unblocked anywhere. */
export function threads(signals: Iterable<number>): Threads {
  let wanted = 0n;
  for (const signal of signals) wanted |= 1n << BigInt(signal - 1);
  const found: Threads = { unblocked: [], starting: [] };
  for (const { name } of Deno.readDirSync("/proc/self/task")) {
    let status: string;
    try {
      status = Deno.readTextFileSync(`/proc/self/task/${name}/status`);
    } catch {
      continue; // the thread ended
    }
    const blocked = BigInt("0x" + /^SigBlk:\s*([0-9a-f]+)/m.exec(status)![1]);
    if ((blocked & EVERYTHING) === EVERYTHING) found.starting.push(Number(name));
    else if ((blocked & wanted) !== wanted) found.unblocked.push(Number(name));
  }
  return found;
}

/**
 * A nonblocking signalfd(2) for these signals; the caller owns it.
 *
 * @throws {SystemError}
 */
export function signalfd(signals: Iterable<number>): number {
  return check(c().signalfd(-1, signalSet(signals), SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
}

/**
 * The numbers of the signals that a {@link signalfd} has received since it was last read.
 *
 * @throws {SystemError}
 */
export function readSignals(fd: number): number[] {
  const buffer = new Uint8Array(8 * SIGINFO_SIZE);
  const view = new DataView(buffer.buffer);
  const received: number[] = [];
  for (;;) {
    const count = fds.read(fd, buffer);
    if (count < 0) {
      if (errno() === Errno.EAGAIN) return received;
      if (errno() === Errno.EINTR) continue;
      check(count, "read of the signalfd");
    }
    for (let at = 0; at < count; at += SIGINFO_SIZE) {
      received.push(view.getUint32(at, true));
    }
  }
}
