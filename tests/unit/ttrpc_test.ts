import { assert, assertEquals, assertInstanceOf, assertRejects, assertStringIncludes } from "@std/assert";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { Deadlines } from "../../lib/ttrpc/deadline.ts";
import { HEADER_SIZE, MAX_PAYLOAD, MAX_UNSENT } from "../../lib/ttrpc/frame.ts";
import { type Call, type Handler, Server, type ServerOptions } from "../../lib/ttrpc/server.ts";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";

const SERVICE = "test.v1.Test";
const MIB = 1024 * 1024;
const encoder = new TextEncoder();
const bytes = (text: string) => encoder.encode(text);
const text = (data: Uint8Array) => new TextDecoder().decode(data);

interface Frame {
  stream: number;
  type: number;
  flags: number;
  payload: Uint8Array;
}

function encodeFrame(stream: number, payload: Uint8Array, type = 1, length = payload.length): Uint8Array {
  const frame = new Uint8Array(HEADER_SIZE + payload.length);
  const view = new DataView(frame.buffer);
  view.setUint32(0, length);
  view.setUint32(4, stream);
  view.setUint8(8, type);
  frame.set(payload, HEADER_SIZE);
  return frame;
}

function encodeRequest(stream: number, method: string, payload = new Uint8Array(0), timeoutMs = 0): Uint8Array {
  const timeoutNano = timeoutMs * 1e6;
  return encodeFrame(stream, ttrpc.Request.encode({ service: SERVICE, method, payload, timeoutNano }).finish());
}

function concat(...parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** A peer that speaks raw frames. */
class Peer {
  #received = new Uint8Array(0);

  constructor(readonly conn: Deno.Conn) {}

  async send(data: Uint8Array): Promise<void> {
    for (let sent = 0; sent < data.length;) {
      sent += await this.conn.write(data.subarray(sent));
    }
  }

  /** The next frame; undefined at end of file. */
  async receive(): Promise<Frame | undefined> {
    const chunk = new Uint8Array(256 * 1024);
    let chunks: Uint8Array[] = [this.#received];
    let have = this.#received.length;
    for (;;) {
      if (have >= HEADER_SIZE) {
        if (chunks.length > 1 && chunks[0]!.length < HEADER_SIZE) {
          chunks = [concat(...chunks)];
        }
        const view = new DataView(chunks[0]!.buffer, chunks[0]!.byteOffset);
        const size = HEADER_SIZE + view.getUint32(0);
        if (have >= size) {
          const all = concat(...chunks);
          this.#received = all.slice(size);
          return {
            stream: view.getUint32(4),
            type: view.getUint8(8),
            flags: view.getUint8(9),
            payload: all.slice(HEADER_SIZE, size),
          };
        }
      }
      const count = await this.conn.read(chunk);
      if (count === null) {
        assertEquals(have, 0, "the server closed the connection inside a frame");
        return undefined;
      }
      chunks.push(chunk.slice(0, count));
      have += count;
    }
  }

  async receiveResponse(): Promise<
    { stream: number; code: number; message: string; payload: Uint8Array }
  > {
    const frame = await this.receive();
    if (!frame) throw new Error("the server closed the connection");
    assertEquals(frame.type, 2);
    const { status, payload } = ttrpc.Response.decode(frame.payload);
    return {
      stream: frame.stream,
      code: status?.code ?? 0,
      message: status?.message ?? "",
      payload,
    };
  }
}

/** What a connection was asked for, while it does what it is asked. */
class Spy {
  readonly reads: number[] = [];
  readonly writes: number[] = [];
  readonly conn: Deno.Conn;

  constructor(conn: Deno.Conn) {
    this.conn = {
      read: (buffer: Uint8Array) => {
        this.reads.push(buffer.length);
        return conn.read(buffer);
      },
      write: (data: Uint8Array) => {
        this.writes.push(data.length);
        return conn.write(data);
      },
      close: () => conn.close(),
    } as Deno.Conn;
  }
}

async function connectPair(): Promise<[Deno.Conn, Deno.Conn]> {
  const path = `\0ttrpc-test-${crypto.randomUUID()}`;
  using listener = Deno.listen({ transport: "unix", path });
  return await Promise.all([
    listener.accept(),
    Deno.connect({ transport: "unix", path }),
  ]);
}

/** A server with the given methods, and connections to it. */
class Fixture implements AsyncDisposable {
  readonly server: Server;
  readonly errors: { error: unknown; call: Call | undefined }[] = [];
  readonly #conns: Deno.Conn[] = [];
  readonly #served: Promise<void>[] = [];

  constructor(methods: Record<string, Handler>, options: ServerOptions = {}) {
    const services = new Map([[SERVICE, new Map(Object.entries(methods))]]);
    const onError = (error: unknown, call?: Call) => this.errors.push({ error, call });
    this.server = new Server(services, { onError, ...options });
  }

  async connect(): Promise<
    { conn: Deno.Conn; spy: Spy; served: Promise<void> }
  > {
    const [accepted, conn] = await connectPair();
    const spy = new Spy(accepted);
    const served = this.server.serveConnection(spy.conn);
    this.#conns.push(conn);
    this.#served.push(served);
    return { conn, spy, served };
  }

  async peer(): Promise<{ peer: Peer; spy: Spy; served: Promise<void> }> {
    const { conn, spy, served } = await this.connect();
    return { peer: new Peer(conn), spy, served };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const conn of this.#conns) {
      try {
        conn.close();
      } catch { /* the test closed it */ }
    }
    await Promise.all(this.#served);
  }
}

/** A method whose calls are ended by the test, by the text of their payload. */
class Gate {
  readonly #calls = new Map<string, PromiseWithResolvers<Uint8Array>>();
  readonly #arrivals = new Map<string, PromiseWithResolvers<Call>>();

  readonly handler: Handler = (payload, call) => {
    const key = text(payload);
    const result = Promise.withResolvers<Uint8Array>();
    this.#calls.set(key, result);
    this.#arrival(key).resolve(call);
    return result.promise;
  };

  arrived(key: string): Promise<Call> {
    return this.#arrival(key).promise;
  }

  finish(key: string, result = bytes(`done ${key}`)): void {
    this.#calls.get(key)!.resolve(result);
  }

  fail(key: string, error: unknown): void {
    this.#calls.get(key)!.reject(error);
  }

  #arrival(key: string): PromiseWithResolvers<Call> {
    let arrival = this.#arrivals.get(key);
    if (!arrival) {
      this.#arrivals.set(key, arrival = Promise.withResolvers<Call>());
    }
    return arrival;
  }
}

const echo: Handler = (payload) => payload;

async function assertStatus(call: Promise<unknown>, code: Code, message = ""): Promise<StatusError> {
  const error = await assertRejects(() => call, StatusError, message);
  assertEquals(error.code, code);
  return error;
}

/** Round trips on a connection of its own: whatever the server could do meanwhile, it has done. */
async function letServerWork(fixture: Fixture): Promise<void> {
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  for (let i = 0; i < 20; i++) {
    await client.call(SERVICE, "Echo", bytes("tick"));
  }
}

// Frames

Deno.test("A request and its reply have the bytes of the ttrpc specification", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  const head = [0, 0, 0, 25, 0x01, 0x02, 0x03, 0x05, 1, 0];
  const request = [
    0x0a,
    12,
    ...bytes(SERVICE),
    0x12,
    4,
    ...bytes("Echo"),
    0x1a,
    3,
    7,
    8,
    9,
  ];
  await peer.send(new Uint8Array([...head, ...request]));
  const reply = new Uint8Array(64);
  const count = await peer.conn.read(reply);
  assertEquals([...reply.subarray(0, count!)], [
    0,
    0,
    0,
    5,
    0x01,
    0x02,
    0x03,
    0x05,
    2,
    0,
    0x12,
    3,
    7,
    8,
    9,
  ]);
});

