/**
 * Timers of the kernel: timerfd_create(2), waited for by a {@link Poller}.
 *
 * Deno's first setTimeout loads its Node compatibility: 5 to 13 ms and 2 MB, which here only a timer would need. It needs no
 * descriptor, though, and takes over where there is none left: what waits for time to pass is what will try again.
 */

import * as fds from "./fd.ts";
import { check, libc } from "./libc.ts";
import { Event, type Poller } from "./poll.ts";

const c = libc({
  timerfd_create: [["i32", "i32"], "i32"],
  timerfd_settime: [["i32", "i32", "buffer", "pointer"], "i32"],
});

/** timerfd_create(2), clock_gettime(2) */
const CLOCK_MONOTONIC = 1;
const TFD_NONBLOCK = 0o4000;
const TFD_CLOEXEC = 0o2000000;

/**
 * Calls back once after `ms`, unless what it returns is disposed of before. Not even a lack of descriptors or memory in the
 * kernel keeps it from that.
 */
export function after(poller: Poller, ms: number, callback: () => void): Disposable {
  try {
    return kernelTimer(poller, ms, callback);
  } catch {
    const timer = setTimeout(callback, ms);
    return { [Symbol.dispose]: () => clearTimeout(timer) };
  }
}

/** @throws {SystemError} EMFILE when there is no descriptor left */
function kernelTimer(poller: Poller, ms: number, callback: () => void): Disposable {
  const fd = check(c().timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd_create");
  let armed = true;
  const end = () => {
    if (!armed) return;
    armed = false;
    poller.remove(fd);
    fds.close(fd);
  };
  // struct itimerspec: no interval, then seconds and nanoseconds; all zero would disarm it.
  const nanoseconds = Math.max(1, Math.round(ms * 1e6));
  const spec = new BigInt64Array([0n, 0n, BigInt(Math.floor(nanoseconds / 1e9)), BigInt(nanoseconds % 1e9)]);
  try {
    poller.add(fd, Event.IN, () => {
      end();
      callback();
    });
    check(c().timerfd_settime(fd, 0, new Uint8Array(spec.buffer), null), "timerfd_settime");
  } catch (error) {
    end();
    throw error;
  }
  return { [Symbol.dispose]: end };
}
