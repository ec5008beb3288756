/** A shim that something is wrong around, and what must be right all the same. */

import { assert, assertEquals } from "@std/assert";
import { Signal } from "../../ffi/signals.ts";
import { EXECUTABLE, IS_OURS, newPlace, OUR_EXECUTABLE } from "./env.ts";
import { must } from "./command.ts";
import { assertExecs, withMachine } from "./host.ts";
import { catches, descriptorsOf, isAlive, isHolder } from "./proc.ts";
import { type Shim, type ShimOptions, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

/** A sentence, as an error has it: what failed, and why. */
export const SENTENCE = /\w.* \w/;

/** A shim, and the process in which it works: a host that is no other test's, or the shim itself. */
export interface Served {
  readonly shim: Shim;
  /** Whose descriptors, memory and time its work takes. */
  readonly server: () => number;
}

/** Runs a test with a shim whose host, if it has one, has no other container. */
export function withServed(options: ShimOptions, test: (served: Served) => Promise<void>): Promise<void> {
  if (EXECUTABLE !== OUR_EXECUTABLE) {
    return withShim(options, (shim) => test({ shim, server: () => shim.pid }));
  }
  return withMachine((machine) =>
    withShim(
      { ...options, prefix: [...machine.prefix, ...options.prefix ?? []] },
      (shim) => test({ shim, server: () => isHolder(shim.pid) ? machine.host().pid : shim.pid }),
    )
  );
}

/** The processes that a shim is made of: its server, and its holder, if that is another. */
export function processesOf({ shim, server }: Served): number[] {
  return [...new Set([server(), shim.pid])];
}

let count = 0;

/** Fails unless a container runs, is known to, and takes another process. */
export async function assertSupervised(shim: Shim, init: number): Promise<void> {
  const { status, pid } = await shim.state();
  assertEquals({ status, pid }, { status: Status.RUNNING, pid: init });
  assert(isAlive(init), "init has ended");
  await assertExecs(shim, `again-${++count}`);
}

/** Ends a container that runs: its exit is told to whoever waits, and published once. */
export async function assertEnds(shim: Shim, init: number): Promise<void> {
  const waiting = shim.wait();
  await shim.kill(9);
  assertEquals((await waiting).status, 137);
  await assertPublished(shim, shim.id, init, 137);
  assertEquals((await shim.delete()).status, 137);
  const ofInit = shim.events.published().filter(({ exit }) => exit.id === shim.id);
  assertEquals(ofInit.length, 1, "the exit of init is published more than once");
}

/** Fails unless the exit of a process is published with this status. */
export async function assertPublished(shim: Shim, id: string, pid: number, status: number): Promise<void> {
  const { exit } = await shim.events.exit(id);
  assertEquals([exit.pid, exit.exitStatus], [pid, status]);
}

/** Fails unless processes have as much open as before, as soon as what was closed is. */
export async function assertSameOpen(before: ReadonlyMap<number, string[]>): Promise<void> {
  for (const [pid, files] of before) {
    const isMore = () => openFiles(pid).length > files.length;
    await until("no more is open than before", () => !isMore()).catch(() => assertEquals(openFiles(pid), files));
  }
}

/** What each of some processes has open that is no timer or socket of Deno's own. */
export function openOf(pids: readonly number[]): Map<number, string[]> {
  return new Map(pids.map((pid) => [pid, openFiles(pid)]));
}

function openFiles(pid: number): string[] {
  const kinds = [...descriptorsOf(pid).values()].map((each) => each.replace(/:\[\d+\]$/, ""));
  // Deno's own sockets come half a second after its start, and timers come and go.
  return kinds.filter((each) => each !== "socket" && each !== "anon_inode:[timerfd]").toSorted();
}

/** A disk that may be filled, as small as it can be. */
export class SmallDisk implements AsyncDisposable {
  readonly folder: string;
  readonly #filler: string;

  private constructor(folder: string) {
    this.folder = folder;
    this.#filler = `${folder}/.filler`;
  }

  /** @param options of tmpfs(5) */
  static async mount(options = "size=512k"): Promise<SmallDisk> {
    const { folder } = newPlace();
    await must(["mount", "-t", "tmpfs", "-o", `mode=755,${options}`, "none", folder]);
    return new SmallDisk(folder);
  }

  /** Leaves no byte free. */
  fill(): void {
    using file = Deno.openSync(this.#filler, { write: true, create: true });
    for (let size = 65_536; size > 0;) {
      try {
        if (file.writeSync(new Uint8Array(size)) < size) size >>= 1;
      } catch {
        size >>= 1;
      }
    }
  }

  /** Has room again. */
  free(): void {
    Deno.removeSync(this.#filler);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await must(["umount", "-l", this.folder]);
    await Deno.remove(this.folder);
  }
}

/**
 * Waits until Deno has opened what it opens for itself half a second after its start, for a handler of SIGUSR1: without a
 * descriptor for that it ends, and there is no way to tell it not to.
 */
export async function untilDenoIsComplete(pid: number): Promise<void> {
  if (!IS_OURS || isHolder(pid)) return;
  await until("Deno handles SIGUSR1", () => catches(pid, Signal.SIGUSR1));
}
