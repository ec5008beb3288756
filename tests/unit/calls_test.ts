/** Calls that outlive the process which answers them: what is found again in their file, whatever is in it. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { monotonic } from "../../ffi/clock.ts";
import * as fds from "../../ffi/fd.ts";
import { MemoryFile } from "../../ffi/memfd.ts";
import { CallFile, type CallRecord } from "../../lib/record/calls.ts";

/** The header of an entry, in bytes, what is before the first, and the least room that there is for a content. */
const HEADER_SIZE = 48;
const MAGIC_SIZE = 8;
const ROOM = 208;
/** Where a header has the room, the kind, the time of day, the length of its content, and the time of CLOCK_MONOTONIC. */
const ROOM_AT = 0;
const KIND_AT = 4;
const TIME_AT = 24;
const LENGTH_AT = 32;
const MONOTONIC_AT = 40;

/** A file of calls, closed when it is disposed of. */
function create(): CallFile & Disposable {
  const file = CallFile.create();
  return Object.assign(file, { [Symbol.dispose]: () => fds.close(file.fd) });
}

function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** Calls as another process finds them: id, connection, stream, and payload, and what is said of it otherwise. */
function found({ fd }: CallFile): string[] {
  return CallFile.open(fd).calls.map(described);
}

function described({ id, connection, stream, tries, hangs, isAnswered, payload }: CallRecord): string {
  const tried = `${tries > 0 ? `, tried ${tries} times` : ""}${hangs > 0 ? `, hung ${hangs}` : ""}`;
  const more = `${tried}${isAnswered ? ", answered" : ""}`;
  return `${id}: ${connection}/${stream} ${text(payload)}${more}`;
}

function sizeOf({ fd }: CallFile): number {
  return Deno.statSync(`/proc/self/fd/${fd}`).size;
}

function contentOf({ fd }: CallFile): Uint8Array<ArrayBuffer> {
  return Deno.readFileSync(`/proc/self/fd/${fd}`);
}

/** A file of calls with this in it. */
function copy(content: Uint8Array): MemoryFile {
  const file = new MemoryFile("copy");
  file.write(content);
  return file;
}

/** Writes a number over what is at a place of the file. */
function overwrite({ fd }: CallFile, at: number, value: number): void {
  fds.writeAt(fd, new Uint8Array(new Uint32Array([value]).buffer), at);
}

/** Where an entry begins, in a file whose entries before it have the least room. */
function entryAt(index: number): number {
  return MAGIC_SIZE + index * (HEADER_SIZE + ROOM);
}

Deno.test("a new file has no calls", () => {
  using file = create();
  const { calls, parts } = CallFile.open(file.fd);
  assertEquals([calls, parts], [[], []]);
});

Deno.test("a call is found again as it has come, until its end", () => {
  using file = create();
  const before = monotonic();
  const ids = ["one", "", "three"].map((each, i) => file.begin(i + 2, 2 * i + 1, bytes(each)));
  assertEquals(ids, [1, 2, 3]);
  assertEquals(found(file), ["1: 2/1 one", "2: 3/3 ", "3: 4/5 three"]);
  for (const { at } of CallFile.open(file.fd).calls) {
    assert(at >= before && at <= monotonic(), `${at} is not between ${before} and now`);
  }
  file.answered(2);
  assertEquals(found(file), ["1: 2/1 one", "2: 3/3 , answered", "3: 4/5 three"]);
  file.end(1);
  assertEquals(found(file), ["2: 3/3 , answered", "3: 4/5 three"]);
  file.end(2);
  file.end(3);
  assertEquals(found(file), []);
});

Deno.test("how many processes have hung is noted of each call by itself, and only of that", () => {
  using file = create();
  file.begin(2, 1, bytes("one"));
  file.begin(2, 3, bytes("two"), 1);
  assertEquals(found(file), ["1: 2/1 one", "2: 2/3 two, hung 1"]);
  file.hung({ id: 2 }, 2);
  file.hung({ id: 3 }, 2);
  file.survived(CallFile.open(file.fd).calls);
  assertEquals(found(file), ["1: 2/1 one", "2: 2/3 two, hung 2"]);
  // Another is at its place then.
  file.end(2);
  file.begin(2, 5, bytes("three"));
  assertEquals(found(file), ["1: 2/1 one", "3: 2/5 three"]);
});

