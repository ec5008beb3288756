/** The results as a table, which is Markdown and reads well in a terminal too. */

import { type HostLine, hostRatio, type Line, ratio, type Result } from "./results.ts";
import type { Row } from "./row.ts";
import { summarize } from "./stats.ts";
import { NOTES } from "./targets.ts";
import { verdict } from "./verdict.ts";

/** A column: its head, and what it says of a line. */
export interface Column<L> {
  readonly head: string;
  readonly isNumber?: boolean;
  cell(line: L): string;
}

/** A table, and the notes of its rows below it. */
export function table(lines: readonly Line[]): string {
  // Rows may share one.
  const said = [...new Set(lines.flatMap(({ row }) => NOTES.get(row) ?? []))];
  const columns: Column<Line>[] = [
    { head: "", cell: ({ row }) => row.name + (NOTES.has(row) ? ` [${said.indexOf(NOTES.get(row)!) + 1}]` : "") },
    { head: "unit", cell: ({ row }) => row.unit },
    ...summaryColumns("ours", ({ ours }) => ours),
    ...summaryColumns("Go", ({ go }) => go),
    { head: "ours ÷ Go", isNumber: true, cell: (line) => ratio(line)?.toFixed(2) ?? "" },
    ...verdictColumns,
    ...otherColumn("empty Deno", lines, ({ floor }) => floor),
    ...otherColumn("runc.v2", lines, ({ v2 }) => v2),
  ];
  const notes = said.map((note, i) => `${i === 0 ? "\n" : ""}${i + 1}. ${note}`);
  return [...format(lines, columns), ...notes].join("\n");
}

/** The table of what was measured in a host. */
export function hostTable(lines: readonly HostLine[]): string {
  const columns: Column<HostLine>[] = [
    { head: "", cell: ({ row }) => row.name },
    { head: "unit", cell: ({ row }) => row.unit },
    ...summaryColumns("hosted", ({ hosted }: HostLine) => hosted),
    ...summaryColumns("Go", ({ go }) => go),
    { head: "hosted ÷ Go", isNumber: true, cell: (line) => hostRatio(line, "Go")?.toFixed(2) ?? "" },
    ...summaryColumns("alone", ({ ours }) => ours),
    { head: "hosted ÷ alone", isNumber: true, cell: (line) => hostRatio(line, "alone")?.toFixed(2) ?? "" },
    ...verdictColumns,
  ];
  return format(lines, columns).join("\n");
}

const verdictColumns: readonly Column<Line>[] = [
  { head: "limit (aim)", isNumber: true, cell: goals },
  { head: "mark", cell: mark },
];

/** A table's lines, Markdown. */
export function format<L>(lines: readonly L[], columns: readonly Column<L>[]): string[] {
  const rows = [columns.map(({ head }) => head), ...lines.map((line) => columns.map(({ cell }) => cell(line)))];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  // Numbers stand on the right.
  const join = (row: readonly string[]) =>
    `| ${
      row.map((cell, i) => columns[i]!.isNumber ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)).join(" | ")
    } |`;
  const rule = widths.map((width, i) => "-".repeat(width - 1) + (columns[i]!.isNumber ? ":" : "-")).join(" | ");
  return [join(rows[0]!), `| ${rule} |`, ...rows.slice(1).map(join)];
}

function summaryColumns<L extends Line>(head: string, of: (line: L) => Result): Column<L>[] {
  return [
    { head, isNumber: true, cell: (line) => medianText(line.row, of(line)) },
    { head: "(quartiles)", isNumber: true, cell: (line) => quartilesText(line.row, of(line)) },
  ];
}

/** Of a contender that few rows have; no column where none has. */
function otherColumn(head: string, lines: readonly Line[], of: (line: Line) => Result | undefined): Column<Line>[] {
  if (!lines.some((line) => of(line))) return [];
  const cell = (line: Line) => {
    const result = of(line);
    return result ? medianText(line.row, result) : "";
  };
  return [{ head, isNumber: true, cell }];
}

function isMeasured({ samples, error }: Result): boolean {
  return error === undefined && samples.length > 0;
}

function medianText({ digits = 2 }: Row, result: Result): string {
  return isMeasured(result) ? summarize(result.samples).median.toFixed(digits) : "not measured";
}

function quartilesText({ digits = 2 }: Row, result: Result): string {
  if (!isMeasured(result) || result.samples.length < 2) return "";
  const { low, high } = summarize(result.samples);
  return `${low.toFixed(digits)}–${high.toFixed(digits)}`;
}

/** A ratio is said as a factor, to ours alone in these words, a value in the row's unit. */
function goals(line: Line): string {
  const judged = verdict(line);
  if (!judged) return "";
  const { of, limit, aim } = judged.target;
  const sign = line.row.moreIsBetter ? "≥" : "≤";
  const unit = { ratio: "×", alone: "× alone", value: line.row.unit }[of];
  return `${sign} ${Number(limit.toFixed(2))} (${aim}) ${unit}`;
}

/** In parentheses, where the target was set for another row. */
function mark(line: Line): string {
  const judged = verdict(line);
  if (!judged) return "";
  return judged.isPrimary ? judged.mark : `(${judged.mark})`;
}
