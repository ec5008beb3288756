/**
 * The bench's children, and what their ends leave to it.
 *
 * They are started by posix_spawn, because Deno can pass no descriptor; and so they are reaped here, which no
 * `Deno.Command` survives: from {@linkcode adoptAll} on nothing may use one.
 */

import * as process from "../../ffi/process.ts";
import { descendants, isAlive } from "../e2e/proc.ts";
import { pause } from "../e2e/until.ts";

/** How often what has been killed is looked for again, in ms. */
const KILL_INTERVAL_MS = 10;

const awaited = new Map<number, (status: number) => void>();
let environment: readonly string[] | undefined;

/** A child, and how it ends: its exit code, or 128 + the signal that ended it. */
export interface Child {
  readonly pid: number;
  readonly status: Promise<number>;
}

/** Reaps children from now on, and becomes the parent of what they leave behind. */
export function adoptAll(): void {
  process.becomeSubreaper();
  Deno.addSignalListener("SIGCHLD", reapAll);
}

function reapAll(): void {
  for (let exit = process.reap(); exit; exit = process.reap()) {
    awaited.get(exit.pid)?.(exit.status);
    awaited.delete(exit.pid);
  }
}

/** Starts a child with this process's environment. */
export function spawn(options: Omit<process.SpawnOptions, "environment">): Child {
  environment ??= Object.entries(Deno.env.toObject()).map(([name, value]) => `${name}=${value}`);
  const pid = process.spawn({ ...options, environment });
  const { promise, resolve } = Promise.withResolvers<number>();
  awaited.set(pid, resolve);
  return { pid, status: promise };
}

/** Ends everything below this process. */
export async function endAll(): Promise<void> {
  for (;;) {
    // What is orphaned meanwhile becomes ours: look again.
    const living = descendants(Deno.pid).filter((each) => isAlive(each.pid));
    if (living.length === 0) return;
    for (const { pid } of living) {
      try {
        Deno.kill(pid, "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    }
    await pause(KILL_INTERVAL_MS);
  }
}