Deno.test("An empty result is a response of no bytes", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  await peer.send(encodeRequest(1, "Echo"));
  assertEquals(await peer.receive(), {
    stream: 1,
    type: 2,
    flags: 0,
    payload: new Uint8Array(0),
  });
});

Deno.test("Results of any length arrive as they were", async () => {
  const lengths = [
    0,
    1,
    127,
    128,
    129,
    4000,
    16383,
    16384,
    65536,
    2097151,
    2097152,
  ];
  const result = (length: number) => new Uint8Array(length).map((_, i) => i * 31 + length);
  await using fixture = new Fixture({
    Give: (payload) => result(Number(text(payload))),
  });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  for (const length of lengths) {
    assertEquals(await client.call(SERVICE, "Give", bytes(`${length}`)), result(length));
  }
});

Deno.test("A response is the one that protobuf's encoder would have made", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  for (const length of [1, 127, 128, 16384, 2097152]) {
    const payload = new Uint8Array(length).fill(0xa5);
    const sent = peer.send(encodeRequest(1, "Echo", payload));
    const frame = await peer.receive();
    await sent;
    assertEquals(frame?.payload, new Uint8Array(ttrpc.Response.encode({ payload }).finish()));
  }
});

Deno.test("A frame that comes byte by byte is answered", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  const data = concat(encodeRequest(1, "Echo", bytes("a")), encodeRequest(3, "Echo", bytes("b")));
  for (const byte of data) await peer.send(new Uint8Array([byte]));
  assertEquals(text((await peer.receiveResponse()).payload), "a");
  assertEquals(text((await peer.receiveResponse()).payload), "b");
});

Deno.test("Frames cut at any place are answered", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  // The second frame has to be moved to the front of the read buffer, and the third does not fit into it.
  const frames = [3000, 6000, 20000, 1].map((length, i) =>
    encodeRequest(2 * i + 1, "Echo", new Uint8Array(length).fill(i + 1))
  );
  const data = concat(...frames);
  for (let at = 0; at < data.length; at += 4096) {
    await peer.send(data.subarray(at, at + 4096));
  }
  for (const length of [3000, 6000, 20000, 1]) {
    assertEquals((await peer.receiveResponse()).payload.length, length);
  }
});

Deno.test("The read buffer grows for a large frame alone, and shrinks afterwards", async () => {
  await using fixture = new Fixture({
    Length: (payload) => bytes(`${payload.length}`),
  });
  const { peer, spy } = await fixture.peer();
  await peer.send(encodeRequest(1, "Length", new Uint8Array(MIB)));
  assertEquals(text((await peer.receiveResponse()).payload), `${MIB}`);
  assert(Math.max(...spy.reads) > 16 * 1024);
  await peer.send(encodeRequest(3, "Length"));
  assertEquals(text((await peer.receiveResponse()).payload), "0");
  assert(spy.reads.at(-1)! <= 16 * 1024, `${spy.reads.at(-1)} bytes are kept for reading`);
});

