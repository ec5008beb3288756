/** The shim's end, when it is told to end. */

import { assert, assertEquals } from "@std/assert";
import { inEachForm, IS_OURS, onlyOursInEachForm } from "./env.ts";
import { modes } from "./modes.ts";
import { isAlive, mountsBelow, processOf } from "./proc.ts";
import { Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "the end of a holder is not the end of a shim by itself");

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  onlyOursInEachForm(
    "it leaves a container that has not ended by itself",
    `${signal} to the shim ends the container, undoes its mounts, and the shim exits with 0`,
    (form) =>
      withShim({ shim: form, mountedRoot: true, endsItself: true }, async (shim) => {
        const init = await shim.run({}, { rootfs: [{ type: "bind", source: shim.rootfs, options: ["rbind"] }] });
        await shim.exec("other", ["sleep", "1000"]);
        const other = await shim.startProcess("other");
        assertEquals(mountsBelow(shim.folder).length, 1);
        const waiting = shim.wait().catch((error) => error);
        // What has been answered was read after it.
        await shim.shimPid();

        assertEquals(await shim.end(signal), 0);
        assertEquals([processOf(init), processOf(other)], [undefined, undefined]);
        assertEquals((await waiting).status, 137, "who waits is not told");
        const { exit } = await shim.events.exit(shim.id);
        assertEquals([exit.pid, exit.exitStatus], [init, 137]);
        // And withShim looks for the mount, runc's state and the cgroup.
      }),
  );
}

inEachForm(
  "a shim without a container ends at once when told to",
  (form) =>
    withShim({ shim: form, endsItself: true }, async (shim) => {
      const status = await shim.end("SIGTERM");
      // The Go shim of containerd 1.7 may take the end of its server for a failure: 1 then.
      if (IS_OURS) assertEquals(status, 0);
    }),
);

inEachForm("every child is reaped, also those that nobody knows", (form) =>
  // What init leaves behind without a pid namespace becomes the shim's.
  withShim(
    { shim: form, args: ["sh", "-c", "(sleep 0.05 &) ; (sleep 0.1 &) ; sleep 1000"], namespaces: ["mount"] },
    async (shim) => {
      const init = await shim.run();
      await until("init's orphans have ended and have been reaped", () => {
        const processes = shim.containerProcesses();
        return processes.length === 2 && processes.includes(init) &&
          shim.children().every(({ state }) => state !== "Z");
      });
      for (let i = 0; i < 10; i++) {
        const ids = Array.from({ length: 4 }, (_, n) => `e${i}-${n}`);
        await Promise.all(ids.map(async (id, n) => {
          await shim.exec(id, ["sh", "-c", `exit ${n}`]);
          const pid = await shim.startProcess(id);
          assertEquals((await shim.wait(id)).status, n);
          // A holder does it when the exit has been written down.
          await until("an exec whose exit is told has been reaped", () => processOf(pid) === undefined);
          await shim.deleteProcess(id);
        }));
      }
      await until("init is its only child", () => shim.children().every(({ pid }) => pid === init));
    },
  ));

inEachForm(
  "the container lives on when nobody is connected to the shim",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      const init = await shim.run();
      shim.disconnect();
      assertEquals((await shim.state()).status, Status.RUNNING);
      assert(isAlive(init));
    }),
);
