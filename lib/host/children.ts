/** Children of a host itself: for what is to be undone of a container whose own process has ended. */

import { close } from "../../ffi/fd.ts";
import { hasNoPidfds, openPidfd } from "../../ffi/pidfd.ts";
import { Event } from "../../ffi/poll.ts";
import { type ChildOptions, reap, spawn, statOf } from "../../ffi/process.ts";
import { sleep } from "../async.ts";
import type { Place } from "../place.ts";
import type { OwnChildren } from "../reaper.ts";

/** How often it is looked for a process's end where nothing tells of it, in ms. */
const LOOK_MS = 20;
/** The state of a process that has ended, in proc_pid_stat(5), and when it has been reaped. */
const HAS_ENDED: readonly (string | undefined)[] = ["Z", "X", undefined];

/** The host's. It has no others. */
export class HostChildren implements OwnChildren {
  readonly #place: Pick<Place, "poller" | "timer">;
  /** Of those that have been reaped, and whose end is waited for. */
  readonly #statuses = new Map<number, number>();

  /** None yet. */
  constructor(place: Pick<Place, "poller" | "timer">) {
    this.#place = place;
  }

  async run(options: ChildOptions): Promise<number> {
    const pid = spawn({ cwd: "/", ...options });
    await this.ended(pid);
    // Among them may be one that another waits for here.
    for (let each = reap(); each !== undefined; each = reap()) this.#statuses.set(each.pid, each.status);
    const status = this.#statuses.get(pid);
    this.#statuses.delete(pid);
    if (status === undefined) throw new Error(`it is not known how child ${pid} has ended`);
    return status;
  }

  async ended(pid: number): Promise<void> {
    const { poller, timer } = this.#place;
    let pidfd;
    try {
      pidfd = openPidfd(pid);
    } catch (error) {
      if (!hasNoPidfds(error)) throw error;
      while (!HAS_ENDED.includes(statOf(pid)[0])) await sleep(timer, LOOK_MS);
    }
    if (pidfd === undefined) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    poller.add(pidfd, Event.IN, () => resolve());
    await promise;
    poller.remove(pidfd);
    close(pidfd);
  }
}
