/** Kill: which signal reaches which process. */

import { assert, assertEquals } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { isAlive, processOf } from "./proc.ts";
import { assertStatus, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

/** signal(7) */
const SIGUSR2 = 12, SIGTERM = 15, SIGKILL = 9;

Deno.test("Kill with an empty id is for init, and the signal that ends it is in its status", () =>
  // The first process of a pid namespace is killed by a signal that it does not handle only if that is SIGKILL.
  withShim({ namespaces: ["mount"] }, async (shim) => {
    await shim.run();
    await shim.kill(SIGTERM, { id: "" });
    assertEquals((await shim.wait()).status, 128 + SIGTERM);
    assertEquals((await shim.state()).status, Status.STOPPED);
    await shim.delete();
  }));

Deno.test("Kill reaches init alone, which may handle the signal", () =>
  withShim({
    args: ["sh", "-c", "trap 'exit 33' USR2; mkfifo /tmp/ready; : >/tmp/ready; while :; do sleep 0.01; done"],
  }, async (shim) => {
    await shim.run();
    await until("init handles the signal", () => Deno.statSync(`${shim.rootfs}/tmp/ready`).isFifo);
    await Deno.readTextFile(`${shim.rootfs}/tmp/ready`);
    await shim.kill(SIGUSR2);
    assertEquals((await shim.wait()).status, 33);
    await shim.delete();
  }));

Deno.test("Kill with all reaches every process of the container", () =>
  withShim({ namespaces: ["mount"] }, async (shim) => {
    const init = await shim.run();
    await shim.exec("other", ["sleep", "1000"]);
    const other = await shim.startProcess("other");
    await shim.kill(SIGTERM, { all: true });
    assertEquals((await shim.wait()).status, 128 + SIGTERM);
    assertEquals((await shim.wait("other")).status, 128 + SIGTERM);
    for (const pid of [init, other]) assertEquals(processOf(pid), undefined, "it has not been reaped");
    await shim.deleteProcess("other");
    await shim.delete();
  }));

Deno.test("Kill of an exec reaches it, and not init", () =>
  withShim({}, async (shim) => {
    const init = await shim.run();
    await shim.exec("other", ["sleep", "1000"]);
    await shim.startProcess("other");
    await shim.kill(SIGKILL, { id: "other" });
    assertEquals((await shim.wait("other")).status, 128 + SIGKILL);
    assert(isAlive(init));
    assertEquals((await shim.state()).status, Status.RUNNING);
  }));

Deno.test("Kill of a process that has finished answers NOT_FOUND", () =>
  withShim({}, async (shim) => {
    await shim.run();
    await shim.exec("other", ["true"]);
    await shim.startProcess("other");
    await shim.wait("other");
    await assertStatus(shim.kill(SIGKILL, { id: "other" }), Code.NOT_FOUND, "process already finished");
    await shim.kill(SIGKILL);
    await shim.wait();
    await assertStatus(shim.kill(SIGKILL), Code.NOT_FOUND, "process already finished");
    await shim.delete();
  }));

onlyOurs(
  "it answers another code",
  "Kill of an exec that has not started answers FAILED_PRECONDITION",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      await shim.exec("other", ["true"]);
      await assertStatus(shim.kill(SIGKILL, { id: "other" }), Code.FAILED_PRECONDITION, /./);
    }),
);

Deno.test("when init ends, what shares no pid namespace with it is killed", () =>
  withShim({ args: ["sh", "-c", "sleep 1000 & exit 5"], namespaces: ["mount"] }, async (shim) => {
    await shim.create();
    await shim.startProcess();
    assertEquals((await shim.wait()).status, 5);
    await until("nothing of the container is alive", () => shim.containerProcesses().filter(isAlive).length === 0);
    await shim.delete();
  }));
