/** Errors, as sentences; and what else is told of them. */

/** What an error says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What a value says, in a line of the log or about one. */
export function textOf(value: unknown): string {
  return typeof value === "object" && value !== null && !(value instanceof Error)
    ? JSON.stringify(value)
    : messageOf(value);
}