Deno.test("A request of exactly 4 MiB is taken", async () => {
  await using fixture = new Fixture({
    Length: (payload) => bytes(`${payload.length}`),
  });
  const { peer } = await fixture.peer();
  const overhead = encodeRequest(1, "Length", new Uint8Array(MAX_PAYLOAD - 100)).length -
    (MAX_PAYLOAD - 100) - HEADER_SIZE;
  const request = encodeRequest(1, "Length", new Uint8Array(MAX_PAYLOAD - overhead));
  assertEquals(request.length, HEADER_SIZE + MAX_PAYLOAD);
  await peer.send(request);
  const response = await peer.receiveResponse();
  assertEquals([response.code, text(response.payload)], [
    Code.OK,
    `${MAX_PAYLOAD - overhead}`,
  ]);
});

Deno.test("A request over 4 MiB is answered RESOURCE_EXHAUSTED, never held, and the connection lives on", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer, spy } = await fixture.peer();
  for (const length of [MAX_PAYLOAD + 1, 40 * MIB]) {
    const head = encodeFrame(7, new Uint8Array(0), 1, length);
    await peer.send(head);
    const zeros = new Uint8Array(MIB);
    for (let left = length; left > 0; left -= MIB) {
      await peer.send(zeros.subarray(0, Math.min(MIB, left)));
    }
    await peer.send(encodeRequest(9, "Echo", bytes("still here")));
    const refusal = await peer.receiveResponse();
    assertEquals([refusal.stream, refusal.code], [7, Code.RESOURCE_EXHAUSTED]);
    assertStringIncludes(refusal.message, `${length}`);
    assertEquals(text((await peer.receiveResponse()).payload), "still here");
  }
  assert(Math.max(...spy.reads) <= 16 * 1024);
});

Deno.test("Frames that are no requests are passed over with their payloads, whatever their size", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer, spy } = await fixture.peer();
  const inner = encodeRequest(5, "Echo", bytes("not to be seen"));
  for (const type of [0, 2, 3, 255]) {
    await peer.send(encodeFrame(3, inner, type));
  }
  await peer.send(encodeFrame(3, new Uint8Array(0), 2));
  await peer.send(encodeFrame(3, new Uint8Array(MAX_PAYLOAD + 5), 2));
  await peer.send(encodeRequest(1, "Echo", bytes("seen")));
  const response = await peer.receiveResponse();
  assertEquals([response.stream, text(response.payload)], [1, "seen"]);
  assert(Math.max(...spy.reads) <= 16 * 1024);
});

Deno.test("The flags of a request are of no concern", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  const request = encodeRequest(1, "Echo", bytes("x"));
  request[9] = 1;
  await peer.send(request);
  assertEquals((await peer.receiveResponse()).code, Code.OK);
});

// Refusals

Deno.test("A request on an even stream is answered INVALID_ARGUMENT on that stream", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  await peer.send(encodeRequest(0xfffffffe, "Echo"));
  const refusal = await peer.receiveResponse();
  assertEquals([refusal.stream, refusal.code], [
    0xfffffffe,
    Code.INVALID_ARGUMENT,
  ]);
  await peer.send(encodeRequest(0xffffffff, "Echo"));
  const response = await peer.receiveResponse();
  assertEquals([response.stream, response.code], [0xffffffff, Code.OK]);
});

Deno.test("A request that does not parse is answered INVALID_ARGUMENT, and the connection lives on", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  const whole = ttrpc.Request.encode({
    service: SERVICE,
    method: "Echo",
    payload: bytes("12345"),
  }).finish();
  for (const payload of [new Uint8Array(16).fill(0xff), whole.slice(0, -1), new Uint8Array([0x0a, 200])]) {
    await peer.send(encodeFrame(1, payload));
    const refusal = await peer.receiveResponse();
    assertEquals([refusal.stream, refusal.code], [1, Code.INVALID_ARGUMENT]);
    assertStringIncludes(refusal.message, "Cannot parse the request");
  }
  await peer.send(encodeRequest(1, "Echo"));
  assertEquals((await peer.receiveResponse()).code, Code.OK);
});

Deno.test("An unknown service and an unknown method are UNIMPLEMENTED, by name", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  const payload = new Uint8Array(0);
  await assertStatus(
    client.call("no.Such", "Echo", payload),
    Code.UNIMPLEMENTED,
    "no.Such/Echo: there is no such service",
  );
  await assertStatus(
    client.call(SERVICE, "Nope", payload),
    Code.UNIMPLEMENTED,
    `${SERVICE}/Nope: the service has no such method`,
  );
  await assertStatus(client.call(SERVICE, "toString", payload), Code.UNIMPLEMENTED);
});

Deno.test("A request on a stream in flight is INVALID_ARGUMENT and leaves the first alone", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler, Echo: echo });
  const { peer } = await fixture.peer();
  await peer.send(encodeRequest(5, "Wait", bytes("first")));
  await peer.send(encodeRequest(5, "Echo", bytes("second")));
  const refusal = await peer.receiveResponse();
  assertEquals([refusal.stream, refusal.code], [5, Code.INVALID_ARGUMENT]);
  gate.finish("first");
  assertEquals(text((await peer.receiveResponse()).payload), "done first");
  await peer.send(encodeRequest(5, "Echo", bytes("third")));
  assertEquals(text((await peer.receiveResponse()).payload), "third");
});

