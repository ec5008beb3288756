/**
 * What becomes of a container whose process dies before it has been started: the runtime goes on that creates it, and what it
 * makes, or has made, would be nobody's, with a name that nobody can use again. Its host has it removed.
 */

import { MemoryFile } from "../../ffi/memfd.ts";
import { mountPoints } from "../../ffi/mount.ts";
import { argumentsOf, parentOf } from "../../ffi/process.ts";
import { sleep, type Timer } from "../async.ts";
import type { OwnChildren } from "../reaper.ts";
import type { Unstarted } from "../shim.ts";

/** How long a runtime may take to begin and to end whose process is not known, in ms. */
const UNKNOWN_MS = 500;
/** How long containerd may take to write the configuration into a bundle that it has just made, in ms. */
const CONFIGURATION_MS = 500;

/** Waits until the runtime has done what it does, and removes what it has made, and what has been mounted for that. */
export async function removeOrphan(timer: Timer, children: OwnChildren, orphan: Unstarted): Promise<void> {
  try {
    await removeContainer(timer, children, orphan);
  } finally {
    await orphan.unmount();
  }
}

async function removeContainer(timer: Timer, children: OwnChildren, orphan: Unstarted): Promise<void> {
  const { id, bundle, runtime, creator } = orphan;
  if (creator === 0) await sleep(timer, UNKNOWN_MS);
  else if (creator !== undefined) await children.ended(creator);
  const state = await outputOf(children, [...runtime, "state", id]);
  const init = Number(/"pid":\s*(\d+)/.exec(state)?.[1] ?? 0);
  // There may be another of that name by now: a shim, or a runtime that it has started, is the parent of that.
  if (isShims(init)) return;
  // One that has been created has the process that is known, or it has ended.
  const isOrphan = creator === undefined ? state !== "" && (init === 0 || init === orphan.init) : init !== 0;
  if (isOrphan) await outputOf(children, [...runtime, "delete", "--force", id]);
  await removeRemains(timer, bundle);
}

/**
 * Removes the folder that runc has made where a bundle was: containerd puts that aside to remove it, runc makes the folders
 * anew that it wants to mount something on, and containerd makes no bundle where there is something.
 */
async function removeRemains(timer: Timer, bundle: string): Promise<void> {
  const remains = unconfigured(bundle);
  if (remains === undefined) return;
  await sleep(timer, CONFIGURATION_MS);
  if (unconfigured(bundle) !== remains || mountPoints().some((each) => each.startsWith(`${bundle}/`))) return;
  await Deno.remove(bundle, { recursive: true });
}

/** The inode of a folder that is no bundle, because it has no configuration; undefined if there is none. */
function unconfigured(path: string): number | null | undefined {
  const { ino, isDirectory } = statOrNothing(path) ?? {};
  return isDirectory && statOrNothing(`${path}/config.json`) === undefined ? ino : undefined;
}

function statOrNothing(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** Whether a process has been started by a shim that lives. */
function isShims(pid: number): boolean {
  const parent = pid === 0 ? undefined : parentOf(pid);
  if (parent === undefined) return false;
  const args = argumentsOf(parent);
  return args.includes("-namespace") || args.includes("create");
}

/** Runs a program, and gives what it has printed. */
async function outputOf(children: OwnChildren, args: readonly string[]): Promise<string> {
  using output = new MemoryFile("runc-output");
  await children.run({ args, descriptors: [null, output.fd, null] });
  return output.read();
}
