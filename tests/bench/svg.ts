/** The pieces of a picture, in SVG. Lengths are in pixels. */

/** Words; `x` and `y` are where their baseline begins, or has its middle or end. */
export function text(
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

/** Where something is. */
export type Point = readonly [x: number, y: number];

/** A straight line. */
export function line([x1, y1]: Point, [x2, y2]: Point, colour: string, width: number): string {
  return `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${
    px(y2)
  }" stroke="${colour}" stroke-width="${width}"/>`;
}

/** A length as it is written. */
export function px(length: number): string {
  return length.toFixed(1).replace(/\.0$/, "");
}

/** Words as XML has them. */
export function escape(words: string): string {
  return words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
