/** What is written down of a shim: only what is whole, unchanged and of the right shape is believed. */

import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { Logger } from "../../lib/log.ts";
import { CallFile } from "../../lib/record/calls.ts";
import {
  decodeRecord,
  encodeRecord,
  type ProcessRecord,
  RECORD_VERSION,
  type ShimRecord,
  versionOf,
} from "../../lib/record/record.ts";
import { canRead, readRecord, Recorder } from "../../lib/record/recorder.ts";
import * as fds from "../../ffi/fd.ts";

const PROCESS: ProcessRecord = {
  stdio: { stdin: "/f/0", stdout: "binary:///bin/logger?a=b", stderr: "", terminal: false },
  state: "running",
  pid: 4711,
  exit: { status: 137, at: 1_700_000_000_123.5 },
  isStdinClosed: false,
  streams: { slot: 1, folder: "/tmp/pty1", loggers: [{ uri: "binary:///bin/logger?a=b", pid: 4712 }] },
};

/** A record in which everything is there that there may be. */
const FULL: ShimRecord = {
  crashes: { count: 2, at: 1_700_000_000_000, reason: "signal 9" },
  lastError: { at: 1_700_000_000_000, message: "call failed", fields: [{ name: "error", value: "no\nway" }] },
  lastWarning: { at: 1_700_000_000_001, message: "a logger has ended", fields: [{ name: "status", value: "1" }] },
  host: 4700,
  build: "17293822569102704640",
  serial: 17,
  isEnding: false,
  container: {
    runtime: "/usr/sbin/runc",
    isCreated: true,
    mounts: [{ type: "overlay", source: "overlay", options: ["lowerdir=/a:/b", "ro"] }],
    init: {
      ...PROCESS,
      id: "container-ä-日本-😀",
      namespace: "ns",
      bundle: "/run/b",
      workdir: "/var/w",
      rootfs: "/run/b/rootfs",
      noPivotRoot: false,
      noNewKeyring: true,
      uid: 0,
      gid: 1000,
      checkpoint: {
        imagePath: "/img",
        workPath: "/work",
        tcpEstablished: true,
        externalUnixSockets: false,
        shellJob: true,
        fileLocks: false,
        manageCgroupsMode: "soft",
        emptyNamespaces: ["network"],
      },
      ownsPidNamespace: true,
      ending: { status: 0, at: 0 },
    },
    execs: [{ ...PROCESS, state: "created", id: "e1", spec: { args: ["sh"], env: [], user: { uid: 0 } } }],
    exits: [{ id: "e0", pid: 4712, status: 137, at: 1_700_000_000_000 }],
    starting: [{ id: "e1", at: 1_700_000_000_001 }],
  },
  commands: [{ key: "start c", scope: "", serial: 17, pid: 4713, logged: 2048, status: 1 }],
  answers: [{ call: 3, payload: "AQID", code: 0, message: "" }, {
    call: 4,
    payload: undefined,
    code: 2,
    message: 'no\nsuch \\ "thing"\u2028\u0000',
  }],
  events: [{ at: -1, namespace: "ns", topic: "/tasks/exit", type: "containerd.events.TaskExit", value: "" }],
  unclaimed: [{ pid: 4714, status: 255, at: 1 }],
};

/** A record of a shim that has no container. */
const EMPTY: ShimRecord = {
  crashes: { count: 0, at: 0, reason: "" },
  lastError: undefined,
  lastWarning: undefined,
  ...{ host: 1, build: "0", serial: 0, isEnding: true },
  container: undefined,
  ...{ commands: [], answers: [], events: [], unclaimed: [] },
};

/** Fields that may be missing, by their names. */
const OPTIONAL = [
  ...["container", "checkpoint", "ending", "exit", "streams", "folder", "spec", "status of commands", "payload"],
  ...["workPath", "tcpEstablished", "externalUnixSockets", "shellJob", "fileLocks", "manageCgroupsMode"],
  ...["emptyNamespaces", "exits", "starting", "lastError", "lastWarning"],
];
/** Numbers that may be negative, and need not be whole. */
const TIMES = ["at"];
/** What may have anything in it. */
const FREE = ["spec"];

type Json = Record<string, unknown>;