Deno.test("Calls beyond maxInFlight are RESOURCE_EXHAUSTED until others end", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler }, { maxInFlight: 2 });
  const { peer } = await fixture.peer();
  await peer.send(concat(...["a", "b", "c"].map((key, i) => encodeRequest(2 * i + 1, "Wait", bytes(key)))));
  const refusal = await peer.receiveResponse();
  assertEquals([refusal.stream, refusal.code], [5, Code.RESOURCE_EXHAUSTED]);
  gate.finish("a");
  assertEquals((await peer.receiveResponse()).stream, 1);
  await peer.send(encodeRequest(5, "Wait", bytes("c")));
  await gate.arrived("c");
  gate.finish("b");
  gate.finish("c");
  assertEquals([
    (await peer.receiveResponse()).stream,
    (await peer.receiveResponse()).stream,
  ], [3, 5]);
});

// Answers

Deno.test("Requests of one connection run concurrently and are answered in any order", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler, Echo: echo });
  const { peer } = await fixture.peer();
  await peer.send(concat(
    encodeRequest(1, "Wait", bytes("a")),
    encodeRequest(3, "Wait", bytes("b")),
    encodeRequest(5, "Echo", bytes("c")),
  ));
  assertEquals((await peer.receiveResponse()).stream, 5);
  gate.finish("b");
  const second = await peer.receiveResponse();
  assertEquals([second.stream, text(second.payload)], [3, "done b"]);
  gate.finish("a");
  const third = await peer.receiveResponse();
  assertEquals([third.stream, text(third.payload)], [1, "done a"]);
});

Deno.test("A StatusError of a handler is the answer, thrown or rejected", async () => {
  const fail = () => new StatusError(Code.NOT_FOUND, "process x does not exist");
  await using fixture = new Fixture({
    Throw: () => {
      throw fail();
    },
    Reject: () => Promise.reject(fail()),
  });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  for (const method of ["Throw", "Reject"]) {
    const error = await assertStatus(client.call(SERVICE, method, bytes("")), Code.NOT_FOUND);
    assertEquals(error.message, "process x does not exist");
  }
  assertEquals(fixture.errors, []);
});

Deno.test("Any other error of a handler is UNKNOWN with its message, and reported", async () => {
  await using fixture = new Fixture({
    Throw: () => {
      throw new TypeError("oops");
    },
    Reject: () => Promise.reject(new TypeError("oops")),
    Odd: () => {
      throw "oops";
    },
  });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  for (const method of ["Throw", "Reject", "Odd"]) {
    const error = await assertStatus(client.call(SERVICE, method, bytes("")), Code.UNKNOWN);
    assertEquals(error.message, "oops");
  }
  assertEquals(fixture.errors.map(({ call }) => call?.method), [
    "Throw",
    "Reject",
    "Odd",
  ]);
  assertInstanceOf(fixture.errors[0]!.error, TypeError);
});

Deno.test("A result that does not fit into a frame is RESOURCE_EXHAUSTED, one that just fits is sent", async () => {
  await using fixture = new Fixture({
    Give: (payload) => new Uint8Array(Number(text(payload))),
    GiveLater: (payload) => Promise.resolve(new Uint8Array(Number(text(payload)))),
  });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  const largest = MAX_PAYLOAD - 5; // a tag and a length of four bytes
  for (const method of ["Give", "GiveLater"]) {
    const error = await assertStatus(client.call(SERVICE, method, bytes(`${largest + 1}`)), Code.RESOURCE_EXHAUSTED);
    assertStringIncludes(error.message, `${SERVICE}/${method}`);
    assertStringIncludes(error.message, `${largest + 1} bytes`);
    assertEquals((await client.call(SERVICE, method, bytes(`${largest}`))).length, largest);
  }
});

Deno.test("An error message that does not fit into a frame is cut", async () => {
  await using fixture = new Fixture({
    Fail: () => {
      throw new StatusError(Code.ABORTED, "x".repeat(MAX_PAYLOAD));
    },
  });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  const error = await assertStatus(client.call(SERVICE, "Fail", bytes("")), Code.ABORTED, "xxxx");
  assert(error.message.length < 2000);
});

// Deadlines and signals

Deno.test("A call whose timeout passes is answered DEADLINE_EXCEEDED, its signal aborted, its late result dropped", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler, Echo: echo });
  const { peer } = await fixture.peer();
  await peer.send(encodeRequest(1, "Wait", bytes("slow"), 5));
  const call = await gate.arrived("slow");
  const aborted = new Promise((resolve) => call.signal.addEventListener("abort", resolve));
  const response = await peer.receiveResponse();
  assertEquals([response.stream, response.code], [1, Code.DEADLINE_EXCEEDED]);
  assertStringIncludes(response.message, `${SERVICE}/Wait`);
  await aborted;
  assertInstanceOf(call.signal.reason, StatusError);
  assertEquals(call.signal.reason.code, Code.DEADLINE_EXCEEDED);
  gate.finish("slow");
  await peer.send(encodeRequest(1, "Echo", bytes("next")));
  assertEquals(text((await peer.receiveResponse()).payload), "next");
});

