/**
 * What must be known of a container to go on with it in another process: it is written down whenever something has changed that
 * a call was to change, or a process has ended.
 *
 * What is in this folder writes down and reads; it does nothing that has been written down.
 */

import { count, flag, json, list, maybe, object, type Of, text, time, word } from "./schema.ts";

/** The name of the file in the bundle that versions 1 and 2 are written in. */
export const RECORD_FILE = "shim.state";
/** Tells what is written, and how: see {@link StateFile}. */
export const RECORD_VERSION = 3;

/** Whether this version can be read: version 1 lacks what may be missing in version 2. */
export function canReadVersion(version: number | undefined): boolean {
  return version === 1 || version === 2 || version === RECORD_VERSION;
}

const stdio = object({ stdin: text, stdout: text, stderr: text, terminal: flag });

const exit = object({ status: count, at: time });

const state = word(["created", "createdCheckpoint", "running", "pausing", "paused", "stopped", "deleted"]);

const streams = object({
  /** Where their descriptors are kept. */
  slot: count,
  /** The folder of a terminal's socket, as long as the terminal has not come. */
  folder: maybe(text),
  /** Loggers that output goes to. */
  loggers: list(object({ uri: text, pid: count })),
});

const process = {
  stdio,
  state,
  /** 0: it has none yet. */
  pid: count,
  exit: maybe(exit),
  isStdinClosed: flag,
  /** None: it has not been started, or all are closed. */
  streams: maybe(streams),
};

const criu = object({
  imagePath: text,
  workPath: maybe(text),
  tcpEstablished: maybe(flag),
  externalUnixSockets: maybe(flag),
  shellJob: maybe(flag),
  fileLocks: maybe(flag),
  manageCgroupsMode: maybe(text),
  emptyNamespaces: maybe(list(text)),
});

const init = object({
  ...process,
  id: text,
  namespace: text,
  bundle: text,
  workdir: text,
  rootfs: text,
  noPivotRoot: flag,
  noNewKeyring: flag,
  uid: count,
  gid: count,
  checkpoint: maybe(criu),
  /** Whether its end is that of all its container's processes. */
  ownsPidNamespace: flag,
  /** How it has ended, when that is not told yet: what is left of the container is being ended. */
  ending: maybe(exit),
});

const exec = object({
  ...process,
  id: text,
  /** None once it has been started. */
  spec: maybe(json),
});

const container = object({
  /** The program of the OCI runtime. */
  runtime: text,
  /** Whether it has been created; otherwise a call is about to. */
  isCreated: flag,
  mounts: list(object({ type: text, source: text, options: list(text) })),
  init,
  execs: list(exec),
  /** Exits that containerd is to be told of later; none in version 1. */
  exits: maybe(list(object({ id: text, pid: count, status: count, at: time }))),
  /** Processes whose start containerd may not have told of yet, and when that was called; none in version 1. */
  starting: maybe(list(object({ id: text, at: time }))),
});

const command = object({
  key: text,
  /** Whose process it is for. */
  scope: text,
  /** What its start is numbered with. 0: it is nothing that is started. */
  serial: count,
  /** 0: not known. */
  pid: count,
  /** How much was in the runtime's log before, in bytes. */
  logged: count,
  /** How it has ended, if it has. */
  status: maybe(count),
});

const answer = object({
  /** The call that it is the answer of. */
  call: count,
  /** In base64; none when it is an error. */
  payload: maybe(text),
  code: count,
  message: text,
});

const event = object({
  at: time,
  namespace: text,
  topic: text,
  type: text,
  /** In base64. */
  value: text,
});

/**
 * An error or a warning of the log.
 *
 * @internal its fields are those written here
 */
export const trouble = object({ at: time, message: text, fields: list(object({ name: text, value: text })) });

const record = object({
  /** How often a host of this container has died, and when and how the last one has. */
  crashes: object({ count, at: time, reason: text }),
  /** The last of each that the log has had; none in version 1. */
  lastError: maybe(trouble),
  lastWarning: maybe(trouble),
  /** The host that has written this; 0 when it has given the container up. */
  host: count,
  /** Its build, a number that is too large for one of JSON's. */
  build: text,
  /** The number of the last start of a child. */
  serial: count,
  /** Whether the shim has been told to end. */
  isEnding: flag,
  container: maybe(container),
  commands: list(command),
  answers: list(answer),
  /** Those that containerd has not acknowledged. */
  events: list(event),
  /** Exits of processes that nobody had asked for when they were told. */
  unclaimed: list(object({ pid: count, status: count, at: time })),
});

/**
 * The container, from the call that creates it to the one that deletes it.
 *
 * @internal its fields are those of the schema above
 */
export type ContainerRecord = Of<typeof container>;
/**
 * Its init process.
 *
 * @internal its fields are those of the schema above
 */
export type InitRecord = Of<typeof init>;
/**
 * A process that has been added.
 *
 * @internal its fields are those of the schema above
 */
export type ExecRecord = Of<typeof exec>;
/**
 * What both have.
 *
 * @internal its fields are those of the schema above
 */
export type ProcessRecord = Pick<InitRecord, keyof typeof process>;
/**
 * Standard streams that are open.
 *
 * @internal its fields are those of the schema above
 */
export type StreamsRecord = Of<typeof streams>;
/**
 * A command of the runtime that has been started.
 *
 * @internal its fields are those of the schema above
 */
export type CommandRecord = Of<typeof command>;
/**
 * What a call has been, or is to be, answered.
 *
 * @internal its fields are those of the schema above
 */
export type AnswerRecord = Of<typeof answer>;

/**
 * See {@link trouble}.
 *
 * @internal its fields are those written there
 */
export type TroubleRecord = Of<typeof trouble>;

/**
 * All of it.
 *
 * @internal its fields are those of the schema above
 */
export type ShimRecord = Of<typeof record>;

/**
 * Reads a record with suspicion.
 *
 * @throws {Error} which says what is wrong
 */
export function checkedRecord(value: unknown): ShimRecord {
  return record(value, "the record");
}
