/** Goes on with a shim where another process has stopped: with what that has written down, and what has been kept of it. */

import { monotonic } from "../ffi/clock.ts";
import { describeEnd } from "../ffi/pidfd.ts";
import { isListening } from "../ffi/socket.ts";
import { statDescriptor } from "../ffi/stat.ts";
import type { Timer } from "./async.ts";
import type { EventQueue } from "./events/queue.ts";
import type { Logger } from "./log.ts";
import type { Reaper } from "./reaper.ts";
import type { CallFile, CallRecord, Part } from "./record/calls.ts";
import type { Commands } from "./record/commands.ts";
import { type Keeper, Role, type Shelf } from "./record/keeper.ts";
import type { ShimRecord } from "./record/record.ts";
import type { Recorder } from "./record/recorder.ts";
import { INSPECT_METHOD } from "./service/inspection.ts";
import type { LazyService, Loaded } from "./service/lazy.ts";
import type { ConnectionOptions, Server } from "./ttrpc/server.ts";

/** Methods that change nothing. */
const READING: readonly string[] = ["Wait", "State", "ListPids", "ShimInfo", INSPECT_METHOD];
/** How many processes in a row may die within so many ms of going on with a call, before it is taken for the reason. */
const MOST_TRIES = 10;
const TRY_MS = 100;
/** How many may hang while they are answering a call: each keeps all its containers waiting for as long as it is waited for. */
const MOST_HANGS = 2;

/** A {@link Keeper} that another process's descriptors may have been brought from. */
export interface KeeperOfAnother extends Keeper {
  /** Places that something has been brought for which nobody has asked for yet. */
  readonly slotsBrought: readonly number[];
  /** Closes what has been brought and nobody has asked for; gives their numbers. */
  closeRest(): readonly number[];
  /** The number of the last start of a child. */
  serial: number;
  /** Settled when all is kept that is to be kept by now. */
  settled(): Promise<void>;
}

/** What is known of the process that has had the shim before. */
export interface Past {
  /** Whether it has hung, and been killed for that. */
  readonly isHung: boolean;
  /** Signals that it has not said to have dealt with. */
  readonly signals: readonly number[];
  /** The last child that has been asked for. */
  readonly spawned: { readonly serial: number; readonly pid: number; readonly error: number };
}

/** Calls that are being answered, and those that another process has begun with. */
export interface Calls {
  /** The file that they are noted in. */
  readonly file: CallFile;
  /** Begun with, in the order of their requests. */
  readonly calls: readonly CallRecord[];
  /** Frames that had come in part. */
  readonly parts: readonly Part[];
}

/** A shim, as it is taken over. */
export interface Taken {
  /** The bundle. */
  readonly folder: string;
  /** What the other process had open. */
  readonly keeper: KeeperOfAnother;
  /** What it was answering. */
  readonly calls: Calls;
  /** What it had written down. */
  readonly recorder: Recorder;
  /** What it had started of the runtime. */
  readonly commands: Commands;
  /** Told of the processes that it knew. */
  readonly reaper: Reaper;
  /** Given the container. */
  readonly service: LazyService;
  /** Given the calls whose connections are gone. */
  readonly server: Server;
  /** Given those that containerd has not acknowledged. */
  readonly events: EventQueue;
  /** Says what is lost. */
  readonly log: Logger;
  /** Waits. */
  readonly timer: Timer;
  /** Told what the other process has written down. */
  found(record: ShimRecord | undefined): void;
  /** Serves a connection with what has been read of a frame, and what is known of its calls. */
  serve(
    fd: number,
    shelf: Shelf,
    options: Pick<ConnectionOptions, "begun" | "suspects"> & { readonly part: Part | undefined },
  ): void;
  /** Deals with a signal that the other process has not said to have dealt with. */
  onSignal(signal: number): void;
  /** Ends it, as it has been told to. */
  end(): Promise<void>;
}

/**
 * Goes on. Settled when whatever the process is told of can be dealt with.
 *
 * @param listen called when exits can be
 */
