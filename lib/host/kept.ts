/** Descriptors that a holder keeps for its host, and gives to the next. */

import * as fds from "../../ffi/fd.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { accept } from "../../ffi/socket.ts";
import { INIT_SLOT, Role, ROLES, type Shelf, SHIM_SLOT, unkept } from "../record/keeper.ts";
import type { KeeperOfAnother } from "../takeover.ts";
import type { Holder } from "./holder.ts";

/** The first number by which a holder keeps something: lib/standalone/entry.c. */
const FIRST = 8;

/** What every holder has numbers for: a container's own, its init's, and some more. */
const LEAST = 64;

/** What a holder keeps. */
export class KeptByHolder implements KeeperOfAnother {
  /** Who keeps them. */
  readonly holder: Holder;
  /** What the holder has brought from its last host, by number, and nobody has asked for yet. */
  readonly #brought = new Map<number, number>();
  readonly #slots = new Set<number>([SHIM_SLOT, INIT_SLOT]);

  /**
   * A holder's descriptors.
   *
   * @param holder keeps nothing yet but what it is about to bring
   */
  constructor(holder: Holder) {
    this.holder = holder;
  }

  /** Takes what the holder brings. */
  bring(number: number, fd: number): void {
    this.#brought.set(number, fd);
  }

  brought(slot: number, role: number): number | undefined {
    return this.#brought.get(numberOf(slot, role));
  }

  place(slot = this.#free()): Shelf {
    this.#slots.add(slot);
    const shelf = new HolderShelf(this, slot);
    for (let role = 0; role < ROLES; role++) {
      const number = numberOf(slot, role);
      const fd = this.#brought.get(number);
      if (fd === undefined) continue;
      this.#brought.delete(number);
      shelf.take(role, fd);
    }
    return shelf;
  }

  get serial(): number {
    return this.holder.serial;
  }

  set serial(serial: number) {
    this.holder.serial = serial;
  }

  settled(): Promise<void> {
    this.#tellDropped();
    return this.holder.sync();
  }

  /** Places that something has been brought for. */
  get slotsBrought(): number[] {
    return [...new Set([...this.#brought.keys()].map((number) => Math.floor((number - FIRST) / ROLES)))];
  }

  #free(): number {
    const brought = new Set(this.slotsBrought);
    let slot = INIT_SLOT + 1;
    while (this.#slots.has(slot) || brought.has(slot)) slot++;
    return slot;
  }

  /** Numbers that the holder is yet to be told to drop: those that are given up at once, it is told at once. */
  readonly #dropped: number[] = [];

  /** Has the holder close what it keeps by a number: in one message with all that are dropped in this turn. */
  drop(number: number): void {
    if (this.#dropped.push(number) === 1) queueMicrotask(() => this.#tellDropped());
  }

  #tellDropped(): void {
    if (this.#dropped.length > 0) this.holder.drop(this.#dropped.splice(0));
  }

  /** Has the holder keep a duplicate of a descriptor. */
  keep(number: number, fd: number): void {
    this.#tellDropped();
    this.holder.keep(number, fd);
  }

  /** Has the holder open a path, and keep it; the descriptor that comes is the caller's. */
  open(number: number, path: string, flags: number, first?: number): Promise<number> {
    this.#tellDropped();
    return this.holder.open(number, path, flags, first);
  }

  /** Has the holder accept a connection, and keep it; the descriptor that comes is the caller's. */
  accept(number: number, from: number): Promise<number> {
    this.#tellDropped();
    return this.holder.accept(number, from);
  }

  /** Has a place be free for another. */
  giveUp(slot: number): void {
    if (slot > INIT_SLOT) this.#slots.delete(slot);
  }

  /** Closes, here and there, what has been brought and nobody has asked for; gives their numbers. */
  closeRest(): number[] {
    const numbers = [...this.#brought.keys()];
    for (const [number, fd] of this.#brought) {
      fds.close(fd);
      this.drop(number);
    }
    this.#brought.clear();
    return numbers;
  }

  /** Closes here what has been brought: the holder has gone. */
  abandon(): void {
    for (const fd of this.#brought.values()) fds.close(fd);
    this.#brought.clear();
  }
}

class HolderShelf implements Shelf {
  readonly slot: number;
  readonly #keeper: KeptByHolder;
  readonly #fds = new Map<number, number>();

  constructor(keeper: KeptByHolder, slot: number) {
    this.#keeper = keeper;
    this.slot = slot;
  }

  assertKept(): void {
    const last = numberOf(this.slot, ROLES - 1);
    if (last < LEAST || last < this.#keeper.holder.mostDescriptors) return;
    throw new SystemError("keeping of descriptors by the container's shim", Errno.EMFILE);
  }

  async open(role: number, path: string, flags: number, first?: number): Promise<number> {
    let fd;
    try {
      fd = await this.#keeper.open(numberOf(this.slot, role), path, flags, first);
    } catch (error) {
      if (!isFull(error)) throw error;
      fd = await unkept.place().open(role, path, flags, first);
    }
    this.take(role, fd);
    return fd;
  }

  async accept(role: number, listener: number): Promise<number | undefined> {
    // What there is no number for here is not to be accepted there: it waits.
    fds.close(fds.duplicate(listener));
    try {
      const fd = await this.#keeper.accept(numberOf(this.slot, role), this.#numberOf(listener));
      this.take(role, fd);
      return fd;
    } catch (error) {
      if (error instanceof SystemError && NOBODY.includes(error.errno)) return undefined;
      if (!isFull(error)) throw error;
      const fd = accept(listener);
      if (fd !== undefined) this.take(role, fd);
      return fd;
    }
  }

  keep(role: number, fd: number): void {
    this.#keeper.keep(numberOf(this.slot, role), fd);
    this.take(role, fd);
  }

  /** Makes a descriptor, which is kept, this place's; what was there before in its role is not kept any more. */
  take(role: number, fd: number): void {
    const before = this.#fds.get(role);
    this.#fds.set(role, fd);
    if (before !== undefined) fds.close(before);
  }

  find(role: number): number | undefined {
    return this.#fds.get(role);
  }

  close(fd: number): void {
    for (const [role, each] of this.#fds) {
      if (each !== fd) continue;
      this.#fds.delete(role);
      this.#keeper.drop(numberOf(this.slot, role));
    }
    fds.close(fd);
  }

  release(): void {
    for (const fd of [...this.#fds.values()]) this.close(fd);
    this.#keeper.giveUp(this.slot);
  }

  /** The number of a socket of this place; what is none of it is the one that containerd has given. */
  #numberOf(fd: number): number {
    for (const [role, each] of this.#fds) {
      if (each === fd) return numberOf(this.slot, role);
    }
    return LISTENER;
  }
}

/** The holder's number for the socket that containerd's calls come by. */
const LISTENER = 3;
/** No connection waits, or its peer has given it up. */
const NOBODY: readonly number[] = [Errno.EAGAIN, Errno.EINTR, Errno.ECONNABORTED];

/** Whether a holder has no room for more: the descriptor will not outlive this process. */
function isFull(error: unknown): boolean {
  return error instanceof SystemError && (error.errno === Errno.EMFILE || error.errno === Errno.EBADF);
}

/** Leads to what a shim has written down: to the file that its holder keeps, where there is one. */
export function pathOfState(holder: number): string {
  return `/proc/${holder}/fd/${numberOf(SHIM_SLOT, Role.STATE)}`;
}

function numberOf(slot: number, role: number): number {
  return FIRST + slot * ROLES + role;
}
