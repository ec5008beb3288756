/** What the OCI runtime's failures mean to a caller. */

import { messageOf } from "../errors.ts";
import { RuntimeError } from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";

/** A failure of something that the runtime was asked for, named in front; other errors are passed on as they are. */
export function runtimeError(what: string, error: unknown): unknown {
  if (!(error instanceof RuntimeError)) return error;
  return new StatusError(Code.UNKNOWN, `${what}: ${error.message}`, { cause: error });
}

/** What the runtime gives for something that it has been asked for by name. */
export async function asked<T>(what: string, command: Promise<T>): Promise<T> {
  try {
    return await command;
  } catch (error) {
    throw runtimeError(`OCI runtime ${what} failed`, error);
  }
}

/** Whether the runtime has failed because it holds no such container. */
export function isGone(error: unknown): boolean {
  return error instanceof RuntimeError && error.noContainer;
}

/** A failure to send a signal: NOT_FOUND when there is no one to send it to. */
export function killError(error: unknown): StatusError {
  const message = messageOf(error);
  if (/process already finished|container not running|no such process/i.test(message)) {
    return new StatusError(Code.NOT_FOUND, "process already finished");
  }
  if (isGone(error)) {
    return new StatusError(Code.NOT_FOUND, "no such container");
  }
  return new StatusError(Code.UNKNOWN, `unknown error after kill: ${message}`, { cause: error });
}
