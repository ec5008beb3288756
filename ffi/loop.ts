/** Files as block devices: loop(4). */

import * as fds from "./fd.ts";
import { check, Errno, libc, SystemError } from "./libc.ts";

const c = libc({ ioctl: [["i32", "u64", "buffer"], "i32"] });
/** The same, for what takes a number. */
const byNumber = libc({ ioctl: [["i32", "u64", "i64"], "i32"] });

/** linux/loop.h */
const LOOP_SET_FD = 0x4c00n;
const LOOP_CLR_FD = 0x4c01n;
const LOOP_SET_STATUS64 = 0x4c04n;
const LOOP_CTL_GET_FREE = 0x4c82n;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
/** struct loop_info64: its size, and where flags and the file's name are, which has 64 bytes with its NUL. */
const LOOP_INFO_SIZE = 232;
const FLAGS_OFFSET = 52;
const NAME_OFFSET = 56;
const NAME_SIZE = 64;

/**
 * A loop device with a file in it. Disposing of this object gives it up here: the kernel empties it as soon as nothing
 * else uses it, be it a mount.
 */
export class LoopDevice implements Disposable {
  /** The device's path. */
  readonly path: string;
  readonly #fd: number;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  /**
   * Puts a file into a free device.
   *
   * @returns undefined when another has taken that device first
   * @throws {SystemError} when there are no loop devices, or the file cannot be opened
   */
  static attach(file: string, readOnly: boolean): LoopDevice | undefined {
    const mode = readOnly ? fds.O.RDONLY : fds.O.RDWR;
    const backing = fds.open(file, mode);
    try {
      const path = `/dev/loop${freeNumber()}`;
      const fd = fds.open(path, mode);
      try {
        check(byNumber().ioctl(fd, LOOP_SET_FD, BigInt(backing)), `ioctl LOOP_SET_FD of ${path} to`, file);
        try {
          check(c().ioctl(fd, LOOP_SET_STATUS64, info(file, readOnly)), "ioctl LOOP_SET_STATUS64 of", path);
        } catch (error) {
          byNumber().ioctl(fd, LOOP_CLR_FD, 0n);
          throw error;
        }
        return new LoopDevice(path, fd);
      } catch (error) {
        fds.close(fd);
        if (error instanceof SystemError && error.errno === Errno.EBUSY) return undefined;
        throw error;
      }
    } finally {
      fds.close(backing);
    }
  }

  /** Lets go of the device, which is free again when nothing of it is mounted. */
  [Symbol.dispose](): void {
    fds.close(this.#fd);
  }
}

function freeNumber(): number {
  const control = fds.open("/dev/loop-control", fds.O.RDWR);
  try {
    return check(byNumber().ioctl(control, LOOP_CTL_GET_FREE, 0n), "ioctl LOOP_CTL_GET_FREE of /dev/loop-control");
  } finally {
    fds.close(control);
  }
}

function info(file: string, readOnly: boolean): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(LOOP_INFO_SIZE);
  const flags = LO_FLAGS_AUTOCLEAR | (readOnly ? LO_FLAGS_READ_ONLY : 0);
  new DataView(bytes.buffer).setUint32(FLAGS_OFFSET, flags, true);
  bytes.set(new TextEncoder().encode(file).subarray(0, NAME_SIZE - 1), NAME_OFFSET);
  return bytes;
}
