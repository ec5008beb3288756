/** Scripts for a shell that make file systems in files, and freeze them. They are run by whoever can: tests and the bench. */

/** How large a file system is, unless it is told. */
const MEBIBYTES = 8;

/**
 * Makes an ext4 file system in a file, with what is in a folder if one is given. The paths have no quotes in them.
 */
export function makeImage(image: string, { from, mebibytes = MEBIBYTES }: {
  readonly from?: string;
  readonly mebibytes?: number;
} = {}): string {
  const content = from === undefined ? "" : `-d '${from}' `;
  return `mke2fs -q -F -t ext4 ${content}'${image}' ${mebibytes}M`;
}

/** Makes one and mounts it. Its loop device is free as soon as it is unmounted. */
export function makeDisk(image: string, folder: string, mebibytes?: number): string {
  const make = makeImage(image, mebibytes === undefined ? {} : { mebibytes });
  return `${make} && mkdir -p '${folder}' && mount -o loop '${image}' '${folder}'`;
}

/**
 * Freezes the file system that is mounted at $0, which `$1`, a file that it makes then, says; who writes to it waits until it is
 * thawed, which is when this script's input has ended, in whatever way its other end has gone: fsfreeze(8).
 */
export const FREEZE = `trap '' HUP INT TERM
fsfreeze --freeze "$0" || exit
: >"$1"
read -r line
fsfreeze --unfreeze "$0"`;
