/** The samples of a soak as a picture: one curve above the other, over time. SVG. */

import { line, px, text } from "../bench/svg.ts";
import type { Name, Sample } from "./samples.ts";

/** Lengths are in pixels. */
const MARGIN = 16;
const LABEL_WIDTH = 60;
const PLOT_WIDTH = 840;
const PLOT_HEIGHT = 90;
const GAP = 40;
const HEAD_HEIGHT = 64;
const FOOT_HEIGHT = 34;

const FAINT = "#d8d8d8";
const KILL = "#c8553d";
const COLOURS = ["#2a78b5", "#f2b134"];

/** A part of the picture: what has one scale. */
interface Part {
  readonly title: string;
  /** The least that it shows, where its scale is logarithmic. */
  readonly least?: number;
  /** In the order of {@linkcode COLOURS}. */
  readonly curves: readonly { readonly name: Name; readonly words: string; readonly factor?: number }[];
}

const KIB_PER_MIB = 1024;

const PARTS: readonly Part[] = [
  {
    title: "descriptors",
    curves: [{ name: "hostDescriptors", words: "of the host" }, {
      name: "holderDescriptors",
      words: "of the lasting containers' holders",
    }],
  },
  { title: "threads", curves: [{ name: "hostThreads", words: "of the host" }] },
  {
    title: "private dirty memory, MiB",
    curves: [{ name: "hostDirtyKib", words: "of the host", factor: 1 / KIB_PER_MIB }, {
      name: "holderDirtyKib",
      words: "of the lasting containers' holders",
      factor: 1 / KIB_PER_MIB,
    }],
  },
  { title: "State, median of each second, ms", least: 0.1, curves: [{ name: "stateP50Ms", words: "p50" }] },
  { title: "State, worst hundredth of each second, ms", least: 0.1, curves: [{ name: "stateP99Ms", words: "p99" }] },
];

/** The picture. */
export function plot(samples: readonly Sample[], title: string): string {
  const height = HEAD_HEIGHT + PARTS.length * (PLOT_HEIGHT + GAP) + FOOT_HEIGHT;
  const width = 2 * MARGIN + LABEL_WIDTH + PLOT_WIDTH;
  const end = samples.at(-1)!.at;
  const x = (at: number) => MARGIN + LABEL_WIDTH + at / end * PLOT_WIDTH;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="sans-serif" font-size="12" fill="#222222">`,
    `<title>${title}</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(MARGIN, 26, title, { size: 16 }),
    line([MARGIN + 6, 38], [MARGIN + 6, 50], KILL, 1),
    text(MARGIN + 16, 48, "the host is killed"),
    ...PARTS.flatMap((part, i) => drawPart(part, samples, x, HEAD_HEIGHT + i * (PLOT_HEIGHT + GAP) + GAP / 2)),
    ...ticks(end).map((at) => text(x(at), height - 12, `${at} s`, { anchor: "middle" })),
    "</svg>",
    "",
  ].join("\n");
}

/** Where the axis of time has numbers. */
function ticks(end: number): number[] {
  const step = [1, 5, 10, 30, 60, 120, 300, 600].find((each) => end / each <= 10) ?? 3600;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}

function drawPart(
  { title, least, curves }: Part,
  samples: readonly Sample[],
  x: (at: number) => number,
  top: number,
): string[] {
  const bottom = top + PLOT_HEIGHT;
  const valuesOf = ({ name, factor = 1 }: Part["curves"][number]) => samples.map((each) => each[name] * factor);
  const most = Math.max(...curves.flatMap(valuesOf).filter((each) => !Number.isNaN(each)), Number.MIN_VALUE);
  const part = (value: number) =>
    least === undefined ? value / most : Math.log(Math.max(value, least) / least) / Math.log(most / least);
  const y = (value: number) => bottom - part(value) * PLOT_HEIGHT;
  const marks = least === undefined ? [0, most / 2, most] : [0.1, 1, 10, 100, 1000].filter((each) => each <= most);
  const right = MARGIN + LABEL_WIDTH + PLOT_WIDTH;
  const kills = samples.filter(({ kills }, i) => kills > (samples[i - 1]?.kills ?? 0));
  let legendX = MARGIN + LABEL_WIDTH + 290;
  return [
    text(MARGIN + LABEL_WIDTH, top - 6, title),
    ...marks.flatMap((value) => [
      line([MARGIN + LABEL_WIDTH, y(value)], [right, y(value)], FAINT, 1),
      text(MARGIN + LABEL_WIDTH - 6, y(value) + 4, value < 10 ? value.toFixed(1) : value.toFixed(0), { anchor: "end" }),
    ]),
    ...kills.map(({ at }) => line([x(at), top], [x(at), bottom], KILL, 0.5)),
    ...curves.flatMap((curve, i) => {
      const values = valuesOf(curve);
      const points = samples.flatMap(({ at }, n) =>
        Number.isNaN(values[n]) ? [] : [`${px(x(at))},${px(y(values[n]!))}`]
      );
      const colour = COLOURS[i]!;
      const key = [
        line([legendX, top - 10], [legendX + 14, top - 10], colour, 2.5),
        text(legendX + 20, top - 6, curve.words),
      ];
      legendX += 130;
      return [`<polyline points="${points.join(" ")}" fill="none" stroke="${colour}" stroke-width="1.25"/>`, ...key];
    }),
  ];
}
