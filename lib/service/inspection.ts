/** The service by which a shim is asked what it is doing: none of containerd's, and nothing of it is loaded before. */

import type { Description } from "../description.ts";
import type { Handler, Methods } from "../ttrpc/server.ts";

/** The service's full name. A shim that does not have it answers UNIMPLEMENTED. */
export const INSPECT_SERVICE = "containerd.shim.deno.v1.Inspect";

/** Its method: the answer is a {@link Description} as JSON. */
export const INSPECT_METHOD = "Inspect";

/** What is asked when the description is to be whole; nothing, when it is not. */
export const WHOLE: Uint8Array<ArrayBuffer> = new TextEncoder().encode("whole");

/** Describes the shim; what takes some time only when that `isWhole`. */
export type Describer = (isWhole: boolean) => Description;

/**
 * The service.
 *
 * @param load what describes the shim; called when it is first asked
 */
export function inspection(load: () => Promise<Describer>): Methods {
  let describe: Describer | undefined;
  const answer = (isWhole: boolean) => new TextEncoder().encode(JSON.stringify(describe!(isWhole)));
  const inspect: Handler = (payload) => {
    const isWhole = payload.length > 0;
    // What is answered at once is noted nowhere.
    if (describe !== undefined) return answer(isWhole);
    return load().then((loaded) => {
      describe = loaded;
      return answer(isWhole);
    });
  };
  return new Map([[INSPECT_METHOD, inspect]]);
}
