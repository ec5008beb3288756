/** Mounts: mount(2) and umount2(2). */

import { check, cstring, Errno, errno, libc, SystemError } from "./libc.ts";

const c = libc({
  mount: [["buffer", "buffer", "buffer", "u64", "buffer"], "i32"],
  umount2: [["buffer", "i32"], "i32"],
});

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

/**
 * mount(2).
 *
 * @throws {SystemError}
 */
export function mount(source: string, target: string, type: string, flags: number, data: string): void {
  check(
    c().mount(cstring(source), cstring(target), cstring(type), BigInt(flags), cstring(data)),
    `mount of ${type || "filesystem"} ${source} on`,
    target,
  );
}

/**
 * Takes the topmost mount off a path: umount2(2), never lazily. Like {@link mount}, it follows a symbolic link.
 *
 * @returns "busy" when it is in use, "none" when nothing is mounted there or nothing is there
 * @throws {SystemError}
 */
export function unmount(target: string): "unmounted" | "busy" | "none" {
  if (c().umount2(cstring(target), 0) === 0) return "unmounted";
  switch (errno()) {
    case Errno.EBUSY:
      return "busy";
    case Errno.EINVAL:
    case Errno.ENOENT:
      return "none";
    default:
      throw new SystemError("umount of", errno(), target);
  }
}

/**
 * Takes the topmost mount off a path with all that is mounted below it, though they are in use: umount2(2) with MNT_DETACH. Who
 * uses them goes on with them, and they end when nobody does.
 *
 * @throws {SystemError}
 */
export function detach(target: string): void {
  check(c().umount2(cstring(target), MNT_DETACH), "umount of", target);
}

/** Where something is mounted, in the order in which it was: proc_pid_mountinfo(5). */
export function mountPoints(): string[] {
  return Deno.readTextFileSync("/proc/self/mountinfo").split("\n").map((line) =>
    (line.split(" ")[4] ?? "").replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)))
  );
}