export async function takeOver(shim: Taken, { spawned, signals, isHung }: Past, listen: () => void): Promise<void> {
  const { folder, keeper, log, reaper, commands, recorder, events } = shim;
  let record: ShimRecord | undefined;
  let isDoubtful = false;
  try {
    record = recorder.read();
  } catch (error) {
    isDoubtful = true;
    log.error("the saved state is invalid: what was being done is not known", { error });
  }
  // What is written from now on is to be found, should this process end, in place of the file.
  if (recorder.hasOldFile) await keeper.settled();
  keeper.serial = Math.max(spawned.serial, record?.serial ?? 0);
  shim.found(record);
  const service = await shim.service.load();
  // Exits that are told before anybody asks for them.
  const hold = reaper.hold();
  if (record !== undefined) {
    reaper.inherit(record.unclaimed.map(({ at, ...exit }) => ({ ...exit, at: new Date(at) })));
    commands.inherit(record.commands, spawned);
    recorder.inherit(record.answers);
    if (record.container !== undefined) service.restore(record.container);
    for (const { at, value, ...event } of record.events) {
      events.push({ ...event, at: new Date(at), value: Uint8Array.fromBase64(value) });
    }
  }
  isDoubtful ||= record === undefined && exists(`${folder}/init.pid`);
  if (isDoubtful) {
    // The runtime is asked, which ends.
    listen();
    await salvage(shim, service);
  }
  goOn(shim, isHung, isDoubtful ? "the shim's host has died, and what was done by then is not known" : undefined);
  const changing = [...shim.server.inFlight].filter(({ method }) => method !== "Wait").map(({ ended }) => ended);
  for (const signal of signals) shim.onSignal(signal);
  if (record?.isEnding) changing.push(shim.end());
  if (!isDoubtful) listen();
  Promise.all(changing).then(() => {
    service.restored();
    commands.disinherit();
    hold[Symbol.dispose]();
    keeper.closeRest();
  });
}

/** Finds out what the container is. */
async function salvage({ recorder, log }: Taken, service: Loaded): Promise<void> {
  using _held = recorder.hold();
  try {
    await service.salvage();
    log.warn("the container goes on as far as the OCI runtime knows it: its processes but the first are not known");
  } catch (error) {
    log.error("the OCI runtime tells nothing of the container", { error });
  }
}

/**
 * Goes on with connections, and calls that have not been answered.
 *
 * @param isHung whether the process that was answering them has hung
 * @param doubt why calls that change something are not gone on with
 */
function goOn(shim: Taken, isHung: boolean, doubt: string | undefined): void {
  const { calls: { calls, parts, file }, keeper, server, timer, serve } = shim;
  const now = monotonic();
  const suspects = isHung ? 1 : 0;
  const begun = calls.map((call) => {
    file.resume(call);
    const { id, connection, stream, payload, at, isAnswered, tries } = call;
    const hangs = call.hangs + suspects;
    file.hung(call, hangs);
    const harm = hangs >= MOST_HANGS
      ? `${hangs} hosts of the shim have hung while they were answering it`
      : tries >= MOST_TRIES
      ? `${tries} hosts of the shim have died of it`
      : undefined;
    // There is always a Wait, whatever a host does.
    const refusal = (method: string) =>
      method === "Wait" ? undefined : harm ?? (READING.includes(method) ? undefined : doubt);
    const startedAt = performance.now() - Math.max(0, now - at);
    return { id, connection, stream, request: payload, startedAt, isAnswered, refusal };
  });
  timer(TRY_MS, () => file.survived(calls));
  const connected = new Set<number>();
  for (const slot of keeper.slotsBrought) {
    const fd = keeper.brought(slot, Role.CONNECTION);
    // What else there is, is asked for by calls that go on, or by nobody.
    if (fd === undefined || !statDescriptor(fd).isSocket || isListening(fd)) continue;
    connected.add(slot);
    const own = begun.filter(({ connection }) => connection === slot);
    const part = parts.find(({ connection }) => connection === slot);
    serve(fd, keeper.place(slot), { part, begun: own, suspects });
  }
  for (const each of begun) {
    if (!connected.has(each.connection)) server.goOn(each);
  }
}

/** How often, and when and how, processes have died that have had a shim; and what the log is to say of the last. */
export interface Crashes {
  /** To be written down. */
  readonly crashes: ShimRecord["crashes"];
  /** Fields of the line; none where nobody has died. */
  readonly line?: Readonly<Record<string, unknown>>;
}

/**
 * Whether a process has died that has had a shim.
 *
 * @param pidfd its own
 * @param isHung whether it has hung, and been killed for that
 */
export function crashOf(record: ShimRecord | undefined, pidfd: number | undefined, isHung: boolean): Crashes {
  if (record?.host === 0) return { crashes: record.crashes };
  const end = pidfd === undefined ? "unknown" : describeEnd(pidfd, record?.host);
  const reason = isHung ? `${end}, because it had hung` : end;
  const count = (record?.crashes.count ?? 0) + 1;
  return {
    crashes: { count, at: Date.now(), reason },
    line: { host: record?.host ?? "unknown", how: reason, times: count },
  };
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
