/** A clock that all processes have in common, and that nobody sets: CLOCK_MONOTONIC of clock_gettime(2). */

import { check, libc } from "./libc.ts";

const c = libc({ clock_gettime: [["i32", "buffer"], "i32"] });

/** clock_gettime(2), from linux/time.h */
const CLOCK_MONOTONIC = 1;
/** Where the executable's entry says when it was entered, in ns of that clock: lib/standalone/entry.c. */
const ENTERED_VARIABLE = "CONTAINERD_SHIM_ENTERED";
const NS_PER_US = 1000n;

/** When the kernel entered this process's executable, in ns; undefined where no entry of ours has noted that. */
export function entryTime(): bigint | undefined {
  const entered = Deno.env.get(ENTERED_VARIABLE);
  return entered === undefined || !/^\d+$/.test(entered) ? undefined : BigInt(entered);
}

/** Gives the time of CLOCK_MONOTONIC, in ns. */
function clock(): () => bigint {
  // struct timespec: seconds and nanoseconds
  const now = new BigInt64Array(2);
  const bytes = new Uint8Array(now.buffer);
  return () => {
    check(c().clock_gettime(CLOCK_MONOTONIC, bytes), "clock_gettime");
    return now[0]! * 1_000_000_000n + now[1]!;
  };
}

/** Tells the microseconds since `start`, in ns of CLOCK_MONOTONIC. */
export function since(start: bigint): () => number {
  const now = clock();
  return () => Number((now() - start) / NS_PER_US);
}

const now = clock();

/** CLOCK_MONOTONIC, in ms: what another process reads it by, too, as long as the machine runs. */
export function monotonic(): number {
  return Number(now() / NS_PER_US) / 1000;
}
