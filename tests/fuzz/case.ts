/** Cases: what is sent on one connection, and how that ends. A seed and a number make the same one each time. */

import { concat } from "../../lib/bytes.ts";
import { HEADER_SIZE, MAX_PAYLOAD } from "../../lib/ttrpc/frame.ts";
import { Seeded } from "../e2e/seeded.ts";
import { SERVICE } from "../e2e/shim.ts";
import { encodeFrame, REQUEST, RESPONSE } from "../e2e/wire.ts";
import { mutateJson } from "./json.ts";
import {
  bytesField,
  encodeFields,
  type Field,
  mutateBytes,
  mutateFields,
  numberField,
  textField,
  wrongText,
} from "./protobuf.ts";
import {
  exec,
  EXECS,
  INIT,
  METHODS,
  process,
  processSpec,
  resources,
  UNKNOWN,
  UNKNOWN_SERVICES,
  update,
} from "./requests.ts";
import { framesOf, isEndless, isHarmful, type Sent } from "./traffic.ts";

/**
 * How a connection ends:
 * - `answered`: nothing more is sent, and all that has been asked for is answered;
 * - `closed`: at once;
 * - `left`: some other cases later, and nothing is read until then;
 * - `half`: so, but that it is known that nothing more is sent.
 */
export type Ending = "answered" | "closed" | "left" | "half";

/** What is sent on one connection. */
export interface Case {
  readonly number: number;
  /** Written one after the other. */
  readonly chunks: readonly Uint8Array[];
  readonly ending: Ending;
}

/**
 * Makes the case of this number.
 *
 * @param without methods that are not called
 */
export function makeCase(seed: number, number: number, without: readonly string[] = []): Case {
  const random = new Seeded(mix(seed, number));
  // One that the container would notice is not taken.
  const isTaken = (frame: Sent) => !isHarmful(frame) && !without.includes(frame.request?.method ?? "");
  let bytes = pieces(random);
  while (!framesOf(bytes).every(isTaken)) bytes = pieces(random);
  // A connection that is closed at a byte in the middle.
  if (random.oneIn(8)) bytes = bytes.subarray(0, random.below(bytes.length + 1));
  const ending = random.weighted<Ending>([[10, "answered"], [6, "closed"], [2, "left"], [1, "half"]]);
  // What is not answered is not waited for.
  const isWaitedFor = ending === "answered" && framesOf(bytes).some(isEndless);
  return { number, chunks: split(bytes, random), ending: isWaitedFor ? "half" : ending };
}

function pieces(random: Seeded): Uint8Array {
  return concat(Array.from({ length: random.oneIn(3) ? 1 + random.below(5) : 1 }, () => piece(random)));
}

/** Makes what begins alike, of seeds and numbers that are, begin differently. */
function mix(seed: number, number: number): number {
  let mixed = seed ^ Math.imul(number + 1, 0x9e3779b1);
  mixed = Math.imul(mixed ^ mixed >>> 16, 0x85ebca6b);
  mixed = Math.imul(mixed ^ mixed >>> 13, 0xc2b2ae35);
  return (mixed ^ mixed >>> 16) >>> 0;
}

function split(bytes: Uint8Array, random: Seeded): Uint8Array[] {
  const chunks: Uint8Array[] = [];
  let rest = bytes;
  while (rest.length > 1 && chunks.length < 8 && random.oneIn(3)) {
    const at = random.below(Math.min(rest.length, 200));
    chunks.push(rest.subarray(0, at));
    rest = rest.subarray(at);
  }
  return [...chunks, rest];
}

/** What is sent as one: frames, or what looks like them. */
function piece(random: Seeded): Uint8Array {
  return random.weighted<(random: Seeded) => Uint8Array>([
    [30, (random) => frame(random, goodRequest(random, method(random)))],
    [60, mutatedMethod],
    [20, mutatedRequest],
    [25, mutatedSpec],
    [8, (random) => frame(random, unknownRequest(random))],
    [15, (random) => mutateBytes(frame(random, goodRequest(random, method(random))), random)],
    [20, header],
    [8, streams],
    [8, life],
    [10, (random) => random.bytes(random.below(200))],
    [1, (random) => random.oneIn(4) ? oversized(random) : flood(random)],
  ])(random);
}

function method(random: Seeded): readonly [string, Field[]] {
  const [name, request] = random.weighted(METHODS);
  return [name, request(random)];
}

/** The fields of a Request. */
function requestFields(random: Seeded, service: string, name: string, payload: Uint8Array): Field[] {
  const timeout = random.pick([1, 1e6, 1e9, 0, -1, 2n ** 63n - 1n, -(2n ** 63n)]);
  return [
    textField(1, service),
    textField(2, name),
    bytesField(3, payload),
    ...random.oneIn(4) ? [numberField(4, timeout)] : [],
    ...random.oneIn(8) ? [bytesField(5, encodeFields([textField(1, "key"), textField(2, "value")]))] : [],
  ];
}

function goodRequest(random: Seeded, [name, fields]: readonly [string, Field[]]): Uint8Array {
  return encodeFields(requestFields(random, SERVICE, name, encodeFields(fields)));
}

