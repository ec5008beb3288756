/** Memory that is not needed any more, given back to the kernel. */

import { libc } from "./libc.ts";

const c = libc({ malloc_trim: [["usize"], "i32"] });

/** V8's own collector, which `--expose-gc` puts on the global object. */
type Collect = (options: { type: "major"; flavor: "last-resort" }) => void;

/**
 * Collects all garbage of V8's, and gives the pages back that it and the C library's malloc have no use for: malloc_trim(3).
 *
 * It takes some 15 ms, in which nothing else is done here.
 */
export function giveBackMemory(): void {
  const { gc } = globalThis as unknown as { readonly gc?: Collect };
  // Any other flavor keeps the pages. A program that was not started with the flag has no such function.
  gc?.({ type: "major", flavor: "last-resort" });
  c().malloc_trim(0n);
}
