/** What the shim is doing right now, for whoever has to find out why it does not do something else. */

import { describe as describeDescriptor } from "../ffi/fd.ts";
import type { Poller } from "../ffi/poll.ts";
import { writeWhole } from "../ffi/replace.ts";
import type { Process } from "./container/process.ts";
import type { Description, ProcessDescription } from "./description.ts";
import type { EventQueue } from "./events/queue.ts";
import type { TroubleRecord } from "./record/record.ts";
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
  /** The last that its log has had. */
  readonly lastError: TroubleRecord | undefined;
  /** See {@link lastError}. */
  readonly lastWarning: TroubleRecord | undefined;
  /** When the shim began, on the clock of `performance.now()`, in ms. */
  readonly since: number;
}

/** Calls in flight with their age, processes and their states, bytes moved, uptime. */
export function describe(shim: Subjects, place: Pick<Description, "host" | "process">): Description {
  const { pid, calls, processes, events, crashes, lastError, lastWarning, since } = shim;
  const now = performance.now();
  return {
    pid,
    upMs: now - since,
    eventsWaiting: events.size,
    lastEvent: events.last && { topic: events.last.topic, at: events.last.at.getTime() },
    ...{ crashes, lastError, lastWarning },
    calls: Array.from(calls, ({ method, startedAt }) => ({ method, ageMs: now - startedAt })),
    processes: Array.from(processes, ({ id, pid, state, exit, moved }) => ({
      ...{ id, pid, state },
      exit: exit && { status: exit.status, at: exit.at.getTime() },
      moved: Object.entries(moved).map(([stream, bytes]) => ({ stream, bytes })),
    })),
    ...place,
  };
}

/** Memory and descriptors of this process. */
export function describeProcess(poller: Poller): ProcessDescription {
  const { rss, heapUsed, external } = Deno.memoryUsage();
  const numbers = Array.from(Deno.readDirSync("/proc/self/fd"), ({ name }) => Number(name)).sort((a, b) => a - b);
  const descriptors = numbers.map((number) => ({ number, what: describeDescriptor(number) ?? "closed" }));
  return { memory: { rss, heapUsed, external }, watched: poller.size, descriptors };
}

/** A shim's description as a dump has it: a line for each thing. */
export function linesOf(shim: Description): string[] {
  const { pid, upMs, eventsWaiting, crashes, lastError, lastWarning, calls, processes, host, process } = shim;
  const lines = ["=== BEGIN dump ===", `shim ${pid} up for ${seconds(upMs)}, ${eventsWaiting} events to deliver`];
  if (crashes.count > 0) {
    const last = `the last at ${new Date(crashes.at).toISOString()}, by ${crashes.reason}`;
    lines.push(`hosts of this shim that have died: ${crashes.count}, ${last}`);
  }
  for (const [level, trouble] of [["error", lastError], ["warning", lastWarning]] as const) {
    if (trouble === undefined) continue;
    lines.push(`last ${level} at ${new Date(trouble.at).toISOString()}: ${troubleText(trouble)}`);
  }
  for (const { method, ageMs } of calls) lines.push(`call ${method} in flight for ${seconds(ageMs)}`);
  for (const { id, pid, state, exit, moved } of processes) {
    const bytes = moved.map(({ stream, bytes }) => ` ${stream} ${bytes} bytes`).join("");
    lines.push(`process ${id} pid ${pid} ${state}${exit ? ` with status ${exit.status}` : ""}${bytes}`);
  }
  if (host !== undefined) lines.push(`in the host ${host.pid} (${host.path}) of ${host.containers}`);
  if (process !== undefined) lines.push(...linesOfProcess(process));
  return [...lines, "=== END dump ==="];
}

/** An error or a warning with its fields, on one line. */
export function troubleText({ message, fields }: Omit<TroubleRecord, "at">): string {
  return message + fields.map(({ name, value }) => ` ${name}=${JSON.stringify(value)}`).join("");
}

/** The same for a process. */
export function linesOfProcess({ memory, watched, descriptors }: ProcessDescription): string[] {
  const { rss, heapUsed, external } = memory;
  return [
    `memory: ${rss} bytes resident, ${heapUsed} in the heap, ${external} outside of it`,
    `${descriptors.length} descriptors, ${watched} watched`,
    ...descriptors.map(({ number, what }) => `descriptor ${number} ${what}`),
  ];
}

/** Writes a dump to a file, in place of what was there: where that is a link, what it leads to is left alone. */
export function writeDump(path: string, text: string): void {
  writeWhole(path, new TextEncoder().encode(text));
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(3)} s`;
}
