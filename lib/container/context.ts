/** What a container needs of the process it lives in. */

import type { Poller } from "../../ffi/poll.ts";
import type { Timer } from "../async.ts";
import type { Logger } from "../log.ts";
import type { Reaper } from "../reaper.ts";

/** What is shared by all containers of a process; it outlives each of them. */
export interface Context {
  readonly poller: Poller;
  readonly reaper: Reaper;
  readonly timer: Timer;
  readonly log: Logger;
  /** Where temporary files go; where Deno puts them, unless given. */
  readonly temporary?: { readonly dir: string } | undefined;
}
