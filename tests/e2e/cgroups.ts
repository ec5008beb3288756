/** Cgroups of either version, also on a machine that has the other, or both. */

import { must } from "./command.ts";
import { containerCgroups, hierarchies } from "./leftovers.ts";
import { until } from "./until.ts";

/** cgroups(7) */
export type CgroupVersion = 1 | 2;

/** Where programs look for cgroups. */
const CGROUPS = "/sys/fs/cgroup";

/** What they find there: version 2 is there alone, in a folder of its own beside version 1, or not at all. */
const layout = isUnified(CGROUPS) ? "unified" : isUnified(`${CGROUPS}/unified`) ? "hybrid" : "legacy";

function isUnified(folder: string): boolean {
  return hierarchies(["cgroup2"]).includes(folder);
}

/** What shows one version alone, to be run by a shell in a mount namespace of its own; undefined where that cannot be. */
function showing(version: CgroupVersion): string[] | undefined {
  if (version === 2) {
    return layout === "unified" ? [] : [`umount --recursive ${CGROUPS}`, `mount -t cgroup2 none ${CGROUPS}`];
  }
  if (layout === "unified") return undefined;
  // Covered, and not unmounted: the folder below it belongs to all namespaces, and crun makes others in it.
  return [`{ test ! -d ${CGROUPS}/unified || mount -t tmpfs none ${CGROUPS}/unified; }`];
}

/** Whether this machine can have cgroups of a version. */
export function hasCgroups(version: CgroupVersion): boolean {
  return showing(version) !== undefined;
}

/**
 * What is put before a command line to have the command see cgroups of one version alone.
 *
 * @param more what the shell runs besides
 * @throws {Error} unless {@linkcode hasCgroups}
 */
export function withCgroups(version: CgroupVersion, more: readonly string[] = []): string[] {
  const commands = showing(version);
  if (!commands) throw new Error(`This machine has no cgroups of version ${version}`);
  const script = [...commands, ...more];
  if (script.length === 0) return [];
  return ["unshare", "--mount", "sh", "-c", [...script, 'exec "$@"'].join(" && "), "sh"];
}

/**
 * Has this process see what others do with version 2: it is mounted at `folder`, which is made, where the machine has it
 * mounted nowhere. The folder must not be below one whose mounts or files are somebody else's to remove.
 *
 * @returns removes both again
 */
export async function showCgroups2(folder: string): Promise<AsyncDisposable> {
  if (hierarchies(["cgroup2"]).length > 0) return { [Symbol.asyncDispose]: () => Promise.resolve() };
  await Deno.mkdir(folder);
  await must(["mount", "-t", "cgroup2", "none", folder]);
  return {
    async [Symbol.asyncDispose]() {
      await must(["umount", folder]);
      await Deno.remove(folder);
    },
  };
}

/** Whether the processes of a namespace's containers are frozen, as the kernel tells. */
function areFrozen(namespace: string): boolean {
  return containerCgroups(namespace).some((folder) =>
    /^FROZEN$/m.test(textOf(`${folder}/freezer.state`)) || /^frozen 1$/m.test(textOf(`${folder}/cgroup.events`))
  );
}

/** A file of a cgroup; empty where the cgroup is of another hierarchy. */
export function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

/** Waits until the processes of a namespace's containers are frozen, or are not: crun only tells the kernel to do so. */
export async function expectFrozen(namespace: string, frozen: boolean): Promise<void> {
  await until(frozen ? "the container is frozen" : "the container is thawed", () => areFrozen(namespace) === frozen);
}

/** Lets frozen processes of a namespace's containers go on: with version 1, not even SIGKILL ends them before. */
export function thaw(namespace: string): void {
  for (const folder of containerCgroups(namespace)) setFrozen(folder, false);
}

/** Freezes what is in a cgroup, or lets it go on, as an administrator would, of whom no runtime knows. */
export function setFrozen(folder: string, isFrozen: boolean): void {
  const words = isFrozen ? ["FROZEN", "1"] as const : ["THAWED", "0"] as const;
  for (const [file, word] of [["freezer.state", words[0]], ["cgroup.freeze", words[1]]] as const) {
    try {
      Deno.writeTextFileSync(`${folder}/${file}`, word, { create: false });
    } catch {
      // another hierarchy
    }
  }
}

/** A cgroup of a test's own, in the hierarchy that has a controller. */
export interface Group {
  /** Where it is. */
  readonly folder: string;
  /** Writes to one of its files. */
  set(file: string, value: string): void;
  /** Whether a process is in it. */
  has(pid: number): boolean;
}

/** Lets what is in a cgroup of the controller "cpu" have so many percent of a CPU. */
export function limitCpu(group: Group, percent: number): void {
  const [period, quota] = [100_000, percent * 1000];
  if (layout === "unified") return group.set("cpu.max", `${quota} ${period}`);
  group.set("cpu.cfs_period_us", `${period}`);
  group.set("cpu.cfs_quota_us", `${quota}`);
}

/** Runs `test` while processes are in a cgroup of their own, and puts them back to where each was. */
export async function inGroup(
  name: string,
  controller: string,
  pids: readonly number[],
  test: (group: Group) => Promise<void>,
): Promise<void> {
  const root = layout === "unified" ? CGROUPS : `${CGROUPS}/${controller}`;
  const folder = `${root}/${name}`;
  if (layout === "unified") Deno.writeTextFileSync(`${root}/cgroup.subtree_control`, `+${controller}`);
  const before = pids.map((pid) => [pid, `${root}${cgroupOf(pid, controller)}`] as const);
  Deno.mkdirSync(folder);
  try {
    for (const pid of pids) Deno.writeTextFileSync(`${folder}/cgroup.procs`, `${pid}`);
    await test({
      folder,
      set: (file, value) => Deno.writeTextFileSync(`${folder}/${file}`, value),
      has: (pid) => `${root}${cgroupOf(pid, controller)}` === folder,
    });
  } finally {
    for (const [pid, where] of before) {
      try {
        Deno.writeTextFileSync(`${where}/cgroup.procs`, `${pid}`);
      } catch {
        // It has ended.
      }
    }
    await until("the cgroup is empty", () => textOf(`${folder}/cgroup.procs`) === "");
    await Deno.remove(folder);
  }
}

/** Whether containers here can have limits of a controller. */
export function hasController(controller: string): boolean {
  if (layout !== "unified") return hierarchies(["cgroup"]).includes(`${CGROUPS}/${controller}`);
  return textOf(`${CGROUPS}/cgroup.controllers`).split(/\s/).includes(controller);
}

/** Where a process is in the hierarchy that has a controller. */
function cgroupOf(pid: number, controller: string): string {
  for (const line of textOf(`/proc/${pid}/cgroup`).split("\n")) {
    const [, controllers = "", path = "/"] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers.split(",").includes(controller) || controllers === "" && layout === "unified") return path;
  }
  throw new Error(`process ${pid} is in no cgroup of ${controller}`);
}