/** Fails unless something that has the right checksum is refused, with a sentence that says where it is wrong. */
function assertRefused(value: unknown, message: RegExp): void {
  const { message: actual } = assertThrows(() => decodeRecord(encodeRecord(value as ShimRecord)), Error);
  assertMatch(actual, message);
}

/** A field somewhere in a record. */
interface Field {
  readonly path: string;
  readonly name: string;
  readonly value: unknown;
  /** The whole record, as if this field had another value. */
  with(value: unknown): Json;
}

/** All the fields of a record, those of objects in it, and so on. */
function fieldsOf(value: unknown, path: string, rebuild: (value: unknown) => Json): Field[] {
  if (typeof value !== "object" || value === null) return [];
  const isList = Array.isArray(value);
  return Object.entries(value).flatMap(([name, each]) => {
    const at = isList ? `${path}[${name}]` : `${path}.${name}`;
    const put = (other: unknown) =>
      rebuild(isList ? value.with(Number(name), other) : { ...value as Json, [name]: other });
    const below = FREE.includes(name) ? [] : fieldsOf(each, at, put);
    return isList ? below : [{ path: at, name, value: each, with: put }, ...below];
  });
}

const FIELDS = fieldsOf(FULL, "the record", (value) => value as Json);

/** As a regular expression, a path. */
function quoted(path: string): string {
  return path.replace(/[.[\]]/g, "\\$&");
}

function isOptional({ path, name }: Field): boolean {
  return OPTIONAL.includes(name) || name === "status" && path.startsWith("the record.commands");
}

Deno.test("a record is read as it was written", () => {
  for (const record of [FULL, EMPTY]) assertEquals(decodeRecord(encodeRecord(record)), record);
});

Deno.test("a record is one line that tells its version, and one of JSON", () => {
  const [head, body, ...rest] = encodeRecord(FULL).split("\n");
  assertMatch(head!, new RegExp(`^containerd-shim ${RECORD_VERSION} \\d+ [0-9a-f]+$`));
  assertEquals(JSON.parse(body!), JSON.parse(JSON.stringify(FULL)));
  assertEquals(rest, [""]);
});

Deno.test("a record that is cut off anywhere is refused", () => {
  const bytes = new TextEncoder().encode(encodeRecord(FULL));
  for (let length = 0; length < bytes.length; length++) {
    const cut = new TextDecoder().decode(bytes.subarray(0, length));
    assertThrows(() => decodeRecord(cut), Error, undefined, `${length} bytes of ${bytes.length}`);
  }
});

Deno.test("a record with something behind it is refused", () => {
  const text = encodeRecord(FULL);
  for (const more of ["\n", "x", "x\n", text]) assertThrows(() => decodeRecord(text + more), Error);
});

Deno.test("a record in which any one character is another is refused", () => {
  const text = encodeRecord(FULL);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    // One bit, a digit, white space, and what begins or ends something in JSON.
    const others = [code ^ 1, code ^ 0x20, ...'09 \n",}'.split("").map((each) => each.charCodeAt(0))];
    for (const other of others.filter((each) => each !== code)) {
      const changed = text.slice(0, i) + String.fromCharCode(other) + text.slice(i + 1);
      assertThrows(() => decodeRecord(changed), Error, undefined, `character ${i} became ${other}`);
    }
  }
});

Deno.test("two records in each other's place are refused", () => {
  const [head, body] = [encodeRecord(FULL), encodeRecord(EMPTY)].map((each, i) => each.split("\n")[i]);
  assertThrows(() => decodeRecord(`${head}\n${body}\n`), Error, "it is not what was written");
});

Deno.test("a record of another version is refused with a sentence that names both", () => {
  const text = encodeRecord(FULL).replace(`shim ${RECORD_VERSION} `, "shim 4711 ");
  assertThrows(
    () => decodeRecord(text),
    Error,
    `it is of version 4711, and this shim reads versions up to ${RECORD_VERSION}`,
  );
  assertEquals(versionOf(text), 4711);
  assertEquals(versionOf(encodeRecord(FULL)), RECORD_VERSION);
  for (const other of ["", "containerd-shim", "containerd-shim x ", " containerd-shim 1 "]) {
    assertEquals(versionOf(other), undefined);
  }
});