/** The number of a stream; that of a client's is odd. */
function stream(random: Seeded): number {
  if (random.oneIn(20)) return random.pick([0, 2, 2 ** 31, 2 ** 32 - 2, 2 ** 32 - 1]);
  return 1 + 2 * random.below(20);
}

function frame(random: Seeded, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  return encodeFrame({ stream: stream(random), type: REQUEST, payload });
}

/** A method whose request is wrong, or whose spec's Any is. */
function mutatedMethod(random: Seeded): Uint8Array {
  const [name, fields] = method(random);
  const payload = encodeFields(mutateFields(fields, random));
  const sent = random.oneIn(12) ? mutateBytes(payload, random) : payload;
  return frame(random, encodeFields(requestFields(random, SERVICE, name, sent)));
}

/** A request whose envelope is wrong. */
function mutatedRequest(random: Seeded): Uint8Array {
  const [name, fields] = method(random);
  return frame(random, encodeFields(mutateFields(requestFields(random, SERVICE, name, encodeFields(fields)), random)));
}

/** An Exec or an Update with JSON that is wrong. */
function mutatedSpec(random: Seeded): Uint8Array {
  const request = random.oneIn(40)
    ? ["Update", [update(mutateJson(resources(), random), random)]] as const
    : ["Exec", [...exec(random), process(mutateJson(processSpec(random), random), random)]] as const;
  return frame(random, goodRequest(random, [request[0], [...request[1]]]));
}

function unknownRequest(random: Seeded): Uint8Array {
  const [name, fields] = method(random);
  const isService = random.oneIn(2);
  const service = isService ? random.pick(UNKNOWN_SERVICES) : SERVICE;
  const named = isService ? name : random.pick(UNKNOWN);
  const isText = random.oneIn(4);
  return encodeFields([
    isText && isService ? bytesField(1, wrongText(random)) : textField(1, service),
    isText && !isService ? bytesField(2, wrongText(random)) : textField(2, named),
    bytesField(3, encodeFields(fields)),
  ]);
}

/** A header of any kind, with a payload that need not have the length that it says. */
function header(random: Seeded): Uint8Array {
  const payload = random.oneIn(2) ? goodRequest(random, method(random)) : random.bytes(random.below(50));
  const bytes = frame(random, payload);
  const view = new DataView(bytes.buffer);
  const { length } = payload;
  const lengths = [length, length, 0, 1, length + 1, Math.max(0, length - 1), MAX_PAYLOAD - 1, MAX_PAYLOAD];
  view.setUint32(0, random.pick([...lengths, MAX_PAYLOAD + 1, 2 ** 31, 2 ** 32 - 1]));
  view.setUint8(8, random.oneIn(2) ? REQUEST : random.pick([0, RESPONSE, 3, 4, 127, 255]));
  view.setUint8(9, random.pick([0, 1, 2, 4, 255]));
  return bytes;
}

/** A payload that is as large as one may be, or a little larger. */
function oversized(random: Seeded): Uint8Array {
  const length = MAX_PAYLOAD + random.pick([-1, 0, 1, 2, HEADER_SIZE, 65_536]);
  const payload = new Uint8Array(length).fill(random.pick([0, 0x0a, 0xff]));
  return encodeFrame({ stream: stream(random), type: random.pick([REQUEST, REQUEST, RESPONSE]), payload });
}

/** More answers than a socket takes: many small ones, or some that say how long a name is that is not known. */
function flood(random: Seeded): Uint8Array {
  const isLarge = random.oneIn(8);
  const payload = isLarge
    ? encodeFields([bytesField(1, new Uint8Array(1 << 20).fill(120)), textField(2, "x")])
    : encodeFields([textField(1, SERVICE), textField(2, "State"), bytesField(3, encodeFields([textField(1, INIT)]))]);
  const each = encodeFrame({ stream: 1, type: REQUEST, payload });
  return concat(Array(isLarge ? 3 + random.below(12) : 500 + random.below(1500)).fill(each));
}

/** Several requests on a stream that has one, or on those that are a server's. */
function streams(random: Seeded): Uint8Array {
  const number = stream(random);
  return concat(Array.from({ length: 2 + random.below(4) }, () => {
    const payload = goodRequest(random, method(random));
    return encodeFrame({ stream: random.oneIn(3) ? stream(random) : number, type: REQUEST, payload });
  }));
}

/** All that can be done with an exec, in some order. */
function life(random: Seeded): Uint8Array {
  const id = textField(1, random.pick(EXECS));
  const spec = new TextEncoder().encode(JSON.stringify(processSpec(random)));
  const steps: [string, Field[]][] = [
    ["Exec", [id, ...exec(random).slice(1), process(spec, random)]],
    ...random.oneIn(8) ? [["Start", [id]] as [string, Field[]]] : [],
    ["State", [id]],
    ["ResizePty", [id, numberField(2, 80), numberField(3, 24)]],
    ["CloseIO", [id, numberField(2, 1)]],
    ["Kill", [id, numberField(2, 9)]],
    ["DeleteProcess", [id]],
  ];
  if (random.oneIn(3)) steps.sort(() => random.below(3) - 1);
  return concat(
    steps.map(([name, fields], i) =>
      encodeFrame({ stream: 101 + 2 * i, type: REQUEST, payload: goodRequest(random, [name, fields]) })
    ),
  );
}
