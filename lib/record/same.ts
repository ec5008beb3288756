/** Objects that are the same as long as what they are made of is: so what has changed is found without a look into them. */

/** What a function may be called with: five at most are compared. */
export type UpToFive = readonly unknown[] & { readonly length: 0 | 1 | 2 | 3 | 4 | 5 };

/**
 * A function that gives the object it has given last when it is called with the same arguments again; it is to use nothing else
 * that changes. It is called for each process whenever something is written down, and makes nothing then.
 */
export function sameForSame<Inputs extends UpToFive, Result>(
  make: (...inputs: Inputs) => Result,
): (...inputs: Inputs) => Result {
  let last: { readonly inputs: UpToFive; readonly result: Result } | undefined;
  const given = (a?: unknown, b?: unknown, c?: unknown, d?: unknown, e?: unknown): Result => {
    if (last !== undefined) {
      const { inputs } = last;
      if (a === inputs[0] && b === inputs[1] && c === inputs[2] && d === inputs[3] && e === inputs[4]) {
        return last.result;
      }
    }
    const inputs = [a, b, c, d, e] as const;
    last = { inputs, result: make(...inputs as unknown as Inputs) };
    return last.result;
  };
  return given as (...inputs: readonly unknown[]) => Result;
}

/** A function that gives one object for each that it is called with, which is not changed. */
export function oneForEach<Input extends object, Result>(make: (input: Input) => Result): (input: Input) => Result {
  const results = new WeakMap<Input, Result>();
  return (input) => {
    if (!results.has(input)) results.set(input, make(input));
    return results.get(input)!;
  };
}
