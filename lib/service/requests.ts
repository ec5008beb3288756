/** What requests of the Shim service say, looked at before anything is done: each field that is wrong is INVALID_ARGUMENT. */

import type { containerd } from "../api/mod.js";
import type { StdioConfig } from "../container/streams.ts";
import { messageOf } from "../errors.ts";
import type { CriuOptions } from "../runtime/runc.ts";
import { Code, StatusError } from "../ttrpc/status.ts";

/** A message or JSON whose type only says itself what it is: `google.protobuf.Any`. */
export interface Any {
  /** The type's full name, behind a slash or not. */
  readonly type_url?: string | null;
  /** The message's bytes. */
  readonly value?: Uint8Array | null;
}

/** What reads a message, in the generated code. */
export interface Type<T> {
  /** Reads one. */
  decode(bytes: Uint8Array): T;
}

/**
 * A message.
 *
 * @throws {StatusError} INVALID_ARGUMENT when the bytes are no such message
 */
export function decode<T>(type: Type<T>, bytes: Uint8Array, what: string): T {
  try {
    return type.decode(bytes);
  } catch (cause) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} cannot be decoded: ${messageOf(cause)}`, { cause });
  }
}

/**
 * An Any whose value is a message of the runc runtime's options; nothing is a message without anything set.
 *
 * @throws {StatusError} INVALID_ARGUMENT when it is something else
 */
export function optionsOf<T>(any: Any | null | undefined, name: string, type: Type<T>): T {
  const url = any?.type_url ?? "";
  if (url !== "" && url.replace(/.*\//, "") !== `containerd.linux.runc.${name}`) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the options are not ${name} but ${url}`);
  }
  return decode(type, any?.value ?? new Uint8Array(), name);
}

/**
 * What the options of a creation and of a checkpoint have in common.
 *
 * @internal the fields are those of CheckpointOptions
 */
export function criuOptionsOf(
  options: Pick<
    containerd.linux.runc.CheckpointOptions,
    "openTcp" | "externalUnixSockets" | "terminal" | "fileLocks" | "cgroupsMode" | "emptyNamespaces"
  >,
): Omit<CriuOptions, "imagePath" | "workPath"> {
  return {
    tcpEstablished: options.openTcp,
    externalUnixSockets: options.externalUnixSockets,
    shellJob: options.terminal,
    fileLocks: options.fileLocks,
    manageCgroupsMode: options.cgroupsMode,
    emptyNamespaces: options.emptyNamespaces,
  };
}

/** The longest path, and the longest argument of a program, in bytes: what a `binary://` URI is made of. */
const LONGEST_PATH = 4096;
const LONGEST_URI = 131_072;

/** @throws {StatusError} INVALID_ARGUMENT for what can be no path: it would be written down with each change of anything */
function requirePath(path: string, what: string): void {
  const most = /^[A-Za-z]+:/.test(path) ? LONGEST_URI : LONGEST_PATH;
  if (path.length <= most && !path.includes("\0")) return;
  const why = path.length > most ? `has ${path.length} characters: ${most} are allowed` : "has a NUL in it";
  throw new StatusError(Code.INVALID_ARGUMENT, `the path of ${what} ${why}`);
}

/**
 * Where a process's streams go.
 *
 * @throws {StatusError} INVALID_ARGUMENT for what can be no path
 */
export function stdioOf({ stdin, stdout, stderr, terminal }: StdioConfig): StdioConfig {
  requirePath(stdin, "stdin");
  requirePath(stdout, "stdout");
  requirePath(stderr, "stderr");
  return { stdin, stdout, stderr, terminal };
}

/**
 * An Any whose value is a JSON object.
 *
 * @throws {StatusError} INVALID_ARGUMENT when it is none
 */
export function jsonOf(any: Any | null | undefined, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(any?.value ?? new Uint8Array()));
  } catch (cause) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} is not JSON: ${messageOf(cause)}`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} is not a JSON object`);
  }
  if (isDeeperThan(DEEPEST, value)) {
    throw new StatusError(Code.INVALID_ARGUMENT, `the ${what} is nested more than ${DEEPEST} times`);
  }
  return value as Record<string, unknown>;
}

/** How deep JSON may be nested. A specification's is not; and what is read at any depth cannot be written at any. */
const DEEPEST = 100;

function isDeeperThan(depth: number, value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return depth === 0 || Object.values(value).some((each) => isDeeperThan(depth - 1, each));
}

/** The longest name of a file, and what is put behind an id at most to make one. */
const NAME_MAX = 255;
const LONGEST_ENDING = ".process.json";

/**
 * Ids become names of files in the bundle.
 *
 * @throws {StatusError} INVALID_ARGUMENT
 */
export function requireId(id: string): void {
  const most = NAME_MAX - LONGEST_ENDING.length;
  if (id.length > most) {
    throw new StatusError(Code.INVALID_ARGUMENT, `an id of ${id.length} characters is too long: ${most} are allowed`);
  }
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(id)) {
    throw new StatusError(
      Code.INVALID_ARGUMENT,
      `id ${JSON.stringify(id)} is not of letters, digits, and . _ - between them`,
    );
  }
}
