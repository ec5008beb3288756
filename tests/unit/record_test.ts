/** What is written down of a shim: only what is whole, unchanged and of the right shape is believed. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { Logger } from "../../lib/log.ts";
import { CallFile } from "../../lib/record/calls.ts";
import { Changes, recordOf } from "../../lib/record/changes.ts";
import { decodeOldFile, oldVersionOf } from "../../lib/record/old_file.ts";
import { checkedRecord, type ProcessRecord, RECORD_VERSION, type ShimRecord } from "../../lib/record/record.ts";
import { canRead, hasBeenTakenOver, Recorder } from "../../lib/record/recorder.ts";
import { StateFile } from "../../lib/record/state_file.ts";
import * as fds from "../../ffi/fd.ts";
import { oldFileOf } from "../old_file.ts";

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

/** A record, as it is read when it has been written as JSON. */
function readBack(value: unknown): ShimRecord {
  return checkedRecord(JSON.parse(JSON.stringify(value)));
}

/** Fails unless something that has the right checksum is refused, with a sentence that says where it is wrong. */
function assertRefused(value: unknown, message: RegExp): void {
  const { message: actual } = assertThrows(() => readBack(value), Error);
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
  for (const record of [FULL, EMPTY]) assertEquals(readBack(record), record);
});

Deno.test("a file of a build before version 3 that is cut off anywhere is refused", () => {
  const bytes = new TextEncoder().encode(oldFileOf(FULL));
  assertEquals(decodeOldFile(new TextDecoder().decode(bytes)), FULL);
  for (let length = 0; length < bytes.length; length++) {
    const cut = new TextDecoder().decode(bytes.subarray(0, length));
    assertThrows(() => decodeOldFile(cut), Error, undefined, `${length} bytes of ${bytes.length}`);
  }
});

Deno.test("a file of a build before version 3 with something behind it is refused", () => {
  const text = oldFileOf(FULL);
  for (const more of ["\n", "x", "x\n", text]) assertThrows(() => decodeOldFile(text + more), Error);
});

Deno.test("a file of a build before version 3 in which any one character is another is refused", () => {
  const text = oldFileOf(EMPTY);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    // One bit, a digit, white space, and what begins or ends something in JSON. Version 1 has the same form.
    const others = [code ^ 1, code ^ 0x20, ...'09 \n",}'.split("").map((each) => each.charCodeAt(0))];
    for (const other of others.filter((each) => each !== code)) {
      const changed = text.slice(0, i) + String.fromCharCode(other) + text.slice(i + 1);
      if (oldVersionOf(changed) === RECORD_VERSION) continue;
      assertThrows(() => decodeOldFile(changed), Error, undefined, `character ${i} became ${other}`);
    }
  }
});

Deno.test("two such files in each other's place are refused", () => {
  const [head, body] = [oldFileOf(FULL), oldFileOf(EMPTY)].map((each, i) => each.split("\n")[i]);
  assertThrows(() => decodeOldFile(`${head}\n${body}\n`), Error, "it is not what was written");
});

Deno.test("such a file of another version is refused with a sentence that names both", () => {
  const text = oldFileOf(FULL, 4711);
  assertThrows(
    () => decodeOldFile(text),
    Error,
    `it is of version 4711, and this shim reads versions up to ${RECORD_VERSION}`,
  );
  assertEquals(oldVersionOf(text), 4711);
  for (const other of ["", "containerd-shim", "containerd-shim x ", " containerd-shim 1 "]) {
    assertEquals(oldVersionOf(other), undefined);
  }
});

Deno.test("such a file of version 1, which has less in it, is read", () => {
  const container = { ...FULL.container!, exits: undefined, starting: undefined };
  const record = { ...FULL, container, lastError: undefined, lastWarning: undefined };
  assertEquals(decodeOldFile(oldFileOf(record, 1)), record);
});

