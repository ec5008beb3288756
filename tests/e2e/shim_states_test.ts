/** What each state of a container allows, and how it answers what it does not. */

import { assertEquals, assertRejects } from "@std/assert";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { IS_OURS, onlyOurs } from "./env.ts";
import { modes } from "./modes.ts";
import { assertStatus, type Shim, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted"], "requests are answered by the same code in each mode");

/** The Go shim has no code for it. */
const NOT_ALLOWED = IS_OURS ? Code.FAILED_PRECONDITION : Code.UNKNOWN;

/** Every call that changes a container, by its name. */
const CALLS: Readonly<Record<string, (shim: Shim) => Promise<unknown>>> = {
  start: (shim) => shim.startProcess(),
  pause: (shim) => shim.pause(),
  resume: (shim) => shim.resume(),
  update: (shim) => shim.update({}),
  exec: (shim) => shim.exec("other", ["true"]),
  delete: (shim) => shim.delete(),
};

/** Fails unless each of these calls is refused, with a sentence that names the state, and changes nothing. */
async function expectRefused(shim: Shim, calls: readonly string[], state: RegExp, status: number): Promise<void> {
  for (const name of calls) {
    await assertStatus(CALLS[name]!(shim), NOT_ALLOWED, state);
    assertEquals((await shim.state()).status, status, `${name} has changed it`);
  }
}

Deno.test("before Create there is nothing to call", () =>
  withShim({}, async (shim) => {
    for (const call of ["pause", "resume", "update", "exec", "delete"]) {
      await assertStatus(CALLS[call]!(shim), Code.FAILED_PRECONDITION, "container must be created");
    }
  }));

Deno.test("a created container cannot be paused or resumed", () =>
  withShim({}, async (shim) => {
    await shim.create();
    await expectRefused(shim, ["pause", "resume"], /created/, Status.CREATED);
    await shim.delete();
  }));

Deno.test("a running container cannot be started, resumed or deleted", () =>
  withShim({}, async (shim) => {
    await shim.run();
    await expectRefused(shim, ["start", "resume", "delete"], /running/, Status.RUNNING);
  }));

Deno.test("a paused container cannot be started, paused, deleted, or given another process", () =>
  withShim({}, async (shim) => {
    await shim.run();
    await shim.pause();
    await expectRefused(shim, ["start", "pause", "exec", "delete"], /paused/, Status.PAUSED);
    await shim.resume();
    assertEquals((await shim.state()).status, Status.RUNNING);
  }));

Deno.test("a stopped container cannot be started, paused, resumed, updated, or given another process", () =>
  withShim({ args: ["true"] }, async (shim) => {
    await shim.run();
    await shim.wait();
    await until("it says so", async () => (await shim.state()).status === Status.STOPPED);
    await expectRefused(shim, ["start", "pause", "resume", "update", "exec"], /stopped/, Status.STOPPED);
    await shim.delete();
  }));

onlyOurs(
  "it says PAUSED, once it is",
  "State says PAUSING while the runtime pauses, and of execs too",
  () =>
    withShim({}, async (shim) => {
      const script = `#!/bin/sh
case " $* " in *" pause "*) mkfifo '${shim.folder}/pausing'; read line <'${shim.folder}/pausing';; esac
exec runc "$@"
`;
      const runtime = await shim.makeProgram("slow-runc", script);
      await shim.run({}, { runtime });
      await shim.exec("other", ["sleep", "1000"]);
      await shim.startProcess("other");
      const pausing = shim.pause();
      await until("runc is about to pause", () => Deno.statSync(`${shim.folder}/pausing`).isFifo);
      assertEquals((await shim.state()).status, Status.PAUSING);
      assertEquals((await shim.state("other")).status, Status.PAUSING);
      await Deno.writeTextFile(`${shim.folder}/pausing`, "go\n");
      await pausing;
      assertEquals((await shim.state()).status, Status.PAUSED);
      assertEquals((await shim.state("other")).status, Status.PAUSED);
      await shim.resume();
      assertEquals((await shim.state("other")).status, Status.RUNNING);
    }),
);

Deno.test("calls on a container wait for each other, and State, Wait and ShimInfo for none", () =>
  withShim({}, async (shim) => {
    const script = `#!/bin/sh
case " $* " in *" start "*) mkfifo '${shim.folder}/starting'; read line <'${shim.folder}/starting';; esac
exec runc "$@"
`;
    const runtime = await shim.makeProgram("slow-runc", script);
    await shim.create({}, { runtime });
    const starting = shim.startProcess();
    await until("runc is about to start it", () => Deno.statSync(`${shim.folder}/starting`).isFifo);
    const order: string[] = [];
    const killed = shim.kill(9).then(() => order.push("killed"));
    if (IS_OURS) assertEquals((await shim.state()).status, Status.CREATED);
    assertEquals(await shim.shimPid(), shim.pid);
    order.push("answered");
    await Deno.writeTextFile(`${shim.folder}/starting`, "go\n");
    await Promise.all([starting, killed]);
    assertEquals(order, ["answered", "killed"]);
    assertEquals((await shim.wait()).status, 137);
    await shim.delete();
  }));

Deno.test("the answer to a call that the runtime refuses has the runtime's own message", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const error = await assertRejects(() => shim.kill(1000), StatusError);
    assertEquals([error.code, /invalid argument/.test(error.message)], [Code.UNKNOWN, true], error.message);
  }));
