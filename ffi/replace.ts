/** A file, its owner's alone, that is replaced as a whole: who reads it finds what was written first, or last. */

import { check, cstring, Errno, libc, SystemError } from "./libc.ts";
import * as fds from "./fd.ts";

const c = libc({
  rename: [["buffer", "buffer"], "i32"],
  unlink: [["buffer"], "i32"],
});

/**
 * Writes a file as a whole: nobody sees a part of it, and what there was before by its name, be it a link, is replaced.
 *
 * @throws {SystemError} ENOSPC
 */
export function writeWhole(path: string, content: Uint8Array<ArrayBuffer>): void {
  const spare = `${path}.new`;
  try {
    const fd = openSpare(spare);
    try {
      fds.writeAllAt(fd, content, 0);
      fds.truncate(fd, content.length);
    } finally {
      fds.close(fd);
    }
    check(c().rename(cstring(spare), cstring(path)), "rename to", path);
  } finally {
    c().unlink(cstring(spare));
  }
}

/** Opens the other file; a link that has been put there goes, and what it leads to is left alone. */
function openSpare(spare: string): number {
  const flags = fds.O.WRONLY | fds.O.CREAT | fds.O.NOFOLLOW;
  try {
    return fds.open(spare, flags, fds.OWNER_ONLY);
  } catch (error) {
    if (!(error instanceof SystemError && error.errno === Errno.ELOOP)) throw error;
    check(c().unlink(cstring(spare)), "unlink", spare);
    return fds.open(spare, flags, fds.OWNER_ONLY);
  }
}
