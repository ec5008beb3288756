/** The signals that the shim lives by, and the way they come in. */

import { close } from "../ffi/fd.ts";
import { Event, type Poller } from "../ffi/poll.ts";
import { block, blockInPool, readSignals, Signal, signalfd, threadsNotBlocking } from "../ffi/signals.ts";

/** The five: their dispositions are the shim's, no thread of it is interrupted by them, and no child inherits that. */
export const SIGNALS = [Signal.SIGCHLD, Signal.SIGTERM, Signal.SIGINT, Signal.SIGUSR1, Signal.SIGPIPE];

/** Told which signals have come. */
export type SignalHandler = (signal: number) => void;

/**
 * Blocks the five signals in every thread, as a signalfd needs it.
 *
 * @returns the threads that could not be reached: none where our own entry started the process
 */
export async function blockEverywhere(): Promise<number[]> {
  if (threadsNotBlocking(SIGNALS).length === 0) return [];
  block(SIGNALS);
  await blockInPool(SIGNALS);
  return threadsNotBlocking(SIGNALS);
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
  const names = ["SIGCHLD", "SIGTERM", "SIGINT", "SIGUSR1", "SIGPIPE"] as const;
  for (const name of names) Deno.addSignalListener(name, () => handler(Signal[name]));
}
