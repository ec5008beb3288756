/** What an OCI runtime leaves behind that is killed half way, and does not know of itself any more. */

import { sleep, type Timer } from "../async.ts";
import { cgroupsPath } from "./bundle.ts";

/** How often a cgroup is tried again whose processes are on their way out, and after how many ms. */
const BUSY_TRIES = 20;
const BUSY_DELAY_MS = 50;

/** Where hierarchies of cgroups are mounted: proc_pid_mountinfo(5). */
function hierarchies(): string[] {
  return Deno.readTextFileSync("/proc/self/mountinfo").split("\n")
    .filter((line) => / - cgroup2? /.test(line))
    .map((line) => line.split(" ")[4]!);
}

/**
 * Removes the cgroups of a bundle's container that have no process in them. They are made before anything else, and a
 * runtime that is killed then has written down nothing of them.
 */
export async function removeEmptyCgroups(bundle: string, timer: Timer): Promise<void> {
  const path = cgroupsPath(bundle);
  if (path === undefined) return;
  const folders = hierarchies().map((each) => `${each}${path}`);
  for (let tries = 0; tries < BUSY_TRIES && folders.filter(isLeft).length > 0; tries++) {
    await sleep(timer, BUSY_DELAY_MS);
  }
}

/** Whether a cgroup is there in spite of being removed. */
function isLeft(folder: string): boolean {
  try {
    Deno.removeSync(folder);
    return false;
  } catch (error) {
    return !(error instanceof Deno.errors.NotFound);
  }
}

/** The processes that share a process's pid namespace, itself among them. */
export function sharingPidNamespace(pid: number): number[] {
  const namespace = pidNamespaceOf(pid);
  if (namespace === undefined) return [];
  return [...Deno.readDirSync("/proc")].map(({ name }) => Number(name))
    .filter((each) => each > 0 && pidNamespaceOf(each) === namespace);
}

function pidNamespaceOf(pid: number): string | undefined {
  try {
    return Deno.readLinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return undefined; // gone
  }
}
