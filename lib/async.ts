/** Waiting. */

/** Calls back once after `ms`, unless what it returns is disposed of before. */
export type Timer = (ms: number, callback: () => void) => Disposable;

/** Waits for `ms`. */
export function sleep(timer: Timer, ms: number): Promise<void> {
  return new Promise((resolve) => timer(ms, resolve));
}

/**
 * Waits for a promise, but no longer than `ms`, and gives what it does by then; rejects only if the promise does in that time.
 *
 * ```ts
 * import { assertEquals } from "@std/assert";
 *
 * const timer: Timer = (ms, callback) => {
 *   const number = setTimeout(callback, ms);
 *   return { [Symbol.dispose]: () => clearTimeout(number) };
 * };
 * assertEquals(await within(timer, 1, new Promise(() => {})), undefined);
 * assertEquals(await within(timer, 60_000, Promise.resolve("told")), "told");
 * ```
 */
export async function within<T>(
  timer: Timer,
  ms: number,
  promise: PromiseLike<T> | undefined,
): Promise<T | undefined> {
  if (promise === undefined) return undefined;
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  using _timer = timer(ms, () => resolve(undefined));
  return await Promise.race([promise, late]);
}
