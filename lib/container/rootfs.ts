/** A container's root filesystem: a list of mounts, one over the other. */

import { LoopDevice } from "../../ffi/loop.ts";
import { MemoryFile } from "../../ffi/memfd.ts";
import { detach, mount, MOUNT_DATA_SIZE, mountPoints, MS, unmount } from "../../ffi/mount.ts";
import { sleep, type Timer } from "../async.ts";
import { messageOf } from "../errors.ts";
import type { Run } from "../reaper.ts";
import type { Context } from "./context.ts";

/** A mount as containerd describes it. */
export interface Mount {
  /** As mount(2) has it; empty for a bind. */
  readonly type: string;
  /** A device, a folder, or a word that the filesystem knows. */
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
interface ParsedOptions {
  /** MS_ flags. */
  readonly flags: number;
  /** MS_ flags of propagation changes, in order. */
  readonly propagation: readonly number[];
  /** Whether the source is a file that a loop device is to hold. */
  readonly loop: boolean;
  /** What is left, for the filesystem. */
  readonly data: readonly string[];
}

/** Takes fstab's words apart into flags and what is the filesystem's. */
function parseOptions(options: readonly string[]): ParsedOptions {
  let flags = 0;
  let loop = false;
  const propagation: number[] = [];
  const data: string[] = [];
  for (const option of options) {
    if (Object.hasOwn(FLAGS, option)) {
      const { set = 0, clear = 0 } = FLAGS[option]!;
      flags = (flags | set) & ~clear;
    } else if (Object.hasOwn(PROPAGATION, option)) {
      propagation.push(PROPAGATION[option]!);
    } else if (option === "loop") {
      loop = true;
    } else {
      data.push(option);
    }
  }
  return { flags, propagation, loop, data };
}

/** What mounting needs of the process it is done in. */
export interface MountOptions {
  /** Waits before what is busy is unmounted again. */
  readonly timer: Timer;
  /** Runs mount programs: fuse3.NAME. */
  readonly run: Run;
}

/**
 * Mounts a list of mounts on a directory, each over the one before.
 *
 * @throws {Error} when one fails; those before it are mounted then, for {@link unmountAll} to take off
 */
export async function mountAll(mounts: readonly Mount[], target: string, options: MountOptions): Promise<void> {
  for (const each of mounts) {
    try {
      await mountOne(each, target, options);
    } catch (cause) {
      throw new Error(`failed to mount rootfs component ${each.type} ${each.source}: ${messageOf(cause)}`, { cause });
    }
  }
}

/** The helpers that mount filesystems which are programs, by how their types begin: mount.fuse3(8). */
const HELPERS = [{ prefix: "fuse.", helper: "mount.fuse" }, { prefix: "fuse3.", helper: "mount.fuse3" }];

/** Flags that a bind takes from what it binds: only a second call sets them. */
const OF_A_BIND = MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC | MS.NOATIME | MS.NODIRATIME;

async function mountOne(each: Mount, target: string, { timer, run }: MountOptions): Promise<void> {
  const { type, source, options } = each;
  const fuse = HELPERS.find(({ prefix }) => type.startsWith(prefix));
  if (fuse !== undefined) return await mountByHelper(fuse.helper, type.slice(fuse.prefix.length), each, target, run);
  const { flags, propagation, loop, data } = parseOptions(options);
  if (!(flags & MS.REMOUNT) || data.length > 0) {
    // It is the mount's alone as soon as that is there.
    using device = loop ? await attach(source, (flags & MS.RDONLY) !== 0, timer) : undefined;
    const { folder, text } = dataFor(type, target, data);
    inFolder(folder, () => mount(device?.path ?? source, target, type, flags, text));
  }
  for (const each of propagation) mount("", target, "", each, "");
  if ((flags & MS.BIND) && (flags & OF_A_BIND)) mount("", target, "", flags | MS.REMOUNT, "");
}

/** How often a loop device is asked for when others take it first, and for how many ms at most it is waited each time. */
const LOOP_TRIES = 100;
const LOOP_DELAY_MS = 20;

/** @throws {Error} */
async function attach(file: string, readOnly: boolean, timer: Timer): Promise<LoopDevice> {
  try {
    for (let tries = 0; tries < LOOP_TRIES; tries++) {
      const device = LoopDevice.attach(file, readOnly);
      if (device !== undefined) return device;
      // Not in step with the others.
      await sleep(timer, Math.random() * LOOP_DELAY_MS);
    }
  } catch (cause) {
    throw new Error(`cannot attach ${file} to a loop device: ${messageOf(cause)}`, { cause });
  }
  throw new Error(`cannot attach ${file} to a loop device: others take each that is free`);
}

/** @throws {Error} with what the helper has printed */
async function mountByHelper(
  helper: string,
  type: string,
  { source, options }: Mount,
  target: string,
  run: Run,
): Promise<void> {
  using output = new MemoryFile("mount-output");
  const { status } = await run({
    args: [helper, source, target, ...options.flatMap((option) => ["-o", option]), "-t", type],
    descriptors: [null, output.fd, output.fd],
  });
  if (status === 0) return;
  const said = output.read().trim();
  throw new Error(`${helper} of ${type} ${source} on ${target} ended with status ${status}: ${said}`);
}

/** What mount(2) is given for the filesystem, and where it is to be called. */
interface Data {
  /** The working directory that paths are relative to; undefined where there are none. */
  readonly folder?: string;
  readonly text: string;
}

const LOWERDIR = "lowerdir=";
/** A layer in lowerdir: layers are separated by colons that no backslash is before. */
const LAYER = /(?:\\.|[^\\:])+/gs;

/**
 * Options as the filesystem is given them. An overlay may have so many layers that their paths pass what the kernel
 * takes: they are given relative to the folder that has all of them then.
 *
 * @throws {Error} when they are too long
 */
function dataFor(type: string, target: string, options: readonly string[]): Data {
  const text = options.join(",");
  if (!isTooLong(text)) return { text };
  const folder = type === "overlay" ? commonFolder(options) : undefined;
  if (folder !== undefined) {
    const short = options.map((each) =>
      each.startsWith(LOWERDIR) ? LOWERDIR + layersOf(each).replace(LAYER, (layer) => layer.slice(folder.length)) : each
    ).join(",");
    if (!isTooLong(short)) return { folder: folder.replace(/\\(.)/gs, "$1"), text: short };
  }
  throw new Error(
    `the options of ${type} on ${target} are longer than the ${MOUNT_DATA_SIZE} bytes that mount(2) takes`,
  );
}

function isTooLong(data: string): boolean {
  return new TextEncoder().encode(data).length >= MOUNT_DATA_SIZE;
}

/** What a lowerdir option says, no slash twice: what is left of a path must not begin with one. */
function layersOf(option: string): string {
  return option.slice(LOWERDIR.length).replace(/\/+/g, "/");
}

/** The deepest folder that has all layers in it, as they are written, with its slash; undefined when some are relative. */
function commonFolder(options: readonly string[]): string | undefined {
  const layers = options.filter((each) => each.startsWith(LOWERDIR)).flatMap((each) =>
    layersOf(each).match(LAYER)?.map((layer) => layer.replace(/\/$/, "")) ?? []
  );
  let common = layers[0];
  if (common === undefined || layers.some((layer) => !layer.startsWith("/"))) return undefined;
  for (const layer of layers) {
    while (!layer.startsWith(common)) common = common.slice(0, -1);
  }
  return common.slice(0, common.lastIndexOf("/") + 1);
}

/** Calls something with a working directory. That is the whole process's: nothing else runs until it is back. */
function inFolder(folder: string | undefined, call: () => void): void {
  if (folder === undefined) return call();
  const before = Deno.cwd();
  Deno.chdir(folder);
  try {
    call();
  } finally {
    Deno.chdir(before);
  }
}

/** How often a busy mount is tried again, and after how many ms: a namespace that goes keeps it for a moment. */
const BUSY_TRIES = 10;
const BUSY_DELAY_MS = 25;

/**
 * Takes every mount off a path; nothing, when there is none or no such path. Those that were there before {@link mountAll} go
 * too: a container that could not be deleted may have left them. What stays busy, because a process of the host's is in it,
 * say, is detached after a quarter of a second, and goes when nobody uses it any more: the log has a line about that.
 *
 * @throws {Error} when one cannot be taken off
 */
export async function unmountAll({ timer, log }: Pick<Context, "timer" | "log">, target: string): Promise<void> {
  for (let busy = 0;;) {
    switch (unmount(target)) {
      case "none":
        return;
      case "unmounted":
        continue;
      case "busy":
        if (unmountBelow(target)) continue;
        if (++busy > BUSY_TRIES) {
          isolate(target);
          detach(target);
          log.warn("a mount is in use by others than the container, and has been detached", { mount: target });
        } else {
          await sleep(timer, BUSY_DELAY_MS);
        }
    }
  }
}

/** Has what happens to the mounts at and below a path stay there, and not be done to what they are of. */
function isolate(target: string): void {
  mount("", target, "", MS.REC | MS.PRIVATE, "");
}

/**
 * Takes off what is mounted below a path, which a recursive bind has brought along.
 *
 * @returns whether there was something that could be
 */
function unmountBelow(target: string): boolean {
  const prefix = `${Deno.realPathSync(target)}/`;
  const below = mountPoints().filter((each) => each.startsWith(prefix));
  if (below.length === 0) return false;
  // What was bound is not to be unmounted.
  isolate(target);
  return below.reverse().map(unmount).includes("unmounted");
}
