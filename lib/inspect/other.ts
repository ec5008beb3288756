/** Asks a shim that only has containerd's service: by the two methods of it that tell of a container and change nothing, whoever has made it. */

import { containerd } from "../api/mod.js";
import { type Timer, within } from "../async.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import type { AskOptions, Other, OtherProcess } from "./ask.ts";

const v1 = containerd.runtime.linux.shim.v1;
const { Status } = containerd.v1.types;
const MS = 1000;
const NS_PER_MS = 1_000_000;
/** How much of the patience is for further processes: if they do not come, the rest is told. */
const EXECS_SHARE = 0.8;
/** How many shims may have a runtime started for them at once. */
const RUNTIMES = 4;

const STATES: Readonly<Record<number, string>> = {
  [Status.CREATED]: "created",
  [Status.RUNNING]: "running",
  [Status.STOPPED]: "stopped",
  [Status.PAUSED]: "paused",
  [Status.PAUSING]: "pausing",
};

/** Calls a method of the Shim service. */
export type Call = (method: string, payload: Uint8Array) => Promise<Uint8Array>;

/**
 * Asks.
 *
 * @throws {StatusError}
 */
export async function askOther(call: Call, id: string, { patience, asksForExecs }: AskOptions): Promise<Other> {
  const [init, execs] = await Promise.all([
    unlessUnknown(state(call, id)),
    asksForExecs ? execsInTime(call, id, patience.ms * EXECS_SHARE) : undefined,
  ]);
  return { init, execs: init === undefined ? undefined : execs };
}

async function state(call: Call, id: string): Promise<OtherProcess> {
  const answer = v1.StateResponse.decode(await call("State", v1.StateRequest.encode({ id }).finish()));
  const { pid, status, exitStatus, exitedAt } = answer;
  const at = exitedAt ? (exitedAt.seconds ?? 0) * MS + Math.floor((exitedAt.nanos ?? 0) / NS_PER_MS) : 0;
  // One that has not exited has Go's zero time, which is long before the epoch.
  const exit = status === Status.STOPPED ? { status: exitStatus, at: Math.max(0, at) } : undefined;
  return { id, pid, state: STATES[status] ?? "unknown", exit };
}

async function execsInTime(call: Call, id: string, ms: number): Promise<OtherProcess[] | undefined> {
  using _turn = await turn();
  // If it takes longer, or fails: they are not needed.
  return await within(timer, ms, execsOf(call, id).catch(() => undefined));
}

async function execsOf(call: Call, id: string): Promise<OtherProcess[]> {
  const { processes } = v1.ListPidsResponse.decode(await call("ListPids", v1.ListPidsRequest.encode({ id }).finish()));
  const ids = (processes ?? []).flatMap(({ info }) =>
    info?.type_url === "containerd.linux.runc.ProcessDetails"
      ? [containerd.linux.runc.ProcessDetails.decode(info.value as Uint8Array).execId]
      : []
  );
  return await Promise.all([...new Set(ids)].filter((each) => each !== id).map((each) => state(call, each)));
}

/** Undefined where there is no container. */
async function unlessUnknown<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof StatusError && NO_CONTAINER.includes(error.code)) return undefined;
    throw error;
  }
}

const NO_CONTAINER: readonly Code[] = [Code.NOT_FOUND, Code.FAILED_PRECONDITION];

/** Deno's own: there is no event loop of ours here. */
const timer: Timer = (ms, callback) => {
  const number = setTimeout(callback, ms);
  return { [Symbol.dispose]: () => clearTimeout(number) };
};

let running = 0;
const waiting: (() => void)[] = [];

/** Waits until it is one of a few. */
async function turn(): Promise<Disposable> {
  if (running >= RUNTIMES) await new Promise<void>((resolve) => waiting.push(resolve));
  running++;
  return {
    [Symbol.dispose]() {
      running--;
      waiting.shift()?.();
    },
  };
}