Deno.test("A signal that is first read after the deadline is aborted already", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler });
  const { peer } = await fixture.peer();
  await peer.send(encodeRequest(1, "Wait", bytes("slow"), 1));
  await peer.receiveResponse();
  assert((await gate.arrived("slow")).signal.aborted);
});

Deno.test("A call that ends before its deadline is answered once, also when the deadline is far or there is none", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler, Echo: echo });
  const { peer } = await fixture.peer();
  // 2^31 ms and more do not fit into a timer; a negative timeout is none.
  const timeouts = [1000, 2 ** 31, 1e12, -1];
  for (const [i, timeout] of timeouts.entries()) {
    await peer.send(encodeRequest(2 * i + 1, "Wait", bytes(`${i}`), timeout));
    await gate.arrived(`${i}`);
  }
  await letServerWork(fixture);
  for (const i of timeouts.keys()) {
    gate.finish(`${i}`);
    const response = await peer.receiveResponse();
    assertEquals([response.stream, response.code], [2 * i + 1, Code.OK]);
  }
});

Deno.test("Many deadlines pass in their order, removed ones never", async () => {
  const deadlines = new Deadlines();
  const passed: number[] = [];
  const done = Promise.withResolvers<void>();
  const now = performance.now();
  for (const delay of [40, 5, 20, 10, 30]) {
    deadlines.add(now + delay, () => {
      passed.push(delay);
      assert(performance.now() >= now + delay);
      if (delay === 40) done.resolve();
    });
  }
  await done.promise;
  assertEquals(passed, [5, 10, 20, 30, 40]);

  const both = performance.now();
  const second = Promise.withResolvers<void>();
  const pair = [0, 1].map((i) =>
    deadlines.add(both, () => {
      second.resolve();
      deadlines.remove(pair[1 - i]!);
      passed.push(0);
    })
  );
  await second.promise;
  const removed = deadlines.add(performance.now() + 1, () => passed.push(-1));
  deadlines.remove(removed);
  const later = Promise.withResolvers<void>();
  new Deadlines().add(performance.now() + 5, later.resolve);
  await later.promise;
  const again = Promise.withResolvers<void>();
  deadlines.add(performance.now(), again.resolve);
  await again.promise;
  assertEquals(passed.slice(5), [0]);
});

Deno.test("A deadline that is far away does not keep the process alive once its call is over", async () => {
  const lib = (name: string) => JSON.stringify(import.meta.resolve(`../../lib/ttrpc/${name}`));
  const program = `
    import { Client } from ${lib("client.ts")};
    import { Server } from ${lib("server.ts")};
    const address = { transport: "unix", path: "\\0ttrpc-test-" + crypto.randomUUID() };
    const listener = Deno.listen(address);
    const [accepted, conn] = await Promise.all([listener.accept(), Deno.connect(address)]);
    const server = new Server(new Map([["S", new Map([["M", async () => await new Uint8Array(0)]])]]));
    server.serveConnection(accepted);
    const client = new Client(conn);
    await client.call("S", "M", new Uint8Array(0), { timeoutMs: 3_600_000 });
    client.close();
    await server.close();
    listener.close();
    console.log("over");`;
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--config", new URL("../../deno.json", import.meta.url).pathname, program],
    signal: AbortSignal.timeout(60_000), // or else the test would last an hour
  }).output();
  assertEquals([text(stdout), text(stderr)], ["over\n", ""]);
});

Deno.test("No AbortController is made unless a handler asks for the signal", async () => {
  const original = globalThis.AbortController;
  let made = 0;
  globalThis.AbortController = class extends original {
    constructor() {
      super();
      made++;
    }
  };
  try {
    await using fixture = new Fixture({
      Plain: async () => await new Uint8Array(1),
      Signal: async (_, call) => await new Uint8Array(call.signal === call.signal && !call.signal.aborted ? 1 : 0),
    });
    const { conn } = await fixture.connect();
    using client = new Client(conn);
    await client.call(SERVICE, "Plain", bytes(""), { timeoutMs: 10_000 });
    assertEquals(made, 0);
    assertEquals((await client.call(SERVICE, "Signal", bytes(""))).length, 1);
    assertEquals(made, 1);
  } finally {
    globalThis.AbortController = original;
  }
});

// Speed

Deno.test("Replies given in one turn go out with one write, whether the handlers were asynchronous or not", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Echo: echo, Wait: gate.handler });
  const { peer, spy } = await fixture.peer();
  await peer.send(concat(...[1, 3, 5, 7, 9].map((stream) => encodeRequest(stream, "Echo", bytes("x")))));
  for (let i = 0; i < 5; i++) await peer.receiveResponse();
  assertEquals(spy.writes.length, 1);
  await peer.send(concat(...[1, 3, 5].map((stream) => encodeRequest(stream, "Wait", bytes(`${stream}`)))));
  await Promise.all(["1", "3", "5"].map((key) => gate.arrived(key)));
  for (const key of ["1", "3", "5"]) gate.finish(key);
  for (let i = 0; i < 3; i++) await peer.receiveResponse();
  assertEquals(spy.writes.length, 2);
});

