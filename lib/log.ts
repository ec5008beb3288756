/** The log: lines as logrus writes them, into a FIFO that nobody may be reading. */

import type { Fields, Level, LineOptions, WriteLine } from "./logrus.ts";

/** Where the program tells what it does. Logging never throws and never waits. */
export interface Logger {
  /** What only somebody who looks for a fault wants to know: written with -debug alone. */
  debug(message: string, fields?: Fields): void;
  /** What somebody has asked for: the dump. */
  info(message: string, fields?: Fields): void;
  /** Something is not as it should be, and has been dealt with. */
  warn(message: string, fields?: Fields): void;
  /** Something is lost, or an administrator has to do something: MESSAGES.md says what. */
  error(message: string, fields?: Fields): void;
}

/** Options of {@link openLog}. */
export interface LogOptions extends LineOptions {
  /** Whether lines of level debug are written. */
  readonly debug: boolean;
  /** Tells the time since the process was started, in µs: every line then has it. */
  readonly sinceStart?: (() => number) | undefined;
  /** Until this is settled lines of level debug are kept: what tells how long the start takes is not to lengthen it. */
  readonly started: Promise<void>;
}

/**
 * A logger that writes logrus's text format.
 *
 * LogTape is loaded with the first line that is to be written, not at start: most shims never write one.
 */
export function openLog({ debug, sinceStart, started, ...options }: LogOptions): Logger {
  let write: WriteLine | undefined;
  let loading: Promise<void> | undefined;
  const waiting: Parameters<WriteLine>[] = [];
  const load = () =>
    loading ??= import("./logrus.ts").then(({ logrus }) => {
      write = logrus(options);
      for (const line of waiting.splice(0)) write(...line);
    });
  const log = (level: Level, message: string, fields?: Fields) => {
    if (level === "debug" && !debug) return;
    const since = sinceStart && { us_since_start: sinceStart() };
    const line = [level, Date.now(), message, { ...fields, ...since }] as const;
    if (write) return write(...line);
    waiting.push([...line]);
    if (level === "debug") started.then(load);
    else load();
  };
  return {
    debug: (message, fields) => log("debug", message, fields),
    info: (message, fields) => log("info", message, fields),
    warn: (message, fields) => log("warning", message, fields),
    error: (message, fields) => log("error", message, fields),
  };
}

/**
 * Takes a line for the log of the system, and what each line of the same container has; settled when it has been tried to
 * write it, and never rejected.
 */
export type Report = (level: Level, message: string, fields: Fields, about: Fields) => Promise<void>;

/** How many lines go to the system's log in how many ms at most: a stranger who is refused again and again is not to fill it. */
const REPORTS_MAX = 50;
const REPORTS_MS = 10_000;

/** The log of the system, for a process: see system_log.ts, which is loaded with the first line. */
export function systemLog(): Report {
  let loading: Promise<Report> | undefined;
  const load = () =>
    import("./system_log.ts").then(({ SystemLog }): Report => {
      const log = new SystemLog();
      return (...line) => Promise.resolve(log.write(...line));
    });
  return async (...line) => {
    try {
      await (await (loading ??= load()))(...line);
    } catch {
      // There is nobody to tell.
    }
  };
}

/**
 * The same with a bound of its own: of what comes too often, a field of the next line says how many have been left out.
 *
 * @param clock tells the time, in ms
 */
export function bounded(report: Report, clock: () => number = () => performance.now()): Report {
  let since = -Infinity;
  let count = 0;
  return async (level, message, fields, about) => {
    const now = clock();
    let omitted = 0;
    if (now - since > REPORTS_MS) {
      omitted = Math.max(0, count - REPORTS_MAX);
      [since, count] = [now, 0];
    }
    if (++count <= REPORTS_MAX) await report(level, message, omitted === 0 ? fields : { ...fields, omitted }, about);
  };
}

/** A logger whose errors and warnings somebody else is told too. */
export function observed(
  log: Logger,
  observe: (level: "warning" | "error", message: string, fields: Fields) => void,
): Logger {
  return {
    ...log,
    warn: (message, fields = {}) => {
      log.warn(message, fields);
      observe("warning", message, fields);
    },
    error: (message, fields = {}) => {
      log.error(message, fields);
      observe("error", message, fields);
    },
  };
}
