/**
 * The process that containerd knows as the shim is killed at random moments of its container's life: a holder, or a shim
 * by itself, as WAY says.
 *
 * DEATHS says how often (200 for the README's figures), DEATHS_SEED repeats the moments of another run. For the Go shim's
 * figures: `deno run -A tests/survival/deaths_main.ts --shim go`.
 */

import { assert, assertEquals } from "@std/assert";
import { describeDeaths, observeDeaths } from "../survival/deaths.ts";
import { OURS } from "../survival/subjects.ts";
import { onlyOurs, WAY } from "./env.ts";
import { withEvidence } from "./evidence.ts";
import { must } from "./command.ts";
import { assertRuns, onlyHosted, TALKING, withHosted, withHostedShims } from "./host.ts";
import { names, RUNC_ROOT } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive, parseMountInfo, processOf } from "./proc.ts";
import { GatedRuntime } from "./takeover.ts";
import { pause, until } from "./until.ts";

modes(["hosted", "alone"], "it is a holder that is killed, or a shim by itself");

const DEATHS = Number(Deno.env.get("DEATHS") ?? 20);
const SEED = Number(Deno.env.get("DEATHS_SEED") ?? Date.now() % 2 ** 32);

onlyOurs(
  "what was being created stays, and its name cannot be used again",
  `${DEATHS} shims are killed, and containerd has their names free again, with nothing left but of some that were being created`,
  async () => {
    console.log(`DEATHS_SEED=${SEED}`);
    const seen: string[] = [];
    const deaths = await observeDeaths(OURS, { rounds: DEATHS, seed: SEED }, (each) => seen.push(each));
    console.log(describeDeaths(deaths));
    try {
      assert([...deaths.hits.values()].reduce((a, b) => a + b, 0) >= DEATHS / 4, "few shims were there to be killed");
      // A runtime that was creating goes on without its shim, and so does what has been mounted for it: a host that has
      // outlived the shim undoes that, and where there is none, nobody does.
      const creating = deaths.problems.filter((each) => each.includes(", create, "));
      assertEquals(deaths.problems.filter((each) => !creating.includes(each)), []);
      const isLost = (each: string) => each.includes(": lost by containerd, ");
      const tolerated = Math.ceil((deaths.hits.get("create") ?? 0) * (WAY === "hosted" ? 0 : 0.5));
      // What containerd has lost, it has, and so it stays.
      assert(creating.filter((each) => !isLost(each)).length <= tolerated, creating.join("\n"));
      assert(deaths.lost <= Math.ceil(DEATHS / 20), `containerd has lost ${deaths.lost} tasks`);
    } catch (error) {
      throw withEvidence(error, "What was seen", seen.join("\n"));
    }
  },
);

for (const moment of ["before", "after"] as const) {
  onlyHosted(
    `a container whose holder is killed ${moment} the runtime has created it is removed by its host`,
    () =>
      withHosted({ endsItself: true }, async (shim) => {
        const runtime = await GatedRuntime.make(shim);
        await runtime.close(moment, "create");
        const creating = shim.create({}, { runtime: runtime.path }).catch(() => undefined);
        const pid = await runtime.reached();
        shim.signal("SIGKILL");
        await shim.status;
        await creating;
        assert(isAlive(pid), "the runtime has ended with the shim");
        await runtime.open();
        await until("the container has been removed", () => {
          return !isAlive(pid) && shim.containerProcesses().length === 0 && runtime.runs("delete") === 1;
        });
      }),
  );
}

/** What is mounted below the bundle where a process is. */
function mountedFor(pid: number, bundle: string): string[] {
  const mounts = parseMountInfo(Deno.readTextFileSync(`/proc/${pid}/mountinfo`));
  return mounts.map(({ path }) => path).filter((path) => path.startsWith(bundle));
}

for (const isAside of [false, true]) {
  onlyHosted(
    `a container that has been created when its holder is killed is removed by its host, with its mounts${
      isAside ? ", though containerd has put its bundle aside" : ""
    }`,
    () =>
      withHosted({ mountedRoot: true, endsItself: true }, async (shim, machine) => {
        const runtime = await GatedRuntime.make(shim);
        const rootfs = [{ type: "bind", source: shim.rootfs, options: ["rbind"] }];
        const pid = await shim.create({}, { runtime: runtime.path, rootfs });
        const host = machine.host();
        assertEquals(mountedFor(host.pid, shim.bundle), [`${shim.bundle}/rootfs`]);
        if (isAside) await runtime.close("before", "state");
        shim.signal("SIGKILL");
        await shim.status;
        if (isAside) {
          await runtime.reached();
          await Deno.rename(shim.bundle, `${shim.bundle}-aside`);
          await runtime.open();
        }
        await until("the container has been removed", () => !isAlive(pid) && runtime.runs("delete") === 1);
        await until("its mount too", () => mountedFor(host.pid, shim.bundle).length === 0);
        // Nothing is in the way of another of that name.
        await shim.expectNothingLeft();
        assertEquals(machine.host(), { ...host, size: 0 });
      }),
  );
}

onlyHosted(
  "a container that somebody has begun to start when its holder is killed is not removed by its host",
  () =>
    withHostedShims([{ endsItself: true }, { args: TALKING }], async ([shim, other]) => {
      const runtime = await GatedRuntime.make(shim!);
      const pid = await shim!.create({}, { runtime: runtime.path });
      await runtime.close("before", "start");
      const starting = shim!.startProcess().catch(() => undefined);
      await runtime.reached();
      shim!.signal("SIGKILL");
      await shim!.status;
      await starting;
      await runtime.open();
      await until("it has been started", () => processOf(pid)?.comm === "sleep");
      // The host has seen to all that it was told of before.
      await assertRuns(other!);
      assertEquals([isAlive(pid), runtime.runs("state"), runtime.runs("delete")], [true, 0, 0]);
      Deno.kill(pid, "SIGKILL");
      await must(["runc", "--root", `${RUNC_ROOT}/${shim!.namespace}`, "delete", "--force", shim!.id]);
    }),
);

for (const isBundle of [false, true]) {
  const what = isBundle
    ? "what containerd has made there meanwhile stays"
    : "what the runtime has made anew there goes";
  onlyHosted(
    `where containerd has put the bundle aside of a container whose holder is killed in its creation, ${what}`,
    () =>
      withHosted({ endsItself: true }, async (shim) => {
        const runtime = await GatedRuntime.make(shim);
        await runtime.close("before", "create");
        const creating = shim.create({}, { runtime: runtime.path }).catch(() => undefined);
        await runtime.reached();
        shim.signal("SIGKILL");
        await shim.status;
        await creating;
        await Deno.rename(shim.bundle, `${shim.bundle}-aside`);
        await Deno.mkdir(`${shim.bundle}/rootfs/dev`, { recursive: true });
        await Deno.symlink("/proc/self/fd", `${shim.bundle}/rootfs/dev/fd`);
        await runtime.open();
        if (!isBundle) {
          await until("it has gone", () => !names(shim.folder).includes("bundle"));
          return;
        }
        await until("the host has asked for the container", () => runtime.runs("state") === 1);
        await Deno.writeTextFile(`${shim.bundle}/config.json`, "{}");
        // Nothing tells that it stays: longer than it is waited for that it becomes a bundle.
        await pause(1000);
        assertEquals(names(shim.bundle).filter((each) => each !== "log.json").toSorted(), ["config.json", "rootfs"]);
      }),
  );
}
