/** Files in memory, for what a child prints: nothing to read while it runs, nothing to delete. */

import { check, cstring, libc } from "./libc.ts";
import * as fds from "./fd.ts";

const c = libc({
  memfd_create: [["buffer", "u32"], "i32"],
});

/** memfd_create(2) */
const MFD_CLOEXEC = 1;
const CHUNK = 65_536;

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
    this.fd = check(c().memfd_create(cstring(name), MFD_CLOEXEC), "memfd_create");
  }

  /**
   * Puts the whole content in, to be read from its beginning.
   *
   * @throws {SystemError}
   */
  write(content: Uint8Array): void {
    fds.writeAllAt(this.fd, new Uint8Array(content), 0);
  }

  /**
   * What has been written so far, as text.
   *
   * @throws {SystemError}
   */
  read(): string {
    const decoder = new TextDecoder();
    const chunk = new Uint8Array(CHUNK);
    let text = "";
    let at = 0;
    for (;;) {
      const count = check(fds.readAt(this.fd, chunk, at), "pread of descriptor", this.fd);
      if (count === 0) return text + decoder.decode();
      text += decoder.decode(chunk.subarray(0, count), { stream: true });
      at += count;
    }
  }

  /** Closes the descriptor. */
  [Symbol.dispose](): void {
    fds.close(this.fd);
  }
}
