/** The folder that CRIU works in, and its log, which says why it failed. */

import type { Logger } from "../log.ts";
import { removeIfThere } from "./bundle.ts";
import { RuntimeError } from "../runtime/runc.ts";

/** Where CRIU works for a container. */
export interface CriuPlace {
  /** A folder that the caller has named, and keeps; or none, for one that is made and removed here. */
  readonly workPath: string | undefined;
  /** Where that one is made. */
  readonly workdir: string;
  /** Where the log of a failure is kept. */
  readonly bundle: string;
  /** Told of what could not be kept or removed. */
  readonly log: Logger;
}

/** Our own folder for CRIU, in the shim's. */
const OWN_FOLDER = "criu-work";

/**
 * Runs a command of the runtime that has CRIU do something, with the folder that it is to work in. When it fails, CRIU's
 * log is kept as `criu-dump.log` or `criu-restore.log` in the bundle, and the error names it.
 *
 * @throws {RuntimeError}
 */
export async function withCriu(
  action: "dump" | "restore",
  { workPath, workdir, bundle, log }: CriuPlace,
  run: (workPath: string) => Promise<void>,
): Promise<void> {
  const folder = workPath || `${workdir}/${OWN_FOLDER}`;
  // What is there was left, or put there, by somebody else.
  if (!workPath) await remove(folder, log);
  try {
    await run(folder);
  } catch (error) {
    if (!(error instanceof RuntimeError)) throw error;
    // The runtime's second line names the log where it is now.
    const [message] = error.message.split("\n", 1);
    const kept = `${bundle}/criu-${action}.log`;
    try {
      removeIfThere(kept);
      await Deno.copyFile(`${folder}/${action}.log`, kept);
    } catch (cause) {
      // There is none when CRIU has not even been started.
      log.error("failed to keep CRIU's log", { path: kept, error: cause });
      throw error;
    }
    const { killed, noContainer } = error;
    throw new RuntimeError(`${message} path= ${kept}`, { cause: error, killed, noContainer });
  } finally {
    if (!workPath) await remove(folder, log);
  }
}

async function remove(folder: string, log: Logger): Promise<void> {
  try {
    await Deno.remove(folder, { recursive: true });
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    log.error("failed to remove CRIU's folder", { path: folder, error });
  }
}
