/** The log: lines as logrus writes them, into a FIFO that nobody may be reading. */

import type { Fields, Level, LineOptions, WriteLine } from "./logrus.ts";

/** Where the program tells what it does. Logging never throws and never waits. */
export interface Logger {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
}

/**
 * A logger that writes logrus's text format.
 *
 * LogTape is loaded with the first line that is to be written, not at start: most shims never write one.
 */
export function openLog(options: LineOptions): Logger {
  let line: WriteLine | undefined;
  let loading: Promise<WriteLine> | undefined;
  const log = (level: Level, message: string, fields?: Fields) => {
    if (level === "debug" && !options.debug) return;
    const at = Date.now();
    if (line) return line(level, at, message, fields);
    loading ??= import("./logrus.ts").then(({ logrus }) => line = logrus(options));
    loading.then((line) => line(level, at, message, fields));
  };
  return {
    debug: (message, fields) => log("debug", message, fields),
    info: (message, fields) => log("info", message, fields),
    warn: (message, fields) => log("warning", message, fields),
    error: (message, fields) => log("error", message, fields),
  };
}
