/** The signals that the shim lives by, and the way they come in. */

import { close } from "../ffi/fd.ts";
import { Event, type Poller } from "../ffi/poll.ts";
import { block, blockInPool, readSignals, Signal, signalfd, threads, unblock } from "../ffi/signals.ts";

/** The five: their dispositions are the shim's, no thread of it is interrupted by them, and no child inherits that. */
export const SIGNALS = [Signal.SIGCHLD, Signal.SIGTERM, Signal.SIGINT, Signal.SIGUSR1, Signal.SIGPIPE];

/** Told which signals have come. */
export type SignalHandler = (signal: number) => void;

/** How often the threads that Deno made before our first line are asked to block the signals: some ms, on an idle machine. */
const ROUNDS = 200;

/**
 * Blocks the five signals in every thread, as a signalfd needs it.
 *
 * @returns the threads that could not be reached: none where our own entry started the process
 */
export async function blockEverywhere(): Promise<number[]> {
  // Our entry blocked them before there was a second thread: one that is only starting takes its mask from one of these.
  if (threads(SIGNALS).unblocked.length === 0) return [];
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

/** Has `handler` told of each of the five signals, from a signalfd, for the life of the process. */
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
  // Deno's handler needs a thread that lets the signals through.
  unblock(SIGNALS);
  const names = ["SIGCHLD", "SIGTERM", "SIGINT", "SIGUSR1", "SIGPIPE"] as const;
  for (const name of names) Deno.addSignalListener(name, () => handler(Signal[name]));
}