Deno.test("what is no record is refused", () => {
  for (const text of ["", "\n", "{}", "null\n", "containerd-shim 1 2 0\n{}\n", "\0".repeat(4096)]) {
    assertThrows(() => decodeOldFile(text), Error);
  }
  for (const value of [null, [], [FULL], 7, "text", true]) assertRefused(value, /^the record is not an object$/);
});

Deno.test("a record without one of its fields is refused, but for those that may be missing", () => {
  for (const field of FIELDS) {
    const without = field.with(undefined);
    if (isOptional(field)) assertEquals<unknown>(readBack(without), without);
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

/** Where a file in memory has its version, in bytes: lib/record/state_file.ts. */
const VERSION_AT = 8;

/** What is written by a test's recorder, unless it says otherwise. */
const OWN_PID = 4700;

/** A recorder whose bundle is a folder. Its files, and what it says, are there too. */
function recorderOf(bundle: string, describe: () => Omit<ShimRecord, "answers">, from?: number) {
  const lines: string[] = [];
  const calls = CallFile.create();
  const file = from === undefined ? StateFile.create() : StateFile.of(fds.duplicate(from));
  const recorder = new Recorder({ file, bundle, calls, log: logOf(lines), afterTurn: () => {}, describe });
  const path = `/proc/self/fd/${file.fd}`;
  return { recorder, file, path, calls, lines, [Symbol.dispose]: () => [calls.fd, file.fd].forEach(fds.close) };
}

/** What another process would find. */
function found({ file }: { readonly file: StateFile }): ShimRecord | undefined {
  const content = StateFile.of(file.fd).read();
  return content && recordOf(content);
}

Deno.test("what is saved is there as a whole, and nothing of it in the bundle", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => FULL);
    assertEquals(found(made), undefined);
    made.recorder.save();
    assertEquals(found(made), { ...FULL, answers: [] });
    assertEquals([...Deno.readDirSync(folder)], []);
    // What is told when all has been written down is told nevertheless.
    made.recorder.stop();
    let saved = 0;
    made.recorder.saveAfterTurn(() => saved++);
    made.recorder.save();
    assertEquals([saved, made.lines], [1, []]);
  }));

Deno.test("an answer is written down with what its call has changed, until the call is at its end", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => FULL);
    const { recorder } = made;
    const call = recorder.begin(2, 1, new Uint8Array(3));
    const answer = { payload: "AQID", code: 0, message: "" };
    recorder.commit(call, answer);
    recorder.commit(undefined, { ...answer, code: 5 });
    assertEquals(found(made)?.answers, [{ call, ...answer }]);
    assertEquals(recorder.answerOf(call), { call, ...answer });
    assertEquals(recorder.answerOf(undefined), undefined);
    recorder.end(call);
    recorder.save();
    assertEquals(found(made)?.answers, []);

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
    using other = recorderOf(folder, () => FULL, made.file.fd);
    other.recorder.save();
    recorder.save();
    recorder.commit(call, { payload: "", code: 0, message: "" });
    recorder.answered(call);
    recorder.end(call);
    assertEquals(found(made), { ...FULL, answers: [] });
    assertEquals(CallFile.open(calls.fd).calls.map(({ id, isAnswered }) => [id, isAnswered]), [[call, false]]);
  }));

Deno.test("where nothing can be written down, that is said once, until it could be again, and nothing is found", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => EMPTY);
    const { recorder, lines, file } = made;
    recorder.save();
    // Nothing can be written to it, but for its beginning.
    const fails = { value: false };
    using _limit = failingWrites(file, fails);
    fails.value = true;
    for (let i = 0; i < 2; i++) {
      recorder.commit(recorder.begin(2, 1, new Uint8Array(3)), { payload: "", code: i, message: "" });
      assertEquals([lines.length, found(made)], [1, undefined]);
    }
    fails.value = false;
    recorder.save();
    assertEquals(found(made)?.answers.length, 2);
    fails.value = true;
    recorder.commit(recorder.begin(2, 1, new Uint8Array(3)), { payload: "", code: 3, message: "" });
    assertEquals(lines.length, 2);
  }));

