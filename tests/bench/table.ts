/** The results as a table, which is Markdown and reads well in a terminal too. */

import type { Row } from "./rows.ts";
import { summarize, type Summary } from "./stats.ts";

/** What a shim's rounds gave for a row. */
export interface Result {
  readonly samples: number[];
  /** Why the row could not be measured, or not to the end. */
  error?: string;
}

/** A row, and what was measured. */
export interface Line {
  readonly row: Row;
  readonly ours: Result;
  readonly go: Result;
}

/** Our median divided by Go's; undefined when either was not measured. */
export function ratio({ ours, go }: Line): number | undefined {
  if (ours.samples.length === 0 || go.samples.length === 0) return undefined;
  return summarize(ours.samples).median / summarize(go.samples).median;
}

/** The table. */
export function table(lines: readonly Line[]): string {
  const head = ["", "unit", "ours", "(quartiles)", "Go", "(quartiles)", "ours ÷ Go", "better"];
  const body = lines.map((line) => {
    const { row } = line;
    const quotient = ratio(line);
    const better = quotient === undefined ? "" : (quotient < 1) === !row.moreIsBetter ? "ours" : "Go";
    const columns = [...columnsOf(row, line.ours), ...columnsOf(row, line.go)];
    return [row.name, row.unit, ...columns, quotient?.toFixed(2) ?? "", better];
  });
  const rows = [head, ...body];
  const widths = head.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  // Numbers stand on the right.
  const isNumber = (column: number) => column >= 2 && column <= 6;
  const format = (row: readonly string[]) =>
    `| ${row.map((cell, i) => isNumber(i) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)).join(" | ")} |`;
  const rule = `| ${widths.map((width, i) => "-".repeat(width - 1) + (isNumber(i) ? ":" : "-")).join(" | ")} |`;
  return [format(head), rule, ...body.map(format)].join("\n");
}

function columnsOf({ digits = 2 }: Row, { samples, error }: Result): [string, string] {
  if (error !== undefined || samples.length === 0) return ["not measured", ""];
  const { median, low, high }: Summary = summarize(samples);
  return [median.toFixed(digits), `${low.toFixed(digits)}–${high.toFixed(digits)}`];
}

/** Why rows were not measured; nothing if all were. */
export function errors(lines: readonly Line[]): string[] {
  return lines.flatMap(({ row, ours, go }) =>
    ([["ours", ours], ["Go", go]] as const).flatMap(([name, { error }]) =>
      error === undefined ? [] : [`${row.name}, ${name}: ${error}`]
    )
  );
}
