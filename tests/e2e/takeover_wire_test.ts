/** What has come from a client, or is to go to containerd, when a host dies. */

import { assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { Code } from "../../lib/ttrpc/status.ts";
import { assertOpenFiles, endContainer, onlyHosted, openFiles, withHosted } from "./host.ts";
import { modes } from "./modes.ts";
import { assertStatus, seconds, SERVICE, type Shim, Status } from "./shim.ts";
import { later, replaceHost, untilReaped, withoutHost } from "./takeover.ts";
import { until } from "./until.ts";
import { encodeFrame, RawConnection, REQUEST, RESPONSE } from "./wire.ts";

import v1 = containerd.runtime.linux.shim.v1;

modes(["hosted"], "it is about hosts that take over");

const MIB = 1 << 20;
/** What a payload may have, in bytes. */
const LIMIT = 4 * MIB;

/** A request as bytes, with so many more that mean nothing. */
function requestOf(stream: number, method: string, payload: Uint8Array = new Uint8Array(), padding = 0): Uint8Array {
  const metadata = padding > 0 ? [{ key: "padding", value: "x".repeat(padding) }] : [];
  const request = ttrpc.Request.encode({ service: SERVICE, method, payload, metadata }).finish();
  return encodeFrame({ stream, type: REQUEST, payload: request });
}

/** Fails unless the next answer is the shim's pid, on this stream. */
async function assertTells(connection: RawConnection, shim: Shim, stream: number): Promise<void> {
  const answer = await connection.response();
  const { shimPid } = v1.ShimInfoResponse.decode(answer.response.payload);
  assertEquals([answer.stream, answer.response.status?.code ?? 0, shimPid], [stream, 0, shim.pid]);
}

/** Fails unless a connection is served, and no other answer is on its way. */
async function assertServed(connection: RawConnection, shim: Shim, stream = 99): Promise<void> {
  await connection.request(SERVICE, "ShimInfo", { stream });
  await assertTells(connection, shim, stream);
}

/** Waits until the shim has read what has been sent to it. */
async function untilRead(shim: Shim): Promise<void> {
  for (let i = 0; i < 3; i++) await shim.shimPid();
}

/** Waits until a connection that is written to, and that nobody reads, takes nothing more. */
async function untilFull(connection: RawConnection): Promise<void> {
  let before = -1;
  await until("the socket is full", () => connection.written > 0 && before === (before = connection.written));
}

/** Where a request of some size is cut: each in places of its own, in each of which a host dies. */
const CUTS: readonly (readonly [name: string, padding: number, cuts: (size: number) => number[][]])[] = [
  ["some bytes", 0, (size) => [[1], [5], [10], [11], [size >> 1], [size - 1], [1, 9, 12, size - 1]]],
  ["a few KiB", 20_000, (size) => [[5], [9000], [size - 1], [1, 8192, 16_384]]],
  ["a MiB", MIB, (size) => [[5], [30_000], [70_000], [size >> 1], [size - 1], [9, 20_000, 70_000, 500_000, size - 1]]],
  ["nearly 4 MiB", LIMIT - 100, (size) => [[size >> 1], [size - 1], [1 << 16, 1 << 20, 3 << 20]]],
];

for (const [name, padding, cuts] of CUTS) {
  onlyHosted(
    `a request of ${name} that has come in parts, with a host's death between them, is answered`,
    () =>
      withHosted({}, async (shim, machine) => {
        const bytes = requestOf(7, "ShimInfo", undefined, padding);
        for (const places of cuts(bytes.length)) {
          using connection = await RawConnection.open(shim.socketPath);
          let sent = 0;
          for (const cut of places) {
            await connection.write(bytes.subarray(sent, cut));
            sent = cut;
            await untilRead(shim);
            await replaceHost(machine);
          }
          await connection.write(bytes.subarray(sent));
          await assertTells(connection, shim, 7);
          await assertServed(connection, shim);
        }
      }),
  );
}

onlyHosted(
  "requests that more than fill a socket all come, wherever it is full",
  () =>
    withHosted({}, async (shim, machine) => {
      const { pid } = machine.host();
      for (let padding = 40_000; padding < 70_000; padding += 2500) {
        using connection = await RawConnection.open(shim.socketPath);
        await assertServed(connection, shim);
        const streams = Array.from({ length: 10 }, (_, i) => 2 * i + 1);
        const requests = streams.map((stream) => requestOf(stream, "ShimInfo", undefined, padding));
        let writing;
        Deno.kill(pid, "SIGSTOP");
        try {
          writing = connection.write(new Uint8Array(requests.flatMap((each) => [...each])));
          await untilFull(connection);
        } finally {
          Deno.kill(pid, "SIGCONT");
        }
        await writing;
        for (const stream of streams) await assertTells(connection, shim, stream);
      }
    }),
);

onlyHosted(
  "a part of a request that comes while there is no host is not lost",
  () =>
    withHosted({}, async (shim, machine) => {
      const bytes = requestOf(7, "ShimInfo", undefined, 100_000);
      using connection = await RawConnection.open(shim.socketPath);
      await connection.write(bytes.subarray(0, 20_000));
      await untilRead(shim);
      await withoutHost(machine, [shim], () => connection.write(bytes.subarray(20_000, 90_000)));
      await untilRead(shim);
      await replaceHost(machine);
      await connection.write(bytes.subarray(90_000));
      await assertTells(connection, shim, 7);
      await assertServed(connection, shim);
    }),
);

onlyHosted(
  "a request that changes something, and has come in parts, is carried out once",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const process = { args: ["true"], cwd: "/", env: [`PADDING=${"x".repeat(MIB)}`], user: { uid: 0, gid: 0 } };
      const spec = { type_url: "spec", value: new TextEncoder().encode(JSON.stringify(process)) };
      const bytes = requestOf(1, "Exec", v1.ExecProcessRequest.encode({ id: "e", spec }).finish());
      using connection = await RawConnection.open(shim.socketPath);
      await connection.write(bytes.subarray(0, MIB >> 1));
      await untilRead(shim);
      await replaceHost(machine);
      await connection.write(bytes.subarray(MIB >> 1));
      const { stream, response } = await connection.response();
      assertEquals([stream, response.status?.code ?? 0], [1, 0]);
      // Otherwise it might be answered once more.
      await untilRead(shim);
      await replaceHost(machine);
      assertEquals((await shim.state("e")).status, Status.CREATED);
      await assertStatus(shim.exec("e", ["true"]), Code.ALREADY_EXISTS, "id e is in use");
      await shim.deleteProcess("e");
      await assertServed(connection, shim);
      await endContainer(shim);
    }),
);

