/** Waiting for something to happen, never for time to pass. */

/** How often a condition that nothing tells of is looked at, in ms. */
const POLL_INTERVAL_MS = 5;

/** How long a test waits for what should happen soon, in ms. */
export const PATIENCE_MS = 20_000;

/**
 * Looks until `condition` gives something other than undefined or false, and gives that.
 *
 * @throws {Error} which says what was waited for, when that has not happened in time; the last error of the condition is
 * its cause
 */
export async function until<T>(
  what: string,
  condition: () => T | undefined | false | Promise<T | undefined | false>,
  patienceMs: number = PATIENCE_MS,
): Promise<T> {
  const end = performance.now() + patienceMs;
  let cause: unknown;
  for (;;) {
    try {
      const value = await condition();
      if (value !== undefined && value !== false) return value;
      cause = undefined;
    } catch (error) {
      cause = error;
    }
    if (performance.now() > end) throw new Error(`Gave up after ${patienceMs} ms waiting until ${what}`, { cause });
    await pause(POLL_INTERVAL_MS);
  }
}

/**
 * What a promise gives, if it does in time.
 *
 * @throws {Error} which says what was waited for
 */
export async function within<T>(what: string, promise: Promise<T>, patienceMs: number = PATIENCE_MS): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => late.reject(new Error(`Gave up after ${patienceMs} ms waiting for ${what}`)),
    patienceMs,
  );
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Lets time pass, where time is the subject. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
