/** The process that shims live in: what they share, be it one or many. */

import { Poller } from "../ffi/poll.ts";
import { after } from "../ffi/timer.ts";
import type { Timer } from "./async.ts";
import type { HostDescription } from "./description.ts";
import { messageOf } from "./errors.ts";
import { Housekeeping } from "./housekeeping.ts";
import type { Report } from "./log.ts";
import type { Fields } from "./logrus.ts";
import type { OwnChildren } from "./reaper.ts";

/** What shims share. */
export interface Place {
  /** The one event loop. */
  readonly poller: Poller;
  /** Waits on it. */
  readonly timer: Timer;
  /** To be told of work that leaves memory behind, and of a child that it has just been handed to. */
  readonly noteWork: () => void;
  /** The same for a child that is waited for. */
  readonly noteChild: () => void;
  /** Takes errors and warnings, for those who do not read a shim's log. */
  readonly report: Report;
  /** Children of the process itself, where it is a host. */
  readonly children?: OwnChildren;
  /** Tells of the process, where it is a host. */
  readonly host?: () => HostDescription;
}

/**
 * Makes this process one that shims can live in: one request's trouble, or one descriptor's, does not end it, for containers
 * would be without their parent.
 *
 * @param report see {@link Place}
 * @param tell told of trouble that nobody else has dealt with
 * @throws {Error} when Deno's event loop does not take ours
 */
export async function openPlace(report: Report, tell: (message: string, fields: Fields) => void): Promise<Place> {
  addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    tell("unhandled rejection", { error: messageOf(event.reason), stack: (event.reason as Error)?.stack });
  });
  addEventListener("error", (event) => {
    event.preventDefault();
    tell("uncaught exception", { error: event.message, stack: (event.error as Error)?.stack });
  });
  const poller = await Poller.open((error) => tell("a descriptor's handler failed", { error }));
  const timer: Timer = (ms, callback) => after(poller, ms, callback);
  const housekeeping = new Housekeeping({
    timer,
    giveBack: async () => (await import("../ffi/memory.ts")).giveBackMemory(),
  });
  return { poller, timer, report, noteWork: () => housekeeping.noteWork(), noteChild: () => housekeeping.noteChild() };
}
