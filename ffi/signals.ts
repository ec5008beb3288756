/**
 * Signals: the mask of every thread, and signalfd(2).
 *
 * A signalfd sees a signal sent to the process only if every thread blocks it: a thread that does not takes it and, there
 * being no handler, throws it away. The executable's entry blocks the signals before any thread is born. Under a plain
 * `deno run` there is no such entry, and Deno has threads before our first line: {@link blockInPool} reaches those.
 */

import * as fds from "./fd.ts";
import { check, Errno, errno, libc, SystemError } from "./libc.ts";

const c = libc({
  pthread_sigmask: [["i32", "buffer", "pointer"], "i32"],
  signalfd: [["i32", "buffer", "i32"], "i32"],
});

/** Signal numbers of signal(7), the same on x86-64 and arm64. */
export const Signal = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGPIPE: 13,
  SIGTERM: 15,
  SIGCHLD: 17,
} as const;

/** pthread_sigmask(3), signalfd(2). */
const SIG_BLOCK = 0;
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
  const error = c().pthread_sigmask(SIG_BLOCK, signalSet(signals), null);
  if (error !== 0) throw new SystemError("pthread_sigmask", error);
}

/** Calls at once, and rounds of them, that reach every thread of the pool that FFI calls run on. */
const POOL_CALLS = 16;
const POOL_ROUNDS = 5;

/** Blocks signals in the threads that nonblocking FFI calls run on, which the main thread did not make. */
export async function blockInPool(signals: Iterable<number>): Promise<void> {
  const set = signalSet(signals);
  const { symbols } = Deno.dlopen("libc.so.6", {
    pthread_sigmask: {
      parameters: ["i32", "buffer", "pointer"],
      result: "i32",
      nonblocking: true,
    },
  });
  for (let round = 0; round < POOL_ROUNDS; round++) {
    await Promise.all(
      Array.from(
        { length: POOL_CALLS },
        () => symbols.pthread_sigmask(SIG_BLOCK, set, null),
      ),
    );
  }
}

/** The threads of this process that do not block all of these signals, by id: none, if a signalfd is to see them. */
export function threadsNotBlocking(signals: Iterable<number>): number[] {
  let wanted = 0n;
  for (const signal of signals) wanted |= 1n << BigInt(signal - 1);
  const found: number[] = [];
  for (const { name } of Deno.readDirSync("/proc/self/task")) {
    let status: string;
    try {
      status = Deno.readTextFileSync(`/proc/self/task/${name}/status`);
    } catch {
      continue; // the thread ended
    }
    const blocked = BigInt("0x" + /^SigBlk:\s*([0-9a-f]+)/m.exec(status)![1]);
    if ((blocked & wanted) !== wanted) found.push(Number(name));
  }
  return found;
}

/**
 * A nonblocking signalfd(2) for these signals; the caller owns it.
 *
 * @throws {SystemError}
 */
export function signalfd(signals: Iterable<number>): number {
  return check(
    c().signalfd(-1, signalSet(signals), SFD_NONBLOCK | SFD_CLOEXEC),
    "signalfd",
  );
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
