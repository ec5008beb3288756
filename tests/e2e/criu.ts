/** A CRIU that works on this machine, and the tests that need one. */

import { run } from "./command.ts";
import { IS_OURS, REPOSITORY } from "./env.ts";

/** How long it may take to be installed, in ms. */
const INSTALL_MS = 120_000;

const found = await run(["sh", `${REPOSITORY}/tests/criu.sh`, `${REPOSITORY}/build/criu`], { patienceMs: INSTALL_MS })
  .catch((error: Error) => ({ code: -1, stdout: "", stderr: error.message }));

/** Its path; undefined when there is none. */
export const CRIU: string | undefined = found.code === 0 ? found.stdout.trim() : undefined;

/** Options of {@linkcode criuTest}. */
export interface CriuTestOptions {
  /** Why a shim that is not ours fails it; it does not unless given. */
  readonly notWithAnother?: string | undefined;
  /** Why it cannot be run, if it cannot. */
  readonly skip?: string | undefined;
}

/**
 * Registers a test that needs CRIU, which it is given the path of. Where there is none the test is skipped, and its name
 * says why.
 */
export function criuTest(name: string, test: (criu: string) => Promise<void>, options: CriuTestOptions = {}): void {
  const { notWithAnother, skip } = options;
  const reason = CRIU === undefined
    ? found.stderr.trim().replaceAll("\n", " ")
    : !IS_OURS && notWithAnother !== undefined
    ? `not with another shim: ${notWithAnother}`
    : skip;
  Deno.test({
    name: reason === undefined ? name : `${name} [${reason}]`,
    ignore: reason !== undefined,
    fn: () => test(CRIU!),
  });
}
