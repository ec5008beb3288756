/** The life of a container, call by call. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { expectPidsKnown, INIT_WITH_ONE_CHILD } from "./behaviour.ts";
import { IS_OURS } from "./env.ts";
import { modes } from "./modes.ts";
import { isAlive, processOf } from "./proc.ts";
import { assertStatus, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "the main job");

/** Fails unless a time, in seconds since the epoch, is between two moments of ours, in ms. */
function assertBetween(before: number, at: number, after: number): void {
  assert(before <= at * 1000 + 1 && at * 1000 <= after + 1, `${at} is not between ${before} and ${after}`);
}

Deno.test("a container is created, runs, stops and is deleted, and State says so", () =>
  withShim({ args: ["sh", "-c", "exit 7"] }, async (shim) => {
    const pid = await shim.create();
    assert(isAlive(pid));
    assertEquals(processOf(pid)?.ppid, shim.pid);
    const created = await shim.state();
    assertEquals([created.status, created.exitStatus], [Status.CREATED, 0]);
    assertEquals([created.id, created.bundle, created.pid], [shim.id, shim.bundle, pid]);
    assertEquals([created.stdin, created.stdout, created.stderr, created.terminal], ["", "", "", false]);
    // Go's zero time is long before 1970.
    assert(!created.exitedAt || created.exitedAt.seconds! <= 0, "a process that has not run has exited");

    const before = Date.now();
    assertEquals(await shim.startProcess(), pid);
    const exit = await shim.wait();
    const after = Date.now();
    assertEquals(exit.status, 7);
    assertBetween(before, exit.at, after);
    const stopped = await shim.state();
    assertEquals([stopped.status, stopped.exitStatus, stopped.pid], [Status.STOPPED, 7, pid]);
    assertEquals(processOf(pid), undefined, "it has not been reaped");

    assertEquals(await shim.delete(), { pid, ...exit });
  }));

Deno.test("a container that has been created and not started is deleted", () =>
  withShim({}, async (shim) => {
    const pid = await shim.create();
    assertEquals((await shim.delete()).pid, pid);
    await until("its init has ended", () => processOf(pid) === undefined);
  }));

Deno.test("every status that a process can exit with is told", () =>
  withShim({ args: ["sleep", "1000"] }, async (shim) => {
    await shim.run();
    for (const code of [0, 1, 2, 127, 128, 255]) {
      const id = `e${code}`;
      await shim.exec(id, ["sh", "-c", `exit ${code}`]);
      await shim.startProcess(id);
      assertEquals((await shim.wait(id)).status, code);
      assertEquals((await shim.deleteProcess(id)).status, code);
    }
  }));

Deno.test("Wait answers any number of waiters, before the exit and after it", () =>
  withShim({}, async (shim) => {
    await shim.create();
    const early = Array.from({ length: 20 }, () => shim.wait());
    await shim.startProcess();
    const later = Array.from({ length: 20 }, () => shim.wait());
    await shim.kill(9);
    const exits = await Promise.all([...early, ...later]);
    exits.push(await shim.wait(), await shim.wait());
    assertEquals(exits, exits.map(() => ({ status: 137, at: exits[0]!.at })));
    assertEquals((await shim.delete()).status, 137);
  }));

Deno.test("Delete of a running container is an error, and the container runs on", () =>
  withShim({}, async (shim) => {
    const pid = await shim.run();
    await assertStatus(shim.delete(), IS_OURS ? Code.FAILED_PRECONDITION : Code.UNKNOWN, /running/);
    assertEquals((await shim.state()).status, Status.RUNNING);
    assert(isAlive(pid));
    await shim.kill(9);
    await shim.wait();
    await shim.delete();
  }));

Deno.test("Delete before Create, and a second Delete, answer FAILED_PRECONDITION", () =>
  withShim({ args: ["true"] }, async (shim) => {
    const message = "container must be created";
    await assertStatus(shim.delete(), Code.FAILED_PRECONDITION, message);
    await shim.run();
    await shim.wait();
    await shim.delete();
    await assertStatus(shim.delete(), Code.FAILED_PRECONDITION, message);
  }));

Deno.test("calls for a process that does not exist answer NOT_FOUND", () =>
  withShim({}, async (shim) => {
    const check = async (id: string) => {
      const calls = [shim.state(id), shim.startProcess(id), shim.wait(id), shim.closeStdin(id), shim.deleteProcess(id)];
      await Promise.all(calls.map((call) => assertStatus(call, Code.NOT_FOUND, `process ${id} does not exist`)));
    };
    await check("before");
    await shim.run();
    await check("other");
    await assertStatus(shim.kill(9, { id: "other" }), Code.NOT_FOUND, "process other does not exist");
  }));

Deno.test("a container cannot be started twice", () =>
  withShim({}, async (shim) => {
    const pid = await shim.run();
    await assertRejects(() => shim.startProcess(), StatusError);
    assertEquals((await shim.state()).status, Status.RUNNING);
    assert(isAlive(pid));
  }));

Deno.test("ListPids knows init and execs by their ids, and lists what they have started", () =>
  withShim({ args: INIT_WITH_ONE_CHILD }, expectPidsKnown));

Deno.test("ShimInfo tells the shim's own pid", () =>
  withShim({}, async (shim) => {
    assertEquals(await shim.shimPid(), shim.pid);
  }));

Deno.test("a failed Create answers with runc's message and leaves nothing; the next one works", () =>
  withShim({ args: ["true"] }, async (shim) => {
    const config = `${shim.bundle}/config.json`;
    const good = await Deno.readTextFile(config);
    await Deno.writeTextFile(config, good.replace(`"true"`, `"no-such-command"`));
    const message = /^OCI runtime create failed: .*exec: "no-such-command": executable file not found in \$PATH/;
    await assertStatus(shim.create(), Code.UNKNOWN, message);
    assertEquals(shim.leftovers(), []);
    await Deno.writeTextFile(config, good);
    await shim.run();
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
  }));