Deno.test("a call that 0.1 has noted, by the time of day alone, has been made as long ago", () => {
  using file = create();
  file.begin(2, 1, bytes("one"));
  const [day, time] = [Date.now() - 5000, monotonic() - 5000];
  fds.writeAt(file.fd, new Uint8Array(new Float64Array([day]).buffer), MAGIC_SIZE + TIME_AT);
  fds.writeAt(file.fd, new Uint8Array(new Float64Array([0]).buffer), MAGIC_SIZE + MONOTONIC_AT);
  const { at } = CallFile.open(file.fd).calls[0]!;
  assert(Math.abs(at - time) < 1000, `${at} is not ${time}`);
});

Deno.test("of a call that is not there, nothing is noted", () => {
  using file = create();
  file.begin(2, 1, bytes("one"));
  for (const id of [0, 2, 4711]) {
    file.answered(id);
    file.end(id);
  }
  file.end(1);
  file.end(1);
  file.answered(1);
  file.endPart(2);
  assertEquals(found(file), []);
  // What is ended twice is free once.
  assertEquals([file.begin(2, 3, bytes("two")), file.begin(2, 5, bytes("three"))], [2, 3]);
  assertEquals(found(file), ["2: 2/3 two", "3: 2/5 three"]);
});

Deno.test("another process goes on with the file: numbers go on, and so do calls", () => {
  using file = create();
  for (const each of ["one", "two", "three"]) file.begin(2, 1, bytes(each));
  file.end(3);
  const { file: next } = CallFile.open(file.fd);
  // The place of the one that has ended is free, its number is not.
  assertEquals(next.begin(7, 9, bytes("four")), 4);
  next.answered(1);
  next.end(2);
  assertEquals(found(next), ["1: 2/1 one, answered", "4: 7/9 four"]);
  assertEquals(sizeOf(next), entryAt(2) + HEADER_SIZE + "three".length);
});

Deno.test("a large call that has ended takes no memory", () => {
  using file = create();
  const taken = () => (Deno.statSync(`/proc/self/fd/${file.fd}`).blocks ?? 0) * 512;
  const before = taken();
  const large = file.begin(2, 1, new Uint8Array(1 << 20));
  const small = file.begin(2, 3, bytes("small"));
  file.addPart(5, new Uint8Array(1 << 20), 1 << 20);
  assert(taken() > 2 << 20, `${taken()} bytes`);
  file.end(large);
  file.endPart(5);
  assert(taken() <= before + 4 * 4096, `${taken()} bytes, ${before} before`);
  assertEquals(found(file), [`${small}: 2/3 small`]);
});

Deno.test("no call has a number that is not to be given", () => {
  using file = create();
  file.skipTo(10);
  file.skipTo(5);
  assertEquals(file.begin(2, 1, bytes("")), 11);
});

Deno.test("calls are found in the order in which they have come, wherever there was room for them", () => {
  using file = create();
  const ids = Array.from({ length: 5 }, (_, i) => file.begin(2, i, bytes(`${i}`)));
  for (const id of [ids[3]!, ids[0]!, ids[1]!]) file.end(id);
  for (const each of ["a", "b", "c", "d"]) file.begin(2, 9, bytes(each));
  assertEquals(CallFile.open(file.fd).calls.map(({ id, payload }) => `${id}${text(payload)}`), [
    ...["32", "54", "6a", "7b", "8c", "9d"],
  ]);
});

Deno.test("how often a call has been gone on with is known to the next", () => {
  using file = create();
  file.begin(2, 1, bytes("one"));
  file.begin(2, 3, bytes("two"));
  for (let times = 0; times < 3; times++) {
    const { file: next, calls } = CallFile.open(file.fd);
    next.resume(calls[1]!);
  }
  assertEquals(found(file), ["1: 2/1 one", "2: 2/3 two, tried 3 times"]);
  const { file: next, calls } = CallFile.open(file.fd);
  for (const each of calls) next.resume(each);
  next.end(1);
  next.survived(calls);
  assertEquals(found(file), ["2: 2/3 two"]);
});

Deno.test("contents of all sizes are found again", () => {
  using file = create();
  const sizes = [0, 1, ROOM - 1, ROOM, ROOM + 1, 4096, 65_536, 1 << 20, 4 << 20];
  const contents = sizes.map((size) => new Uint8Array(size).map((_, i) => (i * 31 + size) % 251));
  contents.forEach((each) => file.begin(2, 1, each));
  assertEquals(CallFile.open(file.fd).calls.map(({ payload }) => payload), contents);
  // The other way round, in the places of the first.
  for (let id = 1; id <= sizes.length; id++) file.end(id);
  const size = sizeOf(file);
  contents.toReversed().forEach((each) => file.begin(2, 1, each));
  assertEquals(CallFile.open(file.fd).calls.map(({ payload }) => payload), contents.toReversed());
  assert(sizeOf(file) <= 2 * size, `${sizeOf(file)} bytes are used where ${size} were`);
});

