/**
 * Events on their way to containerd: in order, each at least once, kept while containerd is away. None is lost without a line in
 * the log; what they are about is not known here.
 */

import type { Timer } from "../async.ts";
import type { Logger } from "../log.ts";

/** An event as containerd's event service takes it. */
export interface Envelope {
  /** When it happened. */
  readonly at: Date;
  /** containerd's. */
  readonly namespace: string;
  /** What it is about: /tasks/exit. */
  readonly topic: string;
  /** The type's full name, which containerd's Any carries instead of a URL. */
  readonly type: string;
  /** The encoded message. */
  readonly value: Uint8Array;
}

/** The way to containerd. */
export interface Publisher {
  /** Sends an event; rejects when it has not got there. */
  publish(envelope: Envelope): Promise<void>;
  /** Rejects when containerd is not there. */
  reach(): Promise<void>;
}

/** Events that wait at most; past that the oldest go. */
const CAPACITY = 1024;
/** How long the first new attempt waits, and the longest any does, in ms. */
const FIRST_DELAY_MS = 100;
const LAST_DELAY_MS = 10_000;
/**
 * How long events wait once containerd is back, in ms: it passes them on to those who have subscribed, and keeps none for
 * those who are about to.
 */
const SETTLE_MS = 2000;

/** The queue. */
export class EventQueue {
  readonly #publisher: Publisher;
  readonly #timer: Timer;
  readonly #log: Logger;
  readonly #waiting: Envelope[] = [];
  #delay = FIRST_DELAY_MS;
  #sending: Promise<void> | undefined;
  /** Ends the pause between two attempts. */
  #wake: (() => void) | undefined;
  /** Ends the one for containerd's subscribers. */
  #settle: (() => void) | undefined;
  #hurried = false;
  #last: Pick<Envelope, "topic" | "at"> | undefined;

  readonly #onSent: () => void;

  /**
   * An empty queue.
   *
   * @param onSent told that an event has been acknowledged
   */
  constructor(publisher: Publisher, timer: Timer, log: Logger, onSent: () => void = () => {}) {
    this.#onSent = onSent;
    this.#publisher = publisher;
    this.#timer = timer;
    this.#log = log;
  }

  /** Those that have not been acknowledged. */
  get waiting(): readonly Envelope[] {
    return this.#waiting;
  }

  /** How many events have not been acknowledged. */
  get size(): number {
    return this.#waiting.length;
  }

  /** The last that there was to send. */
  get last(): Pick<Envelope, "topic" | "at"> | undefined {
    return this.#last;
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
    this.#last = { topic: envelope.topic, at: envelope.at };
    this.#sending ??= this.#send();
  }

  /** Sends what waits without waiting any longer; settled when every event is acknowledged. */
  flush(): Promise<void> {
    this.#hurried = true;
    this.#wake?.();
    this.#settle?.();
    return this.#sending ?? Promise.resolve();
  }

  /** Sends nothing more: nobody is left to tell it. */
  stop(): void {
    this.#waiting.length = 0;
    this.#wake?.();
    this.#settle?.();
  }

  /** Tries again now, and soon again: containerd has just been heard of, and may not serve events yet. */
  retry(): void {
    this.#delay = FIRST_DELAY_MS;
    this.#wake?.();
  }

  async #send(): Promise<void> {
    let away = false;
    while (this.#waiting.length > 0) {
      const envelope = this.#waiting[0]!;
      try {
        if (away && !this.#hurried) {
          await this.#publisher.reach();
          await this.#pause(SETTLE_MS, (end) => this.#settle = end);
        }
        await this.#publisher.publish(envelope);
        away = false;
        const index = this.#waiting.indexOf(envelope);
        if (index !== -1) this.#waiting.splice(index, 1);
        this.#onSent();
        this.#delay = FIRST_DELAY_MS;
      } catch (error) {
        away = true;
        this.#hurried = false;
        this.#log.warn("event not delivered, will try again", {
          topic: envelope.topic,
          delay_ms: this.#delay,
          waiting: this.#waiting.length,
          error,
        });
        const delay = this.#delay;
        this.#delay = Math.min(delay * 2, LAST_DELAY_MS);
        if (this.#waiting.length > 0) await this.#pause(delay, (end) => this.#wake = end);
      }
    }
    this.#hurried = false;
    this.#sending = undefined;
  }

  async #pause(ms: number, setEnd: (end: (() => void) | undefined) => void): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    using _timer = this.#timer(ms, resolve);
    setEnd(resolve);
    await promise;
    setEnd(undefined);
  }
}
