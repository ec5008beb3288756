/** The service by which a shim is asked what it is doing: none of containerd's, and nothing of it is loaded before. */

import type { Description } from "../description.ts";
import type { Handler, Methods } from "../ttrpc/server.ts";

/** The service's full name. A shim that does not have it answers UNIMPLEMENTED. */
export const INSPECT_SERVICE = "containerd.shim.deno.v1.Inspect";

/** Its method: nothing is asked, the answer is a {@link Description} as JSON. */
export const INSPECT_METHOD = "Inspect";

/** @param load what describes the shim; called when it is first asked */
export function inspection(load: () => Promise<() => Description>): Methods {
  let describe: (() => Description) | undefined;
  const answer = () => new TextEncoder().encode(JSON.stringify(describe!()));
  const inspect: Handler = () => {
    // What is answered at once is noted nowhere.
    if (describe !== undefined) return answer();
    return load().then((loaded) => {
      describe = loaded;
      return answer();
    });
  };
  return new Map([[INSPECT_METHOD, inspect]]);
}
