/** A holder, as its host sees it: the process that containerd knows as the shim, and the parent of a container. */

import * as fds from "../../ffi/fd.ts";
import { type Message, receiveMessage, sendMessage } from "../../ffi/fd_passing.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { Event, type Poller } from "../../ffi/poll.ts";
import { candidates, openFilesLimitOf, OWN_EXECUTABLE, parentOf, START_CALL } from "../../ffi/process.ts";
import type { Parent, StartOptions } from "../reaper.ts";
import {
  acceptOrder,
  decode,
  dropOrders,
  type FromHolder,
  moveOrder,
  openOrder,
  order,
  REAPS_AT_ONCE,
  spawnOrder,
  TOLD_AT_ONCE,
} from "./protocol.ts";

/** How long the news of an exit takes from a holder that has much to do, in ms. */
const NEWS_MS = 50;

/** What the child of a holder that has been moved to this build executes to be its entry: EXECUTABLE of lib/standalone/entry.c. */
const GIVEN_EXECUTABLE = "/proc/self/fd/6";

/** Told what the holder says, and undefined when it has ended. */
export type HolderListener = (message: FromHolder | undefined, descriptors: readonly number[]) => void;

/** What {@link Holder} and the others of its host share. */
export interface HolderOptions {
  /** Watches their connections. */
  readonly poller: Poller;
  /** A descriptor of /dev/null; stays the caller's. */
  readonly devNull: number;
  /** Where messages are received: one at a time, and used at once. */
  readonly buffer: Uint8Array<ArrayBuffer>;
}

/** What a process that wants to become a holder is answered. */
const ANSWERS: readonly string[] = ["accepted", "refused", "full"];

/** A child that has been asked for. */
interface Asked {
  readonly program: string;
  readonly options: StartOptions;
  readonly started: (pid: number) => void;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** A descriptor that has been asked for. */
interface Wanted {
  readonly what: string;
  readonly resolve: (fd: number) => void;
  readonly reject: (error: unknown) => void;
}

/** A message on its way. */
interface Outgoing {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly descriptors: readonly number[];
}

/** A holder, or a process that wants to become one. */
export class Holder implements Parent {
  /** See {@link Parent}. */
  readonly delayMs: number = NEWS_MS;
  /** See {@link Parent}: its own, as a rule. */
  executable: string = OWN_EXECUTABLE;
  /** PATH of the environment that it was started with: that of its children. */
  path: string | undefined;
  /** The version of the messages that it speaks: see {@link Join}. */
  protocol = 0;
  /** Settled when it has been told that it may tell of exits. */
  readonly #listening = Promise.withResolvers<void>();
  readonly #socket: number;
  readonly #options: HolderOptions;
  readonly #listener: HolderListener;
  /** The process itself. */
  readonly #pid: number;
  /** One after the other: the last that a holder has been asked for is what it can tell the next host about. */
  readonly #asked: Asked[] = [];
  #isStarting = false;
  /** Descriptors, by their numbers. */
  readonly #wanted = new Map<number, Wanted>();
  /** Told that a child is about to be asked for: what is known by now of those before is to be written down. */
  beforeStart: (() => void) | undefined;
  /** The number of the last child that has been asked for. */
  serial = 0;
  /** How many exits it has told of, and how many of them have not been dealt with. */
  #exits = 0;
  #pending = 0;
  /** The number that the last of {@link sync} has been asked by: none that anything is kept by. */
  #reached = 0;
  /** What there was no room for: the holder is stopped, say. */
  readonly #outgoing: Outgoing[] = [];
  #open = true;
  /** Whether it has been told that it may become a holder: the first thing that it is told. */
  #isAccepted = false;
  #isMute = false;
  /** Whether what has been asked for is for another process: nobody here is to hear of it. */
  #isAnothers = false;

