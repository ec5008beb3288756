/** Reports as text for people: a table of all, or all of one. */

import { troubleText } from "../dump.ts";
import type { Report, TroubleReport } from "./report.ts";

/** How text is written. */
export interface Style {
  /** Whether where it goes to shows colours. */
  readonly hasColours: boolean;
  /** The time, in ms since the epoch. */
  readonly now: number;
}

/** What stands where nothing is known. */
const UNKNOWN = "-";

/** A column: its head, whether it is of numbers, and what it says of a shim. */
interface Column {
  readonly head: string;
  readonly isNumber?: boolean;
  readonly cell: (report: Report, now: number) => string | number | null;
}

const COLUMNS: readonly Column[] = [
  { head: "NAMESPACE", cell: ({ namespace }) => namespace },
  { head: "ID", cell: ({ id }) => id },
  { head: "SHIM", isNumber: true, cell: ({ shimPid }) => shimPid },
  { head: "HOST", isNumber: true, cell: ({ host, shape }) => host?.pid ?? shape },
  { head: "INIT", isNumber: true, cell: ({ initPid }) => initPid },
  { head: "STATE", cell: ({ state, exitStatus }) => exitStatus === null ? state : `${state} (${exitStatus})` },
  { head: "EXECS", isNumber: true, cell: ({ execs }) => execs },
  { head: "UPTIME", isNumber: true, cell: ({ uptimeSeconds }) => span(uptimeSeconds) },
  { head: "MEMORY", isNumber: true, cell: ({ memoryBytes }) => size(memoryBytes) },
  { head: "MOVED", isNumber: true, cell: ({ movedBytes }) => size(movedBytes) },
  { head: "LAST EVENT", cell: ({ lastEvent }, now) => lastEvent && `${lastEvent.topic} ${age(lastEvent.at, now)}` },
  { head: "WAITING", isNumber: true, cell: ({ eventsWaiting }) => eventsWaiting },
];

/** SGR sequences of console_codes(4). */
const BOLD = "1";
const DIM = "2";
const RED = "31";
const GREEN = "32";
const YELLOW = "33";

/** The state's colour: what needs somebody is red, what may be meant to is yellow. */
const COLOURS: Readonly<Record<string, string>> = {
  running: GREEN,
  created: YELLOW,
  pausing: YELLOW,
  paused: YELLOW,
  none: DIM,
  stopped: DIM,
  hanging: RED,
  "no answer": RED,
  dead: RED,
};

/** A line for each shim, and one more for each that something is to be known of. */
export function table(reports: readonly Report[], { hasColours, now }: Style): string {
  const rows = reports.map((report) => COLUMNS.map(({ cell }) => plain(`${cell(report, now) ?? UNKNOWN}`)));
  const widths = COLUMNS.map(({ head }, i) => Math.max(head.length, ...rows.map((row) => row[i]!.length)));
  const line = (cells: readonly string[], paint: (text: string, column: number) => string) =>
    cells.map((cell, i) => {
      const gap = " ".repeat(widths[i]! - cell.length);
      const painted = paint(cell, i);
      return COLUMNS[i]!.isNumber ? gap + painted : i === cells.length - 1 ? painted : painted + gap;
    }).join("  ").trimEnd();
  const paint = (text: string, code: string | undefined) => painted(text, hasColours ? code : undefined);
  const head = line(COLUMNS.map(({ head }) => head), (text) => paint(text, BOLD));
  const stateColumn = COLUMNS.findIndex(({ head }) => head === "STATE");
  const lines = rows.map((row, i) =>
    line(row, (text, column) => paint(text, column === stateColumn ? COLOURS[reports[i]!.state] : undefined))
  );
  const remarks = reports.filter(({ error }) => error !== null)
    .map(({ namespace, id, error }) => paint(plain(`${namespace}/${id}: ${error}`), RED));
  return [head, ...lines, ...remarks].map((each) => `${each}\n`).join("");
}

