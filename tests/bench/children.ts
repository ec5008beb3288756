/**
 * The bench's children, and what their ends leave to it.
 *
 * They are started by posix_spawn, because Deno can pass no descriptor; and so they are reaped here, which no
 * `Deno.Command` survives: from {@linkcode adoptAll} on nothing may use one.
 */

import { MemoryFile } from "../../ffi/memfd.ts";
import * as process from "../../ffi/process.ts";
import { GROUP_VARIABLE } from "../e2e/env.ts";
import { descendants, isAlive } from "../e2e/proc.ts";
import { pause } from "../e2e/until.ts";

/** How often what has been killed is looked for again, in ms. */
const KILL_INTERVAL_MS = 10;

const awaited = new Map<number, (status: number) => void>();
let environment: Readonly<Record<string, string>> | undefined;
let isEnding = false;

/** A child, and how it ends: its exit code, or 128 + the signal that ended it. */
export interface Child {
  readonly pid: number;
  readonly status: Promise<number>;
}

/** What a child is started with. */
export interface ChildOptions extends Omit<process.SpawnOptions, "environment"> {
  /** Set in its environment. */
  readonly variables?: Readonly<Record<string, string>>;
}

/** In the environment of a shim, or of what starts shims: each is to be by itself. */
export const ALONE: Readonly<Record<string, string>> = { [GROUP_VARIABLE]: "1" };

/** In the place of {@linkcode ALONE}: each is to join a host, as it does unless told otherwise. */
export const HOSTED: Readonly<Record<string, string>> = {};

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

/**
 * Starts a child with this process's environment, but for the size of a shim's group.
 *
 * @throws {Error} once {@linkcode endAll} has been called: whoever has been interrupted starts nothing more
 */
export function spawn({ variables = {}, ...options }: ChildOptions): Child {
  if (isEnding) throw new Error(`Cannot start ${options.args[0]}: the bench is ending`);
  environment ??= ownEnvironment();
  const all = Object.entries({ ...environment, ...variables }).map(([name, value]) => `${name}=${value}`);
  const pid = process.spawn({ ...options, environment: all });
  const { promise, resolve } = Promise.withResolvers<number>();
  awaited.set(pid, resolve);
  return { pid, status: promise };
}

function ownEnvironment(): Record<string, string> {
  const { [GROUP_VARIABLE]: _, ...others } = Deno.env.toObject();
  return others;
}

/**
 * Runs a program to its end, with this process's stderr and nothing to read; what it prints is thrown away.
 *
 * @throws {Error} when it fails
 */
export async function runToEnd(args: readonly string[]): Promise<void> {
  await succeed(args, null);
}

/**
 * Runs a program to its end, with nothing to read; gives what it has printed.
 *
 * @throws {Error} when it fails
 */
export async function runAndRead(args: readonly string[]): Promise<string> {
  using output = new MemoryFile("bench-output");
  await succeed(args, output.fd);
  return output.read();
}

async function succeed(args: readonly string[], stdout: number | null): Promise<void> {
  const status = await spawn({ args, descriptors: [null, stdout, 2] }).status;
  if (status !== 0) throw new Error(`'${args.join(" ")}' ended with ${status}`);
}

/** @throws {Error} once {@linkcode endAll} has been called */
export function expectNoEnd(): void {
  if (isEnding) throw new Error("the bench is ending");
}

/** Kills a process, unless it has ended. */
export function killIfAlive(pid: number): void {
  if (!isAlive(pid)) return;
  try {
    Deno.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

/** Ends everything below this process. Nothing can be started from now on. */
export async function endAll(): Promise<void> {
  isEnding = true;
  for (;;) {
    // What is orphaned meanwhile becomes ours: look again.
    const living = descendants(Deno.pid).filter((each) => isAlive(each.pid));
    if (living.length === 0) return;
    for (const { pid } of living) killIfAlive(pid);
    await pause(KILL_INTERVAL_MS);
  }
}