  /**
   * Listens to a holder.
   *
   * @param socket its connection, nonblocking; this object's from then on
   * @param pid its process
   * @throws {SystemError} when it cannot be watched; it is closed then
   */
  constructor(socket: number, pid: number, options: HolderOptions, listener: HolderListener) {
    this.#socket = socket;
    this.#pid = pid;
    this.#options = options;
    this.#listener = listener;
    try {
      options.poller.add(socket, Event.IN | Event.OUT | Event.RDHUP, () => this.#wake());
    } catch (error) {
      fds.close(socket);
      throw error;
    }
  }

  /** To be called for one that has been moved to this build: its own executable is of another. */
  noteMoved(): void {
    this.executable = GIVEN_EXECUTABLE;
  }

  /** A number or nothing that it is told: see lib/standalone/entry.c. What it keeps by a number is the caller's to know. */
  tell(...message: Parameters<typeof order>): void {
    const bytes = order(...message);
    const [kind, value = 0] = message;
    if (kind === "done" && value === 0) this.#listening.resolve();
    if (kind === "done" && value > 0) this.#pending--;
    if (!ANSWERS.includes(message[0])) return this.#sendIfThere(bytes);
    try {
      this.#sent({ bytes, descriptors: [] });
      this.#isAccepted = true;
      this.#sendWaiting();
    } catch {
      // It has gone: what is read next says so.
    }
  }

  spawn(options: StartOptions, started: (pid: number) => void): Promise<void> {
    const program = options.program ?? options.args[0]!;
    return new Promise((resolve, reject) => {
      if (!this.#open) return reject(gone(program));
      this.#asked.push({ program, options, started, resolve, reject });
      this.#startNext();
    });
  }

  #startNext(): void {
    while (!this.#isStarting && this.#asked.length > 0) {
      const { program, options } = this.#asked[0]!;
      const serial = ++this.serial;
      try {
        const bytes = spawnOrder(serial, candidates(program, this.path), options);
        options.numbered?.(serial);
        this.beforeStart?.();
        this.#send({ bytes, descriptors: options.descriptors.map((fd) => fd ?? this.#options.devNull) });
        this.#isStarting = true;
      } catch (error) {
        this.#asked.shift()!.reject(error);
      }
    }
  }

  /** Has a descriptor kept by a number; it stays the caller's. */
  keep(number: number, fd: number): void {
    this.#send({ bytes: order("keep", number), descriptors: [fd] });
  }

  /** Has it close what it keeps by these numbers. */
  drop(numbers: readonly number[]): void {
    for (const bytes of dropOrders(numbers)) this.#sendIfThere(bytes);
  }

  /**
   * Has a file opened: see {@link openOrder}. The descriptor that is given is the caller's, and of the same opening.
   *
   * @throws {SystemError}
   */
  open(number: number, path: string, flags: number, first?: number): Promise<number> {
    return this.#want(number, `open ${path}`, () => openOrder(number, path, flags, first));
  }

  /**
   * Has a connection accepted: see {@link acceptOrder}.
   *
   * @throws {SystemError} EAGAIN when none waits
   */
  accept(number: number, from: number): Promise<number> {
    return this.#want(number, `accept4 on descriptor ${from}`, () => acceptOrder(number, from));
  }

  /** Settled when it has reaped all that has ended: also what it had not told of before. */
  async settled(): Promise<void> {
    // Before, it tells of none.
    await this.#listening.promise;
    // What it is told by now, it does first.
    await this.sync();
    const most = this.protocol >= REAPS_AT_ONCE ? TOLD_AT_ONCE : 1;
    let exits;
    do {
      exits = this.#exits;
      // Of what else has ended it tells before it is asked again, if it may tell of more.
      await this.sync();
    } while (this.#open && (this.#exits !== exits || this.#pending >= most));
  }

  /** Settled when it has done all that it is told by now, or has gone. */
  async sync(): Promise<void> {
    const number = --this.#reached;
    // There is no such file, and it says so when it has come to that.
    await this.#want(number, "open", () => openOrder(number, "", fds.O.RDONLY)).catch(() => {});
  }

  /** Has it go to a host of another build. */
  move(build: bigint, executable: number): void {
    this.#isMute = false;
    this.#sendIfThere(moveOrder(build), [executable]);
  }

  /** Tells it nothing any more, nor asks it for anything, until {@link move}: it is about to be another's. */
  mute(): void {
    this.#isMute = this.#isAnothers = true;
  }

  /** Says something to whom is no holder. */
  say(bytes: Uint8Array<ArrayBuffer>): void {
    this.#isAccepted = true;
    this.#send({ bytes, descriptors: [] });
  }

  #want(number: number, what: string, message: () => Uint8Array<ArrayBuffer>): Promise<number> {
    return new Promise((resolve, reject) => {
      if (!this.#open) return reject(gone(what));
      this.#send({ bytes: message(), descriptors: [] });
      this.#wanted.set(number, { what, resolve, reject });
    });
  }

  /** How many descriptors it can have open. Infinity, when it has gone. */
  get mostDescriptors(): number {
    try {
      return openFilesLimitOf(this.#pid);
    } catch {
      return Infinity;
    }
  }

  isChild(pid: number): boolean {
    return parentOf(pid) === this.#pid;
  }

  /** It is the holder that reaps, and tells. */
  reap(): undefined {
    return undefined;
  }

  watch(pid: number): void {
    if (this.protocol >= REAPS_AT_ONCE) this.tell("watch", pid);
  }

  unwatch(pid: number): void {
    if (this.protocol >= REAPS_AT_ONCE) this.#sendIfThere(order("done", pid));
  }

  hold(holds: boolean): void {
    if (this.protocol >= REAPS_AT_ONCE) this.tell("hold", holds ? 1 : 0);
  }

  /** Closes the connection: the process ends by that if it is a holder. The listener is told nothing more. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#options.poller.remove(this.#socket);
    fds.close(this.#socket);
    for (const { descriptors } of this.#outgoing.splice(0)) descriptors.forEach(fds.close);
    if (this.#isAnothers) return;
    this.#listening.resolve();
    for (const { program, reject } of this.#asked.splice(0)) reject(gone(program));
    for (const { what, reject } of this.#wanted.values()) reject(gone(what));
    this.#wanted.clear();
  }

  #send(message: Outgoing): void {
    if (!this.#open || this.#isMute) return;
    if (this.#isAccepted && this.#outgoing.length === 0 && this.#sent(message)) return;
    // They may be closed before there is room.
    const descriptors = message.descriptors.map((fd) => fds.duplicate(fd));
    this.#outgoing.push({ bytes: message.bytes, descriptors });
  }

  /** Sends what nobody waits for an answer to. */
  #sendIfThere(bytes: Uint8Array<ArrayBuffer>, descriptors: readonly number[] = []): void {
    try {
      this.#send({ bytes, descriptors });
    } catch {
      // It has gone: what is read next says so.
    }
  }

  #sendWaiting(): void {
    while (this.#isAccepted && this.#outgoing.length > 0 && this.#sent(this.#outgoing[0]!)) {
      this.#outgoing.shift()!.descriptors.forEach(fds.close);
    }
  }

  #sent({ bytes, descriptors }: Outgoing): boolean {
    return sendMessage(this.#socket, bytes, descriptors);
  }

  #wake(): void {
    let failure: { readonly error: unknown } | undefined;
    for (let message = this.#next(); message !== undefined; message = this.#next()) {
      try {
        this.#received(decoded(message), message.descriptors);
      } catch (error) {
        // One message's trouble is not that of the next.
        failure ??= { error };
      }
    }
    if (failure !== undefined) throw failure.error;
  }

