/** In which modes the tests of a file run. */

import { runsIn, type Way } from "./env.ts";

const register = Deno.test;

/** Takes a test, or what is to be done before or after tests, and forgets it. */
const forget = () => {};
const forgetAll = Object.assign(() => {}, {
  ignore: forget,
  only: forget,
  beforeAll: forget,
  beforeEach: forget,
  afterEach: forget,
  afterAll: forget,
});

/**
 * States in which modes the tests run that this file registers from here on, by whatever function, and why in these: in each
 * mode in which they run code that they do not run in another. It is stated at the top of each file, and once more where
 * another subject begins. Only `inModes` and `onlyHosted` state the modes of one test, whatever has been stated before.
 *
 * Shims of both kinds meet in `mixed` alone; there, chance decides which kind the only shim of a test is.
 *
 * The modes are written as literals: tests/run.ts starts a file only in those that it finds in its text (tests/stated.ts).
 */
export function modes(those: readonly [Way, ...Way[]], reason: string): void {
  if (reason === "") throw new Error("why do the tests run in these modes?");
  // Each file is a program of its own, with its own `Deno`: no other file's tests are meant.
  Object.assign(Deno, { test: runsIn(those) ? register : forgetAll });
}
