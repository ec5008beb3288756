/** What a container leaves behind when something went wrong, and getting rid of it. */

import { must } from "./command.ts";
import { descendants, mounts, mountsBelow } from "./proc.ts";
import { until } from "./until.ts";

/** The process below which everything that a test starts is found, also when its parent is dead. */
const ROOT_PID = Number(Deno.env.get("E2E_ROOT_PID") ?? Deno.pid);

/** A process below that, with all that is below it, that runs other tests at the same time; 0 when there is none. */
const BESIDE_PID = Number(Deno.env.get("E2E_BESIDE_PID") ?? 0);

/** What all names of a run begin with that others can see, and that can be told from others' by: it has this folder. */
export function runName(folder: string): string {
  return folder.replace(/.*\//, "").toLowerCase().replace(/[^a-z0-9]+/g, "-");
}

/** Where runc keeps its state unless told otherwise; below it, a folder for each containerd namespace. */
export const RUNC_ROOT = "/run/containerd/runc";

/** Where containerd makes its shims' sockets. */
const SHIM_SOCKETS = "/run/containerd/s";

/** How long what is about to go may take to go, in ms. */
export const LEAVING_MS = 5000;

/** Names in a folder; none if it is not there, or is no folder. */
export function names(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map((each) => each.name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}

/** Paths in a folder; none if it is not there, or is no folder. */
export function paths(folder: string): string[] {
  return names(folder).map((each) => `${folder}/${each}`);
}

/**
 * Where the hierarchies of cgroups are mounted: version 1 has one for each controller, version 2 one for all. What a
 * process in another mount namespace makes is in these too: a hierarchy is the same wherever it is mounted.
 */
export function hierarchies(types: readonly string[] = ["cgroup", "cgroup2"]): string[] {
  // Of what is mounted on top of each other, only the last is seen.
  const seen = new Map(mounts().map((each) => [each.path, each]));
  const found = [...seen.values()].filter(({ type }) => types.includes(type));
  // Where one is mounted again, as CRIU does, is one place too many to look for the same.
  return found.filter(({ device }, i) => found.findIndex((each) => each.device === device) === i)
    .map(({ path }) => path);
}

/** The cgroup folders of a containerd namespace in all hierarchies. */
export function cgroupsOf(namespace: string): string[] {
  return hierarchies().map((each) => `${each}/${namespace}`).filter((each) => names(each).length > 0);
}

/** The cgroup folders of a namespace's containers. */
export function containerCgroups(namespace: string): string[] {
  return cgroupsOf(namespace).flatMap((folder) =>
    [...Deno.readDirSync(folder)].filter((each) => each.isDirectory).map((each) => `${folder}/${each.name}`)
  );
}

/** The processes in the cgroups of a namespace's containers. */
export function containerProcesses(namespace: string): number[] {
  const pids = containerCgroups(namespace).flatMap((folder) => {
    try {
      return Deno.readTextFileSync(`${folder}/cgroup.procs`).trim().split("\n").filter(Boolean).map(Number);
    } catch {
      return []; // gone
    }
  });
  return [...new Set(pids)];
}

/** The socket that containerd gives the shim of a container: a hash of what names it. */
export async function shimSocket(address: string, namespace: string, id: string): Promise<string> {
  const name = new TextEncoder().encode(`${address}/${namespace}/${id}`);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", name));
  return `${SHIM_SOCKETS}/${hash.toHex()}`;
}

/** Ended processes below this run that their parent has not reaped. */
export function zombies(): string[] {
  const beside = new Set([BESIDE_PID]);
  // Parents come before their children.
  const ours = descendants(ROOT_PID).filter(({ pid, ppid }) => {
    if (beside.has(ppid)) beside.add(pid);
    return !beside.has(pid);
  });
  return ours.filter((each) => each.state === "Z").map((each) =>
    `zombie ${each.pid} (${each.comm}), a child of ${each.ppid}`
  );
}

/** What a containerd namespace leaves outside of any folder of the tests. */
export function namespaceLeftovers(namespace: string): string[] {
  return [
    ...paths(`${RUNC_ROOT}/${namespace}`).map((each) => `runc state ${each}`),
    ...containerCgroups(namespace).map((each) => `cgroup ${each}`),
    ...zombies(),
  ];
}

/**
 * Waits until nothing is left.
 *
 * @throws {Error} with what is
 */
export async function expectNone(leftovers: () => string[] | Promise<string[]>): Promise<void> {
  let left: string[] = [];
  try {
    await until("nothing is left", async () => (left = await leftovers()).length === 0, LEAVING_MS);
  } catch (error) {
    throw left.length === 0 ? error : new Error(`These are left:\n${left.join("\n")}`);
  }
}

/** Removes what a containerd namespace has outside of any folder of the tests; its processes must have ended. */
export async function removeNamespace(namespace: string): Promise<void> {
  for (const cgroup of cgroupsOf(namespace)) removeCgroup(cgroup);
  await Deno.remove(`${RUNC_ROOT}/${namespace}`, { recursive: true }).catch(() => {});
}

function removeCgroup(folder: string): void {
  for (const each of Deno.readDirSync(folder)) {
    if (each.isDirectory) removeCgroup(`${folder}/${each.name}`);
  }
  try {
    Deno.removeSync(folder);
  } catch {
    // A process in it is still on its way out; the run's supervisor tries again.
  }
}

/** Loop devices whose files are below a folder, with these files. */
export function loopsBelow(folder: string): { readonly device: string; readonly file: string }[] {
  return names("/sys/block").flatMap((name) => {
    try {
      const file = Deno.readTextFileSync(`/sys/block/${name}/loop/backing_file`).trim();
      return file.startsWith(`${folder}/`) ? [{ device: `/dev/${name}`, file }] : [];
    } catch {
      return []; // no loop device, or an empty one
    }
  });
}

/** Unmounts what is mounted below a folder, frees its loop devices, and removes it. */
export async function removeFolder(folder: string): Promise<void> {
  // One that is mounted is free as soon as it is unmounted.
  for (const { device } of loopsBelow(folder)) await must(["losetup", "--detach", device]);
  for (const mount of mountsBelow(folder).reverse()) await must(["umount", "-l", mount]);
  await Deno.remove(folder, { recursive: true });
}
