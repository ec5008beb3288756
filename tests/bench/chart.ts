/** The results as a picture: how much better or worse each row is than with the Go shim. SVG. */

import { type Line, ratio } from "./results.ts";
import type { Row } from "./row.ts";
import { TARGETS } from "./targets.ts";

/** Lengths are in pixels, as SVG has them. */
const ROW_HEIGHT = 20;
const LABEL_WIDTH = 310;
const PLOT_WIDTH = 560;
const VALUE_WIDTH = 70;
const MARGIN = 16;
/** Above the rows. */
const HEAD_HEIGHT = 84;
const FOOT_HEIGHT = 34;
const BAR_HEIGHT = 10;
const LIMIT_HEIGHT = 16;
const DOT_RADIUS = 3.5;

const BETTER = "#2a78b5";
const WORSE = "#c8553d";
const TEXT = "#222222";
const FAINT = "#d8d8d8";
/** Of the dots of crowds, the smallest crowd first. */
const CROWD_COLOURS = ["#f2b134", "#6b4fa0", "#4f9d69"];

/** Where the axis has numbers, as far as the rows reach. */
const TICKS = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50];

/** A row in the picture. */
interface Mark {
  readonly row: Row;
  /** How many times better than Go's, with one shim alive. */
  readonly factor: number;
  /** The same in crowds, by their size. */
  readonly crowds: ReadonlyMap<number, number>;
  /** The least that is wanted. */
  readonly limit: number | undefined;
}

/** The picture of the rows that have a ratio. */
export function chart(lines: readonly Line[]): string {
  const marks = marksOf(lines);
  const sizes = [...new Set(marks.flatMap(({ crowds }) => [...crowds.keys()]))].sort((a, b) => a - b);
  const axis = new Axis(marks);
  const [width, height] = [
    2 * MARGIN + LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH,
    HEAD_HEIGHT + marks.length * ROW_HEIGHT + FOOT_HEIGHT,
  ];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="sans-serif" font-size="12" fill="${TEXT}">`,
    `<title>This shim, measured by Debian's Go shim</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(MARGIN, 26, "This shim, measured by Debian's Go shim", { size: 16 }),
    legend(sizes),
    ...axis.lines(HEAD_HEIGHT, HEAD_HEIGHT + marks.length * ROW_HEIGHT),
    ...marks.map((mark, i) => drawRow(mark, HEAD_HEIGHT + (i + 0.5) * ROW_HEIGHT, axis, sizes)),
    "</svg>",
    "",
  ].join("\n");
}

function marksOf(lines: readonly Line[]): Mark[] {
  const factorOf = (line: Line) => {
    const quotient = ratio(line);
    return quotient === undefined || quotient <= 0 ? undefined : line.row.moreIsBetter ? quotient : 1 / quotient;
  };
  return lines.filter(({ alive }) => alive === 1).flatMap((line) => {
    const factor = factorOf(line);
    if (factor === undefined) return [];
    const crowds = lines.filter(({ row, alive }) => row === line.row && alive !== 1).flatMap((each) => {
      const inCrowd = factorOf(each);
      return inCrowd === undefined ? [] : [[each.alive, inCrowd] as const];
    });
    const target = TARGETS.get(line.row);
    const limit = target?.of === "ratio" ? (line.row.moreIsBetter ? target.limit : 1 / target.limit) : undefined;
    return [{ row: line.row, factor, crowds: new Map(crowds), limit }];
  });
}

/** The horizontal axis, logarithmic; 1 is where both are equal, and better is on the right. */
class Axis {
  readonly #least: number;
  readonly #greatest: number;

  constructor(marks: readonly Mark[]) {
    const all = [0.5, 2, ...marks.flatMap(({ factor, crowds, limit = 1 }) => [factor, limit, ...crowds.values()])];
    this.#least = Math.log(Math.min(...all) / 1.1);
    this.#greatest = Math.log(Math.max(...all) * 1.1);
  }

