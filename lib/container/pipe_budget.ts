/** How much of its memory limit a container's output may take while it is on its way. */

import { PIPE_SIZE } from "../../ffi/pipe.ts";
import { type Cgroup, cgroupOf, textOf } from "./cgroup.ts";

/**
 * A page that a process writes into a pipe is charged to the process's cgroup, in whatever pipe it is, until it is read:
 * splice(2) moves the page, not what is in it. The kernel cannot take it back when the limit is reached, and kills a process
 * instead. So the pipes of an output are made larger only as far as all of a container's fit into this part of its limit, and
 * each into that. They are 64 KiB otherwise, as with any shim.
 */
const CONTAINER_SHARE = 1 / 16;
const PIPE_SHARE = 1 / 64;

/** Files with a limit each, in bytes: v1's memory.rst, cgroup-v2.rst. What is above `memory.high` is reclaimed from, or slowed. */
const LIMITS = { 1: ["memory.limit_in_bytes", "memory.kmem.limit_in_bytes"], 2: ["memory.max", "memory.high"] };

/** What the larger pipes of a container may hold beyond what all pipes do. */
export class PipeBudget {
  readonly #pid: () => number;
  #cgroup: Cgroup | undefined;
  #counted = 0;

  /**
   * One of which nothing is used.
   *
   * @param pid gives that of the container's init as long as it runs, or 0
   */
  constructor(pid: () => number) {
    this.#pid = pid;
  }

  /** Counts bytes that larger pipes may hold beyond what others do; fewer than none when they have been closed. */
  count(bytes: number): void {
    this.#counted += bytes;
  }

  /**
   * How large the pipes of an output may be now.
   *
   * @param size how large they are ever made, in bytes: a power of two, as the kernel has it
   * @param pipes how many they are
   * @param own what of the bytes that have been counted is theirs
   * @returns a power of two, 0 when they are not to be made larger; undefined when it is not known yet
   */
  sizeFor(size: number, pipes: number, own: number): number | undefined {
    const limit = this.#limit();
    if (limit === undefined) return undefined;
    const free = limit * CONTAINER_SHARE - (this.#counted - own);
    const most = Math.min(limit * PIPE_SHARE, free / pipes);
    let granted = size;
    while (granted > most) granted /= 2;
    return granted > PIPE_SIZE ? granted : 0;
  }

  /** The least limit of its memory cgroup and those above, in bytes, 0 when it cannot be known; undefined before it has one. */
  #limit(): number | undefined {
    if (this.#cgroup === undefined) {
      const pid = this.#pid();
      if (pid === 0) return undefined;
      const cgroup = cgroupOf(pid, "memory");
      if (cgroup === undefined) return Infinity; // Nothing limits memory here.
      if (cgroup.version === 1 && cgroup.path === "/") return 0; // It has just ended.
      this.#cgroup = cgroup;
    }
    const { version, folder, mountPoint } = this.#cgroup;
    let least = Infinity;
    for (let each = folder; each.length >= mountPoint.length; each = each.slice(0, each.lastIndexOf("/"))) {
      for (const file of LIMITS[version]) {
        const text = textOf(`${each}/${file}`).trim();
        if (/^\d+$/.test(text)) least = Math.min(least, Number(text));
      }
    }
    return least;
  }
}
