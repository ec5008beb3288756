/** JSON that a specification is not, or not quite. */

import type { Seeded } from "../e2e/seeded.ts";
import { mutateBytes } from "./protobuf.ts";

/** What JSON can write. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** How deep what is nested deep is nested. */
const DEPTHS: readonly number[] = [10, 1000, 10_000, 100_000];

/** How long what is long is; now and then much longer. */
const LENGTH = 2000;
const LARGE = 100_000;

const encoder = new TextEncoder();

/** A value that has nothing to do with what should be there; text, because not all that can be written can be held. */
function wrongValue(random: Seeded): string {
  const length = random.oneIn(20) ? LARGE : LENGTH;
  switch (random.below(18)) {
    case 0:
      return nested(random.pick(DEPTHS), random.oneIn(2) ? ["[", "]"] : ['{"a":', "}"]);
    case 1:
      return `[${Array(length).fill(random.pick(["0", '""', "{}", '"A=B"', '"CAP_CHOWN"'])).join(",")}]`;
    case 2:
      return JSON.stringify("x".repeat(length));
    case 3:
      return `{${Array.from({ length }, (_, i) => `"k${i}":${i}`).join(",")}}`;
    default:
      return random.pick([
        ...["null", "true", "false", "0", "-1", "1.5", "1e400", "-1e400", "1e-400", "9007199254740993"],
        ...["4294967296", "18446744073709551616", "-9223372036854775809", '""', '"0"', '"\\u0000"', '"\\ud800"'],
        ...["[]", "[[]]", "[null]", "[0]", '[""]', "{}", '{"":null}', '{"__proto__":{"a":1}}', '"/../.."', '"NaN"'],
      ]);
  }
}

function nested(depth: number, [open, close]: readonly [string, string]): string {
  return `${open.repeat(depth)}${open === "[" ? "" : "0"}${close.repeat(depth)}`;
}

/** Places of a value and of all that are in it. */
function places(value: Json, path: readonly string[] = []): (readonly string[])[] {
  if (typeof value !== "object" || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([key, each]) => places(each, [...path, key]))];
}

/** Writes a value with another text at one place: instead of what is there, beside it, or nothing. */
function write(value: Json, path: readonly string[], change: (text: string) => string | undefined): string | undefined {
  const [key, ...rest] = path;
  if (key === undefined) return change(JSON.stringify(value));
  const isArray = Array.isArray(value);
  const parts = Object.entries(value as Record<string, Json>).flatMap(([each, inner]) => {
    const text = each === key ? write(inner, rest, change) : JSON.stringify(inner);
    if (text === undefined) return [];
    return isArray ? [text] : [`${JSON.stringify(each)}:${text}`];
  });
  return isArray ? `[${parts.join(",")}]` : `{${parts.join(",")}}`;
}

/** Changes a document: something in it, or its bytes. */
export function mutateJson(value: Json, random: Seeded): Uint8Array {
  if (random.oneIn(5)) return mutateBytes(encoder.encode(JSON.stringify(value)), random);
  const path = random.pick(places(value));
  const text = random.weighted<(text: string) => string | undefined>([
    [6, () => wrongValue(random)],
    [2, () => undefined],
    [1, (text) => `[${text}]`],
    [1, (text) => `{"value":${text}}`],
    [1, (text) => JSON.stringify(text)],
    // The same name twice.
    [1, (text) => `${text},${JSON.stringify(path.at(-1) ?? "a")}:${wrongValue(random)}`],
  ]);
  return encoder.encode(write(value, path, text) ?? "");
}
