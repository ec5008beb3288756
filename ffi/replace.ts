/** A file, its owner's alone, that is replaced as a whole: who reads it finds what was written first, or last. */

import { check, cstring, Errno, errno, libc, SystemError } from "./libc.ts";
import * as fds from "./fd.ts";

const c = libc({
  ftruncate: [["i32", "i64"], "i32"],
  rename: [["buffer", "buffer"], "i32"],
  unlink: [["buffer"], "i32"],
  syscall: [["i32", "i32", "buffer", "i32", "buffer", "u32"], "i32"],
});

/** renameat2(2): its number, for glibc has no function of that name before 2.28. */
const SYS_RENAMEAT2 = Deno.build.arch === "x86_64" ? 316 : 276;
/** From linux/fcntl.h and linux/fs.h. */
const AT_FDCWD = -100;
const RENAME_EXCHANGE = 2;

/**
 * Replaces a file.
 *
 * The next content is written over the one before the last, and the two files change names: rename(2) over a file has ext4
 * write it to the disk first, which takes milliseconds (auto_da_alloc of ext4(5)). Nothing is to survive the machine's end.
 *
 * @param spare the name of the other file, in the same folder
 * @throws {SystemError} ENOSPC
 */
export function replaceFile(path: string, spare: string, content: Uint8Array<ArrayBuffer>): void {
  const fd = openSpare(spare);
  try {
    for (let at = 0; at < content.length;) {
      at += check(fds.writeAt(fd, content.subarray(at), at), "write to", spare);
    }
    check(c().ftruncate(fd, BigInt(content.length)), "ftruncate of", spare);
  } finally {
    fds.close(fd);
  }
  const [from, to] = [cstring(spare), cstring(path)];
  if (c().syscall(SYS_RENAMEAT2, AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) === 0) return;
  const error = errno();
  // There is none yet, or the filesystem cannot exchange two.
  if (error !== Errno.ENOENT && error !== Errno.EINVAL) throw new SystemError("renameat2 to", error, path);
  check(c().rename(from, to), "rename to", path);
}

/**
 * Writes a file as a whole: nobody sees a part of it, and what there was before by its name, be it a link, is replaced.
 *
 * @throws {SystemError} ENOSPC
 */
export function writeWhole(path: string, content: Uint8Array<ArrayBuffer>): void {
  const spare = `${path}.new`;
  try {
    replaceFile(path, spare, content);
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
