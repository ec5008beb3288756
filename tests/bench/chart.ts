/** The results as a picture: how much better or worse each row is than with the Go shim. SVG. */

import { type HostLine, hostRatio, type Line, ratio } from "./results.ts";
import type { Row } from "./row.ts";
import { escape, line, px, text } from "./svg.ts";
import { hostTarget, TARGETS } from "./targets.ts";

/** Lengths are in pixels, as SVG has them. */
const ROW_HEIGHT = 20;
const LABEL_WIDTH = 340;
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
/** Of the dots of ours alone, beside a bar of ours in a host. */
const ALONE_COLOUR = "#ffffff";

/** Of a character of the axis, with what is to be free around a number; rather too much. */
const CHARACTER_WIDTH = 7;

/** Where the axis has numbers, as far as the rows reach. */
const TICKS = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50];

/** A row in the picture. */
interface Mark {
  readonly row: Row;
  /** How many times better than Go's, with one shim alive, or in a host. */
  readonly factor: number;
  /** The same for others: in crowds, or alone beside what is in a host. */
  readonly dots: readonly Dot[];
  /** The least that is wanted. */
  readonly limit: number | undefined;
}

/** What dots of a colour mean. */
interface Key {
  readonly colour: string;
  readonly words: string;
}

/** A dot in a row. */
interface Dot {
  readonly factor: number;
  readonly colour: string;
}

/** The picture of the rows that have a ratio, of shims by themselves. */
export function aloneChart(lines: readonly Line[]): string {
  const sizes = [...new Set(lines.map(({ alive }) => alive))].filter((size) => size !== 1).sort((a, b) => a - b);
  const crowds = sizes.map((size) => ({ colour: crowdColour(sizes, size), words: `with ${size} alive` }));
  return chart("A shim by itself, measured by Debian's Go shim", marksOf(lines, sizes), crowds);
}

/** The picture of what was measured in a host. */
export function hostedChart(lines: readonly HostLine[]): string {
  const dots = [{ colour: ALONE_COLOUR, words: "a shim by itself" }];
  return chart("A shim in a host, measured by Debian's Go shim", hostMarksOf(lines), dots);
}