Deno.test("a record of the version before, which has less in it, is read", () => {
  const container = { ...FULL.container!, exits: undefined, starting: undefined };
  const record = { ...FULL, container, lastError: undefined, lastWarning: undefined };
  const text = encodeRecord(record).replace(`shim ${RECORD_VERSION} `, "shim 1 ");
  assertEquals(decodeRecord(text), record);
});

Deno.test("what is no record is refused", () => {
  for (const text of ["", "\n", "{}", "null\n", "containerd-shim 1 2 0\n{}\n", "\0".repeat(4096)]) {
    assertThrows(() => decodeRecord(text), Error);
  }
  for (const value of [null, [], [FULL], 7, "text", true]) assertRefused(value, /^the record is not an object$/);
});

Deno.test("a record without one of its fields is refused, but for those that may be missing", () => {
  for (const field of FIELDS) {
    const without = field.with(undefined);
    if (isOptional(field)) assertEquals<unknown>(decodeRecord(encodeRecord(without as ShimRecord)), without);
    else assertRefused(without, new RegExp(`^${quoted(field.path)}.* is not `));
  }
});

/** Values of all types that JSON has. */
const VALUES: readonly unknown[] = [null, true, 7, "text", [], {}];

function typeOf(value: unknown): string {
  return value === null ? "null" : Array.isArray(value) ? "list" : typeof value;
}

Deno.test("a record with a field of another type is refused", () => {
  for (const field of FIELDS) {
    for (const other of VALUES) {
      if (typeOf(other) === typeOf(field.value ?? "")) continue;
      assertRefused(field.with(other), new RegExp(`^${quoted(field.path)} is not `));
    }
  }
});

Deno.test("a record with a list in which something is of another type is refused", () => {
  let lists = 0;
  for (const field of FIELDS) {
    if (!Array.isArray(field.value)) continue;
    lists++;
    for (const other of VALUES) {
      if (typeOf(other) === typeOf(field.value[0])) continue;
      assertRefused(field.with([...field.value, other]), new RegExp(`^${quoted(field.path)}\\[\\d+\\] is not `));
    }
  }
  assertEquals(lists, 14);
});

Deno.test("a record with a number that cannot be is refused", () => {
  for (const field of FIELDS) {
    if (typeof field.value !== "number") continue;
    const isTime = TIMES.includes(field.name);
    const impossible = isTime ? [1e300, -1e300, 8.64e15] : [-1, 0.5, 2 ** 53, 1e300];
    for (const other of impossible) assertRefused(field.with(other), new RegExp(`^${quoted(field.path)} is not a `));
  }
});

Deno.test("a record with a state that there is not is refused", () => {
  for (const field of FIELDS.filter(({ name }) => name === "state")) {
    for (const other of ["", "Running", "running ", "constructor"]) {
      assertRefused(field.with(other), new RegExp(`^${quoted(field.path)} is not one of created, `));
    }
  }
});

Deno.test("a record with a field that nobody knows is refused, and named", () => {
  const objects = FIELDS.filter(({ name, value }) => typeOf(value) === "object" && !FREE.includes(name));
  const withMore = (value: unknown, name: string) => JSON.parse(JSON.stringify(value).replace("{", `{"${name}":1,`));
  for (const name of ["other", "__proto__", "constructor", "toString"]) {
    assertRefused(withMore(FULL, name), new RegExp(`^the record has a field "${name}"$`));
    for (const field of objects) {
      assertRefused(
        field.with(withMore(field.value, name)),
        new RegExp(`^${quoted(field.path)} has a field "${name}"$`),
      );
    }
  }
  const inLists = FIELDS.filter(({ value }) => Array.isArray(value) && typeOf(value[0]) === "object");
  assertEquals(inLists.length, 12);
  for (const field of inLists) {
    const changed = withMore((field.value as unknown[])[0], "other");
    assertRefused(field.with([changed]), new RegExp(`^${quoted(field.path)}\\[0\\] has a field "other"$`));
  }
});

/** Runs a test with an empty folder. */
async function withFolder(test: (folder: string) => Promise<void> | void): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A log, as texts. */
function logOf(lines: string[]): Logger {
  const say = (message: string) => void lines.push(message);
  return { debug: say, info: say, warn: say, error: say } as unknown as Logger;
}

