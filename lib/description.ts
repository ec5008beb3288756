/** What a shim tells of itself: in its dump, and to whoever asks it over its socket. */

import { trouble } from "./record/record.ts";
import { count, fields, list, maybe, type Of, text, time } from "./record/schema.ts";

/**
 * The process of many containers that a shim lives in.
 *
 * @internal its fields are those written here
 */
export const hostDescription = fields({
  pid: count,
  /** Of its socket. */
  path: text,
  containers: count,
});

/**
 * See {@link hostDescription}.
 *
 * @internal its fields are those written there
 */
export type HostDescription = Of<typeof hostDescription>;

/**
 * Memory and descriptors of a process, in bytes.
 *
 * @internal its fields are those written here
 */
export const processDescription = fields({
  memory: fields({ rss: count, heapUsed: count, external: count }),
  /** How many of the descriptors are watched. */
  watched: count,
  descriptors: list(fields({ number: count, what: text })),
});

/**
 * See {@link processDescription}.
 *
 * @internal its fields are those written there
 */
export type ProcessDescription = Of<typeof processDescription>;

/**
 * All of it. Times are in ms, since the epoch where they are points in time.
 *
 * @internal its fields are those written here
 */
export const description = fields({
  /** The container's shim, as containerd knows it. */
  pid: count,
  /** How long its process has had it. */
  upMs: time,
  eventsWaiting: count,
  /** The last that there was to tell containerd, delivered or not, since this process has had the shim. */
  lastEvent: maybe(fields({ topic: text, at: time })),
  /** How often a host of this shim has died, and when and how the last one has. */
  crashes: fields({ count, at: time, reason: text }),
  /** The last of each that the log has had. */
  lastError: maybe(trouble),
  lastWarning: maybe(trouble),
  /** Those in flight. */
  calls: list(fields({ method: text, ageMs: time })),
  /** The container's, init first; none when there is no container. */
  processes: list(fields({
    id: text,
    pid: count,
    state: text,
    exit: maybe(fields({ status: count, at: time })),
    /** Bytes, by stream, since this process has had the shim. */
    moved: list(fields({ stream: text, bytes: count })),
  })),
  /** Where the shim lives together with others. */
  host: maybe(hostDescription),
  /** The process that it is, where it lives by itself. */
  process: maybe(processDescription),
});

/**
 * See {@link description}.
 *
 * @internal its fields are those written there
 */
export type Description = Of<typeof description>;
