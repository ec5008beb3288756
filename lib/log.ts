/** The log: lines as logrus writes them, into a FIFO that nobody may be reading. */

import type { LogRecord } from "@logtape/logtape";

/** How grave a line is, by logrus's names. */
export type Level = "debug" | "info" | "warning" | "error";

/** What a line says besides its message, by key. */
export type Fields = Readonly<Record<string, unknown>>;

/** Where the program tells what it does. Logging never throws and never waits. */
export interface Logger {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
}

/** Options of {@link openLog}. */
export interface LogOptions {
  /** Takes one line with its newline, at once: what cannot be written now is lost. */
  readonly write: (line: string) => void;
  /** Whether lines of level debug are written. */
  readonly debug: boolean;
  /** What every line has. */
  readonly fields: Fields;
}

/** LogTape's levels, and logrus's names for them. */
const LEVELS = {
  trace: "trace",
  debug: "debug",
  info: "info",
  warning: "warning",
  error: "error",
  fatal: "fatal",
} as const satisfies Record<LogRecord["level"], string>;

/**
 * A logger that writes logrus's text format.
 *
 * LogTape is loaded with the first line that is to be written, not at start: most shims never write one.
 */
export function openLog(options: LogOptions): Logger {
  let target: Promise<Logger> | undefined;
  let logger: Logger | undefined;
  const log = (level: keyof Logger, message: string, fields?: Fields) => {
    if (level === "debug" && !options.debug) return;
    if (logger) return logger[level](message, fields);
    const at = Date.now();
    target ??= load(options).then((loaded) => logger = loaded);
    target.then((loaded) => loaded[level](message, { ...fields, [AT]: at }));
  };
  return {
    debug: (message, fields) => log("debug", message, fields),
    info: (message, fields) => log("info", message, fields),
    warn: (message, fields) => log("warn", message, fields),
    error: (message, fields) => log("error", message, fields),
  };
}

/** The field that carries when a line was logged while LogTape was still being loaded, in ms since the epoch. */
const AT = "\0at";

async function load(options: LogOptions): Promise<Logger> {
  const { configure, getLogger } = await import("@logtape/logtape");
  await configure({
    sinks: { fifo: (record) => options.write(format(record)) },
    loggers: [
      {
        category: "shim",
        sinks: ["fifo"],
        lowestLevel: options.debug ? "debug" : "info",
      },
      { category: ["logtape", "meta"], sinks: [], lowestLevel: "fatal" },
    ],
    reset: true,
  });
  const logger = getLogger("shim").with(options.fields);
  // An object, not a template: what a message has in braces is part of it.
  const properties = (message: string, fields?: Fields) => ({
    ...fields,
    [MESSAGE]: message,
  });
  return {
    debug: (message, fields) => logger.debug("", properties(message, fields)),
    info: (message, fields) => logger.info("", properties(message, fields)),
    warn: (message, fields) => logger.warn("", properties(message, fields)),
    error: (message, fields) => logger.error("", properties(message, fields)),
  };
}

const MESSAGE = "\0message";

/** One line of logrus's TextFormatter: time, level, message, and the other fields by name. */
function format(record: LogRecord): string {
  const { [MESSAGE]: message, [AT]: at, ...fields } = record.properties;
  const time = new Date(typeof at === "number" ? at : record.timestamp);
  let line = `time=${quote(time.toISOString())} level=${LEVELS[record.level]} msg=${quote(String(message))}`;
  for (const key of Object.keys(fields).sort()) {
    line += ` ${key}=${value(fields[key])}`;
  }
  return line + "\n";
}

function value(of: unknown): string {
  const text = of instanceof Error
    ? of.message
    : typeof of === "object" && of !== null
    ? JSON.stringify(of)
    : String(of);
  // logrus leaves these bare
  return /^[A-Za-z0-9\-._/@^+]+$/.test(text) ? text : quote(text);
}

/** A string in quotes, on one line whatever is in it. */
function quote(text: string): string {
  // JSON quotes like Go, but for DEL and C1 controls, which a terminal acts on too.
  return JSON.stringify(text).replace(
    /[\x7f-\x9f\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
