/** A container's root filesystem: a list of mounts, one over the other. */

import { CallList } from "../../ffi/calls.ts";
import { Errno } from "../../ffi/libc.ts";
import { addLoopDevice } from "../../ffi/loop.ts";
import { readMemory } from "../../ffi/memfd.ts";
import { addDetach, addMount, addUnmount, MOUNT_DATA_SIZE, mountPoints, MS } from "../../ffi/mount.ts";
import { sleep } from "../async.ts";
import { messageOf } from "../errors.ts";
import { CALLS_FOLDER, type CallsContext, errnoOf, keptFile, makeCalls, runOnce } from "./calls.ts";
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

/**
 * Mounts a list of mounts on a directory, each over the one before. What another process has had a child begin with, is waited
 * for.
 *
 * @throws {Error} when one fails; those before it are mounted then, for {@link unmountAll} to take off
 */
export async function mountAll(context: CallsContext, mounts: readonly Mount[], target: string): Promise<void> {
  for (const [i, each] of mounts.entries()) {
    try {
      await mountOne(context, each, target, `mount ${i}`);
    } catch (cause) {
      throw new Error(`failed to mount rootfs component ${each.type} ${each.source}: ${messageOf(cause)}`, { cause });
    }
  }
}

/** The helpers that mount filesystems which are programs, by how their types begin: mount.fuse3(8). */
const HELPERS = [{ prefix: "fuse.", helper: "mount.fuse" }, { prefix: "fuse3.", helper: "mount.fuse3" }];

/** Flags that a bind takes from what it binds: only a second call sets them. */
const OF_A_BIND = MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC | MS.NOATIME | MS.NODIRATIME;

/** How often a loop device is asked for when others take it first, and for how many ms at most it is waited each time. */
const LOOP_TRIES = 100;
const LOOP_DELAY_MS = 20;

async function mountOne(context: CallsContext, each: Mount, target: string, key: string): Promise<void> {
  const { type } = each;
  const fuse = HELPERS.find(({ prefix }) => type.startsWith(prefix));
  if (fuse !== undefined) {
    return await mountByHelper(context, fuse.helper, type.slice(fuse.prefix.length), each, target, key);
  }
  const options = parseOptions(each.options);
  const list = callsOf(each, options, target);
  for (let tries = 1;; tries++) {
    try {
      return await makeCalls(context, list, { key: tries === 1 ? key : `${key}, try ${tries}`, isKept: true });
    } catch (error) {
      if (!options.loop) throw error;
      errnoOf(error, "EBUSY");
      if (tries === LOOP_TRIES) throw error;
      // Another has taken the device. Not in step with the others.
      await sleep(context.timer, Math.random() * LOOP_DELAY_MS);
    }
  }
}

/** The system calls that mount something. */
function callsOf(
  { type, source }: Mount,
  { flags, propagation, loop, data }: ParsedOptions,
  target: string,
): CallList {
  const list = new CallList();
  const change = (flags: number) => addMount(list, { source: "", target, type: "", flags, data: "" });
  if (!(flags & MS.REMOUNT) || data.length > 0) {
    const { folder, text } = dataFor(type, target, data);
    // It is the mount's alone as soon as that is there.
    const device = loop ? addLoopDevice(list, source, { readOnly: (flags & MS.RDONLY) !== 0 }) : source;
    if (folder !== undefined) list.add("chdir", [folder], { what: `chdir to ${folder}` });
    addMount(list, { source: device, target, type, flags, data: text });
  }
  for (const each of propagation) change(each);
  if ((flags & MS.BIND) && (flags & OF_A_BIND)) change(flags | MS.REMOUNT);
  return list;
}

/** @throws {Error} with what the helper has printed */
async function mountByHelper(
  context: CallsContext,
  helper: string,
  type: string,
  { source, options }: Mount,
  target: string,
  key: string,
): Promise<void> {
  const output = keptFile(context, key);
  const status = await runOnce(context, key, {
    args: [helper, source, target, ...options.flatMap((option) => ["-o", option]), "-t", type],
    descriptors: [null, output, output],
  });
  if (status === 0) return;
  const said = new TextDecoder().decode(readMemory(output)).trim();
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

/** How often a busy mount is tried again, and after how many ms: a namespace that goes keeps it for a moment. */
const BUSY_TRIES = 10;
const BUSY_DELAY_MS = 25;

/** How many mounts are taken off in one go: one more than there are over each other as a rule. */
const AT_ONCE = 4;

/**
 * Takes every mount off a path; nothing, when there is none or no such path. Those that were there before {@link mountAll} go
 * too: a container that could not be deleted may have left them. What stays busy, because a process of the host's is in it,
 * say, is detached after a quarter of a second, and goes when nobody uses it any more: the log has a line about that.
 *
 * @param bundle a descriptor of the folder that the path is in, which is looked up there then; stays the caller's
 * @throws {Error} when one cannot be taken off
 */
export async function unmountAll(
  context: CallsContext & Pick<Context, "log">,
  target: string,
  bundle?: number,
): Promise<void> {
  const [folder, name] = [target.slice(0, target.lastIndexOf("/")), target.slice(target.lastIndexOf("/") + 1)];
  const isChilds = context.reaper.executable !== undefined;
  const path = bundle === undefined ? target : `/proc/self/fd/${isChilds ? CALLS_FOLDER : bundle}/${name}`;
  const make = (key: string, add: (list: CallList) => void) => {
    const list = new CallList();
    add(list);
    return makeCalls(context, list, { key, folder: bundle });
  };
  for (let busy = 0, last = 0;;) {
    try {
      await make("unmount", (list) => {
        for (let i = 0; i < AT_ONCE; i++) addUnmount(list, path);
      });
      continue;
    } catch (error) {
      if (errnoOf(error, "EBUSY", "EINVAL", "ENOENT") !== Errno.EBUSY) return;
    }
    const below = mountsBelow(bundle === undefined ? folder : `/proc/self/fd/${bundle}`, name);
    if (below.length > 0 && below.length !== last) {
      last = below.length;
      await make("unmount below", (list) => {
        isolate(list, path);
        for (const each of below.reverse()) addUnmount(list, each, { goesOn: true });
      });
    } else if (++busy > BUSY_TRIES) {
      await make("detach", (list) => {
        isolate(list, path);
        addDetach(list, path);
      });
      context.log.warn("a mount is in use by others than the container, and has been detached", { mount: target });
    } else {
      await sleep(context.timer, BUSY_DELAY_MS);
    }
  }
}

/** Adds what has the mounts at and below a path stay there: what happens to them is not done to what they are of. */
function isolate(list: CallList, target: string): void {
  addMount(list, { source: "", target, type: "", flags: MS.REC | MS.PRIVATE, data: "" });
}

/** What is mounted below a folder's entry, which a recursive bind has brought along, in the order in which it was. */
function mountsBelow(folder: string, name: string): string[] {
  // The entry itself may be what does not answer.
  const prefix = `${Deno.realPathSync(folder)}/${name}/`;
  return mountPoints().filter((each) => each.startsWith(prefix));
}