/** A recorder of a folder. What it says, and its file of calls, are there too. */
function recorderOf(folder: string, describe: () => Omit<ShimRecord, "answers">) {
  const lines: string[] = [];
  const calls = CallFile.create();
  const recorder = new Recorder({ folder, calls, log: logOf(lines), afterTurn: () => {}, describe });
  return { recorder, calls, lines, [Symbol.dispose]: () => fds.close(calls.fd) };
}

Deno.test("what is saved is there as a whole, for its user alone, and removed for good when it is not needed", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => FULL);
    made.recorder.save();
    assertEquals(readRecord(folder), { ...FULL, answers: [] });
    assertEquals(Deno.statSync(`${folder}/shim.state`).mode! & 0o7777, 0o600);
    assertEquals(Array.from(Deno.readDirSync(folder), ({ name }) => name), ["shim.state"]);
    made.recorder.remove();
    assertEquals(readRecord(folder), undefined);
    // What is told when all has been written down is told nevertheless.
    let saved = 0;
    made.recorder.saveAfterTurn(() => saved++);
    made.recorder.save();
    assertEquals([saved, readRecord(folder)], [1, undefined]);
    made.recorder.remove();
    assertEquals(made.lines, []);
  }));

Deno.test("an answer is written down with what its call has changed, until the call is at its end", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => FULL);
    const { recorder } = made;
    const call = recorder.begin(2, 1, new Uint8Array(3));
    const answer = { payload: "AQID", code: 0, message: "" };
    recorder.commit(call, answer);
    recorder.commit(undefined, { ...answer, code: 5 });
    assertEquals(readRecord(folder)?.answers, [{ call, ...answer }]);
    assertEquals(recorder.answerOf(call), { call, ...answer });
    assertEquals(recorder.answerOf(undefined), undefined);
    recorder.end(call);
    recorder.save();
    assertEquals(readRecord(folder)?.answers, []);

    // Another process's calls have other numbers than those whose answers are known.
    recorder.inherit(FULL.answers);
    assertEquals(recorder.answerOf(4), FULL.answers[1]);
    assertEquals(recorder.begin(2, 3, new Uint8Array(3)), 5);
  }));

Deno.test("a recorder that has been stopped leaves what another process has written", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => EMPTY);
    const { recorder, calls } = made;
    const call = recorder.begin(2, 1, new Uint8Array(3));
    recorder.stop();
    Deno.writeTextFileSync(`${folder}/shim.state`, encodeRecord(FULL));
    recorder.save();
    recorder.commit(call, { payload: "", code: 0, message: "" });
    recorder.answered(call);
    recorder.end(call);
    assertEquals(readRecord(folder), FULL);
    assertEquals(CallFile.open(calls.fd).calls.map(({ id, isAnswered }) => [id, isAnswered]), [[call, false]]);
  }));

Deno.test("where nothing can be written down, that is said once, until it could be again", () =>
  withFolder((folder) => {
    using made = recorderOf(`${folder}/later`, () => EMPTY);
    const { recorder, lines } = made;
    recorder.save();
    recorder.save();
    assertEquals(lines.length, 1);
    Deno.mkdirSync(`${folder}/later`);
    recorder.save();
    assertEquals(readRecord(`${folder}/later`), EMPTY);
    Deno.removeSync(`${folder}/later`, { recursive: true });
    recorder.save();
    assertEquals(lines.length, 2);
  }));

Deno.test("what cannot be read, or believed, is told from what is not there", () =>
  withFolder((folder) => {
    const path = `${folder}/shim.state`;
    assertEquals([readRecord(folder), canRead(folder)], [undefined, true]);
    Deno.writeTextFileSync(path, encodeRecord(FULL));
    assertEquals([readRecord(folder), canRead(folder)], [FULL, true]);
    Deno.writeTextFileSync(path, encodeRecord(FULL).slice(0, -1));
    assertThrows(() => readRecord(folder), Error, "the shim's state cannot be believed: it is not whole");
    Deno.writeTextFileSync(path, encodeRecord(FULL).replace(`shim ${RECORD_VERSION} `, "shim 4711 "));
    assertThrows(() => readRecord(folder), Error, "the shim's state cannot be believed: it is of version 4711");
    assertEquals(canRead(folder), false);
    Deno.removeSync(path);
    Deno.mkdirSync(path);
    assertThrows(() => readRecord(folder), Error, "the shim's state cannot be read");
    assertEquals(canRead(folder), false);
  }));