Deno.test("Payloads are handed on without a copy", async () => {
  const buffers = new Set<ArrayBufferLike>();
  await using fixture = new Fixture({
    See: (payload) => {
      buffers.add(payload.buffer);
      return new Uint8Array(0);
    },
  });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  for (let i = 0; i < 5; i++) {
    await client.call(SERVICE, "See", bytes("payload"));
  }
  assertEquals(buffers.size, 1);
});

// Peers that go away, or do not read

Deno.test("A peer that has shut down its writing side still gets its answers, then end of file", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Echo: echo, Wait: gate.handler });
  const { peer, served } = await fixture.peer();
  await peer.send(concat(encodeRequest(1, "Wait", bytes("a")), encodeRequest(3, "Echo", bytes("b"))));
  await (peer.conn as Deno.UnixConn).closeWrite();
  assertEquals((await peer.receiveResponse()).stream, 3);
  await letServerWork(fixture);
  gate.finish("a");
  assertEquals((await peer.receiveResponse()).stream, 1);
  assertEquals(await peer.receive(), undefined);
  await served;
});

Deno.test("A half-closed peer with more replies than its socket holds gets them all", async () => {
  await using fixture = new Fixture({ Give: () => new Uint8Array(MIB) });
  const { peer, served } = await fixture.peer();
  await peer.send(concat(...Array.from({ length: 6 }, (_, i) => encodeRequest(2 * i + 1, "Give"))));
  await (peer.conn as Deno.UnixConn).closeWrite();
  for (let i = 0; i < 6; i++) {
    assertEquals((await peer.receiveResponse()).payload.length, MIB);
  }
  assertEquals(await peer.receive(), undefined);
  await served;
});

Deno.test("A half-closed peer's deadline is still kept", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler });
  const { peer, served } = await fixture.peer();
  await peer.send(encodeRequest(1, "Wait", bytes("a"), 20));
  await (peer.conn as Deno.UnixConn).closeWrite();
  assertEquals((await peer.receiveResponse()).code, Code.DEADLINE_EXCEEDED);
  assertEquals(await peer.receive(), undefined);
  await served;
  gate.finish("a");
});

Deno.test("When the peer closes, serving ends at once and calls in flight are aborted with CANCELED", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler });
  const { peer, served } = await fixture.peer();
  await peer.send(encodeRequest(1, "Wait", bytes("a")));
  const call = await gate.arrived("a");
  assertEquals(call.signal.aborted, false);
  assertEquals([...fixture.server.inFlight], [call]);
  peer.conn.close();
  await served;
  assertEquals(call.signal.reason.code, Code.CANCELED);
  assertEquals([...fixture.server.inFlight], [call], "the handler has not ended");
  gate.fail("a", new Error("too late"));
  await fixture.server.shutdown();
  assertEquals([...fixture.server.inFlight], []);
  assertEquals(fixture.errors.map(({ call }) => call?.method), ["Wait"]);
});

Deno.test("A peer that closes inside a frame, or with replies unread, ends its connection alone", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const cut = await fixture.peer();
  await cut.peer.send(encodeRequest(1, "Echo", bytes("abc")).subarray(0, 20));
  cut.peer.conn.close();
  await cut.served;
  const unread = await fixture.peer();
  await unread.peer.send(encodeRequest(1, "Echo", new Uint8Array(1000)));
  await letServerWork(fixture);
  unread.peer.conn.close();
  await unread.served;
  await letServerWork(fixture);
  assertEquals(fixture.errors, []);
});

Deno.test("An I/O error that is no disconnect is reported and ends the connection", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const error = new Error("disk on fire");
  let closed = false;
  const conn = {
    read: () => Promise.reject(error),
    close: () => closed = true,
  } as unknown as Deno.Conn;
  await fixture.server.serveConnection(conn);
  assert(closed);
  assertEquals(fixture.errors, [{ error, call: undefined }]);
});

Deno.test("A peer that does not read its replies is served no further, others are, and it gets all once it reads", async () => {
  let served = 0;
  await using fixture = new Fixture({
    Give: () => {
      served++;
      return new Uint8Array(MIB);
    },
    Echo: echo,
  });
  const { peer } = await fixture.peer();
  const count = 60;
  // One batch: all of it is in the server's buffer, so only the bound keeps the server from answering it.
  await peer.send(concat(...Array.from({ length: count }, (_, i) => encodeRequest(2 * i + 1, "Give"))));
  await letServerWork(fixture);
  const bound = MAX_UNSENT / MIB + 2;
  assert(served > 0 && served <= bound, `${served} replies of 1 MiB were made for a peer that takes none`);
  for (let i = 0; i < count; i++) {
    const response = await peer.receiveResponse();
    assertEquals([response.stream, response.payload.length], [2 * i + 1, MIB]);
  }
  assertEquals(served, count);
});

Deno.test("A peer that floods the server does not starve another", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { peer } = await fixture.peer();
  const batch = concat(...Array.from({ length: 500 }, (_, i) => encodeRequest(2 * i + 1, "Echo")));
  let flooding = true;
  const flood = (async () => {
    while (flooding) await peer.send(batch);
  })();
  const drain = (async () => {
    const buffer = new Uint8Array(65536);
    while (await peer.conn.read(buffer) !== null);
  })();
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  for (let i = 0; i < 50; i++) await client.call(SERVICE, "Echo", bytes("x"));
  flooding = false;
  await flood;
  await (peer.conn as Deno.UnixConn).closeWrite();
  await drain;
});

// Shutdown

