/** Files in memory, for what a child prints: nothing to read while it runs, nothing to delete. */

import { check, cstring, libc } from "./libc.ts";
import * as fds from "./fd.ts";

const c = libc({
  memfd_create: [["buffer", "u32"], "i32"],
});

/** memfd_create(2) */
const MFD_CLOEXEC = 1;
const CHUNK = 65_536;

/**
 * An empty file in memory; the caller owns the descriptor.
 *
 * @throws {SystemError}
 */
export function createMemoryFile(name: string): number {
  return check(c().memfd_create(cstring(name), MFD_CLOEXEC), "memfd_create");
}

/**
 * Writes from the beginning of a file, wherever its descriptor is.
 *
 * @throws {SystemError}
 */
export function writeMemory(fd: number, content: Uint8Array): void {
  fds.writeAllAt(fd, new Uint8Array(content), 0);
}

/**
 * All that is in a file, wherever its descriptor is.
 *
 * @throws {SystemError}
 */
export function readMemory(fd: number): Uint8Array<ArrayBuffer> {
  let bytes = new Uint8Array(CHUNK);
  for (let at = 0;;) {
    const count = check(fds.readAt(fd, bytes.subarray(at), at), "pread of descriptor", fd);
    at += count;
    if (count === 0) return bytes.subarray(0, at);
    if (at < bytes.length) continue;
    const more = new Uint8Array(2 * bytes.length);
    more.set(bytes);
    bytes = more;
  }
}

/** A file in memory, to be given to a child as its output; closed by this object's disposal. */
export class MemoryFile implements Disposable {
  /** Owned by this object. */
  readonly fd: number;

  /**
   * An empty file.
   *
   * @throws {SystemError}
   */
  constructor(name: string) {
    this.fd = createMemoryFile(name);
  }

  /**
   * Puts the whole content in, to be read from its beginning.
   *
   * @throws {SystemError}
   */
  write(content: Uint8Array): void {
    writeMemory(this.fd, content);
  }

  /**
   * What has been written so far, as text.
   *
   * @throws {SystemError}
   */
  read(): string {
    return new TextDecoder().decode(readMemory(this.fd));
  }

  /** Closes the descriptor. */
  [Symbol.dispose](): void {
    fds.close(this.fd);
  }
}
