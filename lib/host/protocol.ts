/**
 * The messages between a holder and its host, as lib/standalone/entry.c describes them: each a packet of a SOCK_SEQPACKET
 * socket.
 */

import { cstring } from "../../ffi/libc.ts";
import type { ChildOptions } from "../../ffi/process.ts";
import { count, maybe, object, type Schema, text } from "../record/schema.ts";

/** The first words of what a holder says, and of what a host does. */
const FROM_HOLDER = { join: 1, go: 2, signalled: 3, exited: 4, spawned: 5, held: 6, ping: 7 } as const;
const FROM_HOST = {
  accepted: 1,
  refused: 2,
  full: 3,
  end: 4,
  spawn: 5,
  keep: 6,
  drop: 7,
  done: 8,
  accept: 9,
  open: 10,
  move: 11,
  pong: 12,
  watch: 13,
  hold: 14,
} as const;
/** The version of the messages, and the oldest that is understood: of a holder that stays what it was when its host is replaced. */
export const PROTOCOL = 3;
const OLDEST_PROTOCOL = 2;
/** From this version on a holder asks for signs of life, reaps all that ends at once, and tells of those that it has been asked for. */
export const REAPS_AT_ONCE = 3;
/** Of how many exits it tells before the first has been dealt with; one before tells of one. */
export const TOLD_AT_ONCE = 64;

/** struct join, and where its fields are; those of struct past last. */
const JOIN_SIZE = 72;
const JOIN = {
  protocol: 4,
  build: 8,
  entered: 16,
  group: 24,
  folderSize: 28,
  arguments: 32,
  environment: 36,
  signals: 40,
  spawned: { pid: 52, error: 56, serial: 60 },
  hosts: 64,
  /** u16 each. */
  isMoved: 68,
  isHung: 70,
} as const;
/** What `containerd-shim upgrade` says: kind, protocol, build, whether it is to be done; the executable comes with that. */
const UPGRADE = 100;
const UPGRADE_SIZE = 24;
const UPGRADE_GOES = 16;
/** struct told: kind, what, detail, more. */
const TOLD_SIZE = 16;
/** struct order, and where its fields are. */
const ORDER_SIZE = 24;
const ORDER = {
  value: 4,
  programs: 8,
  arguments: 12,
  environment: 16,
  more: 8,
  from: 8,
  flags: 12,
  first: 16,
  build: 8,
} as const;
/** How many numbers after one `more` has bits for. */
const DROPPED_AT_ONCE = 32;
/** si_code of waitid(2): it has ended by exit(2). */
const CLD_EXITED = 1;
/** Stands for the holder's own environment. */
const OWN_ENVIRONMENT = 0xffff_ffff;

/** What a shell adds to the number of the signal that has ended a process. */
const SIGNALLED = 128;

/** The largest message that a holder sends: what the system lets a socket hold, as a rule (net.core.wmem_default). */
export const MAX_MESSAGE = 1 << 18;

/** What a process that wants to become a holder was started with. */
export interface Join {
  /** The first message of all. */
  readonly kind: "join";
  /** The version of the messages that it speaks. */
  readonly protocol: number;
  /** Tells the build of its executable. */
  readonly build: bigint;
  /** When it was started, in ns of CLOCK_MONOTONIC. */
  readonly entered: bigint;
  /** How many containers a host may have, with its own. */
  readonly group: number;
  /** Its working directory: the bundle. */
  readonly cwd: string;
  /** argv, without the first. */
  readonly args: readonly string[];
  /** A variable of its environment. To be asked before the next message is received. */
  variable(name: string): string | undefined;
  /** How many hosts it has had before. */
  readonly hosts: number;
  /** Whether it comes from one of another build, which it can go back to. */
  readonly isMoved: boolean;
  /** Whether the last of them has hung, and been killed. */
  readonly isHung: boolean;
  /** Signals which the last of them has not said to have dealt with. */
  readonly signals: readonly number[];
  /** The last child that it has been asked for. */
  readonly spawned: Spawned;
}

/** A child that a holder has started, or could not: the error is errno(3), 0 for none. */
export interface Spawned {
  /** What the host has numbered it with. */
  readonly serial: number;
  /** 0 where it could not be started. */
  readonly pid: number;
  /** errno(3), 0 for none. */
  readonly error: number;
}

/** What a holder says. */
export type FromHolder =
  | Join
  | { readonly kind: "go" }
  | { readonly kind: "ping" }
  /** No holder does: see {@link upgradeRequest}. */
  | { readonly kind: "upgrade"; readonly build: bigint; readonly goes: boolean; readonly protocol: number }
  /** Of one that speaks a version of the messages that is not understood here. */
  | { readonly kind: "stranger"; readonly protocol: number }
  | { readonly kind: "signalled"; readonly signal: number }
  | { readonly kind: "exited"; readonly pid: number; readonly status: number }
  | { readonly kind: "spawned" } & Spawned
  /** With their descriptors, unless there is an error: one number then. */
  | { readonly kind: "held"; readonly numbers: readonly number[]; readonly error: number };