Deno.test("shutdown reads no more, waits for calls in flight, sends their replies and closes", async () => {
  const gate = new Gate();
  await using other = new Fixture({ Echo: echo });
  let late = 0;
  await using fixture = new Fixture({
    Wait: gate.handler,
    Echo: (payload) => {
      late++;
      return payload;
    },
  });
  const { peer, served } = await fixture.peer();
  await peer.send(encodeRequest(1, "Wait", bytes("a")));
  await gate.arrived("a");
  let over = false;
  const shutdown = fixture.server.shutdown().then(() => over = true);
  await peer.send(encodeRequest(3, "Echo", bytes("too late")));
  await letServerWork(other);
  assertEquals([over, late], [false, 0]);
  gate.finish("a");
  const response = await peer.receiveResponse();
  assertEquals([response.stream, text(response.payload)], [1, "done a"]);
  await shutdown;
  await served;
  const rest = await peer.receive().catch((error) => error);
  assert(rest === undefined || rest instanceof Deno.errors.ConnectionReset);
});

Deno.test("shutdown with doNotAwait leaves those calls and the connections, close ends them", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler, Work: gate.handler });
  const { peer, served } = await fixture.peer();
  await peer.send(concat(
    encodeRequest(1, "Wait", bytes("waiter")),
    encodeRequest(3, "Work", bytes("work")),
    encodeRequest(5, "Wait", bytes("forever")),
  ));
  const forever = await gate.arrived("forever");
  const shutdown = fixture.server.shutdown({
    doNotAwait: (call) => call.method === "Wait",
  });
  gate.finish("work");
  await shutdown;
  assertEquals((await peer.receiveResponse()).stream, 3);
  assertEquals([...fixture.server.inFlight].map((call) => call.method), [
    "Wait",
    "Wait",
  ]);
  gate.finish("waiter");
  const response = await peer.receiveResponse();
  assertEquals([response.stream, text(response.payload)], [1, "done waiter"]);
  const closed = fixture.server.close();
  assertEquals(await peer.receive(), undefined);
  await Promise.all([closed, served]);
  assertEquals(forever.signal.reason.code, Code.CANCELED);
  gate.finish("forever");
});

Deno.test("close brings out replies that were given just before", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler });
  const { peer } = await fixture.peer();
  await peer.send(encodeRequest(1, "Wait", bytes("a")));
  await gate.arrived("a");
  const ended = fixture.server.shutdown({ doNotAwait: () => true });
  gate.finish("a", new Uint8Array(3 * MIB));
  await ended;
  const closed = fixture.server.close();
  assertEquals((await peer.receiveResponse()).payload.length, 3 * MIB);
  assertEquals(await peer.receive(), undefined);
  await closed;
});

Deno.test("A peer that does not read holds up close no longer than flushTimeoutMs", async () => {
  await using fixture = new Fixture({
    Give: () => new Uint8Array(4 * MIB - 100),
    Echo: echo,
  }, { flushTimeoutMs: 20 });
  const { peer, served } = await fixture.peer();
  await peer.send(encodeRequest(1, "Give"));
  await letServerWork(fixture);
  await fixture.server.shutdown();
  await served;
});

Deno.test("A connection that comes after shutdown is closed at once", async () => {
  await using fixture = new Fixture({ Echo: echo });
  await fixture.server.shutdown();
  const { peer, served } = await fixture.peer();
  await served;
  assertEquals(await peer.receive(), undefined);
});

Deno.test("inFlight lists the calls whose handlers run, with their age", async () => {
  const gate = new Gate();
  await using fixture = new Fixture({ Wait: gate.handler });
  const { peer } = await fixture.peer();
  const before = performance.now();
  await peer.send(encodeRequest(1, "Wait", bytes("a")));
  await gate.arrived("a");
  const [call] = [...fixture.server.inFlight];
  assertEquals([call?.service, call?.method], [SERVICE, "Wait"]);
  assert(call!.startedAt >= before && call!.startedAt <= performance.now());
  gate.finish("a");
  await peer.receiveResponse();
  assertEquals([...fixture.server.inFlight], []);
});

// Client

/** A client and the raw peer that plays its server. */
async function clientAndPeer(): Promise<{ client: Client; peer: Peer }> {
  const [conn, other] = await connectPair();
  return { client: new Client(conn), peer: new Peer(other) };
}

function encodeResponse(stream: number, response: ttrpc.Response.$Properties): Uint8Array {
  return encodeFrame(stream, ttrpc.Response.encode(response).finish(), 2);
}

Deno.test("The client numbers its streams 1, 3, 5 and tells the server of the timeout", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = client;
  using __ = peer.conn;
  const calls = [
    client.call("s", "a", bytes("p")),
    client.call("s", "b", bytes(""), { timeoutMs: 1500 }),
    client.call("s", "c", bytes("")),
  ];
  for (const [i, method] of ["a", "b", "c"].entries()) {
    const frame = await peer.receive();
    assertEquals([frame?.stream, frame?.type, frame?.flags], [2 * i + 1, 1, 0]);
    const request = ttrpc.Request.decode(frame!.payload);
    assertEquals([request.service, request.method], ["s", method]);
    assertEquals(request.timeoutNano, method === "b" ? 1.5e9 : 0);
  }
  // Backwards, and with and without a status, as servers do.
  await peer.send(encodeResponse(5, { status: { code: 0 }, payload: bytes("third") }));
  await peer.send(encodeResponse(3, { payload: bytes("second") }));
  await peer.send(encodeResponse(1, {}));
  assertEquals((await Promise.all(calls)).map(text), ["", "second", "third"]);
});

