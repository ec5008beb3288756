/** What has been made outside of this process's memory, so that it is removed however the bench ends. */

/** Something that has files, cgroups or mounts. */
export interface Removable {
  /** Ends its processes, if they have not ended, and removes what it has made. */
  remove(): Promise<void>;
}

/** Everything that there is, and its removal where that has begun: who is interrupted may be in the middle of one. */
const owned = new Map<Removable, Promise<void> | undefined>();

/** Notes what {@linkcode disown} or {@linkcode disownAll} is to remove. */
export function own<T extends Removable>(each: T): T {
  owned.set(each, undefined);
  return each;
}

/** Removes something now, unless that has been done. */
export async function disown(each: Removable): Promise<void> {
  if (!owned.has(each)) return;
  const removal = owned.get(each) ?? each.remove();
  owned.set(each, removal);
  await removal;
  owned.delete(each);
}

/**
 * Removes all that is left.
 *
 * @returns what went wrong with some of it
 */
export async function disownAll(): Promise<unknown[]> {
  const failures: unknown[] = [];
  for (const each of [...owned.keys()].reverse()) await disown(each).catch((error) => failures.push(error));
  return failures;
}