Deno.test("what has been read of a frame is found again, from its beginning", () => {
  using file = create();
  file.addPart(2, bytes("one "), 1000);
  file.addPart(3, bytes("other"), 5);
  file.addPart(2, bytes("two "), 1000);
  const { file: next, parts } = CallFile.open(file.fd);
  assertEquals(parts.map(({ connection, bytes }) => `${connection} ${text(bytes)}`), ["2 one two ", "3 other"]);
  next.addPart(2, bytes("three"), 1000);
  next.endPart(3);
  const again = CallFile.open(file.fd);
  assertEquals(again.parts.map(({ connection, bytes }) => `${connection} ${text(bytes)}`), ["2 one two three"]);
  assertEquals(again.calls, []);
  again.file.endPart(2);
  assertEquals(CallFile.open(file.fd).parts, []);
  // Nothing is left of it in the next that comes there.
  again.file.addPart(2, bytes("x"), 10);
  assertEquals(CallFile.open(file.fd).parts.map(({ bytes }) => text(bytes)), ["x"]);
});

Deno.test("a frame of a MiB is found again, as far as it has come", () => {
  using file = create();
  const frame = new Uint8Array(1 << 20).map((_, i) => i % 253);
  const piece = 30_000;
  for (let at = 0; at < frame.length / 2; at += piece) {
    file.addPart(2, frame.subarray(at, at + piece), frame.length);
    const [part] = CallFile.open(file.fd).parts;
    assertEquals(part!.bytes, frame.slice(0, at + piece));
  }
});

Deno.test("calls and parts use each other's places", () => {
  using file = create();
  file.begin(2, 1, new Uint8Array(5000));
  file.addPart(2, bytes("part"), 9000);
  const size = sizeOf(file) + 9000;
  for (let i = 0; i < 1000; i++) {
    file.end(i + 1);
    file.endPart(2);
    file.addPart(2, bytes("part"), 5000 - i);
    file.begin(2, 1, new Uint8Array(9000 - i));
  }
  assertEquals(CallFile.open(file.fd).calls.map(({ id }) => id), [1001]);
  assert(sizeOf(file) <= 2 * size, `${sizeOf(file)} bytes are used where ${size} were`);
});

Deno.test("ten thousand calls use the places of the first few", () => {
  using file = create();
  const inFlight: number[] = [];
  for (let i = 0; i < 10_000; i++) {
    inFlight.push(file.begin(2, 2 * i + 1, new Uint8Array(i * 7919 % 1000)));
    // Not in the order in which they have come.
    if (inFlight.length > 8) file.end(inFlight.splice(i % inFlight.length, 1)[0]!);
    if (i % 100 === 0) file.answered(inFlight[0]!);
  }
  const { calls } = CallFile.open(file.fd);
  assertEquals(calls.map(({ id }) => id), inFlight.toSorted((a, b) => a - b));
  assert(sizeOf(file) < 65_536, `it has ${sizeOf(file)} bytes`);
});

Deno.test("ten thousand calls that wait at the same time are all found", () => {
  using file = create();
  for (let i = 1; i <= 10_000; i++) file.begin(i % 7, i, bytes(`${i}`));
  const { calls } = CallFile.open(file.fd);
  assertEquals(calls.length, 10_000);
  assertEquals(calls.every(({ id, payload }) => text(payload) === `${id}`), true);
});

Deno.test("what is no file of calls is told so", () => {
  using file = create();
  const right = contentOf(file);
  const wrong = [new Uint8Array(0), right.slice(0, -1), new Uint8Array(100), bytes("SHIMCAL2"), bytes("x".repeat(100))];
  for (const content of wrong) {
    using other = copy(content);
    assertThrows(() => CallFile.open(other.fd), Error, "it is no file of calls");
  }
});