Deno.test("The client's payloads are its caller's: overwriting one changes nothing", async () => {
  await using fixture = new Fixture({ Echo: echo });
  const { conn } = await fixture.connect();
  using client = new Client(conn);
  const payload = bytes("first");
  const call = client.call(SERVICE, "Echo", payload);
  payload.fill(0);
  const first = await call;
  await client.call(SERVICE, "Echo", bytes("other"));
  assertEquals(text(first), "first");
});

Deno.test("A call of the client that times out is DEADLINE_EXCEEDED, and its late answer harms no other call", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = client;
  using __ = peer.conn;
  await assertStatus(client.call("s", "m", bytes(""), { timeoutMs: 5 }), Code.DEADLINE_EXCEEDED, "s/m");
  await assertStatus(client.call("s", "m", bytes(""), { timeoutMs: 0 }), Code.DEADLINE_EXCEEDED, "s/m");
  const next = client.call("s", "m", bytes(""), { timeoutMs: 60_000 });
  await peer.send(concat(encodeResponse(1, { payload: bytes("late") }), encodeResponse(3, { payload: bytes("next") })));
  assertEquals(text(await next), "next");
});

Deno.test("A call of the client whose signal aborts is CANCELED", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = client;
  using __ = peer.conn;
  const controller = new AbortController();
  const call = client.call("s", "m", bytes(""), { signal: controller.signal });
  controller.abort("enough");
  const error = await assertStatus(call, Code.CANCELED, "s/m");
  assertEquals(error.cause, "enough");
  await assertStatus(client.call("s", "m", bytes(""), { signal: controller.signal }), Code.CANCELED);
});

Deno.test("When the server closes, calls of the client are UNAVAILABLE and closed resolves", async () => {
  const { client, peer } = await clientAndPeer();
  const calls = [
    client.call("s", "a", bytes("")),
    client.call("s", "b", bytes(""), { timeoutMs: 60_000 }),
  ];
  peer.conn.close();
  for (const call of calls) {
    await assertStatus(call, Code.UNAVAILABLE, "the server closed the connection");
  }
  await client.closed;
  await assertStatus(client.call("s", "c", bytes("")), Code.UNAVAILABLE, "s/c");
  client.close();
});

Deno.test("close of the client makes its calls UNAVAILABLE and the server see end of file", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = peer.conn;
  const call = client.call("s", "m", bytes(""));
  client.close();
  client.close();
  await assertStatus(call, Code.UNAVAILABLE, "the client closed the connection");
  await client.closed;
  assertEquals(await peer.receive(), undefined);
});

Deno.test("The client refuses to send a request over 4 MiB, and to take an answer over 4 MiB", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = client;
  using __ = peer.conn;
  await assertStatus(client.call("s", "m", new Uint8Array(MAX_PAYLOAD)), Code.RESOURCE_EXHAUSTED, "s/m");
  const call = client.call("s", "m", bytes(""));
  await peer.receive();
  const refused = assertStatus(call, Code.RESOURCE_EXHAUSTED, `${MAX_PAYLOAD + 1} bytes`);
  await peer.send(encodeFrame(1, new Uint8Array(MAX_PAYLOAD + 1), 2));
  await refused;
  const next = client.call("s", "m", bytes(""));
  await peer.send(encodeResponse(3, { payload: bytes("ok") }));
  assertEquals(text(await next), "ok");
});

Deno.test("The client queues only so much for a server that does not read", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = peer.conn;
  const calls = Array.from({ length: 4 }, () => client.call("s", "m", new Uint8Array(3 * MIB)));
  const codes = calls.map((call) => call.catch((error) => error.code));
  assertEquals(await Promise.race([codes[2], codes[3]]), Code.RESOURCE_EXHAUSTED);
  client.close();
  assertEquals(await Promise.all(codes), [14, 14, 8, 8]);
});

Deno.test("An answer that does not parse is INTERNAL, an unknown code UNKNOWN, another frame type ignored", async () => {
  const { client, peer } = await clientAndPeer();
  using _ = client;
  using __ = peer.conn;
  const bad = client.call("s", "m", bytes(""));
  await Promise.all([
    assertStatus(bad, Code.INTERNAL, "s/m"),
    peer.send(encodeFrame(1, new Uint8Array([0xff, 0xff]), 2)),
  ]);
  const odd = client.call("s", "m", bytes(""));
  await Promise.all([
    assertStatus(odd, Code.UNKNOWN, "strange"),
    peer.send(concat(
      encodeFrame(3, bytes("data"), 3),
      encodeResponse(3, { status: { code: 99, message: "strange" } }),
    )),
  ]);
});

Deno.test("The codes are gRPC's", () => {
  assertEquals(Object.values(Code), Array.from({ length: 17 }, (_, i) => i));
  assertEquals([
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.UNAVAILABLE,
  ], [5, 9, 12, 14]);
  const cause = new Error("why");
  const error = new StatusError(Code.ABORTED, "what", { cause });
  assertEquals([error.name, error.code, error.message, error.cause], [
    "StatusError",
    10,
    "what",
    cause,
  ]);
});
