/**
 * System calls that may wait as long as a disk or a server does not answer: mount(2) and umount2(2) above all. A host's thread is
 * its other containers' too, so a child of the container's own process makes them, each list once: it is among the commands that
 * another process waits for, and does not start again.
 */

import { type CallList, CALLS_PROGRAM } from "../../ffi/calls.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { createMemoryFile, MemoryFile, readMemory, writeMemory } from "../../ffi/memfd.ts";
import { OWN_EXECUTABLE } from "../../ffi/process.ts";
import { sleep } from "../async.ts";
import type { RunOptions } from "../reaper.ts";
import { Role } from "../record/keeper.ts";
import type { Context } from "./context.ts";

/** What they are known by in the journal of commands: they are the container's, and none of the OCI runtime's. */
const SCOPE = "rootfs";

/** The descriptor that a child has a folder by. */
export const CALLS_FOLDER = 1;

/** The least exit status that is no error of a system call: of a program that has not been started, or a signal. */
const NO_ERROR = 127;
/** How long a child may take to be seen, and to end, whose pid is not known when its parent has ended, in ms. */
const UNKNOWN_MS = 200;

/** Options of {@link makeCalls}. */
export interface CallsOptions {
  /** Tells them from other calls that the container may need. */
  readonly key: string;
  /** Open here, and {@link CALLS_FOLDER} for a child; stays the caller's. */
  readonly folder?: number | undefined;
  /** Whether another process that goes on is to know which call has failed, and not the error alone. */
  readonly isKept?: boolean;
}

/** What of a {@link Context} they need. */
export type CallsContext = Pick<Context, "reaper" | "commands" | "shelf" | "timer" | "ownChildren">;

/**
 * Has the calls of a list made.
 *
 * @throws {SystemError} of the call that the list has stopped at
 * @throws {Error} when whoever was to make them has not, or has been killed
 */
export async function makeCalls(context: CallsContext, list: CallList, options: CallsOptions): Promise<void> {
  const { reaper } = context;
  if (reaper.executable === undefined) return list.make();
  const { key, folder, isKept = false } = options;
  using own = isKept ? undefined : new MemoryFile("calls");
  const memory = own?.fd ?? keptFile(context, key);
  // What has begun has been given its own.
  if (!hasBegun(context, key)) writeMemory(memory, list.encode());
  const status = await runOnce(context, key, {
    program: reaper.executable,
    args: [CALLS_PROGRAM],
    descriptors: folder === undefined ? [memory] : [memory, folder],
    environment: [],
  });
  if (status === 0) return;
  const failure = list.failure(readMemory(memory));
  if (failure?.errno === status) throw failure;
  if (status < NO_ERROR) throw new SystemError(key, status);
  throw new Error(`${key}: the process that was to do it has ended with status ${status}`);
}

/** Whether another process has begun with them. */
export function hasBegun({ commands }: CallsContext, key: string): boolean {
  return commands.hasBegun(key, SCOPE);
}

/** A file in memory for what a child leaves there, which another process that waits for the same child finds. */
export function keptFile(context: CallsContext, key: string): number {
  const { shelf } = context;
  const found = hasBegun(context, key) ? shelf.find(Role.CALLS_MADE) : undefined;
  if (found !== undefined) return found;
  const fd = createMemoryFile("calls");
  shelf.keep(Role.CALLS_MADE, fd);
  return fd;
}

/** Forgets what has been done: it is part of what the container is now. */
export function settle({ commands, shelf }: CallsContext): void {
  commands.settle(SCOPE);
  const kept = shelf.find(Role.CALLS_MADE);
  if (kept !== undefined) shelf.close(kept);
}

/**
 * Runs a program once, whichever process waits for its end; gives its exit status. Where the container's own process has ended,
 * it is a child of this one.
 *
 * @throws {Error} when it cannot be started, or its parent has ended, and it too by then
 */
export async function runOnce(context: CallsContext, key: string, options: RunOptions): Promise<number> {
  const { reaper, commands, timer, ownChildren } = context;
  if (reaper.isAbandoned && ownChildren !== undefined) {
    const isOurs = options.program !== undefined;
    return await ownChildren.run(isOurs ? { ...options, program: OWN_EXECUTABLE } : options);
  }
  let child: number | undefined;
  try {
    const started = (pid: number) => child = pid;
    const { status } = await commands.run({ key, scope: SCOPE, logged: 0, ...options, started });
    return status;
  } catch (error) {
    // It has been told to end with its parent, and what it is at cannot be undone before it is over.
    if (reaper.isAbandoned) await (child === undefined ? sleep(timer, UNKNOWN_MS) : ownChildren?.ended(child));
    throw error;
  }
}

/** The error of a call, if it is one of these; throws any other. */
export function errnoOf(error: unknown, ...expected: readonly (keyof typeof Errno)[]): number {
  if (error instanceof SystemError && expected.some((each) => Errno[each] === error.errno)) return error.errno;
  throw error;
}
