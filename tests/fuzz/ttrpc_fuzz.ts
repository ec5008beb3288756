/**
 * Throws random and mutated frames at a ttrpc server. After each connection a good call on a new one must be answered.
 *
 *     deno run -A tests/fuzz/ttrpc_fuzz.ts [--seed N] [--seconds S]
 *
 * Exits with 1 and names the seed when the server does not answer, answers with something that is no frame, leaves a
 * connection open, or reports an error.
 */
import { parseArgs } from "@std/cli/parse-args";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { HEADER_SIZE, MAX_PAYLOAD, MessageType, readFrames } from "../../lib/ttrpc/frame.ts";
import { type Handler, Server } from "../../lib/ttrpc/server.ts";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";

const SERVICE = "fuzz.v1.Fuzz";

/** How long a good call, or the end of a connection, may take before the server counts as dead, in ms. */
const PATIENCE_MS = 10_000;

/** A small generator of reproducible numbers (mulberry32). */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** An integer from 0 to `limit` - 1. */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ mixed >>> 15, mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61);
    return Math.floor(((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32 * limit);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  bytes(length: number): Uint8Array {
    return new Uint8Array(length).map(() => this.below(256));
  }
}

function frame(
  stream: number,
  type: number,
  payload: Uint8Array,
  length = payload.length,
): Uint8Array {
  const out = new Uint8Array(HEADER_SIZE + payload.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, length);
  view.setUint32(4, stream);
  view.setUint8(8, type);
  out.set(payload, HEADER_SIZE);
  return out;
}

function goodFrame(random: Random): Uint8Array {
  const request = ttrpc.Request.encode({
    service: random.pick([SERVICE, SERVICE, SERVICE, "", "nobody"]),
    method: random.pick([
      "Echo",
      "Later",
      "Throw",
      "Reject",
      "Large",
      "Never",
      "nothing",
    ]),
    payload: random.bytes(random.pick([0, 1, 20, 300, 9000, 70000])),
    // "Never" answers by its deadline alone.
    timeoutNano: random.pick([1, 1e6, 3e6]),
    metadata: random.below(4) === 0 ? [{ key: "k", value: "v" }] : [],
  }).finish();
  return frame(random.below(12), 1, request);
}

function anyFrame(random: Random): Uint8Array {
  switch (random.below(10)) {
    case 0:
      return random.bytes(random.below(200));
    case 1:
      return frame(
        random.below(2 ** 32),
        random.below(256),
        random.bytes(random.below(100)),
      );
    case 2: { // a length that is not true
      const length = random.pick([
        0,
        5,
        1000,
        MAX_PAYLOAD,
        MAX_PAYLOAD + 1,
        2 ** 31,
        2 ** 32 - 1,
      ]);
      return frame(random.below(20), 1, random.bytes(random.below(50)), length);
    }
    case 3: { // too large, and true
      const length = MAX_PAYLOAD + 1 + random.below(100_000);
      return frame(
        random.below(20),
        random.pick([1, 2, 3]),
        new Uint8Array(length),
      );
    }
    case 4:
    case 5: { // some bytes changed
      const good = goodFrame(random);
      for (let i = random.below(5); i >= 0; i--) {
        good[random.below(Math.min(good.length, 80))] = random.below(256);
      }
      return good;
    }
    case 6: { // some bytes missing
      const good = goodFrame(random);
      return good.subarray(0, random.below(good.length));
    }
    default:
      return goodFrame(random);
  }
}

async function writeAll(conn: Deno.Conn, data: Uint8Array): Promise<void> {
  for (let sent = 0; sent < data.length;) {
    sent += await conn.write(data.subarray(sent));
  }
}

/** Fails when the server does not come to the end of what it should do. */
async function within<T>(what: string, promise: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => late.reject(new Error(`${what} took over ${PATIENCE_MS} ms`)),
    PATIENCE_MS,
  );
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Reads what the server answers, which must be responses that parse. */
async function checkAnswers(conn: Deno.Conn): Promise<void> {
  try {
    await readFrames(conn, MessageType.RESPONSE, {
      stopped: false,
      onFrame: (_, payload) => {
        ttrpc.Response.decode(payload);
      },
      onOversized: (stream, length) => {
        throw new Error(`the server sent ${length} bytes on stream ${stream}`);
      },
      onBatchEnd: () => {},
      backpressure: () => undefined,
    });
  } catch (error) {
    // The connection is closed under the reader, or reset because the server left something unread.
    const expected = [
      Deno.errors.Interrupted,
      Deno.errors.BadResource,
      Deno.errors.ConnectionReset,
    ];
    if (!expected.some((kind) => error instanceof kind)) throw error;
  }
}

/** @param released ends the calls of "Never" whose deadlines a mutation took away */
function handlers(released: () => Promise<void>): Record<string, Handler> {
  return {
    Echo: (payload) => payload,
    Later: async (payload) => {
      const copy = payload.slice();
      await Promise.resolve();
      return copy;
    },
    Throw: () => {
      throw new StatusError(Code.NOT_FOUND, "not here");
    },
    Reject: () => Promise.reject(new StatusError(Code.ABORTED, "not now")),
    Large: () => new Uint8Array(MAX_PAYLOAD),
    Never: (_, call) =>
      new Promise((resolve, reject) => {
        call.signal.addEventListener("abort", () => reject(call.signal.reason));
        released().then(() => resolve(new Uint8Array(1)));
      }),
  };
}

async function fuzz(seed: number, seconds: number): Promise<number> {
  const random = new Random(seed);
  const errors: unknown[] = [];
  let round = Promise.withResolvers<void>();
  const services = new Map([[SERVICE, new Map(Object.entries(handlers(() => round.promise)))]]);
  const server = new Server(services, {
    onError: (error) => errors.push(error),
    maxInFlight: 8,
  });
  const path = `\0ttrpc-fuzz-${crypto.randomUUID()}`;
  using listener = Deno.listen({ transport: "unix", path });
  const connect = async () => {
    const [accepted, conn] = await Promise.all([
      listener.accept(),
      Deno.connect({ transport: "unix", path }),
    ]);
    return { conn, served: server.serveConnection(accepted) };
  };

  const end = performance.now() + seconds * 1000;
  let connections = 0;
  for (; performance.now() < end; connections++) {
    round = Promise.withResolvers();
    const { conn, served } = await connect();
    const reads = random.below(4) > 0;
    const answers = reads ? checkAnswers(conn) : Promise.resolve();
    const ending = random.pick(["close", "closeWrite"]);
    const sending = (async () => {
      for (let i = random.below(12); i >= 0; i--) {
        await writeAll(conn, anyFrame(random));
      }
      if (ending === "closeWrite" && reads) await conn.closeWrite();
    })();
    // A peer that reads nothing may find that the server reads nothing of it either: that must not stop the next one.
    if (reads) await within("taking what was sent", sending);
    else sending.catch(() => {});

    const good = await connect();
    using client = new Client(good.conn);
    const payload = random.bytes(30);
    const echoed = await client.call(SERVICE, "Echo", payload, {
      timeoutMs: PATIENCE_MS,
    });
    if (echoed.join() !== payload.join()) {
      throw new Error("the good call got another's answer");
    }
    round.resolve();

    if (ending === "closeWrite" && reads) {
      await within("the end of a half-closed connection", served);
    }
    conn.close();
    client.close();
    await within(
      "the end of a connection",
      Promise.all([served, good.served, answers]),
    );
    if (errors.length > 0) throw errors[0];
  }
  await within("shutdown", server.shutdown());
  return connections;
}

const args = parseArgs(Deno.args, { string: ["seed", "seconds"] });
const seed = Number(args.seed ?? Date.now() % 2 ** 32);
const seconds = Number(args.seconds ?? 10);
try {
  console.log(
    `seed ${seed}: ${await fuzz(seed, seconds)} connections, all well`,
  );
} catch (error) {
  console.error(`seed ${seed} failed:`, error);
  Deno.exit(1);
}
