/** The log: lines as logrus writes them, into a FIFO that nobody may be reading. */

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

/** The field that carries when a line was logged while the logger was still being loaded, in ms since the epoch. */
export const AT = "\0at";

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
    target ??= import("./logrus.ts").then(({ logrus }) => logger = logrus(options));
    target.then((loaded) => loaded[level](message, { ...fields, [AT]: at }));
  };
  return {
    debug: (message, fields) => log("debug", message, fields),
    info: (message, fields) => log("info", message, fields),
    warn: (message, fields) => log("warn", message, fields),
    error: (message, fields) => log("error", message, fields),
  };
}
