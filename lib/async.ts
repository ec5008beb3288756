/** Waiting. */

/** Calls back once after `ms`, unless what it returns is disposed of before. */
export type Timer = (ms: number, callback: () => void) => Disposable;

/** Waits for `ms`. */
export function sleep(timer: Timer, ms: number): Promise<void> {
  return new Promise((resolve) => timer(ms, resolve));
}

/**
 * Waits for a promise, but no longer than `ms`; rejects only if the promise does in that time.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 *
 * let told = false;
 * const timer: Timer = (ms, callback) => {
 *   const number = setTimeout(callback, ms);
 *   return { [Symbol.dispose]: () => clearTimeout(number) };
 * };
 * await within(timer, 1, new Promise(() => {}));
 * await within(timer, 60_000, Promise.resolve().then(() => told = true));
 * assertEquals(told, true);
 * ```
 */
export async function within(timer: Timer, ms: number, promise: PromiseLike<unknown> | undefined): Promise<void> {
  if (promise === undefined) return;
  const { promise: late, resolve } = Promise.withResolvers<void>();
  using _timer = timer(ms, resolve);
  await Promise.race([promise, late]);
}
