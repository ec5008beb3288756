/** The signals that the shim lives by, and the way they come in. */

import { close } from "../ffi/fd.ts";
import { Event, type Poller } from "../ffi/poll.ts";
import {
  areBlocked,
  block,
  blockInPool,
  LAST_SIGNAL,
  readSignals,
  Signal,
  signalfd,
  threads,
  unblock,
} from "../ffi/signals.ts";

/**
 * Those that keep the disposition they have: what a thread raises by a fault of its own, which no other may answer;
 * what V8's profiler interrupts threads by; what nothing takes over; and two that the C library keeps for itself.
 */
const LEFT_ALONE: ReadonlySet<number> = new Set([
  ...[Signal.SIGILL, Signal.SIGTRAP, Signal.SIGABRT, Signal.SIGBUS, Signal.SIGFPE, Signal.SIGSEGV, Signal.SIGSYS],
  Signal.SIGPROF,
  ...[Signal.SIGKILL, Signal.SIGSTOP],
  ...[32, 33],
]);

/**
 * All others: no thread of the shim is interrupted by them, and no child inherits that. What a signal does is then the
 * shim's to say, and one that it does not know ends nothing: the container would be without its parent.
 *
 * lib/standalone/entry.c has them too; the check of what is made compares the two.
 */
export const SIGNALS: readonly number[] = Array.from({ length: LAST_SIGNAL }, (_, i) => i + 1)
  .filter((signal) => !LEFT_ALONE.has(signal));

/** Told which signals have come. */
export type SignalHandler = (signal: number) => void;

/** How often the threads that Deno made before our first line are asked to block the signals: some ms, on an idle machine. */
const ROUNDS = 200;

/**
 * Blocks the {@link SIGNALS} in every thread, as a signalfd needs it.
 *
 * @returns the threads that could not be reached: none where our own entry started the process
 */
export async function blockEverywhere(): Promise<number[]> {
  // Our entry blocked them before there was a second thread, and a thread begins with the mask of the one that makes it.
  if (areBlocked(SIGNALS)) return [];
  block(SIGNALS);
  let left: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    await blockInPool(SIGNALS);
    const { unblocked, starting } = threads(SIGNALS);
    left = [...unblocked, ...starting];
    if (left.length === 0) break;
  }
  return left;
}

/** Lets the {@link SIGNALS} do to this process what they do to any: it is a command, which ^C ends, and no shim. */
export function letThrough(): void {
  unblock(SIGNALS);
}

/** Has `handler` told of each of the {@link SIGNALS}, from a signalfd, for the life of the process. */
export function receive(poller: Poller, handler: SignalHandler): void {
  const fd = signalfd(SIGNALS);
  try {
    poller.add(fd, Event.IN, () => {
      for (const signal of readSignals(fd)) handler(signal);
    });
  } catch (error) {
    close(fd);
    throw error;
  }
}

/** The same by Deno's own signal listeners: the way that works when some thread does not block the signals. */
export function receiveFromDeno(handler: SignalHandler): void {
  const names = (Object.keys(Signal) as (keyof typeof Signal)[]).filter((name) => SIGNALS.includes(Signal[name]));
  // Deno's handler needs a thread that lets the signals through. It takes none of real time.
  unblock(names.map((name) => Signal[name]));
  for (const name of names) Deno.addSignalListener(name, () => handler(Signal[name]));
}
