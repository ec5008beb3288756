/** A container's host has what its shim has of the machine: whatever the first shim's settings were, they are not all others'. */

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { inGroup, limitCpu } from "./cgroups.ts";
import { must } from "./command.ts";
import { newPlace } from "./env.ts";
import {
  assertExecs,
  assertHolder,
  endContainer,
  type Machine,
  onlyHosted,
  shell,
  untilEnded,
  withMachine,
  withShims,
} from "./host.ts";
import { modes } from "./modes.ts";
import { type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted"], "it is about hosts");

/** Something that a containerd hands on to its shims, what sets it, and what a process has of it. */
interface Setting {
  readonly what: string;
  readonly prefix: readonly string[];
  readonly of: (pid: number) => string | Promise<string>;
}

/** A field of proc_pid_stat(5), by its number there. */
function statField(pid: number, number: number): string {
  return Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/.*\) /, "").split(" ")[number - 3]!;
}

/** A line of a file of /proc/PID. */
function line(pid: number, file: string, begin: string): string {
  return new RegExp(`^${begin}.*$`, "m").exec(Deno.readTextFileSync(`/proc/${pid}/${file}`))![0];
}

const SETTINGS: readonly Setting[] = [
  { what: "nice", prefix: ["nice", "-n", "5"], of: (pid) => statField(pid, 19) },
  { what: "CPU affinity", prefix: ["taskset", "-c", "1"], of: (pid) => line(pid, "status", "Cpus_allowed_list:") },
  { what: "scheduling policy", prefix: ["chrt", "--batch", "0"], of: (pid) => statField(pid, 41) },
  { what: "I/O priority", prefix: ["ionice", "-c2", "-n6"], of: (pid) => must(["ionice", "-p", `${pid}`]) },
  {
    what: "hard limit of open files",
    prefix: ["prlimit", "--nofile=1024:4096"],
    of: (pid) => line(pid, "limits", "Max open files").split(/ +/)[4]!,
  },
  {
    what: "hard limit of locked memory",
    prefix: ["prlimit", "--memlock=65536:65536"],
    of: (pid) => line(pid, "limits", "Max locked memory").split(/ +/)[4]!,
  },
];

/** Waits until a machine has two hosts with so many containers, and gives them, the one with fewer first. */
async function twoHosts(machine: Machine, sizes: readonly [number, number]): Promise<readonly [number, number]> {
  return await until(`the hosts have ${sizes} containers`, () => {
    const hosts = machine.hosts().toSorted((a, b) => a.size - b.size);
    return hosts.map(({ size }) => size).join() === sizes.join() && [hosts[0]!.pid, hosts[1]!.pid] as const;
  });
}

/** Fails unless the host of some shims has their setting, and that of another shim has another. */
async function assertOwnHost(machine: Machine, [first, ...others]: Shim[], of: Setting["of"]): Promise<void> {
  for (const { pid } of [first!, ...others]) assertHolder(pid);
  const [host, ownHost] = await twoHosts(machine, [1, others.length]);
  const settings = [await of(host), await of(ownHost), ...await Promise.all(others.map(({ pid }) => of(pid)))];
  const [common, ...own] = settings;
  assertEquals(common, await of(first!.pid));
  assertEquals(new Set(own).size, 1, `the host of ${own.slice(1)} has ${own[0]}`);
  assertNotEquals(own[0], common);
}

/** Kills all hosts of a machine. */
async function killHosts(machine: Machine): Promise<void> {
  const pids = machine.hosts().map(({ pid }) => pid);
  for (const pid of pids) Deno.kill(pid, "SIGKILL");
  for (const pid of pids) await untilEnded(pid);
}

for (const { what, prefix, of } of SETTINGS) {
  onlyHosted(
    `shims with another ${what} than a host share another host, which has theirs, also when hosts die`,
    () =>
      withMachine((machine) => {
        const own = { prefix: [...machine.prefix, ...prefix] };
        return withShims([{ prefix: machine.prefix }, own, own], async (shims) => {
          await assertOwnHost(machine, shims, of);
          await shims[1]!.run();
          await killHosts(machine);
          await assertOwnHost(machine, shims, of);
          await assertExecs(shims[1]!, "after");
          await endContainer(shims[1]!);
        });
      }),
  );
}

onlyHosted(
  "the host of a shim that has 5 % of a CPU serves none that has more",
  () =>
    inGroup(`${newPlace().namespace}-slow`, "cpu", [], (group) =>
      withMachine((machine) => {
        const slow = { prefix: [...machine.prefix, ...shell(`echo $$ >${group.folder}/cgroup.procs`)] };
        const isSlow = (pid: number) => `${group.has(pid)}`;
        return withShims([slow], async ([inside]) => {
          assertHolder(inside!.pid);
          limitCpu(group, 5);
          assertEquals(isSlow(machine.host().pid), "true");
          await withShims([{ prefix: machine.prefix }, { prefix: machine.prefix }], async (outside) => {
            const [host, other] = await twoHosts(machine, [1, 2]);
            assertEquals([host, other].map(isSlow), ["true", "false"]);
            await outside[0]!.run();
            await assertExecs(outside[0]!, "outside");
            await endContainer(outside[0]!);
            // Also the next one.
            await killHosts(machine);
            await assertOwnHost(machine, [inside!, ...outside], isSlow);
          });
        });
      })),
);

/** How likely a process is to be killed for want of memory. */
function oomScoreAdj(pid: number | "self"): number {
  return Number(Deno.readTextFileSync(`/proc/${pid}/oom_score_adj`));
}

onlyHosted(
  "a host is not killed for want of memory before any process that it has served",
  () =>
    withMachine(async (machine) => {
      const own = oomScoreAdj("self");
      const prefix = (more: number) => [...machine.prefix, "choom", "-n", `${own + more}`, "--"];
      await withShim({ prefix: prefix(100) }, async () => {
        assertEquals(oomScoreAdj(machine.host().pid), own + 100);
        await withShims([{ prefix: prefix(50) }, { prefix: prefix(0) }, { prefix: prefix(70) }], async (shims) => {
          for (const { pid } of shims) assertHolder(pid);
          assertEquals([machine.sizes(), oomScoreAdj(machine.host().pid)], [[4], own]);
          // Those who come back tell the next one.
          await killHosts(machine);
          await until("there is another host", () => machine.sizes().join() === "4");
          assertEquals(oomScoreAdj(machine.host().pid), own);
        });
      });
      assert(oomScoreAdj(machine.host().pid) === own, "it may be killed before those who come later");
    }),
);
