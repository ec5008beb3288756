/** What no Deno program can be better than: one that does nothing, made as the shim is made. */

import { pipe } from "../../ffi/pipe.ts";
import * as fds from "../../ffi/fd.ts";
import { EVAL_FLAGS } from "../../lib/standalone/make.ts";
import { pack } from "../../lib/standalone/pack.ts";
import { REPOSITORY } from "../e2e/env.ts";
import { within } from "../e2e/until.ts";
import { type Child, killIfAlive, spawn } from "./children.ts";

/** Says that it is there, and waits until nobody wants it any more. */
const PROGRAM = "Deno.stdout.writeSync(new Uint8Array(1)); Deno.stdin.read(new Uint8Array(1));";

/** Packs the program. */
export async function packEmptyProgram(out: string): Promise<void> {
  const entry = `${REPOSITORY}/build/entry.bin`;
  await pack({ deno: Deno.execPath(), entry, program: PROGRAM, denoFlags: EVAL_FLAGS, out });
}

/** The program, running. */
export class EmptyProgram {
  readonly #path: string;
  #child: Child | undefined;
  #input: number | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  get pid(): number {
    if (!this.#child) throw new Error("The empty program has not been started");
    return this.#child.pid;
  }

  /** @returns ms from just before posix_spawn(3) to its byte */
  async startTimed(): Promise<number> {
    const input = pipe();
    const output = pipe();
    // An opening of its own, and Deno's.
    using reader = await Deno.open(`/proc/self/fd/${output.read}`);
    const start = performance.now();
    try {
      this.#child = spawn({ args: [this.#path], descriptors: [input.read, output.write, 2] });
      this.#input = input.write;
    } finally {
      for (const fd of [input.read, output.read, output.write]) fds.close(fd);
    }
    const count = await within("the empty program", reader.read(new Uint8Array(1)));
    if (count !== 1) throw new Error("the empty program ended before it had begun");
    return performance.now() - start;
  }

  /** Ends it. */
  async remove(): Promise<void> {
    if (this.#input !== undefined) fds.close(this.#input);
    this.#input = undefined;
    if (!this.#child) return;
    await within("the empty program's end", this.#child.status).finally(() => killIfAlive(this.pid));
  }
}
