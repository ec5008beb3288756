/** What a container needs of the process it lives in. */

import type { Poller } from "../../ffi/poll.ts";
import type { Timer } from "../async.ts";
import type { Logger } from "../log.ts";
import type { OwnChildren, Reaper } from "../reaper.ts";
import type { Commands } from "../record/commands.ts";
import type { Keeper, Shelf } from "../record/keeper.ts";

/** What a container has from its shim; it outlives it. */
export interface Context {
  /** Watches descriptors. */
  readonly poller: Poller;
  /** Starts programs, and tells how they end. */
  readonly reaper: Reaper;
  /** Waits. */
  readonly timer: Timer;
  /** The shim's: each line has the container's id. */
  readonly log: Logger;
  /** Where descriptors are kept that another process would need to go on. */
  readonly keeper: Keeper;
  /** Runs commands, of the OCI runtime above all, each once. */
  readonly commands: Commands;
  /** The shim's own descriptors that are kept. */
  readonly shelf: Shelf;
  /** What is to be undone when the container's process has ended, where this is another. */
  readonly ownChildren: OwnChildren | undefined;
  /** Writes down what another process would need to know. */
  readonly save: () => void;
}
