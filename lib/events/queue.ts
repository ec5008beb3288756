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
  /**
   * Sends events one after the other; rejects when one has not got there, and sends none of those after it.
   *
   * @param onAcknowledged told of each that has
   */
  publish(envelopes: readonly Envelope[], onAcknowledged: (envelope: Envelope) => void): Promise<void>;
  /** Rejects when containerd is not there. */
  reach(): Promise<void>;
}

/** Events that wait at most; past that the oldest go. */
const CAPACITY = 1024;
/** How many events go by one connection. */
const BATCH = 64;
/** How many may wait before no more children are started that would have others wait, unless containerd is away. */
const CROWD = 64;
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
  /** How many of them, the first, are on their way. */
  #sent = 0;
  /** Those who wait for room. */
  #roomless: (() => void)[] = [];
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
      const [lost] = this.#waiting.splice(this.#sent, 1);
      this.#log.error("event dropped: too many wait for containerd", {
        topic: lost!.topic,
        waiting: CAPACITY,
      });
    }
    this.#waiting.push(envelope);
    this.#last = { topic: envelope.topic, at: envelope.at };
    this.#sending ??= this.#send();
  }

  /**
   * Settled when there is room for what a child that is started now will have to tell. A shim that starts many at a time has
   * little time left to send what those before have told.
   *
   * @returns undefined when there is room
   */
  room(): Promise<void> | undefined {
    if (this.#sent === 0 || this.#waiting.length < CROWD) return undefined;
    return new Promise((resolve) => this.#roomless.push(resolve));
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
    this.#makeRoom();
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
      const first = this.#waiting[0]!;
      try {
        if (away && !this.#hurried) {
          await this.#publisher.reach();
          await this.#pause(SETTLE_MS, (end) => this.#settle = end);
        }
        await this.#publish(away ? 1 : BATCH);
        away = false;
        this.#delay = FIRST_DELAY_MS;
      } catch (error) {
        away = true;
        this.#hurried = false;
        this.#log.warn("event not delivered, will try again", {
          topic: first.topic,
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

  /** @throws {Error} when one of the first `count` has not got there */
  async #publish(count: number): Promise<void> {
    const batch = this.#waiting.slice(0, count);
    this.#sent = batch.length;
    try {
      await this.#publisher.publish(batch, (envelope) => {
        this.#sent--;
        // It may have been told to stop meanwhile.
        const index = this.#waiting.indexOf(envelope);
        if (index !== -1) this.#waiting.splice(index, 1);
        if (this.#waiting.length < CROWD) this.#makeRoom();
        this.#onSent();
      });
    } catch (error) {
      this.#makeRoom();
      throw error;
    } finally {
      this.#sent = 0;
    }
  }

  #makeRoom(): void {
    for (const resolve of this.#roomless.splice(0)) resolve();
  }

  async #pause(ms: number, setEnd: (end: (() => void) | undefined) => void): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    using _timer = this.#timer(ms, resolve);
    setEnd(resolve);
    await promise;
    setEnd(undefined);
  }
}