  /** Sends what waits; and gives what has come, undefined when that is all. */
  #next(): Message | undefined {
    if (!this.#open) return undefined;
    try {
      this.#sendWaiting();
      const message = receiveMessage(this.#socket, this.#options.buffer);
      if (message === undefined || message.bytes.length > 0) return message;
    } catch {
      // It has been killed, with something of ours unread.
    }
    this.close();
    this.#listener(undefined, []);
    return undefined;
  }

  #received(message: FromHolder, descriptors: readonly number[]): void {
    switch (message.kind) {
      case "ping":
        return this.tell("pong");
      case "spawned":
        return this.#spawned(message);
      case "held": {
        const number = message.numbers[0]!;
        const wanted = this.#wanted.get(number);
        if (wanted === undefined) break;
        this.#wanted.delete(number);
        const [fd] = descriptors;
        if (fd !== undefined) return wanted.resolve(fd);
        // The holder has it, and this process has no number left for it.
        if (message.error === 0) this.drop([number]);
        return wanted.reject(new SystemError(wanted.what, message.error || Errno.EMFILE));
      }
    }
    if (message.kind === "exited") {
      this.#exits++;
      this.#pending++;
    }
    this.#listener(message, descriptors);
  }

  #spawned({ pid, error }: Extract<FromHolder, { kind: "spawned" }>): void {
    const asked = this.#asked.shift();
    this.#isStarting = false;
    if (asked === undefined) throw new Error("a holder has started what it was not asked for");
    const { program, started, resolve, reject } = asked;
    if (error !== 0) {
      reject(new SystemError(START_CALL, error, JSON.stringify(program)));
    } else {
      started(pid);
      resolve();
    }
    this.#startNext();
  }
}

/** @throws {Error} when it is nothing that a holder sends; what came with it is closed then */
function decoded({ bytes, descriptors }: Message): FromHolder {
  try {
    return decode(bytes);
  } catch (error) {
    descriptors.forEach(fds.close);
    throw error;
  }
}

function gone(program: string): Error {
  return new Error(`cannot start ${program}: the container's shim has ended`);
}