/** Everything of one. */
export function details(report: Report, { hasColours, now }: Style): string {
  const { host, hostDeaths, lastEvent, processes, callsInFlight } = report;
  const deaths = hostDeaths?.count
    ? `${hostDeaths.count}, the last ${age(hostDeaths.at, now)}: ${hostDeaths.reason}`
    : 0;
  const facts: [string, string | number | null][] = [
    ["Container", `${report.namespace}/${report.id}`],
    ["State", report.state],
    ["Error", report.error],
    ["Exit status", report.exitStatus],
    ["Exited", report.exitedAt && `${report.exitedAt}, ${age(report.exitedAt, now)}`],
    ["Init", report.initPid],
    ["Execs", report.execs],
    ["Shim", `${report.shimPid}${report.shape === null ? "" : `, ${report.shape}`}`],
    ["Started", report.startedAt && `${report.startedAt}, ${span(report.uptimeSeconds)} ago`],
    ["Private memory", size(report.memoryBytes)],
    ["Host", host && `${host.pid} for ${host.containers} container${host.containers === 1 ? "" : "s"}, ${host.socket}`],
    ["Host's private memory", host && size(host.memoryBytes)],
    ["Hosts that have died", hostDeaths && (host || hostDeaths.count) ? deaths : null],
    ["Bytes moved", report.movedBytes],
    ["Last event", lastEvent && `${lastEvent.topic}, ${lastEvent.at}, ${age(lastEvent.at, now)}`],
    ["Events waiting", report.eventsWaiting],
    ["Calls in flight", callsInFlight && callsInFlight.length],
    ["Last error", sentenceOf(report.lastError, now)],
    ["Last warning", sentenceOf(report.lastWarning, now)],
    ["Bundle", report.bundle],
    ["Socket", report.socket],
  ];
  const known = facts.filter(([, value]) => value !== null);
  const width = Math.max(...known.map(([name]) => name.length)) + 1;
  const lines = known.map(([name, value]) => {
    const code = !hasColours
      ? undefined
      : name === "State"
      ? COLOURS[report.state]
      : name === "Error"
      ? RED
      : undefined;
    return `${`${name}:`.padEnd(width)} ${painted(plain(`${value}`), code)}`;
  });
  // The dump has them too.
  if (report.dump === null) {
    for (const { id, pid, state, exitStatus } of processes ?? []) {
      lines.push(plain(`process ${id} pid ${pid} ${state}${exitStatus === null ? "" : ` with status ${exitStatus}`}`));
    }
  }
  return [...lines, ...(report.dump ?? []).map(plain)].map((each) => `${each}\n`).join("");
}

function sentenceOf(trouble: TroubleReport | null, now: number): string | null {
  return trouble && `${trouble.at}, ${age(trouble.at, now)}: ${troubleText(trouble)}`;
}

function painted(text: string, code: string | undefined): string {
  return code === undefined ? text : `\x1b[${code}m${text}\x1b[0m`;
}

/** Without what a terminal would take for a command: names come from command lines that anyone may have written. */
function plain(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x1f\x7f-\x9f]/g, "?");
}

const UNITS = ["KiB", "MiB", "GiB", "TiB"];
const STEP = 1024;

/** A number of bytes, with its unit. */
export function size(bytes: number | null): string | null {
  if (bytes === null || bytes < STEP) return bytes === null ? null : `${bytes} B`;
  let value = bytes / STEP;
  let unit = 0;
  // What would be rounded to 1024 of a unit is 1 of the next.
  while (value >= STEP - 0.5 && unit < UNITS.length - 1) {
    value /= STEP;
    unit++;
  }
  return `${value < 9.95 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** A time in seconds by its two largest units. */
export function span(seconds: number | null): string | null {
  if (seconds === null) return null;
  const whole = Math.max(0, Math.floor(seconds));
  const [large, small, of, name, rest] = whole >= DAY
    ? [DAY, HOUR, 24, "d", "h"] as const
    : whole >= HOUR
    ? [HOUR, MINUTE, 60, "h", "m"] as const
    : [MINUTE, 1, 60, "m", "s"] as const;
  const most = Math.floor(whole / large);
  return `${most > 0 ? `${most}${name}` : ""}${Math.floor(whole / small) % of}${rest}`;
}

function age(at: string, now: number): string {
  return `${span((now - Date.parse(at)) / 1000)} ago`;
}
