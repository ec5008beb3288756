/** A holder, as its host sees it: the process that containerd knows as the shim, and the parent of a container. */

import * as fds from "../../ffi/fd.ts";
import { type Message, receiveMessage, sendMessage } from "../../ffi/fd_passing.ts";
import { SystemError } from "../../ffi/libc.ts";
import { Event, type Poller } from "../../ffi/poll.ts";
import { type ChildOptions, exitStatus } from "../../ffi/process.ts";
import type { Parent } from "../reaper.ts";
import { decode, type FromHolder, order, spawnOrder } from "./protocol.ts";

/** How long the news of an exit takes from a holder that has much to do, in ms. */
const NEWS_MS = 50;
/** Where programs are looked for when the environment does not say: execvp(3). */
const DEFAULT_PATH = "/bin:/usr/bin";

/** Told what the holder says, and undefined when it has ended. */
export type HolderListener = (message: FromHolder | undefined, descriptors: readonly number[]) => void;

/** What {@link Holder} and the others of its host share. */
export interface HolderOptions {
  readonly poller: Poller;
  /** A descriptor of /dev/null; stays the caller's. */
  readonly devNull: number;
  /** Where messages are received: one at a time, and used at once. */
  readonly buffer: Uint8Array<ArrayBuffer>;
}

/** A child that has been asked for. */
interface Asked {
  readonly program: string;
  readonly started: (pid: number) => void;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** A message on its way. */
interface Outgoing {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly descriptors: readonly number[];
}

/** A holder, or a process that wants to become one. */
export class Holder implements Parent {
  readonly delayMs = NEWS_MS;
  /** PATH of the environment that it was started with: that of its children. */
  path = DEFAULT_PATH;
  readonly #socket: number;
  readonly #options: HolderOptions;
  readonly #listener: HolderListener;
  /** In the order in which they are answered. */
  readonly #asked: Asked[] = [];
  /** What there was no room for: the holder is stopped, say. */
  readonly #outgoing: Outgoing[] = [];
  #open = true;

  /**
   * @param socket its connection, nonblocking; this object's from then on
   * @throws {SystemError} when it cannot be watched; it is closed then
   */
  constructor(socket: number, options: HolderOptions, listener: HolderListener) {
    this.#socket = socket;
    this.#options = options;
    this.#listener = listener;
    try {
      options.poller.add(socket, Event.IN | Event.OUT | Event.RDHUP, () => this.#wake());
    } catch (error) {
      fds.close(socket);
      throw error;
    }
  }

  /** A number or nothing that it is told: see lib/standalone/entry.c. */
  tell(...message: Parameters<typeof order>): void {
    try {
      this.#send({ bytes: order(...message), descriptors: [] });
    } catch {
      // It has gone: what is read next says so.
    }
  }

  spawn(options: ChildOptions, started: (pid: number) => void): Promise<void> {
    const program = options.args[0]!;
    const bytes = spawnOrder(this.#candidates(program), options);
    const descriptors = options.descriptors.map((fd) => fd ?? this.#options.devNull);
    return new Promise((resolve, reject) => {
      if (!this.#open) return reject(gone(program));
      // First: what cannot be sent is an error of this call.
      this.#send({ bytes, descriptors });
      this.#asked.push({ program, started, resolve, reject });
    });
  }

  /** It is the holder that reaps, and tells. */
  reap(): undefined {
    return undefined;
  }

  /** Closes the connection: the process ends by that if it is a holder. The listener is told nothing more. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#options.poller.remove(this.#socket);
    fds.close(this.#socket);
    this.#outgoing.length = 0;
    for (const { program, reject } of this.#asked.splice(0)) reject(gone(program));
  }

  /** The paths that a program may have: posix_spawnp(3). */
  #candidates(program: string): string[] {
    if (program.includes("/")) return [program];
    return this.path.split(":").map((folder) => `${folder || "."}/${program}`);
  }

  #send(message: Outgoing): void {
    if (!this.#open) return;
    if (this.#outgoing.length > 0 || !this.#sent(message)) this.#outgoing.push(message);
  }

  #sent({ bytes, descriptors }: Outgoing): boolean {
    return sendMessage(this.#socket, bytes, descriptors);
  }

  #wake(): void {
    let failure: { readonly error: unknown } | undefined;
    for (let message = this.#next(); message !== undefined; message = this.#next()) {
      try {
        this.#received(decode(message.bytes), message.descriptors);
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
      while (this.#outgoing.length > 0 && this.#sent(this.#outgoing[0]!)) this.#outgoing.shift();
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
    if (message.kind !== "spawned") return this.#listener(message, descriptors);
    const asked = this.#asked.shift();
    if (asked === undefined) throw new Error("a holder has started what nobody asked for");
    if (message.error !== 0) {
      asked.reject(new SystemError("start of program", message.error, JSON.stringify(asked.program)));
    } else {
      asked.started(message.pid);
      asked.resolve();
    }
  }
}

/** How a child has ended, as a holder tells it. */
export function exitOf({ pid, word }: Extract<FromHolder, { kind: "exited" }>) {
  return { pid, status: exitStatus(word) };
}

function gone(program: string): Error {
  return new Error(`cannot start ${program}: the container's shim has ended`);
}
