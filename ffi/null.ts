/** A descriptor of /dev/null that may be given away. */

import * as fds from "./fd.ts";
import { cstring, libc } from "./libc.ts";

const c = libc({
  syscall: [["i64", "i32", "buffer", "u32", "buffer", "usize"], "i32"],
});

const NULL = "/dev/null";
/** open_tree(2) and mount_setattr(2): their numbers on every architecture, and what they take; from linux/mount.h and fcntl.h. */
const SYS_OPEN_TREE = 428n;
const SYS_MOUNT_SETATTR = 442n;
const OPEN_TREE_CLONE = 1;
const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const MOUNT_ATTR_RDONLY = 1n;

/**
 * Opens /dev/null to read and write, close-on-exec; the caller owns the descriptor. It is one of a mount of its own that is
 * read-only: whoever has it reads and writes as always, but by /proc/self/fd neither mode nor owner of the host's device can be
 * changed (there it is called `/`, the root of that mount). Where there is no mount_setattr(2) (before Linux 5.12), or the shim may not mount, it is the host's own.
 *
 * @throws {SystemError}
 */
export function openNull(): number {
  const tree = c().syscall(SYS_OPEN_TREE, AT_FDCWD, cstring(NULL), OPEN_TREE_CLONE | fds.O.CLOEXEC, null, 0n);
  if (tree < 0) return fds.open(NULL, fds.O.RDWR);
  try {
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    const attributes = new Uint8Array(new BigUint64Array([MOUNT_ATTR_RDONLY, 0n, 0n, 0n]).buffer);
    const size = BigInt(attributes.length);
    const result = c().syscall(SYS_MOUNT_SETATTR, tree, cstring(""), AT_EMPTY_PATH, attributes, size);
    return fds.open(result < 0 ? NULL : `/proc/self/fd/${tree}`, fds.O.RDWR);
  } finally {
    fds.close(tree);
  }
}