/**
 * Reads what a holder has sent.
 *
 * @throws {Error} when it is nothing that a holder sends
 */
export function decode(bytes: Uint8Array): FromHolder {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kind = bytes.length >= TOLD_SIZE ? view.getUint32(0, true) : 0;
  if (kind === FROM_HOLDER.join) return decodeJoin(bytes, view);
  if (kind === UPGRADE && bytes.length === UPGRADE_SIZE) {
    const goes = view.getUint32(UPGRADE_GOES, true) !== 0;
    const protocol = view.getUint32(JOIN.protocol, true);
    return { kind: "upgrade", build: view.getBigUint64(JOIN.build, true), goes, protocol };
  }
  if (bytes.length === TOLD_SIZE) {
    const [what, detail, more] = [4, 8, 12].map((at) => view.getInt32(at, true)) as [number, number, number];
    switch (kind) {
      case FROM_HOLDER.go:
        return { kind: "go" };
      case FROM_HOLDER.ping:
        return { kind: "ping" };
      case FROM_HOLDER.signalled:
        return { kind: "signalled", signal: what };
      case FROM_HOLDER.exited:
        return { kind: "exited", pid: what, status: more === CLD_EXITED ? detail : SIGNALLED + detail };
      case FROM_HOLDER.spawned:
        return { kind: "spawned", pid: what, error: detail, serial: more };
      case FROM_HOLDER.held:
        return { kind: "held", numbers: [what, ...following(what, more)], error: detail };
    }
  }
  throw new Error(`a holder has sent ${bytes.length} bytes of kind ${kind}`);
}

function decodeJoin(bytes: Uint8Array, view: DataView): FromHolder {
  const protocol = view.getUint32(JOIN.protocol, true);
  if (protocol < OLDEST_PROTOCOL || protocol > PROTOCOL) return { kind: "stranger", protocol };
  if (bytes.length < JOIN_SIZE) throw new Error(`a holder has joined with ${bytes.length} bytes`);
  const folderEnd = JOIN_SIZE + view.getUint32(JOIN.folderSize, true);
  const count = view.getUint32(JOIN.arguments, true);
  // Each is decoded by itself, if it is wanted: a part of a decoded text would keep all of it.
  const strings: Uint8Array[] = [];
  for (let at = folderEnd, end; (end = bytes.indexOf(0, at)) !== -1; at = end + 1) {
    strings.push(bytes.subarray(at, end));
  }
  if (bytes.at(-1) !== 0 || strings.length !== count + view.getUint32(JOIN.environment, true)) {
    throw new Error(`a holder has sent ${strings.length} strings, which is not what it says`);
  }
  const decoder = new TextDecoder();
  return {
    kind: "join",
    protocol,
    build: view.getBigUint64(JOIN.build, true),
    entered: view.getBigUint64(JOIN.entered, true),
    group: view.getUint32(JOIN.group, true),
    // Without its NUL.
    cwd: decoder.decode(bytes.subarray(JOIN_SIZE, folderEnd - 1)),
    args: strings.slice(1, count).map((each) => decoder.decode(each)),
    variable: (name) => {
      const start = new TextEncoder().encode(`${name}=`);
      const found = strings.slice(count).find((each) => start.every((byte, i) => each[i] === byte));
      return found && decoder.decode(found.subarray(start.length));
    },
    hosts: view.getUint32(JOIN.hosts, true),
    isMoved: view.getUint16(JOIN.isMoved, true) !== 0,
    isHung: view.getUint16(JOIN.isHung, true) !== 0,
    signals: signalsOf(view.getBigUint64(JOIN.signals, true)),
    spawned: {
      serial: view.getInt32(JOIN.spawned.serial, true),
      pid: view.getInt32(JOIN.spawned.pid, true),
      error: view.getInt32(JOIN.spawned.error, true),
    },
  };
}

/** The numbers after one that a set names: bit 0 is the next. */
function following(number: number, set: number): number[] {
  const numbers: number[] = [];
  for (let next = number + 1; set !== 0; next++, set >>>= 1) if (set & 1) numbers.push(next);
  return numbers;
}

function signalsOf(set: bigint): number[] {
  return Array.from({ length: 64 }, (_, i) => i + 1).filter((signal) => set >> BigInt(signal - 1) & 1n);
}

/** What tells the build of this executable: lib/standalone/entry.c. */
const BUILD_VARIABLE = "CONTAINERD_SHIM_BUILD";

/** Tells the build of the executable that this process is; 0 when that has no entry of ours. */
export function ownBuild(): bigint {
  return BigInt(Deno.env.get(BUILD_VARIABLE) ?? "0");
}

/**
 * What asks a host who it is, for another build to take over from it.
 *
 * @param goes whether it is to be done now: the executable comes with it then
 */
