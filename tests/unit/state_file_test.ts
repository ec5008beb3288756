/** What a shim writes down: after a kill at whatever moment it is what it was before a change, or after it. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import * as fds from "../../ffi/fd.ts";
import { MemoryFile } from "../../ffi/memfd.ts";
import { RECORD_VERSION } from "../../lib/record/record.ts";
import { type Change, StateFile } from "../../lib/record/state_file.ts";

const OWNER = { host: 4711, build: 17_293_822_569_102_704_640n };
/** The size of the header, and where it has the version, in bytes. */
const HEADER_SIZE = 44;
const VERSION_AT = 8;

/** A file, closed when it is disposed of. */
function create(): StateFile & Disposable {
  const file = StateFile.create();
  return Object.assign(file, { [Symbol.dispose]: () => fds.close(file.fd) });
}

function change(entries: Readonly<Record<string, string | undefined>>): Change {
  return new Map(Object.entries(entries));
}

/** What another process finds. */
function found({ fd }: Pick<StateFile, "fd">): Record<string, string> | undefined {
  const content = StateFile.of(fd).read();
  return content && Object.fromEntries(content.texts);
}

function contentOf({ fd }: StateFile): Uint8Array<ArrayBuffer> {
  return Deno.readFileSync(`/proc/self/fd/${fd}`);
}

/** How much memory a file takes, in bytes. */
function takenBy({ fd }: StateFile): number {
  return (Deno.statSync(`/proc/self/fd/${fd}`).blocks ?? 0) * 512;
}

/** A file with this in it. */
function copy(content: Uint8Array): MemoryFile {
  const file = new MemoryFile("copy");
  file.write(content);
  return file;
}

Deno.test("in a new file nothing has been written", () => {
  using file = create();
  assertEquals(found(file), undefined);
});

Deno.test("what has been written is found, in the order in which the keys came", () => {
  using file = create();
  file.replace(change({ a: "one", "b 日本 😀": "", c: "three" }), OWNER);
  assertEquals(found(file), { a: "one", "b 日本 😀": "", c: "three" });
  file.change(change({ a: "1", d: "four", c: undefined, none: undefined }), OWNER);
  const content = StateFile.of(file.fd).read()!;
  assertEquals([...content.texts], [["a", "1"], ["b 日本 😀", ""], ["d", "four"]]);
  assertEquals(content.owner, OWNER);
  file.change(change({}), { host: 0, build: 5n });
  assertEquals(StateFile.of(file.fd).read()!.owner, { host: 0, build: 5n });
  file.replace(change({ e: "five" }), OWNER);
  assertEquals(found(file), { e: "five" });
});

Deno.test("another process goes on with the file, whose content it replaces", () => {
  using file = create();
  file.replace(change({ a: "one", b: "two" }), OWNER);
  file.change(change({ b: "2" }), OWNER);
  const next = StateFile.of(file.fd);
  next.replace(change({ c: "three" }), OWNER);
  next.change(change({ d: "four" }), OWNER);
  assertEquals(found(file), { c: "three", d: "four" });
});

Deno.test("what is forgotten is not found, and can be written again", () => {
  using file = create();
  file.replace(change({ a: "one" }), OWNER);
  file.forget();
  assertEquals(found(file), undefined);
  file.change(change({ b: "two" }), OWNER);
  assertEquals(found(file), { a: "one", b: "two" });
});

/** Thrown where a process is killed. */
class Killed extends Error {}

/**
 * Calls of a process that is killed in the middle of one: at the `last`, of whose bytes so much is written as the fraction says.
 * The header is not written in part: it is within a page.
 */
class DyingWriter {
  calls = 0;
  last = Infinity;
  fraction = 0;

  writeAllAt = (fd: number, content: Uint8Array<ArrayBuffer>, at: number): void => {
    const isLast = this.#count();
    if (isLast && at > 0) fds.writeAllAt(fd, content.subarray(0, Math.floor(content.length * this.fraction)), at);
    if (isLast) throw new Killed();
    fds.writeAllAt(fd, content, at);
  };

