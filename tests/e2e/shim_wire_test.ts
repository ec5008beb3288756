/** What the shim answers to frames that a well-behaved client does not send. */

import { assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { Code } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { modes } from "./modes.ts";
import { SERVICE, type Shim, withShim } from "./shim.ts";
import { RawConnection, REQUEST, RESPONSE } from "./wire.ts";

import v1 = containerd.runtime.linux.shim.v1;

modes(["hosted"], "requests are answered by the same code in each mode");

/** What a payload may have, in bytes. */
const LIMIT = 4 << 20;

/** Fails unless the next answer is to this stream and has this code. */
async function expectCode(connection: RawConnection, stream: number, code: Code): Promise<void> {
  const answer = await connection.response();
  assertEquals({ stream: answer.stream, code: answer.response.status?.code ?? 0 }, { stream, code });
}

/** Fails unless the connection is served. */
async function expectServed(connection: RawConnection, shim: Shim, stream = 99): Promise<void> {
  await connection.request(SERVICE, "ShimInfo", { stream });
  const { stream: answered, response } = await connection.response();
  assertEquals([answered, v1.ShimInfoResponse.decode(response.payload).shimPid], [stream, shim.pid]);
}

Deno.test("a payload over 4 MiB answers RESOURCE_EXHAUSTED on its stream, and the connection lives on", () =>
  withShim({}, async (shim) => {
    using connection = await RawConnection.open(shim.socketPath);
    await connection.send({ stream: 1, type: REQUEST, payload: new Uint8Array(LIMIT + 1) });
    await expectCode(connection, 1, Code.RESOURCE_EXHAUSTED);
    await expectServed(connection, shim);
  }));

Deno.test("an even stream id answers INVALID_ARGUMENT", () =>
  withShim({}, async (shim) => {
    using connection = await RawConnection.open(shim.socketPath);
    await connection.request(SERVICE, "ShimInfo", { stream: 2 });
    await expectCode(connection, 2, Code.INVALID_ARGUMENT);
    await expectServed(connection, shim);
  }));

Deno.test("a frame that is no request is ignored", () =>
  withShim({}, async (shim) => {
    using connection = await RawConnection.open(shim.socketPath);
    await connection.request(SERVICE, "ShimInfo", { stream: 1, type: RESPONSE });
    await connection.request(SERVICE, "ShimInfo", { stream: 3, type: 77 });
    await expectServed(connection, shim);
  }));

Deno.test(
  "a payload that is no request answers INVALID_ARGUMENT",
  () =>
    withShim({}, async (shim) => {
      using connection = await RawConnection.open(shim.socketPath);
      await connection.send({ stream: 1, type: REQUEST, payload: new Uint8Array([0x0f, 0xff, 0xff]) });
      await expectCode(connection, 1, Code.INVALID_ARGUMENT);
      await expectServed(connection, shim);
    }),
);

onlyOurs(
  "its Wait does not end before the process",
  "a call that takes longer than its timeout answers DEADLINE_EXCEEDED",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      using connection = await RawConnection.open(shim.socketPath);
      const payload = v1.WaitRequest.encode({ id: shim.id }).finish();
      await connection.request(SERVICE, "Wait", { payload, timeoutMs: 50 });
      await expectCode(connection, 1, Code.DEADLINE_EXCEEDED);
      await expectServed(connection, shim);
    }),
);
