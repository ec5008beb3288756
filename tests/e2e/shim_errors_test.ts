/** Bad input gets an answer, and the shim and its container go on. */

import { assert, assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { Code } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { modes } from "./modes.ts";
import { isAlive } from "./proc.ts";
import { assertStatus, SERVICE, type Shim, Status, withShim } from "./shim.ts";
import { PATIENCE_MS } from "./until.ts";

import v1 = containerd.runtime.linux.shim.v1;

modes(["hosted"], "requests are answered by the same code in each mode");

const EMPTY = new Uint8Array();
/** A field of a type that there is not, and the end in the middle of it. */
const GARBAGE = new Uint8Array([0x0f, 0xff, 0xff]);

/** Runs `test` on a shim whose container runs, and fails unless both are well afterwards. */
function withRunning(test: (shim: Shim, client: Client) => Promise<void>): Promise<void> {
  return withShim({}, async (shim) => {
    const init = await shim.run();
    using client = await shim.connect();
    await test(shim, client);
    assertEquals((await shim.state()).status, Status.RUNNING);
    assert(isAlive(init));
  });
}

Deno.test("an unknown service or method answers UNIMPLEMENTED", () =>
  withRunning(async (_, client) => {
    for (const [service, method] of [[SERVICE, "NoSuch"], ["no.such.Service", "State"]] as const) {
      await assertStatus(client.call(service, method, EMPTY, { timeoutMs: PATIENCE_MS }), Code.UNIMPLEMENTED, /./);
    }
  }));

onlyOurs(
  "it answers UNKNOWN",
  "a request that does not parse answers INVALID_ARGUMENT",
  () =>
    withRunning(async (_, client) => {
      for (const method of ["State", "Create", "Start", "Kill", "Exec", "Wait", "ListPids"]) {
        await assertStatus(
          client.call(SERVICE, method, GARBAGE, { timeoutMs: PATIENCE_MS }),
          Code.INVALID_ARGUMENT,
          /./,
        );
      }
    }),
);

onlyOurs("it dies", "an Exec without a spec is an error", () =>
  withRunning(async (_, client) => {
    const request = v1.ExecProcessRequest.encode({ id: "other" }).finish();
    await assertStatus(
      client.call(SERVICE, "Exec", request, { timeoutMs: PATIENCE_MS }),
      Code.INVALID_ARGUMENT,
      /spec/,
    );
  }));

Deno.test(
  "an Exec with an id that is in use answers ALREADY_EXISTS",
  () =>
    withRunning(async (shim) => {
      await shim.exec("other", ["true"]);
      await assertStatus(shim.exec("other", ["true"]), Code.ALREADY_EXISTS, /other/);
      await assertStatus(shim.exec(shim.id, ["true"]), Code.ALREADY_EXISTS, /./);
    }),
);

Deno.test("an Exec without a container answers FAILED_PRECONDITION", () =>
  withShim({}, async (shim) => {
    await assertStatus(shim.exec("other", ["true"]), Code.FAILED_PRECONDITION, "container must be created");
  }));

onlyOurs(
  "it says so in another way",
  "an exec of a command that does not exist fails with runc's message, and can be waited for",
  () =>
    withRunning(async (shim) => {
      await shim.exec("other", ["no-such-command"]);
      const message = /^OCI runtime exec failed: .*exec: "no-such-command": executable file not found in \$PATH/;
      await assertStatus(shim.startProcess("other"), Code.UNKNOWN, message);
      assertEquals((await shim.state("other")).status, Status.STOPPED);
      assert((await shim.wait("other")).status !== 0);
      await shim.deleteProcess("other");
    }),
);

onlyOurs(
  "it says so in another way",
  "init is not deleted as an exec, and an exec not while it runs",
  () =>
    withRunning(async (shim) => {
      await assertStatus(shim.deleteProcess(shim.id), Code.INVALID_ARGUMENT, /./);
      await shim.exec("other", ["sleep", "1000"]);
      await shim.startProcess("other");
      await assertStatus(shim.deleteProcess("other"), Code.FAILED_PRECONDITION, /running/);
    }),
);
