/** A disk that is full: what needs it says so, and nothing else notices; when there is room again all is as before. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { assertEnds, assertSupervised, SmallDisk, withServed } from "./fault.ts";
import { modes } from "./modes.ts";
import { isAlive, isHolder } from "./proc.ts";
import { assertStatus, Shim, Status } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "other processes write files in each");

const NO_SPACE = /no space left on device/i;

onlyOurs(
  "it says that the runtime has said nothing",
  "a bundle's disk that is full fails Create, which says so and leaves nothing; when there is room, Create works",
  async () => {
    await using disk = await SmallDisk.mount();
    await withServed({ elsewhere: { bundle: disk.folder } }, async ({ shim }) => {
      disk.fill();
      await assertStatus(shim.create(), Code.UNKNOWN, NO_SPACE);
      assertEquals(shim.leftovers(), []);
      assertEquals(await shim.shimPid(), shim.pid);
      disk.free();
      const init = await shim.run();
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    });
  },
);

onlyOurs(
  "it says that the runtime has said nothing",
  "a bundle's disk that fills up fails an exec, which says so; the container is supervised, and ends as always",
  async () => {
    await using disk = await SmallDisk.mount();
    await withServed({ elsewhere: { bundle: disk.folder } }, async ({ shim }) => {
      const init = await shim.run();
      disk.fill();
      await shim.exec("other", ["true"]);
      await assertStatus(shim.startProcess("other"), Code.UNKNOWN, NO_SPACE);
      assertEquals((await shim.state("other")).status, Status.STOPPED);
      assertEquals((await shim.wait("other")).status, 255);
      await shim.deleteProcess("other");
      assertEquals(shim.containerProcesses(), [init], "a process is left of the exec");
      assertEquals((await shim.state()).status, Status.RUNNING);
      assertEquals([...await shim.pids()], [[init, shim.id]]);
      // All that ends a container needs no room.
      await assertEnds(shim, init);
    });
  },
);

onlyOurs(
  "it has no host",
  "a host that dies while the bundle's disk is full, or after that, takes no container with it",
  async () => {
    await using disk = await SmallDisk.mount();
    await withServed({ elsewhere: { bundle: disk.folder }, isNamed: true }, async ({ shim, server }) => {
      const init = await shim.run();
      disk.fill();
      await shim.exec("other", ["true"]);
      if (isHolder(shim.pid)) {
        const host = server();
        Deno.kill(host, "SIGKILL");
        await until("the host has ended", () => !isAlive(host));
      }
      assertEquals((await shim.state()).status, Status.RUNNING);
      disk.free();
      await assertSupervised(shim, init);
      if (isHolder(shim.pid)) {
        const host = server();
        Deno.kill(host, "SIGKILL");
        await until("the host has ended", () => !isAlive(host));
      }
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    });
  },
);

onlyOurs(
  "it copies no further, and the process hangs",
  "a process whose log is full loses output, which its shim says, and goes on",
  async () => {
    await using disk = await SmallDisk.mount();
    const args = ["sh", "-c", "dd if=/dev/zero bs=1024 count=2048 2>/dev/null; exit 7"];
    await withServed({ args }, async ({ shim }) => {
      await shim.run({ stdout: `file://${disk.folder}/log`, stderr: `file://${disk.folder}/log` });
      assertEquals((await shim.wait()).status, 7);
      await shim.delete();
      assert(Deno.statSync(`${disk.folder}/log`).size > 0);
      assertMatch(shim.unreadLog(), /level=error msg="a file has not taken all .* error="write .*\/log: no space left/);
    });
  },
);

onlyOurs(
  "its terminal is read no more, and the process hangs",
  "a terminal whose log is full loses output, and its process goes on",
  async () => {
    await using disk = await SmallDisk.mount();
    const script = "dd if=/dev/zero bs=1024 count=2048 2>/dev/null; exit 7";
    await withServed({ args: ["sh", "-c", script], terminal: true }, async ({ shim }) => {
      await shim.run({ terminal: true, stdout: `file://${disk.folder}/log` });
      assertEquals((await shim.wait()).status, 7);
      await shim.delete();
      assert(Deno.statSync(`${disk.folder}/log`).size > 0);
    });
  },
);

onlyOurs(
  "it says so to its log",
  "a shim whose log cannot be made says why on its standard error, and ends",
  async () => {
    // Room for the folder alone.
    await using disk = await SmallDisk.mount("nr_inodes=1");
    const shim = new Shim({ elsewhere: { workdir: disk.folder } });
    try {
      await assertRejects(() => shim.start());
      assertEquals(await shim.status, 1);
      assertMatch(shim.output(), /^containerd-shim: mkfifo .*shim\.stdout\.log: no space left on device\n$/);
      assertEquals(shim.leftovers(), []);
    } finally {
      await shim.remove();
    }
  },
);

Deno.test("a checkpoint whose folder finds no room is an error with a sentence, and the container runs on", async () => {
  await using disk = await SmallDisk.mount("nr_inodes=3");
  await withServed({ elsewhere: { workdir: disk.folder } }, async ({ shim }) => {
    const init = await shim.run();
    await assertStatus(shim.checkpoint(`${shim.workdir}/image`), Code.UNKNOWN, NO_SPACE);
    await assertSupervised(shim, init);
    await assertEnds(shim, init);
  });
});
