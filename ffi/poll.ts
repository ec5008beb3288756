/**
 * epoll(7) on Deno's event loop: one instance for all descriptors that are not Deno's own.
 *
 * Waiting in a nonblocking FFI call costs a hop to another thread and back (150 µs) and keeps that thread. Here Deno's
 * loop waits for our epoll instance itself, and a wake-up costs what one of Deno's own sockets costs. The way: a
 * connection that Deno reads from has our instance registered in its place (graft.ts), while its number names one end
 * of a socket pair with one byte in it. When anything happens on our instance, Deno reads that byte; we put it back and
 * look what happened. A read of less than was asked for makes Deno wait for the next event (that is how edge-triggered
 * readiness works in tokio), so nothing spins and nothing is lost.
 */

import * as fds from "./fd.ts";
import { check, Errno, errno, libc } from "./libc.ts";
import { placeOfConnectionTo, privateAddress, socketpair } from "./socket.ts";

const c = libc({
  epoll_create1: [["i32"], "i32"],
  epoll_ctl: [["i32", "i32", "i32", "buffer"], "i32"],
  epoll_wait: [["i32", "buffer", "i32", "i32"], "i32"],
  eventfd: [["u32", "i32"], "i32"],
});

/** epoll_ctl(2) and epoll_create(2); values from linux/eventpoll.h. */
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const EPOLL_CLOEXEC = 0o2000000;
/** eventfd(2) */
const EFD_CLOEXEC = 0o2000000;

/** Events of epoll_ctl(2). ERR and HUP are always reported. */
export const Event = {
  IN: 0x001,
  OUT: 0x004,
  ERR: 0x008,
  HUP: 0x010,
  RDHUP: 0x2000,
} as const;
const EPOLLET = 0x8000_0000;

/** struct epoll_event is packed on x86-64 (12 bytes), not elsewhere. */
const EVENT_SIZE = Deno.build.arch === "x86_64" ? 12 : 16;
const DATA_OFFSET = EVENT_SIZE - 8;
/** What a word of an event's data can count: its data has two. */
const U32 = 2 ** 32;
/** Events taken from the kernel at once. */
const BATCH = 64;
/**
 * How long what {@link Poller.addBulk} has brought is dealt with before the rest is looked at again, and before Deno's own
 * loop has its turn, in ms.
 */
const BULK_MS = 0.1;
const SLICE_MS = 2;

/** Told which of the {@link Event}s are there. Edge-triggered: whatever is there is to be dealt with, or asked for again. */
export type Callback = (events: number) => void;

interface Watch {
  readonly fd: number;
  /** The instance that watches it. */
  readonly epoll: number;
  readonly events: number;
  readonly callback: Callback;
}

/**
 * Waits for descriptors. They stay their owners', who call {@link remove} before they close one.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import * as fds from "./fd.ts";
 * import { pipe } from "./pipe.ts";
 *
 * const poller = await Poller.open((error) => console.error(error));
 * const { read, write } = pipe();
 * const readable = new Promise<number>((resolve) => poller.add(read, Event.IN, resolve));
 * fds.write(write, new Uint8Array([42]));
 * assertEquals(await readable, Event.IN);
 * poller.remove(read);
 * fds.close(read);
 * fds.close(write);
 * ```
 */
export class Poller {
  readonly #epoll: number;
  readonly #waker: Deno.Conn;
  readonly #byte: number;
  readonly #watches = new Map<number, Watch>();
  readonly #events = new Batch();
  /** Another instance, for what has to stand back; watched by the first one. */
  readonly #bulk: number;
  readonly #bulkEvents = new Batch();
  /** Whether there is something on it that has not been dealt with. */
  #bulkWaits = false;
  /** Can always be written to, and never is: {@link again} has it wake us. */
  readonly #bell: number;
  /** How many of the events at hand are of these two. */
  #own = 0;
  /** What is to be done in the next turn. */
  readonly #later: (() => void)[] = [];
  /** Whether it has had no turn the last time, for others' sake. */
  #stoodBack = false;
  /**
   * Tells a descriptor's events from those of an earlier one of the same number. It begins just below 2^32, so that whatever
   * is wrong with larger numbers shows in each process at once, and not after years.
   */
  #serial = U32 - 16;

