/** Mounts: mount(2) and umount2(2), which may wait: lists have them. */

import type { CallList, Place } from "./calls.ts";

/** Flags of mount(2), from linux/mount.h. */
export const MS = {
  RDONLY: 1 << 0,
  NOSUID: 1 << 1,
  NODEV: 1 << 2,
  NOEXEC: 1 << 3,
  SYNCHRONOUS: 1 << 4,
  REMOUNT: 1 << 5,
  MANDLOCK: 1 << 6,
  DIRSYNC: 1 << 7,
  NOATIME: 1 << 10,
  NODIRATIME: 1 << 11,
  BIND: 1 << 12,
  REC: 1 << 14,
  SILENT: 1 << 15,
  UNBINDABLE: 1 << 17,
  PRIVATE: 1 << 18,
  SLAVE: 1 << 19,
  SHARED: 1 << 20,
  RELATIME: 1 << 21,
  STRICTATIME: 1 << 24,
} as const;

/** Flag of umount2(2), from linux/fs.h. */
const MNT_DETACH = 2;

/** What the kernel takes of a mount's data: one page, with its NUL. */
export const MOUNT_DATA_SIZE = 4096;

/** A mount as mount(2) takes it. */
export interface MountArguments {
  /** Where a text is that is known later, or a text. */
  readonly source: string | Place;
  /** Where it is mounted. */
  readonly target: string;
  /** Empty where the flags say what is done. */
  readonly type: string;
  /** Of {@link MS}. */
  readonly flags: number;
  /** The filesystem's own options. */
  readonly data: string;
}

/** Adds mount(2) to a list. */
export function addMount(list: CallList, { source, target, type, flags, data }: MountArguments): void {
  const given = typeof source === "string" ? source : { pointer: source };
  list.add("mount", [given, target, type, flags, data], {
    what: [`mount of ${type || "filesystem"} `, source, ` on ${target}`],
  });
}

/**
 * Adds umount2(2) to a list, which takes the topmost mount off a path, and like mount(2) follows a symbolic link: EBUSY when that
 * is in use, EINVAL or ENOENT when nothing is mounted there or nothing is there.
 *
 * @param goesOn whether the list goes on when it cannot
 */
export function addUnmount(list: CallList, target: string, { goesOn = false } = {}): void {
  list.add("umount2", [target, 0], { what: `umount of ${target}`, goesOn });
}

/**
 * Adds umount2(2) with MNT_DETACH to a list: it takes the topmost mount off a path with all that is mounted below it, though they
 * are in use. Who uses them goes on with them, and they end when nobody does.
 */
export function addDetach(list: CallList, target: string): void {
  list.add("umount2", [target, MNT_DETACH], { what: `umount of ${target}` });
}

/** Where something is mounted, in the order in which it was: proc_pid_mountinfo(5). */
export function mountPoints(): string[] {
  return Deno.readTextFileSync("/proc/self/mountinfo").split("\n").map((line) =>
    (line.split(" ")[4] ?? "").replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)))
  );
}
