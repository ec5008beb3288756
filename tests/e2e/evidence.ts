/** What a failed test shows besides its assertion. */

/**
 * Has an error tell, below its message, what was seen: in the output of the test, and again where the run says in the
 * end what has failed.
 *
 * @returns the error, to be thrown again
 */
export function withEvidence(error: unknown, what: string, seen: string): unknown {
  if (seen.trim() !== "" && error instanceof Error) error.message += `\n\n${what}:\n${seen.trimEnd()}`;
  return error;
}
