/** Lines as logrus writes them, by LogTape. Loaded when there is something to write: see log.ts. */

import { configureSync, getLogger, type LogRecord } from "@logtape/logtape";
import { AT, type Fields, type Logger, type LogOptions } from "./log.ts";

/** LogTape's levels, and logrus's names for them. */
const LEVELS = {
  trace: "trace",
  debug: "debug",
  info: "info",
  warning: "warning",
  error: "error",
  fatal: "fatal",
} as const satisfies Record<LogRecord["level"], string>;

/** A logger over LogTape that writes logrus's text format. LogTape has one configuration for the whole process: this one. */
export function logrus(options: LogOptions): Logger {
  configureSync({
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
