/** The status codes of gRPC (`google.rpc.Code`), which ttrpc shares. */
export const Code = {
  OK: 0,
  CANCELED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

/** One of the codes in {@linkcode Code}. */
export type Code = typeof Code[keyof typeof Code];

/** An error that crosses the socket: thrown by a handler, it is the answer; received by a client, it is what `call` rejects with. */
export class StatusError extends Error {
  /** Tells it from other errors by name. */
  override readonly name = "StatusError";

  /** What kind of failure this is; the message says the rest. */
  readonly code: Code;

  /**
   * A failure, and what it is to be told as.
   *
   * @param code any code but OK, which a peer would take for success
   * @param message the sentence that the peer sees
   */
  constructor(code: Code, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
