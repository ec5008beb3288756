/** Cases for people to read, and as files to play again. */

import type { Case, Ending } from "./case.ts";
import { concat } from "../../lib/bytes.ts";
import { framesOf, type Sent } from "./traffic.ts";

/** How many frames, and bytes of each, are shown. */
const SHOWN_FRAMES = 12;
const SHOWN_BYTES = 160;

/** A case, in some lines. */
export function describe({ number, chunks, ending }: Case): string {
  const bytes = concat(chunks);
  const frames = framesOf(bytes);
  const framed = frames.reduce((sum, { payload }) => sum + 10 + payload.length, 0);
  const rest = bytes.subarray(framed);
  const hidden = frames.length - SHOWN_FRAMES;
  return [
    `case ${number}: ${bytes.length} bytes, written in ${chunks.length}, then ${ENDINGS[ending]}`,
    ...frames.slice(0, SHOWN_FRAMES).map(describeFrame),
    ...hidden > 0 ? [`  ${hidden} more frames`] : [],
    ...rest.length > 0 ? [`  the beginning of a header: ${rest.toHex()}`] : [],
  ].join("\n");
}

const ENDINGS: Readonly<Record<Ending, string>> = {
  answered: "nothing more is sent until all is answered",
  closed: "closed",
  left: "left open, unread, and closed later",
  half: "nothing more is sent, nothing is read, and closed later",
};

function describeFrame({ stream, type, flags, length, payload, isWhole, request }: Sent): string {
  const header = `  frame of stream ${stream}, type ${type}, flags ${flags}, length ${length}`;
  if (!isWhole) return `${header}, cut off after ${payload.length} bytes: ${show(payload)}`;
  if (request === undefined) return `${header}: ${show(payload)}`;
  const { service, method, payload: inner, timeoutNano } = request;
  const timeout = timeoutNano === 0 ? "" : `, timeout ${timeoutNano} ns`;
  return `${header}${timeout}\n    ${cut(service)}/${cut(method)}: ${show(inner)}`;
}

/** Bytes as text where they are, and in hex. */
function show(bytes: Uint8Array): string {
  if (bytes.length === 0) return "nothing";
  const shown = bytes.subarray(0, SHOWN_BYTES);
  const more = bytes.length > SHOWN_BYTES ? `… (${bytes.length} bytes)` : "";
  return `${JSON.stringify(String.fromCharCode(...shown))}${more} = ${shown.toHex()}${more}`;
}

function cut(text: string): string {
  return JSON.stringify(text.length > SHOWN_BYTES ? `${text.slice(0, SHOWN_BYTES)}…` : text).slice(1, -1);
}

/** What a file of cases has in it, as JSON. */
interface Saved {
  readonly number: number;
  readonly ending: Ending;
  /** In base64. */
  readonly chunks: readonly string[];
}

/** Writes cases down, to be played again. */
export function save(path: string, cases: readonly Case[]): void {
  const saved: Saved[] = cases.map(({ number, ending, chunks }) => ({
    number,
    ending,
    chunks: chunks.map((each) => each.toBase64()),
  }));
  Deno.writeTextFileSync(path, `${JSON.stringify(saved)}\n`);
}

/** The cases of a file. */
export function load(path: string): Case[] {
  const saved = JSON.parse(Deno.readTextFileSync(path)) as Saved[];
  return saved.map(({ chunks, ...rest }) => ({ ...rest, chunks: chunks.map((each) => Uint8Array.fromBase64(each)) }));
}
