/** A container's process that writes as fast as it is read, until it is ended. */

import * as fds from "../../ffi/fd.ts";
import { bytesRead } from "../e2e/proc.ts";
import { type Child, killIfAlive, spawn } from "./children.ts";
import { newId } from "./row.ts";
import { openBothEnds, type Subject } from "./subject.ts";

const WRITER = "read go; exec dd if=/dev/zero bs=64k 2>/dev/null";

/** Writes without end, to a pipe or on a terminal. */
export class Flood {
  readonly #subject: Subject;
  readonly #terminal: boolean;
  /** Both ends of stdin, and of stderr. */
  readonly #held: number[] = [];
  #reader: Child | undefined;
  #writer: number | undefined;

  constructor(subject: Subject, { terminal = false } = {}) {
    this.#subject = subject;
    this.#terminal = terminal;
  }

  /** Starts the writer, which waits for a line, and a reader. */
  async prepare(): Promise<void> {
    const id = newId();
    const paths = await this.#subject.fifos(id);
    this.#held.push(openBothEnds(paths.stdin), openBothEnds(paths.stderr));
    const read = `exec cat <'${paths.stdout}' >/dev/null`;
    this.#reader = spawn({ args: ["sh", "-c", read], descriptors: [null, null, 2] });
    const { stdin, stdout } = paths;
    await this.#subject.exec(
      id,
      ["sh", "-c", WRITER],
      this.#terminal ? { stdin, stdout, terminal: true } : paths,
    );
    this.#writer = await this.#subject.startProcess(id);
  }

  /** Tells the writer to begin. */
  begin(): void {
    fds.write(this.#held[0]!, new TextEncoder().encode("\n"));
  }

  /** Bytes that have arrived at the reader. */
  arrived(): number {
    return bytesRead(this.#reader!.pid);
  }

  /** Ends it all. */
  end(): void {
    for (const child of [this.#writer, this.#reader?.pid]) if (child !== undefined) killIfAlive(child);
    this.#held.splice(0).forEach(fds.close);
  }
}