function chart(title: string, marks: readonly Mark[], dots: readonly Key[]): string {
  const axis = new Axis(marks);
  const end = HEAD_HEIGHT + marks.length * ROW_HEIGHT;
  const [width, height] = [2 * MARGIN + LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH, end + FOOT_HEIGHT];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="sans-serif" font-size="12" fill="${TEXT}">`,
    `<title>${escape(title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(MARGIN, 26, title, { size: 16 }),
    legend(dots),
    ...axis.lines(HEAD_HEIGHT, end),
    ...marks.map((mark, i) => drawRow(mark, HEAD_HEIGHT + (i + 0.5) * ROW_HEIGHT, axis)),
    "</svg>",
    "",
  ].join("\n");
}

/** How many times better one is than the other, by the quotient of their numbers; nothing where that is nothing. */
function factorOf({ moreIsBetter }: Row, quotient: number | undefined): number | undefined {
  return quotient === undefined || quotient <= 0 ? undefined : moreIsBetter ? quotient : 1 / quotient;
}

function crowdColour(sizes: readonly number[], size: number): string {
  return CROWD_COLOURS[sizes.indexOf(size)] ?? TEXT;
}

function marksOf(lines: readonly Line[], sizes: readonly number[]): Mark[] {
  return lines.filter(({ alive }) => alive === 1).flatMap((line) => {
    const { row } = line;
    const factor = factorOf(row, ratio(line));
    if (factor === undefined) return [];
    const dots = lines.filter((each) => each.row === row && each.alive !== 1).flatMap((each) => {
      const inCrowd = factorOf(row, ratio(each));
      return inCrowd === undefined ? [] : [{ factor: inCrowd, colour: crowdColour(sizes, each.alive) }];
    });
    const target = TARGETS.get(row);
    const limit = target?.of === "ratio" ? factorOf(row, target.limit) : undefined;
    return [{ row, factor, dots, limit }];
  });
}

/** A limit that is for the comparison with ours alone is drawn where it is when compared with Go's. */
function hostMarksOf(lines: readonly HostLine[]): Mark[] {
  return lines.flatMap((line) => {
    const { row } = line;
    const factor = factorOf(row, hostRatio(line, "Go"));
    if (factor === undefined) return [];
    const alone = factorOf(row, ratio(line));
    const target = hostTarget(row);
    const wanted = target && target.of !== "value" ? factorOf(row, target.limit) : undefined;
    const limit = target?.of === "alone" && wanted !== undefined && alone !== undefined ? wanted * alone : wanted;
    return [{ row, factor, dots: alone === undefined ? [] : [{ factor: alone, colour: ALONE_COLOUR }], limit }];
  });
}

/** The horizontal axis, logarithmic; 1 is where both are equal, and better is on the right. */
class Axis {
  readonly #least: number;
  readonly #greatest: number;

  constructor(marks: readonly Mark[]) {
    const all = [
      0.5,
      2,
      ...marks.flatMap(({ factor, dots, limit = 1 }) => [factor, limit, ...dots.map((each) => each.factor)]),
    ];
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
    let free = Infinity;
    // From the right, so that it is the worst whose number is left out where two would overlap.
    return inside.reverse().flatMap((each) => {
      const x = this.at(each);
      const [colour, width] = each === 1 ? [TEXT, 1.5] : [FAINT, 1];
      const lines = [line([x, top], [x, bottom], colour, width)];
      const words = each < 1 ? `${1 / each}× worse` : each === 1 ? "equal" : `${each}×`;
      const half = words.length * CHARACTER_WIDTH / 2;
      if (x + half <= free) {
        lines.push(text(x, bottom + 18, words, { anchor: "middle" }));
        free = x - half;
      }
      return lines;
    });
  }
}

function drawRow({ row, factor, dots, limit }: Mark, y: number, axis: Axis): string {
  const [one, here] = [axis.at(1), axis.at(factor)];
  const left = Math.min(one, here);
  const misses = limit !== undefined && factor < limit;
  return [
    text(MARGIN + LABEL_WIDTH - 8, y + 4, row.name.replaceAll("`", ""), { anchor: "end" }),
    `<rect x="${px(left)}" y="${px(y - BAR_HEIGHT / 2)}" width="${px(Math.abs(here - one))}" height="${BAR_HEIGHT}" ` +
    `fill="${factor < 1 ? WORSE : BETTER}"/>`,
    ...dots.map((each) => dot(axis.at(each.factor), y, each.colour)),
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
function legend(dots: readonly Key[]): string {
  const y = 56;
  const parts: string[] = [];
  let x = MARGIN;
  const say = (shape: (x: number) => string, words: string, width: number) => {
    parts.push(shape(x), text(x + 18, y + 4, words));
    x += width;
  };
  const bar = (colour: string) => (x: number) =>
    `<rect x="${x}" y="${y - BAR_HEIGHT / 2}" width="12" height="${BAR_HEIGHT}" fill="${colour}"/>`;
  say(bar(BETTER), "better than Go", 130);
  say(bar(WORSE), "worse than Go", 130);
  say(
    (x) => line([x + 6, y - LIMIT_HEIGHT / 2], [x + 6, y + LIMIT_HEIGHT / 2], TEXT, 2.5),
    "limit (bold: missed)",
    160,
  );
  for (const { colour, words } of dots) say((x) => dot(x + 6, y, colour), words, 130);
  return parts.join("\n");
}

function dot(x: number, y: number, colour: string): string {
  return `<circle cx="${px(x)}" cy="${px(y)}" r="${DOT_RADIUS}" fill="${colour}" stroke="${
    colour === ALONE_COLOUR ? TEXT : "#ffffff"
  }" stroke-width="0.75"/>`;
}
