/** What the fuzzer has found, each by itself. */

import { assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { openFiles, withMachine } from "./host.ts";
import { modes } from "./modes.ts";
import { assertStatus, SERVICE, type Shim, withShim } from "./shim.ts";
import { PATIENCE_MS, until } from "./until.ts";
import { encodeFrame, RawConnection, REQUEST } from "./wire.ts";

import v1 = containerd.runtime.linux.shim.v1;

modes(["hosted"], "requests are answered by the same code in each mode");

onlyOurs(
  "it closes the connection",
  "a client that sends nothing more has all answers, also those for which there was no room",
  () =>
    withShim({}, async (shim) => {
      using connection = await RawConnection.open(shim.socketPath);
      // Each answer says the name: more than a socket takes.
      const payload = ttrpc.Request.encode({ service: "x".repeat(1 << 20), method: "x" }).finish();
      const streams = [1, 3, 5, 7];
      for (const stream of streams) await connection.write(encodeFrame({ stream, type: REQUEST, payload }));
      await connection.endSending();
      for (const expected of streams) {
        const { stream, response } = await connection.response();
        assertEquals([stream, response.status?.code], [expected, Code.UNIMPLEMENTED]);
      }
      await connection.end();
    }),
);

/** How many clients go away before their answer. */
const CLIENTS = 20;

onlyOurs(
  "it closes the connection when it has read its end",
  "of a client that sends nothing more, and goes away before its answer, nothing stays open",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async (shim) => {
        await shim.run();
        const pids = [shim.pid, ...machine.hosts().map(({ pid }) => pid)];
        const sockets = () => pids.reduce((sum, pid) => sum + (openFiles(pid)["socket"] ?? 0), 0);
        const payload = v1.WaitRequest.encode({ id: shim.id }).finish();
        const before = sockets();
        const connections: RawConnection[] = [];
        for (let i = 0; i < CLIENTS; i++) {
          const connection = await RawConnection.open(shim.socketPath);
          await connection.request(SERVICE, "Wait", { payload });
          await connection.request(SERVICE, "ShimInfo", { stream: 3 });
          await connection.endSending();
          assertEquals((await connection.response()).stream, 3);
          connections.push(connection);
        }
        for (const each of connections) each[Symbol.dispose]();
        // Deno makes some for itself half a second after its start.
        await until("all are closed", () => sockets() < before + CLIENTS / 2);
        await shim.endContainer();
      })
    ),
);

/** Registers a process of the container with these of its request, and gives the code of the answer. */
async function execCode(shim: Shim, more: v1.IExecProcessRequest): Promise<Code> {
  const value = new TextEncoder().encode('{"args":["/bin/true"],"cwd":"/","user":{"uid":0,"gid":0}}');
  const request = v1.ExecProcessRequest.encode({ id: "e", spec: { value }, ...more }).finish();
  try {
    await shim.call("Exec", request, { decode: () => {} });
    return Code.OK;
  } catch (error) {
    if (error instanceof StatusError) return error.code;
    throw error;
  }
}

onlyOurs(
  "it takes any",
  "an exec's id that makes no file's name is refused, the longest that does is none",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const longest = "x".repeat(242);
      for (const id of [`${longest}x`, "x".repeat(1 << 20), "..", "a/b", "a\0", "-a", ".a", "é"]) {
        assertEquals(await execCode(shim, { id }), Code.INVALID_ARGUMENT, id.slice(0, 300));
      }
      assertEquals(await execCode(shim, { id: longest }), Code.OK);
      await shim.startProcess(longest);
      assertEquals((await shim.wait(longest)).status, 0);
      await shim.deleteProcess(longest);
      await shim.endContainer();
    }),
);

onlyOurs("it keeps them", "what can be no path of an exec's streams is refused", () =>
  withShim({}, async (shim) => {
    await shim.run();
    for (const path of ["/tmp/a\0", "x".repeat(4097), `file:///${"x".repeat(200_000)}`]) {
      for (const name of ["stdin", "stdout", "stderr"]) {
        assertEquals(await execCode(shim, { [name]: path }), Code.INVALID_ARGUMENT);
      }
    }
    await assertStatus(shim.state("e"), Code.NOT_FOUND, /./);
    await shim.endContainer();
  }));

onlyOurs(
  "it refuses some only",
  "JSON that is nested deeper than any specification is refused",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      for (const depth of [101, 1000, 100_000]) {
        const value = new TextEncoder().encode(`{"a":${"[".repeat(depth)}${"]".repeat(depth)}}`);
        assertEquals(await execCode(shim, { spec: { value } }), Code.INVALID_ARGUMENT, `${depth}`);
        const request = v1.UpdateTaskRequest.encode({ resources: { value } }).finish();
        await assertStatus(
          shim.call("Update", request, { decode: () => {} }, PATIENCE_MS),
          Code.INVALID_ARGUMENT,
          "the resources is nested more than 100 times",
        );
      }
      await shim.endContainer();
    }),
);

onlyOurs(
  "it writes over it, and removes it",
  "an exec that is called shim leaves containerd's shim.pid alone",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const path = `${shim.bundle}/shim.pid`;
      await Deno.writeTextFile(path, `${shim.pid}`);
      await shim.exec("shim", ["true"]);
      await shim.startProcess("shim");
      assertEquals(await Deno.readTextFile(path), `${shim.pid}`);
      await shim.wait("shim");
      await shim.deleteProcess("shim");
      assertEquals(await Deno.readTextFile(path), `${shim.pid}`);
      await shim.endContainer();
    }),
);
