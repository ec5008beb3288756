/** A process that is the shim of one container, and the parent of its children. */

import { entryTime } from "../ffi/clock.ts";
import {
  becomeSubreaper,
  closeOnExecFrom,
  OWN_EXECUTABLE,
  reap,
  restoreOpenFilesLimit,
  spawn,
} from "../ffi/process.ts";
import { Signal } from "../ffi/signals.ts";
import type { Options } from "./cli.ts";
import { type Logger, type Report, systemLog } from "./log.ts";
import { openPlace } from "./place.ts";
import type { Parent } from "./reaper.ts";
import { fieldsOf, type Identity, Shim } from "./shim.ts";
import { blockEverywhere, receive, receiveFromDeno } from "./signals.ts";

/** The descriptor that containerd passes the listening socket as. */
const INHERITED_SOCKET = 3;

/** This process. Its executable has no entry of ours, where that has not said when it was entered: under `deno run`, say. */
const self: Parent = {
  spawn: (options, started) => started(spawn(options)),
  reap,
  executable: entryTime() === undefined ? undefined : OWN_EXECUTABLE,
  delayMs: 0,
};

/**
 * Runs the shim until it is told to end.
 *
 * @returns the exit code
 * @throws {Error} when it cannot start; the message says why
 */
export async function run(options: Options): Promise<number> {
  const report = systemLog();
  const identity = { options, pid: Deno.pid, cwd: Deno.cwd(), entered: entryTime(), parent: self };
  try {
    return await serve(identity, report);
  } catch (error) {
    // Nobody may see what it prints.
    await report("error", "the shim cannot start", { error }, fieldsOf(identity));
    throw error;
  }
}

async function serve(identity: Identity, report: Report): Promise<number> {
  becomeSubreaper();
  restoreOpenFilesLimit();
  const unblocked = await blockEverywhere();
  let log: Logger | undefined = undefined;
  const place = await openPlace(report, (message, fields) => log?.error(message, fields));
  const shim = new Shim(place, identity);
  log = shim.log;
  const onSignal = (signal: number) => signal === Signal.SIGCHLD ? shim.reaper.collect() : shim.onSignal(signal);
  if (unblocked.length === 0) {
    receive(place.poller, onSignal);
  } else {
    receiveFromDeno(onSignal);
    shim.log.warn("signals come by Deno's listeners: some threads do not block them", { threads: unblocked });
  }
  // What was inherited is not for this process's children.
  closeOnExecFrom(INHERITED_SOCKET);
  shim.serve(INHERITED_SOCKET);
  await shim.ended;
  return 0;
}