/** Has the methods of a file that write fail, as long as that is wanted. */
function failingWrites(file: StateFile, fails: { value: boolean }): Disposable {
  for (const name of ["replace", "change"] as const) {
    const write = file[name].bind(file);
    file[name] = (...args) => {
      if (fails.value) throw new Error("no room");
      write(...args);
    };
  }
  return { [Symbol.dispose]: () => fails.value = false };
}

Deno.test("a file of a build before version 3 is gone on with, and removed when all is written down", () =>
  withFolder((folder) => {
    for (const version of [1, 2]) {
      const path = `${folder}/shim.state`;
      Deno.writeTextFileSync(path, oldFileOf(FULL, version));
      Deno.writeTextFileSync(`${path}.before`, oldFileOf(EMPTY, version));
      using made = recorderOf(folder, () => EMPTY);
      assertEquals(canRead(made.path, folder), true);
      assertEquals([made.recorder.read(), made.recorder.hasOldFile], [FULL, true]);
      // It is there until then.
      assertEquals(Deno.readTextFileSync(path), oldFileOf(FULL, version));
      made.recorder.save();
      assertEquals([...Deno.readDirSync(folder)], []);
      assertEquals([found(made), made.recorder.hasOldFile], [EMPTY, false]);
    }
  }));

Deno.test("a file of a build before version 3 is not looked at where there is something newer", () =>
  withFolder((folder) => {
    using made = recorderOf(folder, () => FULL);
    made.recorder.save();
    Deno.writeTextFileSync(`${folder}/shim.state`, oldFileOf(EMPTY, 4711));
    using next = recorderOf(folder, () => FULL, made.file.fd);
    assertEquals([next.recorder.read(), canRead(made.path, folder)], [{ ...FULL, answers: [] }, true]);
  }));

Deno.test("what cannot be read, or believed, is told from what is not there", () =>
  withFolder((folder) => {
    const path = `${folder}/shim.state`;
    using made = recorderOf(folder, () => FULL);
    const { recorder } = made;
    assertEquals([recorder.read(), canRead(made.path, folder)], [undefined, true]);
    assertEquals([canRead(`${folder}/none`, folder), hasBeenTakenOver(`${folder}/none`, 7n)], [true, true]);
    Deno.writeTextFileSync(path, oldFileOf(FULL).slice(0, -1));
    assertThrows(() => recorder.read(), Error, "the shim's state cannot be believed: it is not whole");
    Deno.writeTextFileSync(path, oldFileOf(FULL, 4711));
    assertThrows(() => recorder.read(), Error, "the shim's state cannot be believed: it is of version 4711");
    assertEquals(canRead(made.path, folder), false);
    Deno.removeSync(path);
    Deno.mkdirSync(path);
    assertThrows(() => recorder.read(), Error, "the shim's state cannot be read");
    assertEquals(canRead(made.path, folder), false);
    Deno.removeSync(path);
    recorder.save();
    assertEquals(canRead(made.path, folder), true);
    for (const version of [1, 2, RECORD_VERSION + 1]) {
      fds.writeAt(made.file.fd, new Uint8Array([version]), VERSION_AT);
      assertThrows(() => recorder.read(), Error, `it is of version ${version}, and this shim reads versions up to`);
      assertEquals(canRead(made.path, folder), false);
    }
  }));

Deno.test("it is known which build's host has written last, and whether it has given up", () =>
  withFolder((folder) => {
    const build = BigInt(FULL.build);
    let host = OWN_PID;
    using made = recorderOf(folder, () => ({ ...FULL, host }));
    made.recorder.save();
    assertEquals([hasBeenTakenOver(made.path, build), hasBeenTakenOver(made.path, build + 1n)], [true, false]);
    host = 0;
    made.recorder.save();
    assertEquals([hasBeenTakenOver(made.path, build), found(made)?.host], [false, 0]);
  }));

