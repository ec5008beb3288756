/** The order in which containerd, and who listens to it, hears of a container's processes. */

import { assert, assertEquals } from "@std/assert";
import { forAll, numbers } from "./at_a_time.ts";
import { whileBusy } from "./busy.ts";
import { collectExits, type Exits } from "./exits.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { onlyHosted, withHosted } from "./host.ts";
import { modes } from "./modes.ts";
import { GatedRuntime, later, replaceHost } from "./takeover.ts";
import { withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "how soon an exit is known depends on whose children the processes are");

/** How many processes end at once that are started without containerd, and of them so many at a time. */
const COUNT = 40;
const AT_A_TIME = 20;
/** How many containers, and as many execs, by ctr. */
const CONTAINERS = 10;

Deno.test(
  "no exit is published before Start has been answered",
  () =>
    withShim({ args: ["sleep", "1000"] }, async (shim) => {
      await shim.run();
      const ids = numbers(1, COUNT).map((i) => `e${i}`);
      const early: string[] = [];
      await forAll(ids, AT_A_TIME, async (id) => {
        await shim.exec(id, ["true"]);
        await shim.startProcess(id);
        if (shim.events.published().some(({ exit }) => exit.id === id)) early.push(id);
      });
      for (const id of ids) await shim.events.exit(id);
      assertEquals(early, []);
      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    }),
);

Deno.test(
  "an exit some time after the start is published at once",
  () =>
    withShim({ args: ["sleep", "1000"] }, async (shim) => {
      await shim.run();
      await shim.exec("e", ["sleep", "0.2"]);
      await shim.startProcess("e");
      await shim.wait("e");
      const endedAt = performance.now();
      await shim.events.exit("e");
      // until() looks each 20 ms or so.
      assert(performance.now() - endedAt < 500, `${performance.now() - endedAt} ms after the answer to Wait`);
      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    }),
);

/** Runs containers and execs that end at once, and fails when one of their exits is told before its start. */
async function assertOrder(containerd: Containerd, exits: Exits): Promise<void> {
  const ids = numbers(1, CONTAINERS).map((i) => `short${i}`);
  await containerd.runDetached(containerd.newId("long"), ["/bin/sleep", "1000"]);
  await forAll(ids, 4, async (id) => {
    await containerd.run(["/bin/true"], { id: containerd.newId(id) });
    await containerd.exec("long", [], ["/bin/true"]);
  });
  for (const id of ids) await exits.told(id);
  await containerd.must("task", "kill", "--signal", "KILL", "long");
  await exits.told("long");
  await containerd.must("task", "delete", "long");
  await containerd.must("container", "delete", "long");
  assertEquals({ beforeStart: exits.beforeStart, beforeExecs: exits.beforeExecs }, {
    beforeStart: [],
    beforeExecs: [],
  });
}

Deno.test(
  "ctr events shows the start of each process before its exit, also when all CPUs are busy",
  () =>
    withContainerd(async (containerd) => {
      const { exits, program } = await collectExits(containerd);
      try {
        await whileBusy(() => assertOrder(containerd, exits));
      } finally {
        await program.kill();
      }
    }),
);

Deno.test(
  "init's exit is published after that of an exec that is being started when init is killed",
  () =>
    withShim({ args: ["sleep", "1000"] }, async (shim) => {
      const runtime = await GatedRuntime.make(shim);
      await shim.run({}, { runtime: runtime.path });
      await shim.exec("e", ["/bin/sleep", "1000"]);
      await runtime.close("after", "exec");
      const starting = later(shim.startProcess("e"));
      await runtime.reached();
      await shim.kill(9);
      await shim.wait();
      assertEquals(shim.events.published(), []);
      await runtime.open();
      await starting;
      await shim.events.exit(shim.id);
      assertEquals(shim.events.published().map(({ exit }) => exit.id), ["e", shim.id]);
      await shim.delete();
    }),
);

onlyHosted(
  "an exit that is held back is published, and after the start, though its host dies",
  () =>
    withHosted({ args: ["sleep", "1000"] }, async (shim, machine) => {
      const runtime = await GatedRuntime.make(shim);
      await shim.run({}, { runtime: runtime.path });
      await shim.exec("e", ["true"]);
      await runtime.close("after", "exec");
      const starting = later(shim.startProcess("e"));
      await runtime.reached();
      await replaceHost(machine);
      await runtime.open();
      await starting;
      assert(!shim.events.published().some(({ exit }) => exit.id === "e"), "the exit is published before the start");
      await shim.events.exit("e");
      await until("it is known once", async () => (await shim.wait("e")).status === 0);
      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    }),
);