  /** Where a factor is. */
  at(factor: number): number {
    const part = (Math.log(factor) - this.#least) / (this.#greatest - this.#least);
    return MARGIN + LABEL_WIDTH + part * PLOT_WIDTH;
  }

  /** The lines of the numbers, and the numbers. */
  lines(top: number, bottom: number): string[] {
    const inside = TICKS.filter((each) => Math.log(each) > this.#least && Math.log(each) < this.#greatest);
    return inside.flatMap((each) => {
      const x = this.at(each);
      const [colour, width] = each === 1 ? [TEXT, 1.5] : [FAINT, 1];
      return [
        line([x, top], [x, bottom], colour, width),
        text(x, bottom + 18, each < 1 ? `${1 / each}× worse` : each === 1 ? "equal" : `${each}×`, { anchor: "middle" }),
      ];
    });
  }
}

function drawRow({ row, factor, crowds, limit }: Mark, y: number, axis: Axis, sizes: readonly number[]): string {
  const [one, here] = [axis.at(1), axis.at(factor)];
  const left = Math.min(one, here);
  const misses = limit !== undefined && factor < limit;
  return [
    text(MARGIN + LABEL_WIDTH - 8, y + 4, row.name.replaceAll("`", ""), { anchor: "end" }),
    `<rect x="${px(left)}" y="${px(y - BAR_HEIGHT / 2)}" width="${px(Math.abs(here - one))}" height="${BAR_HEIGHT}" ` +
    `fill="${factor < 1 ? WORSE : BETTER}"/>`,
    ...[...crowds].map(([size, each]) => dot(axis.at(each), y, CROWD_COLOURS[sizes.indexOf(size)] ?? TEXT)),
    ...limit === undefined
      ? []
      : [line([axis.at(limit), y - LIMIT_HEIGHT / 2], [axis.at(limit), y + LIMIT_HEIGHT / 2], TEXT, 2.5)],
    text(MARGIN + LABEL_WIDTH + PLOT_WIDTH + 8, y + 4, factorText(factor), { bold: misses }),
  ].join("\n");
}

function factorText(factor: number): string {
  const [sign, number] = factor < 1 ? ["÷ ", 1 / factor] : ["× ", factor];
  return sign + number.toFixed(number < 10 ? 2 : 1);
}

/** What the colours and shapes mean, in one line. */
function legend(sizes: readonly number[]): string {
  const y = 56;
  const parts: string[] = [];
  let x = MARGIN;
  const say = (shape: (x: number) => string, words: string, width: number) => {
    parts.push(shape(x), text(x + 18, y + 4, words));
    x += width;
  };
  const bar = (colour: string) => (x: number) =>
    `<rect x="${x}" y="${y - BAR_HEIGHT / 2}" width="12" height="${BAR_HEIGHT}" fill="${colour}"/>`;
  say(bar(BETTER), "better than Go, alone", 170);
  say(bar(WORSE), "worse than Go, alone", 165);
  say(
    (x) => line([x + 6, y - LIMIT_HEIGHT / 2], [x + 6, y + LIMIT_HEIGHT / 2], TEXT, 2.5),
    "limit (bold: missed)",
    160,
  );
  sizes.forEach((size, i) => say((x) => dot(x + 6, y, CROWD_COLOURS[i] ?? TEXT), `with ${size} alive`, 130));
  return parts.join("\n");
}

function text(
  x: number,
  y: number,
  words: string,
  { anchor = "start", size = 12, bold = false }: {
    anchor?: "start" | "middle" | "end";
    size?: number;
    bold?: boolean;
  } = {},
): string {
  const weight = bold ? ' font-weight="bold"' : "";
  return `<text x="${px(x)}" y="${px(y)}" text-anchor="${anchor}" font-size="${size}"${weight}>${escape(words)}</text>`;
}

type Point = readonly [x: number, y: number];

function line([x1, y1]: Point, [x2, y2]: Point, colour: string, width: number): string {
  return `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${
    px(y2)
  }" stroke="${colour}" stroke-width="${width}"/>`;
}

function dot(x: number, y: number, colour: string): string {
  return `<circle cx="${px(x)}" cy="${
    px(y)
  }" r="${DOT_RADIUS}" fill="${colour}" stroke="#ffffff" stroke-width="0.75"/>`;
}

function px(length: number): string {
  return length.toFixed(1).replace(/\.0$/, "");
}

function escape(words: string): string {
  return words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
