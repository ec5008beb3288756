/** What the shim is doing right now, for whoever has to find out why it does not do something else. */

import { describe as describeDescriptor } from "../ffi/fd.ts";
import type { Poller } from "../ffi/poll.ts";
import { writeWhole } from "../ffi/replace.ts";
import type { Process } from "./container/process.ts";
import type { EventQueue } from "./events/queue.ts";
import type { Call } from "./ttrpc/server.ts";

/** What there is to describe. */
export interface Subjects {
  /** The container's shim, as containerd knows it. */
  readonly pid: number;
  /** Those that are being answered. */
  readonly calls: Iterable<Call>;
  /** The container's, its init first. */
  readonly processes: Iterable<Process>;
  /** Those on their way to containerd. */
  readonly events: EventQueue;
  /** How often a host of this shim has died, and when and how the last one has: at is in ms since the epoch. */
  readonly crashes: { readonly count: number; readonly at: number; readonly reason: string };
  /** When the shim began, on the clock of `performance.now()`, in ms. */
  readonly since: number;
}

/**
 * Calls in flight with their age, processes and their states, bytes moved, uptime: a line each.
 *
 * @param place lines about the process that the shim lives in
 */
export function describe(shim: Subjects, place: readonly string[]): string[] {
  const { calls, processes, events, crashes, since } = shim;
  const now = performance.now();
  const up = `shim ${shim.pid} up for ${seconds(now - since)}, ${events.size} events to deliver`;
  const lines = ["=== BEGIN dump ===", up];
  if (crashes.count > 0) {
    const last = `the last at ${new Date(crashes.at).toISOString()}, by ${crashes.reason}`;
    lines.push(`hosts of this shim that have died: ${crashes.count}, ${last}`);
  }
  for (const { method, startedAt } of calls) lines.push(`call ${method} in flight for ${seconds(now - startedAt)}`);
  for (const process of processes) {
    const { id, pid, state, exit } = process;
    const moved = Object.entries(process.moved).map(([name, bytes]) => ` ${name} ${bytes} bytes`).join("");
    lines.push(`process ${id} pid ${pid} ${state}${exit ? ` with status ${exit.status}` : ""}${moved}`);
  }
  return [...lines, ...place, "=== END dump ==="];
}

/** Memory and descriptors of this process. */
export function describeProcess(poller: Poller): string[] {
  const { rss, heapUsed, external } = Deno.memoryUsage();
  const lines = [`memory: ${rss} bytes resident, ${heapUsed} in the heap, ${external} outside of it`];
  const numbers = Array.from(Deno.readDirSync("/proc/self/fd"), ({ name }) => Number(name)).sort((a, b) => a - b);
  lines.push(`${numbers.length} descriptors, ${poller.size} watched`);
  for (const number of numbers) lines.push(`descriptor ${number} ${describeDescriptor(number) ?? "closed"}`);
  return lines;
}

/** Writes a dump to a file, in place of what was there: where that is a link, what it leads to is left alone. */
export function writeDump(path: string, text: string): void {
  writeWhole(path, new TextEncoder().encode(text));
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(3)} s`;
}