/** How large the last of some requests is that come together, in bytes: what a buffer holds, and a socket, and more. */
const LAST = [0, 5000, 10_000, 100_000, MIB];

for (const padding of LAST) {
  onlyHosted(
    `of requests that come together, the last of them, with ${padding} bytes, in part, each is answered once`,
    () =>
      withHosted({}, async (shim, machine) => {
        await shim.run();
        using connection = await RawConnection.open(shim.socketPath);
        const wait = requestOf(1, "Wait", v1.WaitRequest.encode({ id: shim.id }).finish());
        const [first, second] = [requestOf(3, "ShimInfo"), requestOf(5, "ShimInfo", undefined, padding)];
        const rest = second.subarray(second.length >> 1);
        await connection.write(new Uint8Array([...wait, ...first, ...second.subarray(0, second.length >> 1)]));
        await assertTells(connection, shim, 3);
        await untilRead(shim);
        await replaceHost(machine);
        await connection.write(rest);
        await assertTells(connection, shim, 5);
        await assertServed(connection, shim);
        // Also what comes in one piece.
        await connection.write(
          new Uint8Array([...requestOf(7, "ShimInfo"), ...requestOf(9, "ShimInfo", undefined, padding)]),
        );
        for (const stream of [7, 9]) await assertTells(connection, shim, stream);
        await untilRead(shim);
        await replaceHost(machine);
        await assertServed(connection, shim);
        await shim.kill(9);
        const { stream, response } = await connection.response();
        assertEquals([stream, v1.WaitResponse.decode(response.payload).exitStatus], [1, 137]);
        await shim.delete();
      }),
  );
}

onlyHosted(
  "a client that sends nothing more is answered by the host that is there in the end, and let go",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      using connection = await RawConnection.open(shim.socketPath);
      await connection.request(SERVICE, "Wait", {
        stream: 1,
        payload: v1.WaitRequest.encode({ id: shim.id }).finish(),
      });
      await connection.endSending();
      await untilRead(shim);
      for (let i = 0; i < 3; i++) await replaceHost(machine);
      await shim.kill(9);
      const { stream, response } = await connection.response();
      assertEquals([stream, v1.WaitResponse.decode(response.payload).exitStatus], [1, 137]);
      await connection.end();
      await shim.delete();
    }),
);