  punchHole = (fd: number, at: number, length: number): boolean => {
    if (this.#count()) throw new Killed();
    return fds.punchHole(fd, at, length);
  };

  truncate = (fd: number, length: number): void => {
    if (this.#count()) throw new Killed();
    fds.truncate(fd, length);
  };

  /** Whether this is the call in which it is killed, or one after that. */
  #count(): boolean {
    return ++this.calls >= this.last;
  }
}

/** What is done to a file, and what it has in it afterwards. */
interface Step {
  readonly do: (file: StateFile) => void;
  readonly after: Record<string, string>;
}

/** Steps among which there are two compactions: into a part of its own, and back to the beginning. */
function steps(): Step[] {
  const filler = "x".repeat(3000);
  const all: Step[] = [];
  let now: Record<string, string> = {};
  const add = (isWhole: boolean, entries: Record<string, string | undefined>) => {
    const merged = Object.entries({ ...isWhole ? {} : now, ...entries });
    const after = Object.fromEntries(merged.filter(([, text]) => text !== undefined)) as Record<string, string>;
    now = after;
    const written = change(entries);
    all.push({ do: (file) => isWhole ? file.replace(written, OWNER) : file.change(written, OWNER), after });
  };
  add(true, { kept: filler, a: "0", b: "0" });
  for (let i = 1; i < 16; i++) {
    add(false, { a: `${i}${filler}`, b: `${i}`, [`only ${i}`]: "", [`only ${i - 1}`]: undefined });
  }
  add(true, { kept: filler });
  return all;
}

Deno.test("a process that is killed at whatever moment has changed all that it was about to, or nothing", () => {
  let [compactions, kills] = [0, 0];
  for (const fraction of [0, 0.3, 0.99, 1]) {
    for (let last = 1;; last++) {
      const writer = Object.assign(new DyingWriter(), { last, fraction });
      const file = StateFile.create(writer);
      try {
        let before: Record<string, string> | undefined = undefined;
        let isKilled = false;
        for (const step of steps()) {
          const callsBefore = writer.calls;
          try {
            step.do(file);
          } catch (error) {
            if (!(error instanceof Killed)) throw error;
          }
          isKilled = writer.calls >= last;
          const now: Record<string, string> | undefined = found(file);
          if (isKilled) {
            assert(
              [before, step.after].some((each) => JSON.stringify(each) === JSON.stringify(now)),
              `killed at call ${last}: ${JSON.stringify(now)?.slice(0, 200)}`,
            );
            kills++;
            break;
          }
          assertEquals(now, step.after);
          if (writer.calls - callsBefore > 3) compactions++;
          before = step.after;
        }
        if (!isKilled) break;
        // The next goes on with what there is.
        const next = StateFile.of(file.fd);
        next.replace(change({ next: "one" }), OWNER);
        next.change(change({ other: "two" }), OWNER);
        assertEquals(found(file), { next: "one", other: "two" });
      } finally {
        fds.close(file.fd);
      }
    }
  }
  assert(compactions > 0 && kills > 100, `${compactions} compactions, ${kills} kills`);
});

Deno.test("a file that is cut off anywhere is refused, or has nothing in it", () => {
  using file = create();
  file.replace(change({ a: "one", b: "two" }), OWNER);
  file.change(change({ a: "three" }), OWNER);
  const content = contentOf(file);
  for (let length = 0; length < content.length; length += length >= HEADER_SIZE && length < 4000 ? 500 : 1) {
    using cut = copy(content.subarray(0, length));
    if (length < HEADER_SIZE) assertEquals(found(cut), undefined);
    else assertThrows(() => found(cut), Error, "it is not whole", `${length} bytes of ${content.length}`);
  }
});

Deno.test("a file of which any one byte is another is refused", () => {
  using file = create();
  file.replace(change({ a: "one", b: "two" }), OWNER);
  file.change(change({ a: "three", b: undefined }), OWNER);
  const content = contentOf(file);
  for (let at = 0; at < content.length; at += at >= HEADER_SIZE && at < 4000 ? 500 : 1) {
    for (const bits of [1, 0x80, 0xff]) {
      const changed = content.slice();
      changed[at]! ^= bits;
      using other = copy(changed);
      // Between the header and the first entry there is nothing.
      if (at >= HEADER_SIZE && at < 4096) assertEquals(found(other), { a: "three" });
      else assertThrows(() => found(other), Error, undefined, `byte ${at}`);
    }
  }
});

Deno.test("a file of another version is refused with a sentence that names both, and what is none at all too", () => {
  using file = create();
  file.replace(change({ a: "one" }), OWNER);
  fds.writeAt(file.fd, new Uint8Array([RECORD_VERSION + 1]), VERSION_AT);
  const expected = `it is of version ${RECORD_VERSION + 1}, and this shim reads versions up to ${RECORD_VERSION}`;
  assertThrows(() => found(file), Error, expected);
  using other = copy(new TextEncoder().encode("something else".repeat(1000)));
  assertThrows(() => found(other), Error, "it is not what was written");
});

Deno.test("a file takes as much memory as what is in it, however often that has changed", () => {
  using file = create();
  const text = "x".repeat(500);
  file.replace(new Map(Array.from({ length: 200 }, (_, i) => [`key ${i}`, text])), OWNER);
  const first = takenBy(file);
  let most = 0;
  for (let i = 0; i < 5000; i++) {
    file.change(change({ [`key ${i % 200}`]: `${i}${text}` }), OWNER);
    most = Math.max(most, takenBy(file));
  }
  assert(most < 4 * first, `${most} bytes, ${first} at first`);
  for (let i = 0; i < 200; i++) file.change(change({ [`key ${i}`]: undefined }), OWNER);
  for (let i = 0; i < 1000; i++) file.change(change({ key: `${i}` }), OWNER);
  assert(takenBy(file) < 48 * 1024, `${takenBy(file)} bytes`);
  assertEquals(found(file), { key: "999" });
});

Deno.test("a change writes as many bytes with a MiB of other texts as with none", () => {
  let written = 0;
  const writer = {
    ...fds,
    writeAllAt: (fd: number, content: Uint8Array<ArrayBuffer>, at: number) => {
      written += content.length;
      fds.writeAllAt(fd, content, at);
    },
  };
  const bytes = [0, 2000].map((others) => {
    const file = StateFile.create(writer);
    file.replace(new Map(Array.from({ length: others }, (_, i) => [`other ${i}`, "x".repeat(500)])), OWNER);
    written = 0;
    for (let i = 0; i < 10; i++) file.change(change({ key: "x".repeat(100) }), OWNER);
    fds.close(file.fd);
    return written;
  });
  assertEquals(bytes[0], bytes[1]);
});
