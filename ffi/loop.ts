/** Files as block devices: loop(4). */

import type { CallList, Place } from "./calls.ts";
import { O } from "./fd.ts";

/** linux/loop.h */
const LOOP_SET_FD = 0x4c00;
const LOOP_SET_STATUS64 = 0x4c04;
const LOOP_CONFIGURE = 0x4c0a;
const LOOP_CTL_GET_FREE = 0x4c82;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
/** struct loop_info64: its size, and where flags and the file's name are, which has 64 bytes with its NUL. */
const LOOP_INFO_SIZE = 232;
const FLAGS_OFFSET = 52;
const NAME_OFFSET = 56;
const NAME_SIZE = 64;
/** struct loop_config: its size, and where the loop_info64 is. Before that: the file's descriptor, and the size of a block, 0 for any. */
const LOOP_CONFIG_SIZE = 304;
const INFO_OFFSET = 8;
/** The first Linux that has LOOP_CONFIGURE. */
const CONFIGURE_SINCE = [5, 8] as const;

/** Whether this system attaches a file and has its device emptied after use in one call: LOOP_CONFIGURE. */
export function canConfigure(release: string = Deno.osRelease()): boolean {
  const [major = 0, minor = 0] = release.split(".").map((each) => parseInt(each));
  return major > CONFIGURE_SINCE[0] || major === CONFIGURE_SINCE[0] && minor >= CONFIGURE_SINCE[1];
}

/**
 * Adds what puts a file into a free loop device, which is its only use: the kernel empties it when nothing uses it any more, be it
 * a mount or whoever has made these calls. EBUSY when another takes the device first.
 *
 * @returns where the device's path will be
 */
export function addLoopDevice(
  list: CallList,
  file: string,
  { readOnly, configures = canConfigure() }: { readonly readOnly: boolean; readonly configures?: boolean },
): Place {
  const mode = readOnly ? O.RDONLY : O.RDWR;
  const begin = `cannot attach ${file} to a loop device: `;
  const config = new Uint8Array(LOOP_CONFIG_SIZE);
  const info = new DataView(config.buffer, INFO_OFFSET, LOOP_INFO_SIZE);
  info.setUint32(FLAGS_OFFSET, LO_FLAGS_AUTOCLEAR | (readOnly ? LO_FLAGS_READ_ONLY : 0), true);
  config.set(new TextEncoder().encode(file).subarray(0, NAME_SIZE - 1), INFO_OFFSET + NAME_OFFSET);
  const at = list.put(config);
  // The descriptor's upper half is the size of a block: 0.
  list.open(file, mode, { what: `${begin}open ${file}`, resultAt: at });
  const control = list.open("/dev/loop-control", O.RDWR, { what: `${begin}open /dev/loop-control` });
  const number = list.add("ioctl", [{ resultAt: control }, LOOP_CTL_GET_FREE], {
    what: `${begin}ioctl LOOP_CTL_GET_FREE of /dev/loop-control`,
  });
  const path = list.numbered("/dev/loop", number);
  const device = list.open({ pointer: path }, mode, { what: [`${begin}open `, path] });
  if (configures) {
    list.add("ioctl", [{ resultAt: device }, LOOP_CONFIGURE, { pointer: at }], {
      what: [`${begin}ioctl LOOP_CONFIGURE of `, path],
    });
  } else {
    // Who dies between these two leaves the device full: that is why there is the one.
    list.add("ioctl", [{ resultAt: device }, LOOP_SET_FD, { resultAt: at }], {
      what: [`${begin}ioctl LOOP_SET_FD of `, path],
    });
    list.add("ioctl", [{ resultAt: device }, LOOP_SET_STATUS64, { pointer: { at: at.at + INFO_OFFSET } }], {
      what: [`${begin}ioctl LOOP_SET_STATUS64 of `, path],
    });
  }
  return path;
}
