/** The far ends of a process's streams: what the strings that containerd gives for them mean. */

import * as fds from "../../ffi/fd.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { statDescriptor } from "../../ffi/stat.ts";
import { sleep, type Timer } from "../async.ts";
import type { Shelf } from "../record/keeper.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import type { HostFile } from "./copier.ts";

/** Where an output goes: a FIFO, which is kept, or a file or a logger, which are yet to be opened or started. */
export type Output =
  | { readonly kind: "fifo"; readonly fd: number }
  | { readonly kind: "file"; readonly file: HostFile }
  | { readonly kind: "logger"; readonly uri: string };

/** Modes of a log file that `file://` asks for, and of the folders that lead to it: as lib/standalone/entry.c has them. */
const FILE_MODE = 0o644;
const FOLDER_MODE = 0o755;

/**
 * How long an output waits for its reader before the process is started without one, in ms: what the process has printed
 * when it ends would be gone with the last who has the FIFO open. A reader is there as a rule; on a busy machine the
 * client may still be on its way.
 */
const READER_TIMEOUT_MS = 1000;
const READER_DELAY_MS = 5;

/**
 * Opens an output that is a FIFO, or says what it is: a path, or a URI; the file of a `file://` is to be made, with its folders,
 * if it is not there.
 *
 * @param role a FIFO's among what is kept
 * @throws {SystemError | Error} when it cannot be opened
 * @throws {StatusError} INVALID_ARGUMENT for a scheme that is not known
 */
export async function openOutput(target: string, shelf: Shelf, role: number, timer: Timer): Promise<Output> {
  switch (schemeOf(target)) {
    case undefined:
      return await isFifo(target, shelf, role)
        ? { kind: "fifo", fd: await openFifoToWrite(target, shelf, role, timer) }
        : { kind: "file", file: { path: target, mode: "append" } };
    case "file":
      return { kind: "file", file: { path: decodeURIComponent(new URL(target).pathname), mode: "create" } };
    case "binary":
      return { kind: "logger", uri: target };
    default:
      throw new StatusError(
        Code.INVALID_ARGUMENT,
        `unknown STDIO scheme ${schemeOf(target)} in ${JSON.stringify(target)}`,
      );
  }
}

/** Whether a target takes standard output and standard error together, unless another is given for the latter. */
export function takesBoth(target: string): boolean {
  return schemeOf(target) !== undefined;
}

/**
 * Whether what is at a path is a FIFO. To look a path up may wait, which only the container's own process is to do.
 *
 * @param role free for a moment among what is kept
 * @throws {SystemError} ENOENT when there is nothing
 */
export async function isFifo(path: string, shelf: Shelf, role: number): Promise<boolean> {
  const fd = await shelf.open(role, path, fds.O.PATH);
  try {
    return statDescriptor(fd).isFifo;
  } finally {
    shelf.close(fd);
  }
}

/**
 * Opens the FIFO of an input; it is kept.
 *
 * @throws {SystemError}
 */
export function openFifoToRead(path: string, shelf: Shelf, role: number): Promise<number> {
  return shelf.open(role, path, fds.O.RDONLY | fds.O.NONBLOCK);
}

/**
 * Opens a FIFO once more, to write: that is held open here, so that a client that detaches does not end the input. Its path is not
 * looked up again. The caller owns the descriptor.
 *
 * @throws {SystemError}
 */
export function openWriter(fifo: number): number {
  return fds.open(`/proc/self/fd/${fifo}`, fds.O.WRONLY | fds.O.NONBLOCK);
}

/** Opens the FIFO of an output, both of its ends: a reader that goes away stalls the process. */
async function openFifoToWrite(path: string, shelf: Shelf, role: number, timer: Timer): Promise<number> {
  const both = fds.O.RDWR | fds.O.NONBLOCK;
  for (let waited = 0; waited < READER_TIMEOUT_MS; waited += READER_DELAY_MS) {
    try {
      // Opened to write first, which fails unless somebody has it open to read, or waits in open(2) for its writer: fifo(7).
      // In one go: a reader that has just come would see the end of file.
      return await shelf.open(role, path, both, fds.O.WRONLY | fds.O.NONBLOCK);
    } catch (error) {
      if (!(error instanceof SystemError && error.errno === Errno.ENXIO)) throw error;
    }
    await sleep(timer, READER_DELAY_MS);
  }
  return await shelf.open(role, path, both);
}

/**
 * Opens a file here, where no copier can; the caller owns the descriptor.
 *
 * @throws {SystemError | Error} when it cannot be opened: EISDIR for an input that is a directory
 */
export function openFile({ path, mode }: HostFile): number {
  if (mode === "read") {
    const fd = fds.open(path, fds.O.RDONLY | fds.O.NOCTTY);
    if (!statDescriptor(fd).isDirectory) return fd;
    fds.close(fd);
    throw new SystemError("open", Errno.EISDIR, path);
  }
  const isMade = mode === "create";
  if (isMade) Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")) || "/", { recursive: true, mode: FOLDER_MODE });
  return fds.open(path, fds.O.WRONLY | fds.O.APPEND | fds.O.NOCTTY | (isMade ? fds.O.CREAT : 0), FILE_MODE);
}

/** The scheme of a URI; undefined for a path. */
function schemeOf(target: string): string | undefined {
  return /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(target)?.[1];
}
