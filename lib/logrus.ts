/** Lines as logrus writes them, by LogTape. Loaded when there is something to write: see log.ts. */

import { configureSync, getConfig, getLogger, type LogRecord } from "@logtape/logtape";
import { textOf } from "./errors.ts";

/** How grave a line is, by logrus's names. */
export type Level = "debug" | "info" | "warning" | "error";

/** What a line says besides its message, by key. */
export type Fields = Readonly<Record<string, unknown>>;

/** Options of {@link logrus}. */
export interface LineOptions {
  /** Takes one line with its newline, at once: what cannot be written now is lost. */
  readonly write: (line: string) => void;
  /** What every line has. */
  readonly fields: Fields;
}

/** Writes a line about what happened at `at`, in ms since the epoch. */
export type WriteLine = (level: Level, at: number, message: string, fields?: Fields) => void;

/** LogTape's levels, and logrus's names for them. */
const LEVELS = {
  trace: "trace",
  debug: "debug",
  info: "info",
  warning: "warning",
  error: "error",
  fatal: "fatal",
} as const satisfies Record<LogRecord["level"], string>;

/** Names of a record's properties that are no field of the line. */
const MESSAGE = "\0message";
const AT = "\0at";
const WRITE = "\0write";

/**
 * Lines in logrus's text format, by LogTape.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 *
 * let written = "";
 * const log = logrus({ write: (line) => written += line, fields: { id: "c1" } });
 * log("warning", 0, "a logger has ended", { pid: 7, error: new Error("no such file") });
 * assertEquals(
 *   written,
 *   'time="1970-01-01T00:00:00.000Z" level=warning msg="a logger has ended" error="no such file" id=c1 pid=7\n',
 * );
 * ```
 */
export function logrus(options: LineOptions): WriteLine {
  if (getConfig() === null) configure();
  const logger = getLogger("shim").with({ ...options.fields, [WRITE]: options.write });
  // Properties, not a template: what a message has in braces is part of it.
  return (level, at, message, fields) => logger[level]("", { ...fields, [MESSAGE]: message, [AT]: at });
}

/** LogTape has one configuration for the whole process: each record says itself where it goes. Levels are for log.ts. */
function configure(): void {
  configureSync({
    sinks: { fifo: (record) => (record.properties[WRITE] as LineOptions["write"])(format(record)) },
    loggers: [
      { category: "shim", sinks: ["fifo"], lowestLevel: "debug" },
      { category: ["logtape", "meta"], sinks: [], lowestLevel: "fatal" },
    ],
  });
}

/** One line of logrus's TextFormatter: time, level, message, and the other fields by name. */
function format(record: LogRecord): string {
  const { [MESSAGE]: message, [AT]: at, [WRITE]: _, ...fields } = record.properties;
  const time = new Date(at as number);
  return `time=${quote(time.toISOString())} level=${LEVELS[record.level]} msg=${quote(String(message))}${
    named(fields)
  }\n`;
}

/** Fields as they stand at the end of a line: by name, a space before each. */
export function named(fields: Fields): string {
  return Object.keys(fields).sort().map((key) => ` ${key}=${value(fields[key])}`).join("");
}

function value(of: unknown): string {
  const text = textOf(of);
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
