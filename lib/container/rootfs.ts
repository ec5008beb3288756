/** A container's root filesystem: a list of mounts, one over the other. */

import { mount, MOUNT_DATA_SIZE, MS, unmount } from "../../ffi/mount.ts";
import { sleep, type Timer } from "../async.ts";
import { messageOf } from "../errors.ts";

/** A mount as containerd describes it. */
export interface Mount {
  readonly type: string;
  readonly source: string;
  /** As in fstab(5), one word each. */
  readonly options: readonly string[];
}

/** The words of fstab that are flags, by what they do to them: mount(8). */
const FLAGS: Readonly<Record<string, { set?: number; clear?: number }>> = {
  async: { clear: MS.SYNCHRONOUS },
  atime: { clear: MS.NOATIME },
  bind: { set: MS.BIND },
  defaults: {},
  dev: { clear: MS.NODEV },
  diratime: { clear: MS.NODIRATIME },
  dirsync: { set: MS.DIRSYNC },
  exec: { clear: MS.NOEXEC },
  mand: { set: MS.MANDLOCK },
  noatime: { set: MS.NOATIME },
  nodev: { set: MS.NODEV },
  nodiratime: { set: MS.NODIRATIME },
  noexec: { set: MS.NOEXEC },
  nomand: { clear: MS.MANDLOCK },
  norelatime: { clear: MS.RELATIME },
  nostrictatime: { clear: MS.STRICTATIME },
  nosuid: { set: MS.NOSUID },
  rbind: { set: MS.BIND | MS.REC },
  relatime: { set: MS.RELATIME },
  remount: { set: MS.REMOUNT },
  ro: { set: MS.RDONLY },
  rw: { clear: MS.RDONLY },
  strictatime: { set: MS.STRICTATIME },
  suid: { clear: MS.NOSUID },
  sync: { set: MS.SYNCHRONOUS },
};

/** The words for how mounts propagate, which a call of their own sets: mount_namespaces(7). */
const PROPAGATION: Readonly<Record<string, number>> = {
  private: MS.PRIVATE,
  rprivate: MS.PRIVATE | MS.REC,
  shared: MS.SHARED,
  rshared: MS.SHARED | MS.REC,
  slave: MS.SLAVE,
  rslave: MS.SLAVE | MS.REC,
  unbindable: MS.UNBINDABLE,
  runbindable: MS.UNBINDABLE | MS.REC,
};

/** Mount options, taken apart. */
export interface ParsedOptions {
  /** MS_ flags. */
  readonly flags: number;
  /** MS_ flags of propagation changes, in order. */
  readonly propagation: readonly number[];
  /** What is left, for the filesystem. */
  readonly data: readonly string[];
}

/** Takes fstab's words apart into flags and what is the filesystem's. */
export function parseOptions(options: readonly string[]): ParsedOptions {
  let flags = 0;
  const propagation: number[] = [];
  const data: string[] = [];
  for (const option of options) {
    if (Object.hasOwn(FLAGS, option)) {
      const { set = 0, clear = 0 } = FLAGS[option]!;
      flags = (flags | set) & ~clear;
    } else if (Object.hasOwn(PROPAGATION, option)) {
      propagation.push(PROPAGATION[option]!);
    } else {
      data.push(option);
    }
  }
  return { flags, propagation, data };
}

/**
 * Mounts a list of mounts on a directory, each over the one before.
 *
 * @throws {Error} when one fails; what had been mounted is off again then
 */
export async function mountAll(
  timer: Timer,
  mounts: readonly Mount[],
  target: string,
): Promise<void> {
  for (const each of mounts) {
    try {
      mountOne(each, target);
    } catch (cause) {
      await unmountAll(timer, target);
      throw new Error(
        `failed to mount rootfs component: ${messageOf(cause)}`,
        { cause },
      );
    }
  }
}

function mountOne({ type, source, options }: Mount, target: string): void {
  const { flags, propagation, data } = parseOptions(options);
  const text = data.join(",");
  if (!(flags & MS.REMOUNT) || text !== "") {
    if (type === "overlay" && tooLong(text)) {
      mountFromCommonFolder(source, target, type, flags, data);
    } else {
      mount(source, target, type, flags, text);
    }
  }
  for (const each of propagation) mount("", target, "", each, "");
  // A bind takes its flags from what it binds: only a second call makes it read-only.
  if ((flags & MS.BIND) && (flags & MS.RDONLY)) {
    mount("", target, "", flags | MS.REMOUNT, "");
  }
}

function tooLong(data: string): boolean {
  return new TextEncoder().encode(data).length >= MOUNT_DATA_SIZE;
}

const LOWERDIR = "lowerdir=";

/** An overlay of so many layers that their paths pass what the kernel takes: mounted from where the paths are short. */
function mountFromCommonFolder(
  source: string,
  target: string,
  type: string,
  flags: number,
  data: readonly string[],
): void {
  const lowers = data.find((each) => each.startsWith(LOWERDIR))
    ?.slice(LOWERDIR.length).split(":") ?? [];
  const folder = commonFolder(lowers);
  const text = data.map((each) =>
    each.startsWith(LOWERDIR) ? LOWERDIR + lowers.map((lower) => lower.slice(folder.length)).join(":") : each
  ).join(",");
  if (tooLong(text)) {
    throw new Error(
      `the options of ${type} on ${target} are longer than the ${MOUNT_DATA_SIZE} bytes that mount(2) takes`,
    );
  }
  // The kernel resolves relative paths from the working directory. It is the whole process's, so it changes back in the
  // same breath: nothing else runs in between.
  const before = Deno.cwd();
  Deno.chdir(folder);
  try {
    mount(source, target, type, flags, text);
  } finally {
    Deno.chdir(before);
  }
}

/** The deepest folder that all paths are below, with a slash at its end. */
function commonFolder(paths: readonly string[]): string {
  let common = paths[0] ?? "/";
  for (const path of paths) {
    while (!path.startsWith(common)) common = common.slice(0, -1);
  }
  return common.slice(0, common.lastIndexOf("/") + 1) || "/";
}

/** How often a busy mount is tried again, and after how many ms. */
const BUSY_TRIES = 50;
const BUSY_DELAY_MS = 50;

/**
 * Takes every mount off a path, never lazily; nothing, when there is none or no such path.
 *
 * @throws {Error} when one stays busy for 2.5 s, or cannot be taken off
 */
export async function unmountAll(timer: Timer, target: string): Promise<void> {
  for (let busy = 0;;) {
    switch (unmount(target)) {
      case "none":
        return;
      case "unmounted":
        continue;
      case "busy":
        if (++busy > BUSY_TRIES) {
          throw new Error(`umount of ${target}: it is still in use`);
        }
        await sleep(timer, BUSY_DELAY_MS);
    }
  }
}
