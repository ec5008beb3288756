/** Events on their way to containerd: in order, each at least once, kept while containerd is away. */

import type { Timer } from "../async.ts";
import type { Logger } from "../log.ts";

/** An event as containerd's event service takes it. */
export interface Envelope {
  readonly at: Date;
  readonly namespace: string;
  readonly topic: string;
  /** The type's full name, which containerd's Any carries instead of a URL. */
  readonly type: string;
  /** The encoded message. */
  readonly value: Uint8Array;
}

/** A way out for an event; rejects when it has not got there. */
export type Publish = (envelope: Envelope) => Promise<void>;

/** Events that wait at most; past that the oldest go. */
const CAPACITY = 1024;
/** How long the first new attempt waits, and the longest any does, in ms. */
const FIRST_DELAY_MS = 100;
const LAST_DELAY_MS = 10_000;

/** The queue. */
export class EventQueue {
  readonly #publish: Publish;
  readonly #timer: Timer;
  readonly #log: Logger;
  readonly #waiting: Envelope[] = [];
  #delay = FIRST_DELAY_MS;
  #sending: Promise<void> | undefined;
  #wake: (() => void) | undefined;

  constructor(publish: Publish, timer: Timer, log: Logger) {
    this.#publish = publish;
    this.#timer = timer;
    this.#log = log;
  }

  /** How many events have not been acknowledged. */
  get size(): number {
    return this.#waiting.length;
  }

  /** Has an event sent after those that wait already. */
  push(envelope: Envelope): void {
    if (this.#waiting.length >= CAPACITY) {
      // The one in front may be on its way out just now.
      const [lost] = this.#waiting.splice(1, 1);
      this.#log.error("event dropped: too many wait for containerd", {
        topic: lost!.topic,
        waiting: CAPACITY,
      });
    }
    this.#waiting.push(envelope);
    this.#sending ??= this.#send();
  }

  /** Settled when every event that has been pushed so far, and since, is acknowledged. */
  get flushed(): Promise<void> {
    return this.#sending ?? Promise.resolve();
  }

  /** Tries again now, and soon again: containerd has just been heard of, and may not serve events yet. */
  retry(): void {
    this.#delay = FIRST_DELAY_MS;
    this.#wake?.();
  }

  async #send(): Promise<void> {
    while (this.#waiting.length > 0) {
      const envelope = this.#waiting[0]!;
      try {
        await this.#publish(envelope);
        this.#waiting.splice(this.#waiting.indexOf(envelope), 1);
        this.#delay = FIRST_DELAY_MS;
      } catch (error) {
        this.#log.warn("event not delivered, will try again", {
          topic: envelope.topic,
          delay_ms: this.#delay,
          waiting: this.#waiting.length,
          error,
        });
        const delay = this.#delay;
        this.#delay = Math.min(delay * 2, LAST_DELAY_MS);
        await this.#pause(delay);
      }
    }
    this.#sending = undefined;
  }

  #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = this.#timer(ms, resolve);
    this.#wake = () => {
      timer[Symbol.dispose]();
      resolve();
    };
    return promise.finally(() => this.#wake = undefined);
  }
}