  private constructor(epoll: number, waker: Deno.Conn, byte: number) {
    this.#epoll = epoll;
    this.#waker = waker;
    this.#byte = byte;
    this.#bulk = check(c().epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    this.add(this.#bulk, Event.IN, () => {
      this.#bulkWaits = true;
      this.#own++;
    });
    this.#bell = check(c().eventfd(0, EFD_CLOEXEC), "eventfd");
    this.add(this.#bell, Event.OUT, () => this.#own++);
  }

  /**
   * A new instance, waited for on Deno's event loop from now on.
   *
   * @param onError told what a callback threw: one descriptor's trouble is not the others'
   * @throws {Error} when Deno's event loop does not take it
   */
  static async open(onError: (error: unknown) => void): Promise<Poller> {
    const epoll = check(c().epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    const path = privateAddress();
    const listener = Deno.listen({ transport: "unix", path });
    const waker = await Deno.connect({ transport: "unix", path });
    const [near, far] = socketpair();
    placeOfConnectionTo(path).put(epoll, near);
    fds.close(near);
    listener.close();
    const poller = new Poller(epoll, waker, far);
    poller.#putByteBack();
    poller.#run(onError);
    return poller;
  }

  /**
   * Watches a descriptor, edge-triggered, until {@link remove}.
   *
   * @throws {SystemError} EPERM for what cannot be polled: a regular file
   */
  add(fd: number, events: number, callback: Callback): void {
    this.#add(this.#epoll, fd, events, callback);
  }

  /**
   * The same for what may bring work without end: it has its turn when nothing else is there.
   *
   * @throws {SystemError}
   */
  addBulk(fd: number, events: number, callback: Callback): void {
    this.#add(this.#bulk, fd, events, callback);
  }

  #add(epoll: number, fd: number, events: number, callback: Callback): void {
    const serial = ++this.#serial;
    this.#watches.set(serial, { fd, epoll, events, callback });
    this.#serials.set(fd, serial);
    try {
      this.#control(EPOLL_CTL_ADD, epoll, fd, events, serial);
    } catch (error) {
      this.#watches.delete(serial);
      this.#serials.delete(fd);
      throw error;
    }
  }

  readonly #serials = new Map<number, number>();

  /** Has what is there on a descriptor reported once more, after the others have had their turn. */
  again(fd: number): void {
    this.#modify(fd, ~0);
  }

  /** Reports nothing of a descriptor but errors and its end, until {@link again}. */
  pause(fd: number): void {
    this.#modify(fd, 0);
  }

  /** Has its events that are in `mask` reported from now on, also those that are there; nothing, if it is not watched. */
  #modify(fd: number, mask: number): void {
    const serial = this.#serials.get(fd);
    if (serial === undefined) return;
    const watch = this.#watches.get(serial)!;
    this.#control(EPOLL_CTL_MOD, watch.epoll, fd, watch.events & mask, serial);
  }

  /** To be called by a callback: has something done when all that comes of the callbacks of this turn has been. */
  afterTurn(callback: () => void): void {
    this.#later.push(callback);
  }

  /** Ends the watching of a descriptor; nothing, when it was not watched. */
  remove(fd: number): void {
    const serial = this.#serials.get(fd);
    if (serial === undefined) return;
    const { epoll } = this.#watches.get(serial)!;
    this.#serials.delete(fd);
    this.#watches.delete(serial);
    this.#control(EPOLL_CTL_DEL, epoll, fd, 0, 0);
  }

  /** How many descriptors are watched. */
  get size(): number {
    return this.#serials.size;
  }

  #control(operation: number, epoll: number, fd: number, events: number, serial: number) {
    const event = new Uint8Array(EVENT_SIZE);
    const view = new DataView(event.buffer);
    view.setUint32(0, (events | EPOLLET) >>> 0, true);
    view.setUint32(DATA_OFFSET, serial % U32, true);
    view.setUint32(DATA_OFFSET + 4, Math.floor(serial / U32), true);
    check(c().epoll_ctl(epoll, operation, fd, event), "epoll_ctl of descriptor", fd);
  }

  #putByteBack(): void {
    check(fds.write(this.#byte, new Uint8Array(1)), "write to the waker");
  }

  async #run(onError: (error: unknown) => void): Promise<void> {
    // More than the one byte there is: a read that fills its buffer would be taken for "there is more".
    const buffer = new Uint8Array(16);
    for (;;) {
      await this.#waker.read(buffer);
      this.#putByteBack();
      if (this.#later.length > 0) this.#doLater(onError);
      this.#dispatch(onError);
      if (this.#later.length > 0) this.again(this.#bell);
    }
  }

  #dispatch(onError: (error: unknown) => void): void {
    const end = performance.now() + SLICE_MS;
    for (;;) {
      const count = this.#events.take(this.#epoll);
      this.#own = 0;
      for (let i = 0; i < count; i++) this.#call(this.#events, i, onError);
      if (!this.#bulkWaits) {
        if (count < BATCH) return;
        continue;
      }
      // What others have been told goes on when Deno's loop has its turn: that comes first, but not for ever.
      const others = count - this.#own;
      this.#stoodBack = others > 0 && !this.#stoodBack;
      if (this.#stoodBack) break;
      const now = performance.now();
      while (this.#bulkTurn(onError) && performance.now() < now + BULK_MS);
      if (!this.#bulkWaits && count < BATCH) return;
      if (others > 0 || now > end) break;
    }
    // What is left may have been taken from the kernel already, which will not say it again.
    this.again(this.#bell);
  }

  #doLater(onError: (error: unknown) => void): void {
    for (const callback of this.#later.splice(0)) {
      try {
        callback();
      } catch (error) {
        onError(error);
      }
    }
  }

  /** @returns whether there was anything to do */
  #bulkTurn(onError: (error: unknown) => void): boolean {
    const events = this.#bulkEvents;
    if (events.next === events.count) {
      events.take(this.#bulk);
      this.#bulkWaits = events.count > 0;
      if (!this.#bulkWaits) return false;
    }
    this.#call(events, events.next++, onError);
    return true;
  }

  #call(batch: Batch, i: number, onError: (error: unknown) => void): void {
    try {
      this.#watches.get(batch.serial(i))?.callback(batch.events(i));
    } catch (error) {
      onError(error);
    }
  }
}

/** Events as epoll_wait(2) gives them. */
class Batch {
  readonly #memory = new Uint8Array(BATCH * EVENT_SIZE);
  readonly #view = new DataView(this.#memory.buffer);
  /** How many there are, and which one is to be dealt with next. */
  count = 0;
  next = 0;

  /** @throws {SystemError} */
  take(epoll: number): number {
    this.next = this.count = 0;
    for (;;) {
      const count = c().epoll_wait(epoll, this.#memory, BATCH, 0);
      if (count >= 0) return this.count = count;
      if (errno() !== Errno.EINTR) check(count, "epoll_wait");
    }
  }

  events(i: number): number {
    return this.#view.getUint32(i * EVENT_SIZE, true);
  }

  serial(i: number): number {
    const at = i * EVENT_SIZE + DATA_OFFSET;
    return this.#view.getUint32(at, true) + this.#view.getUint32(at + 4, true) * U32;
  }
}
