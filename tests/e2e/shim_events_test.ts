/** What the shim tells containerd: the exit of each process. */

import { assert, assertEquals } from "@std/assert";
import { IS_OURS, onlyOurs } from "./env.ts";
import type { Published } from "./events.ts";
import { names } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { seconds, type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "exits are known in another way in each");

/** Fails unless this is the exit of a process of the shim's container. */
function assertExit(shim: Shim, published: Published, id: string, pid: number, status: number, at: number): void {
  const { namespace, topic, typeUrl, exit } = published;
  assertEquals({ namespace, topic, typeUrl }, {
    namespace: shim.namespace,
    topic: "/tasks/exit",
    typeUrl: "containerd.events.TaskExit",
  });
  assertEquals([exit.containerId, exit.id, exit.pid, exit.exitStatus], [shim.id, id, pid, status]);
  assertEquals(seconds(exit.exitedAt), at);
}

Deno.test("the exit of init and of an exec is published, once", () =>
  withShim({ args: ["sleep", "1000"] }, async (shim) => {
    const init = await shim.run();
    await shim.exec("other", ["sh", "-c", "exit 3"]);
    const other = await shim.startProcess("other");
    const otherExit = await shim.wait("other");
    assertExit(shim, await shim.events.exit("other"), "other", other, 3, otherExit.at);
    await shim.kill(9);
    const exit = await shim.wait();
    assertExit(shim, await shim.events.exit(shim.id), shim.id, init, 137, exit.at);
    await shim.deleteProcess("other");
    await shim.delete();
    assertEquals(shim.events.published().length, 2);
  }));

onlyOurs(
  "it forks for each event",
  "an exit has been published when Delete answers",
  () =>
    withShim({ args: ["true"] }, async (shim) => {
      // Many times, because it depends on who comes first.
      for (let i = 1; i <= 20; i++) {
        await shim.run();
        await shim.wait();
        await shim.delete();
        assertEquals(shim.events.published().length, i);
      }
    }),
);

onlyOurs(
  "it forks for each event",
  "Delete answers only when containerd has taken the exit",
  () =>
    withShim({ args: ["true"] }, async (shim) => {
      const release = shim.events.hold();
      await shim.run();
      await shim.wait();
      await shim.events.exit(shim.id);
      let answered = false;
      const deleted = shim.delete().then(() => answered = true);
      // The runtime has removed the container long before these are through.
      while (names(`/run/containerd/runc/${shim.namespace}`).length > 0) await shim.shimPid();
      for (let i = 0; i < 100; i++) await shim.shimPid();
      assert(!answered);
      release();
      await deleted;
    }),
);

onlyOurs(
  "it has one way only",
  "where containerd serves ttrpc, no process is started to publish",
  () =>
    withShim({ args: ["true"], events: "both" }, async (shim) => {
      await shim.run();
      const { by } = await shim.events.exit(shim.id);
      assertEquals(by, "ttrpc");
      await shim.delete();
      assertEquals(shim.events.commands(), []);
    }),
);

Deno.test("where containerd serves no ttrpc, the publish command is given the event", () =>
  withShim({ args: ["sh", "-c", "exit 5"], events: "command" }, async (shim) => {
    const pid = await shim.run();
    const { at } = await shim.wait();
    assertExit(shim, await shim.events.exit(shim.id), shim.id, pid, 5, at);
    const [args, ...others] = shim.events.commands();
    assertEquals(others, []);
    const { address } = shim.events;
    const expected = ["--address", address, "publish", "--topic", "/tasks/exit", "--namespace", shim.namespace];
    assertEquals(args, expected);
    await shim.delete();
  }));

onlyOurs(
  "it tells once, and forgets",
  "an event waits for a containerd that is away",
  () =>
    withShim({ args: ["true"], events: "none" }, async (shim) => {
      const pid = await shim.run();
      const { at } = await shim.wait();
      await shim.exec("never", ["true"]).catch(() => {});
      assertEquals(shim.events.published(), []);
      shim.events.serve();
      assertExit(shim, await shim.events.exit(shim.id), shim.id, pid, 0, at);
      await shim.delete();
    }),
);

Deno.test("a shim whose containerd is away goes on", () =>
  withShim({ args: ["true"], events: "none" }, async (shim) => {
    await shim.run();
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
    await until("it answers", async () => (await shim.shimPid()) === shim.pid);
    assert(IS_OURS || shim.events.published().length === 0);
  }));
