/**
 * The log of the system, where containerd does not look: the journal, by its native protocol
 * (https://systemd.io/JOURNAL_NATIVE_PROTOCOL), or where there is none, whoever takes what syslog(3) sends. Loaded when
 * there is something to write: see log.ts.
 */

import { concat } from "./bytes.ts";
import { openDatagrams, sendDatagram } from "../ffi/datagram.ts";
import { textOf } from "./errors.ts";
import { type Fields, type Level, named } from "./logrus.ts";

/** Where systemd-journald.service(8) takes entries. */
const JOURNAL = "/run/systemd/journal/socket";
/** Where syslog(3) sends lines. */
const SYSLOG = "/dev/log";
/** What a line is found by. */
const IDENTIFIER = "containerd-shim";
/** syslog(3), from sys/syslog.h: LOG_DAEMON, and how grave a line is. */
const DAEMON = 3;
const PRIORITIES = { debug: 7, info: 6, warning: 4, error: 3 } as const satisfies Record<Level, number>;
/** How long a text may be, in bytes: what rsyslog(8) takes unless told otherwise. */
const MAX_TEXT = 8192;
/** What stands for the rest of a text that is longer. */
const CUT = "…";
/** How long the name of a field of the journal's may be: systemd.journal-fields(7). */
const MAX_NAME = 64;

/** What is said of a container in each of its lines, by the journal's names. */
const NAMES: Readonly<Record<string, string>> = {
  id: "CONTAINER_ID",
  namespace: "CONTAINERD_NAMESPACE",
  path: "BUNDLE",
  pid: "SHIM_PID",
};

const encoder = new TextEncoder();

/** The log of the system, as one process writes it. */
export class SystemLog {
  #socket: number | undefined;

  /**
   * Writes a line, of a container or of what else it is `about`. Nothing waits: where there is no room for it, or nobody to take it,
   * it is lost.
   */
  write(level: Level, message: string, fields: Fields, about: Fields): void {
    const priority = PRIORITIES[level];
    const text = bounded(message + named({ ...about, ...fields }));
    if (this.#send(JOURNAL, () => journalEntry(priority, text, fields, about))) return;
    this.#send(
      SYSLOG,
      () => encoder.encode(`<${DAEMON << 3 | priority}>${syslogTime()} ${IDENTIFIER}[${Deno.pid}]: ${text}`),
    );
  }

  /** @returns false when nobody takes it */
  #send(path: string, datagram: () => Uint8Array<ArrayBuffer>): boolean {
    try {
      this.#socket ??= openDatagrams();
      sendDatagram(this.#socket, path, datagram());
      return true;
    } catch {
      return false;
    }
  }
}

/** An entry of the journal's: each field's name and text, by a `=` where the text is one line, else by its length. */
export function journalEntry(priority: number, text: string, fields: Fields, about: Fields): Uint8Array<ArrayBuffer> {
  const entry = new Map<string, string>();
  const set = (name: string, value: unknown) => {
    if (name !== "" && value !== undefined) entry.set(name, bounded(textOf(value)));
  };
  // What comes later counts: a name that is there twice would have two values.
  for (const [key, value] of Object.entries(fields)) set(nameOf(key), value);
  for (const [key, value] of Object.entries(about)) set(NAMES[key] ?? nameOf(key), value);
  entry.set("MESSAGE", text).set("PRIORITY", `${priority}`);
  entry.set("SYSLOG_IDENTIFIER", IDENTIFIER).set("SYSLOG_FACILITY", `${DAEMON}`);
  const pieces: Uint8Array[] = [];
  for (const [name, value] of entry) {
    const bytes = encoder.encode(value);
    const length = new Uint8Array(new BigUint64Array([BigInt(bytes.length)]).buffer);
    pieces.push(encoder.encode(name), ...value.includes("\n") ? [NEWLINE, length] : [EQUALS], bytes, NEWLINE);
  }
  return concat(pieces);
}

const NEWLINE = encoder.encode("\n");
const EQUALS = encoder.encode("=");

/** A name as the journal takes it: of capitals, digits and `_`, which it does not begin with, nor with a digit. */
function nameOf(key: string): string {
  const words = key.replace(/([a-z\d])([A-Z])/g, "$1_$2").toUpperCase();
  return words.replace(/[^A-Z\d_]/g, "_").replace(/^[_\d]+/, "").slice(0, MAX_NAME);
}

function bounded(text: string): string {
  const bytes = encoder.encode(text);
  return bytes.length <= MAX_TEXT ? text : new TextDecoder().decode(bytes.subarray(0, MAX_TEXT)) + CUT;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** The time as RFC 3164 has it, which is the local one. */
function syslogTime(): string {
  const now = new Date();
  const time = [now.getHours(), now.getMinutes(), now.getSeconds()].map((each) => `${each}`.padStart(2, "0"));
  return `${MONTHS[now.getMonth()]} ${`${now.getDate()}`.padStart(2)} ${time.join(":")}`;
}