onlyHosted(
  "a deadline that passes while there is no host is answered by the next",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      using connection = await RawConnection.open(shim.socketPath);
      const payload = v1.WaitRequest.encode({ id: shim.id }).finish();
      await connection.request(SERVICE, "Wait", { payload, timeoutMs: 300 });
      await untilRead(shim);
      const begun = performance.now();
      await withoutHost(machine, [shim], () => until("it has passed", () => performance.now() - begun > 400));
      const { stream, response } = await connection.response();
      assertEquals([stream, response.status?.code], [1, Code.DEADLINE_EXCEEDED]);
      await assertServed(connection, shim);
      await endContainer(shim);
    }),
);

/** Where the file of calls is, of those that a holder keeps, and what is where in it: lib/record/calls.ts. */
const CALLS = 8;
const CALLS_BEGIN = 8;
const CALL_HEADER = 48;
const CALL_TIME = 24;

/** Has the time of day, in ms, be later than when a shim's calls were noted, by so many. */
function setClock(shim: Shim, ms: number): void {
  const path = `/proc/${shim.pid}/fd/${CALLS}`;
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  for (let at = CALLS_BEGIN; at + CALL_HEADER <= bytes.length; at += CALL_HEADER + view.getUint32(at, true)) {
    view.setFloat64(at + CALL_TIME, view.getFloat64(at + CALL_TIME, true) - ms, true);
  }
  using file = Deno.openSync(path, { write: true });
  file.writeSync(bytes);
}

onlyHosted(
  "a deadline is as far away for the next host as for the one before, when the clock has been set meanwhile",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      using connection = await RawConnection.open(shim.socketPath);
      const payload = v1.WaitRequest.encode({ id: shim.id }).finish();
      await connection.request(SERVICE, "Wait", { payload, timeoutMs: 60_000 });
      await untilRead(shim);
      await withoutHost(machine, [shim], () => Promise.resolve(setClock(shim, 3_600_000)));
      await assertServed(connection, shim);
      await shim.kill(9);
      const { response } = await connection.response();
      assertEquals(v1.WaitResponse.decode(response.payload).exitStatus, 137);
      await shim.delete();
    }),
);

onlyHosted("what is too large to be taken is passed over by two hosts", () =>
  withHosted({}, async (shim, machine) => {
    using connection = await RawConnection.open(shim.socketPath);
    const bytes = encodeFrame({ stream: 1, type: REQUEST, payload: new Uint8Array(LIMIT + 1).fill(1) });
    await connection.write(bytes.subarray(0, 2 * MIB));
    await untilRead(shim);
    await replaceHost(machine);
    await connection.write(bytes.subarray(2 * MIB));
    const { stream, response } = await connection.response();
    assertEquals([stream, response.status?.code], [1, Code.RESOURCE_EXHAUSTED]);
    await assertServed(connection, shim);
  }));

onlyHosted("what is no request is passed over by two hosts", () =>
  withHosted({}, async (shim, machine) => {
    using connection = await RawConnection.open(shim.socketPath);
    const bytes = encodeFrame({ stream: 1, type: RESPONSE, payload: new Uint8Array(1000).fill(1) });
    await connection.write(bytes.subarray(0, 500));
    await untilRead(shim);
    await replaceHost(machine);
    await connection.write(bytes.subarray(500));
    await assertServed(connection, shim);
  }));

onlyHosted(
  "whoever connects and calls while there is no host is answered by the next",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const connections = await withoutHost(machine, [shim], async () => {
        const connections = await Promise.all(Array.from({ length: 5 }, () => RawConnection.open(shim.socketPath)));
        for (const each of connections) await each.request(SERVICE, "ShimInfo", { stream: 1 });
        return connections;
      });
      for (const each of connections) {
        await assertTells(each, shim, 1);
        await assertServed(each, shim);
        each[Symbol.dispose]();
      }
      await endContainer(shim);
    }),
);

/** How many connections there are, where they are to be many. */
const CONNECTIONS = 40;

