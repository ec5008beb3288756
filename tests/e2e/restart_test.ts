/** containerd dies, and comes back: the container does not notice. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { inEachForm, onlyOurs } from "./env.ts";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { descendants, isAlive } from "./proc.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "another process lives on without containerd in each");

inEachForm(
  "a container lives on when containerd is killed, and is found again",
  (form) =>
    withContainerd(async (containerd) => {
      const id = containerd.newId();
      await containerd.runDetached(id, ["/bin/sleep", "1000"]);
      const [shim, init] = [containerd.shimOf(id), await containerd.running(id)];

      await containerd.stop("SIGKILL");
      assert(isAlive(shim), "the shim has ended with containerd");
      assert(isAlive(init), "the container has ended with containerd");

      await containerd.start();
      assertEquals(await containerd.task(id), { pid: init, status: "RUNNING" });
      assertEquals(containerd.shimOf(id), shim);
      await containerd.must("task", "kill", "--signal", "15", "--all", id);
      await containerd.end(id);
    }, { shim: form }),
);

Deno.test("a container that ends while containerd is away is found stopped, with its status", () =>
  withContainerd(async (containerd) => {
    const id = containerd.newId();
    const fifo = `${containerd.rootfs}/tmp/end`;
    await containerd.runDetached(id, ["/bin/sh", "-c", "mkfifo /tmp/end; read line </tmp/end; exit 42"]);
    await until("the container waits", () => Deno.statSync(fifo).isFifo);
    const init = await containerd.running(id);

    await containerd.stop("SIGKILL");
    await Deno.writeTextFile(fifo, "end\n");
    await until("the container has ended", () => !isAlive(init));

    await containerd.start();
    assertEquals((await containerd.task(id))?.status, "STOPPED");
    assertMatch((await containerd.ctr("task", "delete", id)).stderr, /exit code 42"$/m);
    await containerd.must("container", "delete", id);
  }));

onlyOurs(
  "it tells once, and forgets",
  "containerd is told of an exit that it was away for when it is back",
  () =>
    withContainerd(async (containerd) => {
      const id = containerd.newId();
      await containerd.runDetached(id, ["/bin/sleep", "1000"]);
      const init = await containerd.running(id);
      await containerd.stop("SIGKILL");
      const before = containerd.log().length;
      Deno.kill(init, "SIGKILL");
      await until("the container has ended", () => !isAlive(init));
      await containerd.start();
      // The daemon logs what it is told: forwarded by ttrpc, published by the command.
      const told = new RegExp(`"event (forwarded|published)" ns=${containerd.namespace} topic=/tasks/exit `);
      await until("the exit is told", () => told.test(containerd.log().slice(before)));
      await containerd.must("task", "delete", id);
      await containerd.must("container", "delete", id);
    }, { trace: true }),
);

modes(["hosted", "mixed"], "shims of both kinds find the containerd that is back");

onlyOurs(
  "it tells once, and forgets",
  "ctr events sees the exits of three containers that ended while containerd was away, with their statuses and times",
  () =>
    withContainerd(async (containerd) => {
      const ids = [21, 22, 23].map((status) => ({ id: containerd.newId(), status }));
      for (const { id, status } of ids) {
        const wait = `mkfifo /tmp/${id}; read line </tmp/${id}; exit ${status}`;
        await containerd.runDetached(id, ["/bin/sh", "-c", wait]);
        await until(`${id} waits`, () => Deno.statSync(`${containerd.rootfs}/tmp/${id}`).isFifo);
      }
      await containerd.stop("SIGKILL");
      const ends = [];
      for (const { id, status } of ids) {
        const shim = containerd.shimOf(id);
        const [init] = descendants(shim);
        await Deno.writeTextFile(`${containerd.rootfs}/tmp/${id}`, "end\n");
        await until(`${id} has ended`, () => !isAlive(init!.pid));
        ends.push({ id, status, at: Date.now() });
      }
      await containerd.start();
      const events = containerd.startCtr("events");
      const exits = await until("three exits are told", () => {
        const found = events.stdoutSoFar().split("\n").filter((line) => line.includes(" /tasks/exit "));
        return found.length >= 3 && found;
      });
      events.kill("SIGKILL");
      await events.result;
      for (const { id, status, at } of ends) {
        const line = exits.find((each) => each.includes(`"container_id":"${id}"`))!;
        const { exit_status, exited_at } = JSON.parse(line.slice(line.indexOf("{")));
        assertEquals(exit_status, status);
        // When it ended, not when that was told; containerd 1.7 has it as a message of two numbers.
        const ended = typeof exited_at === "string"
          ? Date.parse(exited_at)
          : exited_at.seconds * 1000 + (exited_at.nanos ?? 0) / 1e6;
        const early = at - ended;
        assert(early > -100 && early < 2000, `${id} ended ${early} ms earlier`);
      }
      for (const { id } of ids) {
        await containerd.must("task", "delete", id).catch(() => {});
        await containerd.must("container", "delete", id);
      }
    }),
);
