/**
 * The messages between a holder and its host, as lib/standalone/entry.c describes them: each a packet of a SOCK_SEQPACKET
 * socket.
 */

import type { ChildOptions } from "../../ffi/process.ts";

/** The first words of what a holder says, and of what a host does. */
const FROM_HOLDER = { join: 1, go: 2, signalled: 3, exited: 4, spawned: 5, kept: 6 } as const;
const FROM_HOST = { accepted: 1, refused: 2, full: 3, end: 4, spawn: 5, keep: 6, drop: 7 } as const;
const PROTOCOL = 1;

/** struct join, and where its fields are. */
const JOIN_SIZE = 40;
const JOIN = { protocol: 4, build: 8, entered: 16, group: 24, folderSize: 28, arguments: 32, environment: 36 } as const;
/** struct told: kind, what, detail. */
const TOLD_SIZE = 12;
/** struct order, and where its fields are. */
const ORDER_SIZE = 24;
const ORDER = { value: 4, programs: 8, arguments: 12, environment: 16 } as const;
/** Stands for the holder's own environment. */
const OWN_ENVIRONMENT = 0xffff_ffff;

/** The largest message that a holder sends: what the system lets a socket hold, as a rule (net.core.wmem_default). */
export const MAX_MESSAGE = 1 << 18;

/** What a process that wants to become a holder was started with. */
export interface Join {
  readonly kind: "join";
  /** Tells the build of its executable. */
  readonly build: bigint;
  /** When it was started, in ns of CLOCK_MONOTONIC. */
  readonly entered: bigint;
  /** How many containers a host may have, with its own. */
  readonly group: number;
  readonly cwd: string;
  /** argv, without the first. */
  readonly args: readonly string[];
  /** A variable of its environment. To be asked before the next message is received. */
  variable(name: string): string | undefined;
}

/** What a holder says. */
export type FromHolder =
  | Join
  | { readonly kind: "go" }
  | { readonly kind: "signalled"; readonly signal: number }
  | { readonly kind: "exited"; readonly pid: number; readonly word: number }
  /** The error is errno(3), 0 for none. */
  | { readonly kind: "spawned"; readonly pid: number; readonly error: number }
  | { readonly kind: "kept"; readonly fd: number };

/**
 * Reads what a holder has sent.
 *
 * @throws {Error} when it is nothing that a holder sends
 */
export function decode(bytes: Uint8Array): FromHolder {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kind = bytes.length >= TOLD_SIZE ? view.getUint32(0, true) : 0;
  if (kind === FROM_HOLDER.join) return decodeJoin(bytes, view);
  if (bytes.length === TOLD_SIZE) {
    const [what, detail] = [view.getInt32(4, true), view.getInt32(8, true)];
    switch (kind) {
      case FROM_HOLDER.go:
        return { kind: "go" };
      case FROM_HOLDER.signalled:
        return { kind: "signalled", signal: what };
      case FROM_HOLDER.exited:
        return { kind: "exited", pid: what, word: detail };
      case FROM_HOLDER.spawned:
        return { kind: "spawned", pid: what, error: detail };
      case FROM_HOLDER.kept:
        return { kind: "kept", fd: what };
    }
  }
  throw new Error(`a holder has sent ${bytes.length} bytes of kind ${kind}`);
}

function decodeJoin(bytes: Uint8Array, view: DataView): Join {
  const protocol = bytes.length >= JOIN_SIZE ? view.getUint32(JOIN.protocol, true) : 0;
  if (protocol !== PROTOCOL) throw new Error(`a holder speaks version ${protocol} of the protocol, not ${PROTOCOL}`);
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
  };
}

/** What a host says that is a number at most. */
export function order(kind: Exclude<keyof typeof FROM_HOST, "spawn">, value = 0): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ORDER_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, FROM_HOST[kind], true);
  view.setInt32(ORDER.value, value, true);
  return bytes;
}

/**
 * What has a holder start a child; the child's descriptors go with it.
 *
 * @param programs paths, which are tried in turn
 * @throws {TypeError} when a string has a NUL
 */
export function spawnOrder(
  programs: readonly string[],
  { args, environment, cwd = "" }: Pick<ChildOptions, "args" | "environment" | "cwd">,
): Uint8Array<ArrayBuffer> {
  const strings = [cwd, ...programs, ...args, ...environment ?? []];
  const bad = strings.find((each) => each.includes("\0"));
  if (bad !== undefined) throw new TypeError(`${JSON.stringify(bad)} has a NUL byte in it`);
  const text = new TextEncoder().encode(strings.join("\0") + "\0");
  const bytes = new Uint8Array(ORDER_SIZE + text.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, FROM_HOST.spawn, true);
  view.setUint32(ORDER.programs, programs.length, true);
  view.setUint32(ORDER.arguments, args.length, true);
  view.setUint32(ORDER.environment, environment?.length ?? OWN_ENVIRONMENT, true);
  bytes.set(text, ORDER_SIZE);
  return bytes;
}
