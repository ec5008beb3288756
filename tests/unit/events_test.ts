/** Events on their way to containerd: none is lost while it takes them, however slowly it is asked. */

import { assert, assertEquals } from "@std/assert";
import type { Timer } from "../../lib/async.ts";
import { type Envelope, EventQueue, type Publisher } from "../../lib/events/queue.ts";
import type { Logger } from "../../lib/log.ts";

/** A hundred times as fast as it should be. */
const timer: Timer = (ms, callback) => {
  const number = setTimeout(callback, ms / 100);
  return { [Symbol.dispose]: () => clearTimeout(number) };
};

function eventOf(number: number): Envelope {
  return { at: new Date(), namespace: "test", topic: `/tests/${number}`, type: "test", value: new Uint8Array() };
}

/** A queue, and what its log says. */
function queueTo(publish: Publisher["publish"]) {
  const logged: string[] = [];
  const note = (message: string) => void logged.push(message);
  const log = { error: note, warn: note } as unknown as Logger;
  const queue = new EventQueue({ publish, reach: () => Promise.resolve() }, timer, log);
  return { queue, logged };
}

/** As long as Deno's loop takes to come round. */
function round(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}

Deno.test("Where events come faster than they are taken, there is no room for more, and none is dropped", async () => {
  const got: string[] = [];
  const { queue, logged } = queueTo(async (envelopes, onAcknowledged) => {
    await round();
    for (const envelope of envelopes) {
      await round();
      got.push(envelope.topic);
      onAcknowledged(envelope);
    }
  });
  const pushed: string[] = [];
  let most = 0;
  const push = async () => {
    await queue.room();
    const event = eventOf(pushed.length);
    pushed.push(event.topic);
    queue.push(event);
    most = Math.max(most, queue.size);
  };
  while (pushed.length < 2000) {
    await Promise.all(Array.from({ length: 20 }, push));
    await round();
  }
  await queue.flush();
  assertEquals(logged, []);
  assertEquals(got, pushed);
  // Those for whom there was room at once, and those who waited for it.
  assert(most < 64 + 2 * 20, `${most} have waited`);
});

Deno.test("What has not got there is sent again with all after it, and nobody waits for room meanwhile", async () => {
  const got: string[] = [];
  let tries = 0;
  const { queue, logged } = queueTo(async (envelopes, onAcknowledged) => {
    for (const envelope of envelopes) {
      await round();
      if (++tries % 50 === 0) throw new Error("containerd has gone");
      got.push(envelope.topic);
      onAcknowledged(envelope);
    }
  });
  const pushed = Array.from({ length: 120 }, (_, number) => eventOf(number));
  for (const event of pushed) queue.push(event);
  await queue.room();
  assertEquals(got.length, 49);
  while (queue.size > 0) await queue.flush();
  assertEquals(got, pushed.map(({ topic }) => topic));
  assertEquals(new Set(logged), new Set(["event not delivered, will try again"]));
});

Deno.test("When too many wait, the oldest goes that is not on its way", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const got: string[] = [];
  const { queue, logged } = queueTo(async (envelopes, onAcknowledged) => {
    await promise;
    for (const envelope of envelopes) {
      got.push(envelope.topic);
      onAcknowledged(envelope);
    }
  });
  const pushed = Array.from({ length: 1025 }, (_, number) => eventOf(number));
  for (const event of pushed) queue.push(event);
  resolve();
  await queue.flush();
  assertEquals(logged, ["event dropped: too many wait for containerd"]);
  assertEquals(got, pushed.toSpliced(1, 1).map(({ topic }) => topic));
});

Deno.test("Who waits for room does not wait for a queue that is given up", async () => {
  const { queue } = queueTo(() => new Promise(() => {}));
  for (let number = 0; number < 64; number++) queue.push(eventOf(number));
  const room = queue.room();
  queue.stop();
  await room;
});