export function upgradeRequest(build: bigint, goes: boolean): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(UPGRADE_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, UPGRADE, true);
  view.setUint32(JOIN.protocol, PROTOCOL, true);
  view.setBigUint64(JOIN.build, build, true);
  view.setUint32(UPGRADE_GOES, goes ? 1 : 0, true);
  return bytes;
}

/** What a host says of itself, as JSON. */
export interface AboutHost {
  /** Its own. */
  readonly pid: number;
  /** A number that is too large for one of JSON's. */
  readonly build: string;
  /** The version of the records that it reads and writes. */
  readonly recordVersion: number;
  /** How many it has. */
  readonly containers: number;
  /** How many have gone to a host of the other build. */
  readonly moved: number;
  /** How many have not. */
  readonly stayed: number;
  /**
   * The newest version of the messages that its holders speak, which whoever takes over from it must speak too; told to those
   * that speak a version from {@link REAPS_AT_ONCE} on, for others take no such field.
   */
  readonly protocol?: number | undefined;
}

/** Reads an {@link AboutHost}. */
export const aboutHost: Schema<AboutHost> = object({
  pid: count,
  build: text,
  recordVersion: count,
  containers: count,
  moved: count,
  stayed: count,
  protocol: maybe(count),
});

/**
 * What is a number at most.
 *
 * @internal its words are those of the table above
 */
export type Simple = Exclude<keyof typeof FROM_HOST, "spawn" | "drop" | "accept" | "open" | "move">;

/** An order of a kind, with its number, and what stands behind it. */
function orderOf(
  kind: keyof typeof FROM_HOST,
  value = 0,
  text = new Uint8Array(),
): { bytes: Uint8Array<ArrayBuffer>; view: DataView } {
  const bytes = new Uint8Array(ORDER_SIZE + text.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, FROM_HOST[kind], true);
  view.setInt32(ORDER.value, value, true);
  bytes.set(text, ORDER_SIZE);
  return { bytes, view };
}

/** Has what is kept by these numbers closed: one order for each 32 numbers in a row that there are some of. */
export function dropOrders(numbers: readonly number[]): Uint8Array<ArrayBuffer>[] {
  const orders: Uint8Array<ArrayBuffer>[] = [];
  let rest = numbers;
  while (rest.length > 0) {
    const first = Math.min(...rest);
    const { bytes, view } = orderOf("drop", first);
    const isNear = (number: number) => number - first <= DROPPED_AT_ONCE;
    for (const number of rest.filter(isNear)) {
      if (number > first) {
        view.setUint32(ORDER.more, view.getUint32(ORDER.more, true) | 1 << (number - first - 1), true);
      }
    }
    orders.push(bytes);
    rest = rest.filter((number) => !isNear(number));
  }
  return orders;
}

/** Has a connection accepted, and kept by a number, from the listening socket that is kept by another. */
export function acceptOrder(number: number, from: number): Uint8Array<ArrayBuffer> {
  const { bytes, view } = orderOf("accept", number);
  view.setInt32(ORDER.from, from, true);
  return bytes;
}

/**
 * Has a file opened, and kept by a number.
 *
 * @param first flags that it is opened with for a moment before
 * @throws {TypeError} when the path has a NUL
 */
export function openOrder(number: number, path: string, flags: number, first = -1): Uint8Array<ArrayBuffer> {
  const { bytes, view } = orderOf("open", number, cstring(path));
  view.setInt32(ORDER.flags, flags, true);
  view.setInt32(ORDER.first, first, true);
  return bytes;
}

/** Has a holder go to a host of another build, whose executable goes with it. */
export function moveOrder(build: bigint): Uint8Array<ArrayBuffer> {
  const { bytes, view } = orderOf("move");
  view.setBigUint64(ORDER.build, build, true);
  return bytes;
}

/** What a host says that is a number at most. */
export function order(kind: Simple, value = 0): Uint8Array<ArrayBuffer> {
  return orderOf(kind, value).bytes;
}

/**
 * What has a holder start a child; the child's descriptors go with it.
 *
 * @param serial what it is numbered with
 * @param programs paths, which are tried in turn
 * @throws {TypeError} when a string has a NUL
 */
export function spawnOrder(
  serial: number,
  programs: readonly string[],
  { args, environment, cwd = "" }: Pick<ChildOptions, "args" | "environment" | "cwd">,
): Uint8Array<ArrayBuffer> {
  const strings = [cwd, ...programs, ...args, ...environment ?? []];
  const bad = strings.find((each) => each.includes("\0"));
  if (bad !== undefined) throw new TypeError(`${JSON.stringify(bad)} has a NUL byte in it`);
  const { bytes, view } = orderOf("spawn", serial, new TextEncoder().encode(strings.join("\0") + "\0"));
  view.setUint32(ORDER.programs, programs.length, true);
  view.setUint32(ORDER.arguments, args.length, true);
  view.setUint32(ORDER.environment, environment?.length ?? OWN_ENVIRONMENT, true);
  return bytes;
}
