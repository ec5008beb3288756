/** Messages as they lie on the wire, right and wrong: what an encoder does not make. */

import { concat } from "../../lib/bytes.ts";
import type { Seeded } from "../e2e/seeded.ts";

/** How a field's value lies on the wire. */
export const Wire = { VARINT: 0, FIXED64: 1, BYTES: 2, GROUP: 3, GROUP_END: 4, FIXED32: 5 } as const;

/** A field of a message. */
export interface Field {
  readonly number: number;
  readonly wire: number;
  /** Without the length before it. */
  readonly value: Uint8Array;
  /** What it says of its length, if that is not true. */
  readonly length?: number | bigint;
}

/** 1 MB, the size of what is too large for its place. */
const LARGE = 1 << 20;

/** How often a field is repeated at most. */
const MANY = 1000;

/** How deep groups are nested: more than any decoder follows. */
const DEEP = 20_000;

const encoder = new TextEncoder();

/** A number in base 128, the last seven bits first. */
export function varint(number: number | bigint): Uint8Array<ArrayBuffer> {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(number));
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return new Uint8Array(bytes);
}

export function bytesField(number: number, value: Uint8Array): Field {
  return { number, wire: Wire.BYTES, value };
}

export function textField(number: number, text: string): Field {
  return bytesField(number, encoder.encode(text));
}

export function numberField(number: number, value: number | bigint): Field {
  return { number, wire: Wire.VARINT, value: varint(value) };
}

/** google.protobuf.Any */
export function anyField(number: number, url: string, value: Uint8Array): Field {
  return bytesField(number, encodeFields([textField(1, url), bytesField(2, value)]));
}

export function encodeFields(fields: readonly Field[]): Uint8Array<ArrayBuffer> {
  return concat(fields.flatMap(({ number, wire, value, length }) => {
    const tag = varint(BigInt(number) << 3n | BigInt(wire));
    return wire === Wire.BYTES ? [tag, varint(length ?? value.length), value] : [tag, value];
  }));
}

/** Texts that are no names, or names of something else. */
const TEXTS: readonly string[] = [
  ...["", ".", "..", "/", "//", "../..", "../../../../tmp/fuzz", "a/b", "/etc/passwd", "f0/", "f0/../f1", ".hidden"],
  ...["\0", "f0\0", "c\0c", "\n", "f0\n", " ", "-rf", "--help", "%s%n", "${HOME}", "\\", '"', "null", "init", "shim"],
  ...["é", "\u{1F4A3}", "\u202e", "\uFFFF", "C", "f0.pid", "config", "x".repeat(255), "x".repeat(256)],
];

/** Bytes that are no UTF-8: cut, overlong, a surrogate, past the last character. */
const NO_UTF8: readonly Uint8Array[] = [[0xff], [0xc3], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80]]
  .map((each) => new Uint8Array(each));

/** Numbers at and past the edges of their types. */
const NUMBERS: readonly (number | bigint)[] = [
  ...[0, 1, 127, 128, 65_535, 65_536, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53],
  ...[2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n, -1],
];

/** A text that is wrong, now and then one of a MB. */
export function wrongText(random: Seeded): Uint8Array {
  if (random.oneIn(500)) return new Uint8Array(LARGE).fill(random.pick(["x", "/", ".", "\0"]).charCodeAt(0));
  if (random.oneIn(5)) return random.pick(NO_UTF8);
  return encoder.encode(random.pick(TEXTS));
}

/** A number that is wrong; now and then more bytes than one has. */
export function wrongNumber(random: Seeded): Uint8Array {
  if (random.oneIn(8)) return new Uint8Array(random.pick([10, 11, 64])).fill(0xff);
  return varint(random.pick(NUMBERS));
}

type Change = (fields: Field[], at: number, random: Seeded) => void;

/** What is done to the fields of a message; `at` is the place of one of them. */
const CHANGES: readonly (readonly [weight: number, change: Change])[] = [
  // missing
  [10, (fields, at) => fields.splice(at, 1)],
  // doubled, and more
  [6, (fields, at) => fields.push(fields[at]!)],
  [1, (fields, at, random) => {
    const count = Math.min(random.below(MANY), Math.ceil(LARGE / (1 + fields[at]!.value.length)));
    fields.splice(at, 0, ...Array(count).fill(fields[at]!));
  }],
  // in another order
  [4, (fields, at) => fields.unshift(...fields.splice(at, 1))],
  // of another type
  [8, (fields, at, random) => fields[at] = { ...fields[at]!, wire: random.below(8) }],
  [
    4,
    (fields, at, random) => fields[at] = { number: fields[at]!.number, wire: Wire.VARINT, value: wrongNumber(random) },
  ],
  [4, (fields, at, random) => fields[at] = bytesField(fields[at]!.number, wrongText(random))],
  // of another value
  [20, (fields, at, random) => {
    const { wire } = fields[at]!;
    fields[at] = { ...fields[at]!, value: wire === Wire.VARINT ? wrongNumber(random) : wrongText(random) };
  }],
  // of a length that is not true
  [8, (fields, at, random) => {
    const { value } = fields[at]!;
    const length = random.pick([0, value.length + 1, value.length - 1, LARGE, 2 ** 31, 2 ** 32 - 1, 2n ** 63n, -1]);
    fields[at] = { ...fields[at]!, wire: Wire.BYTES, length };
  }],
  // of another number
  [6, (fields, at, random) => {
    fields[at] = { ...fields[at]!, number: random.pick([0, 1, 2, 3, 15, 16, 99, 2 ** 29 - 1, 2 ** 32 - 1]) };
  }],
  // one that nobody knows
  [6, (fields, _, random) => fields.push(bytesField(17 + random.below(1000), random.bytes(random.below(40))))],
  // groups, which nobody uses any more
  [2, (fields, _, random) => {
    const number = 1 + random.below(9);
    const value = new Uint8Array(random.pick([0, 1, 99, DEEP])).fill(number << 3 | Wire.GROUP);
    fields.push({ number, wire: random.pick([Wire.GROUP, Wire.GROUP_END]), value });
  }],
];

/** Changes a message in one place, or in a few. */
export function mutateFields(fields: readonly Field[], random: Seeded): Field[] {
  const changed = [...fields];
  do {
    if (changed.length === 0) changed.push(bytesField(1 + random.below(8), wrongText(random)));
    random.weighted(CHANGES)(changed, random.below(changed.length), random);
  } while (random.oneIn(3));
  return changed;
}

/** Changes some bytes, takes some out, puts some in, or cuts off the rest. */
export function mutateBytes(bytes: Uint8Array, random: Seeded): Uint8Array<ArrayBuffer> {
  let changed = new Uint8Array(bytes);
  do {
    const at = random.below(changed.length + 1);
    switch (random.below(6)) {
      case 0:
        changed = changed.slice(0, at);
        break;
      case 1:
        changed = concat([changed.subarray(0, at), random.bytes(random.below(9)), changed.subarray(at)]);
        break;
      case 2:
        changed = concat([changed.subarray(0, at), changed.subarray(at + random.below(9))]);
        break;
      default:
        if (at < changed.length) {
          changed[at] = random.oneIn(2) ? random.below(256) : changed[at]! ^ 1 << random.below(8);
        }
    }
  } while (random.oneIn(2));
  return changed;
}
