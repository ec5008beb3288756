/** The file in the bundle that builds before version 3 of the record have written: a line that says what follows, then JSON. */

import { messageOf } from "../errors.ts";
import { canReadVersion, checkedRecord, RECORD_FILE, RECORD_VERSION, type ShimRecord } from "./record.ts";

/** What the names of the file end with: the second was the one before, to be written over. */
const ENDINGS = ["", ".before"];

/**
 * What the file of a bundle says.
 *
 * @returns undefined when there is none
 * @throws {Error} when it cannot be read
 */
export function readOldFile(bundle: string): string | undefined {
  if (bundle === "") return undefined;
  try {
    return Deno.readTextFileSync(`${bundle}/${RECORD_FILE}`);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw new Error(`the shim's state cannot be read: ${messageOf(error)}`, { cause: error });
  }
}

/** Removes the file, if there is one. */
export function removeOldFile(bundle: string): void {
  for (const ending of ENDINGS) {
    try {
      Deno.removeSync(`${bundle}/${RECORD_FILE}${ending}`);
    } catch {
      // There is none, or the whole bundle has been removed.
    }
  }
}

/** The version of what a file says; undefined when there is none to be seen. */
export function oldVersionOf(written: string): number | undefined {
  const version = /^containerd-shim (\d+) /.exec(written)?.[1];
  return version === undefined ? undefined : Number(version);
}

/**
 * Reads what a file says with suspicion.
 *
 * @throws {Error} which says what is wrong: it is of another version, or has been cut, or changed
 */
export function decodeOldFile(written: string): ShimRecord {
  const [, version, length, sum, body] = /^containerd-shim (\d+) (\d+) ([0-9a-f]+)\n([^]*)\n$/.exec(written) ?? [];
  if (version === undefined) throw new Error("it is not whole");
  if (!canReadVersion(Number(version))) {
    throw new Error(`it is of version ${version}, and this shim reads versions up to ${RECORD_VERSION}`);
  }
  if (body!.length !== Number(length) || checksum(body!) !== sum) throw new Error("it is not what was written");
  return checkedRecord(JSON.parse(body!));
}

/** FNV-1a, of 32 bits, of UTF-16 code units. */
function checksum(content: string): string {
  let hash = 0x811c9dc5;
  for (let i = 0; i < content.length; i++) hash = Math.imul(hash ^ content.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(16);
}