/** How many bytes there are of what changes when a record becomes another. */
function bytesOfChange(before: ShimRecord, after: ShimRecord): number {
  const changes = new Changes();
  changes.of(before);
  return [...changes.of(after)].reduce((sum, [key, text = ""]) => sum + key.length + text.length, 0);
}

const LISTS = ["commands", "answers", "events", "unclaimed"] as const;

Deno.test("a change is what has changed, and read again it is the record", () => {
  const container = FULL.container!;
  const [exec] = container.execs;
  const others: ShimRecord[] = [
    { ...FULL, serial: 18 },
    { ...FULL, lastError: undefined },
    { ...FULL, container: undefined },
    EMPTY,
    ...LISTS.map((name) => ({ ...FULL, [name]: [] })),
    ...LISTS.map((name) => ({ ...FULL, [name]: [...FULL[name], { ...FULL[name][0] }] })),
    ...LISTS.map((name) => ({ ...FULL, [name]: [{ ...FULL[name][0] }] })),
    { ...FULL, container: { ...container, isCreated: false } },
    { ...FULL, container: { ...container, exits: [] } },
    { ...FULL, container: { ...container, starting: [] } },
    { ...FULL, container: { ...container, init: { ...container.init, state: "stopped" } } },
    { ...FULL, container: { ...container, execs: [] } },
    { ...FULL, container: { ...container, execs: [{ ...exec!, pid: 7, spec: undefined }] } },
    { ...FULL, container: { ...container, execs: [{ ...exec!, id: "e 2" }] } },
    { ...FULL, container: { ...container, execs: [exec!, { ...exec!, id: "" }, { ...exec!, id: "e1 spec" }] } },
  ];
  for (const [i, other] of others.entries()) {
    for (const way of [[FULL, other], [other, FULL], [other, EMPTY, other, FULL], [FULL, FULL, other]]) {
      const file = StateFile.create();
      const changes = new Changes();
      const owner = (record: ShimRecord) => ({ host: record.host, build: BigInt(record.build) });
      file.replace(changes.of(way[0]!), owner(way[0]!));
      for (const next of way.slice(1)) file.change(changes.of(next), owner(next));
      assertEquals(found({ file }), way.at(-1), `${i}`);
      fds.close(file.fd);
    }
  }
  assertEquals(bytesOfChange(FULL, FULL), 0);
});

Deno.test("a change of one exec is as large with 2,000 others as with none, and a start does not write its specification", () => {
  const container = FULL.container!;
  const [exec] = container.execs;
  const spec = { args: ["sh"], env: Array.from({ length: 50 }, (_, i) => `VARIABLE${i}=value`) };
  const others = Array.from({ length: 2000 }, (_, i) => ({ ...exec!, id: `other${i}`, spec }));
  const withExecs = (...execs: typeof container.execs) => ({ ...FULL, container: { ...container, execs } });
  const registered = { ...exec!, pid: 0, spec };
  const started = { ...exec!, pid: 4711, spec: undefined };
  const steps = [withExecs(), withExecs(registered), withExecs(started), withExecs()];
  for (let i = 1; i < steps.length; i++) {
    const [before, after] = [steps[i - 1]!, steps[i]!];
    const crowded = (record: typeof before) => withExecs(...others, ...record.container.execs);
    assertEquals(bytesOfChange(crowded(before), crowded(after)), bytesOfChange(before, after));
  }
  const length = JSON.stringify(spec).length;
  const [register, start, remove] = [1, 2, 3].map((i) => bytesOfChange(steps[i - 1]!, steps[i]!)) as [
    number,
    number,
    number,
  ];
  assert(register > length && start < 500 && remove < 500, `${[register, start, remove]} bytes`);
});
