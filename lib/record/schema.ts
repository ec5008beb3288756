/** What a value read from a file must look like: a type that is also there when the program runs. */

/** Gives a value back that is of the type, and throws otherwise. */
export type Schema<T> = (value: unknown, path: string) => T;

/** The type that a schema is of. */
export type Of<S> = S extends Schema<infer T> ? T : never;

function fail(path: string, expected: string): never {
  throw new Error(`${path} is not ${expected}`);
}

/** Any string. */
export const text: Schema<string> = (value, path): string => typeof value === "string" ? value : fail(path, "a text");

/** true or false. */
export const flag: Schema<boolean> = (value, path): boolean =>
  typeof value === "boolean" ? value : fail(path, "true or false");

/** A whole number that is not negative. */
export const count: Schema<number> = (value, path): number =>
  Number.isSafeInteger(value) && value as number >= 0 ? value as number : fail(path, "a count");

/** A point in time, in ms since the epoch. */
export const time: Schema<number> = (value, path): number =>
  Number.isFinite(value) && Math.abs(value as number) < 8.64e15 ? value as number : fail(path, "a time");

/** One of some words. */
export function word<const T extends string>(words: readonly T[]): Schema<T> {
  return (value, path) => words.find((each) => each === value) ?? fail(path, `one of ${words.join(", ")}`);
}

/** Any JSON object. */
export const json: Schema<Readonly<Record<string, unknown>>> = (value, path): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as Record<string, unknown>
    : fail(path, "an object");

/** Any number of one type. */
export function list<T>(of: Schema<T>): Schema<T[]> {
  return (value, path) =>
    Array.isArray(value) ? value.map((each, i) => of(each, `${path}[${i}]`)) : fail(path, "a list");
}

/** What may be missing. */
export function maybe<T>(of: Schema<T>): Schema<T | undefined> {
  return (value, path) => value === undefined ? undefined : of(value, path);
}

/** What fields an object has. */
export type Shape = Readonly<Record<string, Schema<unknown>>>;
/** The type that a {@link Shape} is of. */
export type Shaped<S extends Shape> = { readonly [K in keyof S]: Of<S[K]> };

/**
 * An object with these fields and no others.
 *
 * ```ts
 * import { assertEquals, assertThrows } from "@std/assert";
 *
 * const process = object({ id: text, pid: count, exit: maybe(object({ status: count })) });
 * assertEquals(process({ id: "c1", pid: 7 }, "it"), { id: "c1", pid: 7, exit: undefined });
 * assertThrows(() => process({ id: "c1", pid: -1 }, "it"), Error, "it.pid is not a count");
 * assertThrows(() => process({ id: "c1", pid: 7, uid: 0 }, "it"), Error, 'it has a field "uid"');
 * ```
 */
export function object<S extends Shape>(shape: S): Schema<Shaped<S>> {
  const known = fields(shape);
  return (value, path) => {
    const stranger = Object.keys(json(value, path)).find((key) => !Object.hasOwn(shape, key));
    if (stranger !== undefined) throw new Error(`${path} has a field ${JSON.stringify(stranger)}`);
    return known(value, path);
  };
}

/** An object with these fields; what there is besides, as another build may have it, is left out. */
export function fields<S extends Shape>(shape: S): Schema<Shaped<S>> {
  return (value, path) => {
    const found = json(value, path);
    return Object.fromEntries(
      Object.entries(shape).map(([key, schema]) => [key, schema(found[key], `${path}.${key}`)]),
    ) as Shaped<S>;
  };
}
