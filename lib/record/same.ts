/** Objects that are the same as long as what they are made of is: so what has changed is found without a look into them. */

/** A function that gives the object it has given last when it is called with the same arguments again; it is to use nothing else. */
export function sameForSame<Inputs extends readonly unknown[], Result>(
  make: (...inputs: Inputs) => Result,
): (...inputs: Inputs) => Result {
  let last: { readonly inputs: Inputs; readonly result: Result } | undefined;
  return (...inputs) => {
    if (last === undefined || !areSame(inputs, last.inputs)) last = { inputs, result: make(...inputs) };
    return last.result;
  };
}

function areSame(a: readonly unknown[], b: readonly unknown[]): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** A function that gives one object for each that it is called with, which is not changed. */
export function oneForEach<Input extends object, Result>(make: (input: Input) => Result): (input: Input) => Result {
  const results = new WeakMap<Input, Result>();
  return (input) => {
    if (!results.has(input)) results.set(input, make(input));
    return results.get(input)!;
  };
}