onlyHosted(
  "connections that have been closed while there is no host are closed by the next",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      await replaceHost(machine);
      await shim.state();
      const [holder, host] = [openFiles(shim.pid), openFiles(machine.host().pid)];
      const connections = await Promise.all(
        Array.from({ length: CONNECTIONS }, () => RawConnection.open(shim.socketPath)),
      );
      const payload = v1.WaitRequest.encode({ id: shim.id }).finish();
      for (const each of connections) await each.request(SERVICE, "Wait", { stream: 1, payload });
      await untilRead(shim);
      await replaceHost(machine);
      await untilRead(shim);
      await withoutHost(machine, [shim], () => {
        for (const each of connections) each[Symbol.dispose]();
        return Promise.resolve();
      });
      await untilRead(shim);
      await assertOpenFiles(shim.pid, holder);
      await assertOpenFiles(machine.host().pid, host);
      await endContainer(shim);
    }),
);

onlyHosted("many clients that wait, many times each, are all answered", () =>
  withHosted({}, async (shim, machine) => {
    await shim.run();
    const connections = await Promise.all(
      Array.from({ length: CONNECTIONS }, () => RawConnection.open(shim.socketPath)),
    );
    const payload = v1.WaitRequest.encode({ id: shim.id }).finish();
    const streams = [1, 3, 5, 7, 9];
    for (const each of connections) {
      for (const stream of streams) await each.request(SERVICE, "Wait", { stream, payload });
    }
    await untilRead(shim);
    for (let i = 0; i < 3; i++) await replaceHost(machine);
    await shim.kill(9);
    for (const each of connections) {
      const answered: number[] = [];
      for (const _ of streams) {
        const { stream, response } = await each.response();
        assertEquals(v1.WaitResponse.decode(response.payload).exitStatus, 137);
        answered.push(stream);
      }
      assertEquals(answered.toSorted((a, b) => a - b), streams);
      await assertServed(each, shim);
      each[Symbol.dispose]();
    }
    await shim.delete();
  }));

onlyHosted(
  "an exit that containerd has not taken when a host dies is told by the next",
  () =>
    withHosted({ args: ["sh", "-c", "exit 7"] }, async (shim, machine) => {
      const release = shim.events.hold();
      const pid = await shim.run();
      const { at } = await shim.wait();
      // It has got there, and is not acknowledged.
      await shim.events.exit(shim.id);
      await replaceHost(machine);
      release();
      await until("it is published again", () => shim.events.published().length === 2);
      for (const { exit } of shim.events.published()) {
        const { id, exitStatus, exitedAt } = exit;
        assertEquals([id, exit.pid, exitStatus, seconds(exitedAt)], [shim.id, pid, 7, at]);
      }
      await shim.delete();
    }),
);

onlyHosted(
  "exits wait for a containerd that is away, from host to host",
  () =>
    withHosted({ args: ["sh", "-c", "sleep 1000"], events: "none" }, async (shim, machine) => {
      const init = await shim.run();
      const pids = new Map([[shim.id, init]]);
      for (const id of ["e1", "e2"]) {
        await shim.exec(id, ["sh", "-c", "sleep 1000"]);
        pids.set(id, await shim.startProcess(id));
      }
      const waiting = [...pids.keys()].map((id) => later(shim.wait(id)));
      await shim.kill(9, { id: "e1" });
      await waiting[1];
      await replaceHost(machine);
      await shim.kill(15, { id: "e2" });
      await waiting[2];
      await withoutHost(machine, [shim], async () => {
        Deno.kill(init, "SIGKILL");
        await untilReaped(init);
      });
      const exits = await Promise.all(waiting);
      assertEquals(exits.map(({ status }) => status), [137, 137, 143]);
      assertEquals(shim.events.published(), []);
      await replaceHost(machine);
      shim.events.serve();
      for (const [i, [id, pid]] of [...pids].entries()) {
        const { exit } = await shim.events.exit(id);
        assertEquals([exit.pid, exit.exitStatus, seconds(exit.exitedAt)], [pid, exits[i]!.status, exits[i]!.at]);
      }
      // In the order in which they have ended.
      assertEquals(shim.events.published().map(({ exit }) => exit.id), ["e1", "e2", shim.id]);
      await shim.deleteProcess("e1");
      await shim.deleteProcess("e2");
      await shim.delete();
    }),
);

onlyHosted(
  "an exit that containerd has taken is not told by the next host",
  () =>
    withHosted({ args: ["sh", "-c", "exit 7"] }, async (shim, machine) => {
      await shim.run();
      await shim.events.exit(shim.id);
      await untilRead(shim);
      for (let i = 0; i < 3; i++) {
        await replaceHost(machine);
        await untilRead(shim);
      }
      await shim.delete();
      assertEquals(shim.events.published().length, 1);
    }),
);
