/** The files of a bundle: what the OCI runtime is told, and what it writes down. */

import { OWNER_ONLY } from "../../ffi/fd.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";

/** The pid file of the container's init process, in the bundle. */
export const PID_FILE = "init.pid";

/**
 * The pid that the runtime has written into a file.
 *
 * @throws {Error} when there is none in it
 */
export function readPidFile(path: string): number {
  const text = Deno.readTextFileSync(path).trim();
  const pid = Number(text);
  if (!Number.isSafeInteger(pid) || pid <= 0) {
    throw new Error(`pid file ${path} has no pid in it but ${JSON.stringify(text)}`);
  }
  return pid;
}

/**
 * Writes a file that is new, whatever was there: where a link has been put, what it leads to is left alone.
 *
 * @throws {Error}
 */
export function writeNewFile(path: string, text: string): void {
  removeIfThere(path);
  Deno.writeTextFileSync(path, text, { createNew: true, mode: OWNER_ONLY });
}

/** Removes a file or folder, which may not be there. */
export function removeIfThere(path: string, options?: Deno.RemoveOptions): void {
  try {
    Deno.removeSync(path, options);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/**
 * Whether the container that `config.json` describes has a pid namespace of its own, which ends with its init. When
 * that cannot be told, it is taken to have none.
 */
export function ownsPidNamespace(bundle: string, log: Logger): boolean {
  const path = `${bundle}/config.json`;
  try {
    const namespaces: unknown = JSON.parse(Deno.readTextFileSync(path))?.linux?.namespaces;
    return Array.isArray(namespaces) &&
      namespaces.some((each) => each?.type === "pid" && !each.path);
  } catch (error) {
    log.error("cannot tell the container's pid namespace", { path, error: messageOf(error) });
    return false;
  }
}

/** The path of the container's cgroups in each hierarchy; undefined when it has none that is known. */
export function cgroupsPath(bundle: string): string | undefined {
  try {
    const path: unknown = JSON.parse(Deno.readTextFileSync(`${bundle}/config.json`))?.linux?.cgroupsPath;
    // Another form of it is for systemd, which removes what is empty.
    return typeof path === "string" && /^(\/(?!\.\.?(\/|$))[^/]+)+$/.test(path) ? path : undefined;
  } catch {
    return undefined;
  }
}