Deno.test("a file that is cut anywhere has the calls that were written before", () => {
  using file = create();
  for (const each of ["one", "two", "three"]) file.begin(2, 1, bytes(each));
  file.addPart(2, bytes("part"), 300);
  const content = contentOf(file);
  const ends = [0, 1, 2].map((i) => entryAt(i) + HEADER_SIZE + ["one", "two", "three"][i]!.length);
  for (let length = MAGIC_SIZE; length < content.length; length++) {
    using cut = copy(content.subarray(0, length));
    const { file: next, calls, parts } = CallFile.open(cut.fd);
    assertEquals(calls.map(({ id }) => id), [1, 2, 3].slice(0, ends.filter((end) => end <= length).length));
    assertEquals(parts, []);
    // It can be gone on with.
    const id = next.begin(2, 1, bytes("next"));
    assertEquals(CallFile.open(cut.fd).calls.map(({ id }) => id), [...calls.map(({ id }) => id), id]);
  }
});

Deno.test("a call any byte of whose content is another is passed over, and the others are not", () => {
  for (let at = 0; at < "second".length; at++) {
    using file = create();
    for (const each of ["one", "second", "three"]) file.begin(2, 1, bytes(each));
    const place = entryAt(1) + HEADER_SIZE + at;
    fds.writeAt(file.fd, new Uint8Array([contentOf(file)[place]! ^ 1]), place);
    const { file: next, calls } = CallFile.open(file.fd);
    assertEquals(calls.map(({ id }) => id), [1, 3]);
    // Its place is free.
    next.begin(2, 1, bytes("four"));
    assertEquals(found(next), ["1: 2/1 one", "3: 2/1 three", "4: 2/1 four"]);
    assertEquals(sizeOf(next), entryAt(2) + HEADER_SIZE + "three".length);
  }
});

Deno.test("a call whose content is said to have another length is passed over", () => {
  for (const length of [0, 2, 4, ROOM, ROOM + 1, 1 << 30, 0xffff_ffff]) {
    using file = create();
    for (const each of ["one", "two", "three"]) file.begin(2, 1, bytes(each));
    overwrite(file, entryAt(1) + LENGTH_AT, length);
    assertEquals(found(file), ["1: 2/1 one", "3: 2/1 three"]);
  }
});

Deno.test("an entry of no kind that there is, is free", () => {
  for (const kind of [0, 4, 4711, 0xffff_ffff]) {
    using file = create();
    for (const each of ["one", "two"]) file.begin(2, 1, bytes(each));
    overwrite(file, entryAt(0) + KIND_AT, kind);
    const { file: next } = CallFile.open(file.fd);
    next.begin(2, 1, bytes("three"));
    assertEquals(found(next), ["2: 2/1 two", "3: 2/1 three"]);
    assertEquals(sizeOf(next), entryAt(1) + HEADER_SIZE + "two".length);
  }
});

Deno.test("behind an entry that cannot be as large as it says, nothing is believed, and it goes on there", () => {
  for (const room of [0, 1, ROOM - 1, (1 << 24) + 1, 0x7fff_ffff, 0xffff_ffff]) {
    using file = create();
    for (const each of ["one", "two", "three"]) file.begin(2, 1, bytes(each));
    overwrite(file, entryAt(1) + ROOM_AT, room);
    const { file: next, calls } = CallFile.open(file.fd);
    assertEquals(calls.map(described), ["1: 2/1 one"]);
    const id = next.begin(2, 1, bytes("next"));
    const [first, second] = found(next);
    assertEquals([first, second], ["1: 2/1 one", `${id}: 2/1 next`]);
  }
});

Deno.test("whatever is in the file, it is opened or refused, and takes further calls", () => {
  let state = 4711;
  const random = (below: number) => (state = (state * 48_271) % 0x7fff_ffff) % below;
  for (let round = 0; round < 2000; round++) {
    using file = create();
    for (let i = 0; i < 4; i++) file.begin(2, i, new Uint8Array(random(300)));
    file.addPart(2, new Uint8Array(random(300)), 300);
    const size = sizeOf(file);
    for (let times = random(8); times >= 0; times--) {
      const at = MAGIC_SIZE + random(size - MAGIC_SIZE);
      fds.writeAt(file.fd, new Uint8Array([random(256)]), at);
    }
    const { file: next, calls, parts } = CallFile.open(file.fd);
    assert(calls.length <= 4 && parts.length <= 4, `${calls.length} calls and ${parts.length} parts are found`);
    const id = next.begin(3, 1, bytes("next"));
    const last = CallFile.open(file.fd).calls.find((each) => each.id === id && text(each.payload) === "next");
    assert(last !== undefined, `round ${round}: the next call is not found again`);
  }
});
