/**
 * Puts the entry code (entry.c) and, with it, a program into a copy of an
 * executable, which is relocated to a fixed address (relocate.ts).
 *
 * The kernel then enters the entry code first: PT_INTERP becomes PT_NULL, so
 * that no ld.so is loaded before it; PT_NOTE makes room for a PT_LOAD of the
 * blob, behind everything else; `e_entry` points into it. The entry code puts
 * PT_INTERP back in the copy of the program headers that ld.so sees.
 */
import {
  type Elf,
  PF_R,
  PF_X,
  type ProgramHeader,
  PT_INTERP,
  PT_LOAD,
  PT_NOTE,
  PT_NULL,
  readElf,
  writeAt,
  writeElf,
} from "./elf.ts";
import { atLoadAddress, LOAD_ADDRESS, relocate } from "./relocate.ts";

/** What {@linkcode pack} makes, and from what. */
export interface PackOptions {
  /** The executable: `deno`, or what `deno compile` has made. */
  readonly deno: string;
  /** The compiled entry.c. */
  readonly entry: string;
  /**
   * JavaScript, given to `deno eval`. Without it the product's arguments reach
   * the executable as they are, and only its signals and environment are
   * prepared.
   */
  readonly program?: string;
  /** Flags of `deno eval` that stand before the program. */
  readonly denoFlags?: readonly string[];
  /**
   * Texts for the program to read from memory, each followed by NUL; where the first begins, the program finds in
   * CONTAINERD_SHIM_TEXTS. Deno neither parses nor copies them at start.
   */
  readonly texts?: readonly string[];
  /** The product. */
  readonly out: string;
}

/**
 * What an environment entry (`NAME=value`) begins with that must not reach the
 * runtime, because it would change what that does. COMPLETE makes Deno print
 * shell completions and exit; OTEL_DENO makes it send to a collector.
 */
const DROPPED = ["DENO_", "NODE_", "V8_", "OTEL_", "COMPLETE=", "HOME=", "GLIBC_TUNABLES="];

/** The size from which on a path is too long for every system call, on every filesystem: PATH_MAX of linux/limits.h. */
const PATH_MAX = 4096;

/**
 * What the runtime gets instead: no directory for its caches, which stay in
 * memory then, at a path that nobody can make, and nothing said of that; no
 * question about newer versions; no search of PATH for `node`, nor a stand-in
 * for it there; and a home without a `.npmrc`, which Deno reads at start, and
 * does not start if it is bad. entry.c adds more.
 */
const ADDED: readonly string[] = [
  `DENO_DIR=/${"x".repeat(PATH_MAX)}`,
  "DENO_LOG=info,deno::cache::cache_db=off",
  "DENO_NO_UPDATE_CHECK=1",
  "DENO_DISABLE_NODE_SHIM=1",
  "HOME=/proc",
];

const PAGE = 4096n;

// `struct header` of entry.c, and ENTRY_OFFSET.
const MAGIC = "DENOENTR";
const VERSION = 3;
const ENTRY_OFFSET = 80;
const OFFSET_OF = {
  version: 8,
  arguments: 12,
  dropped: 16,
  added: 20,
  address: 24,
  entry: 32,
  strings: 40,
  texts: 48,
  bias: 56,
  build: 64,
} as const;

/**
 * Writes `options.out`, mode 0755, in one step: it is there complete or not at
 * all.
 *
 * The program finds the product's arguments in `Deno.args`, but for two things
 * that Deno does: it cuts carriage returns off the end of an argument, and
 * makes U+FFFD of bytes that are not UTF-8.
 *
 * @throws {Error} if the executable or the entry code is not what it should
 * be, or a text has a NUL character in it
 */
export async function pack(options: PackOptions): Promise<void> {
  const { deno, out, program, denoFlags = [], texts = [] } = options;
  const elf = await readElf(deno);
  const code = await Deno.readFile(options.entry);
  checkEntry(options.entry, code);

  const address = pageUp(endOfImage(elf));
  const blob = fillIn(code, {
    address,
    entry: elf.entry,
    // The first takes the place of argv[0], from which Deno would take
    // commands (it may be `node`); `--` ends what Deno reads for itself.
    arguments: program === undefined ? [] : ["deno", "eval", ...denoFlags, program, "--"],
    dropped: DROPPED,
    added: ADDED,
    texts,
  });
  // Of all that is run: flags, environment, entry and program are in the blob.
  const build = await buildOf([await Deno.readFile(deno), blob]);
  new DataView(blob.buffer).setBigUint64(OFFSET_OF.build, build, true);

  const temporary = `${out}.${crypto.randomUUID()}.tmp`;
  try {
    await Deno.copyFile(deno, temporary);
    await Deno.chmod(temporary, 0o755);
    using file = await Deno.open(temporary, { read: true, write: true });
    const offset = pageUp(BigInt((await file.stat()).size));
    const segment: ProgramHeader = {
      type: PT_LOAD,
      flags: PF_R | PF_X,
      offset,
      address,
      fileSize: BigInt(blob.length),
      memorySize: BigInt(blob.length),
      align: PAGE,
    };
    await relocate(file, elf.programHeaders, deno);
    await writeAt(file, offset, blob);
    const { headers, type } = atLoadAddress(headersWith(segment, elf.programHeaders, deno));
    await writeElf(file, {
      header: elf.header,
      type,
      entry: LOAD_ADDRESS + address + BigInt(ENTRY_OFFSET),
      programHeaders: headers,
    });
    await Deno.rename(temporary, out);
  } catch (error) {
    // What made it fail is the error to tell.
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
}

/** The program headers with `segment` and without an interpreter. */
function headersWith(segment: ProgramHeader, headers: readonly ProgramHeader[], path: string): ProgramHeader[] {
  const has = (type: number) => headers.some((each) => each.type === type);
  const refuse = (why: string) => new Error(`Cannot pack ${path}: it has ${why}`);
  // The entry code takes the first PT_NULL for the interpreter.
  if (has(PT_NULL)) {
    throw refuse("a PT_NULL program header, as if it had been packed before");
  }
  if (!has(PT_INTERP)) throw refuse("no PT_INTERP program header");
  // The first one is the linker's (ABI, build id), which nothing reads at run
  // time. `deno compile` puts its own, with the program in it, at the end.
  const note = headers.findIndex(({ type }) => type === PT_NOTE);
  if (note === -1) {
    throw refuse("no PT_NOTE program header to make room for one more segment");
  }
  const result = headers
    .toSpliced(note, 1)
    .map((each) => each.type === PT_INTERP ? { ...each, type: PT_NULL } : each);
  // elf(5): PT_LOAD entries are in ascending order of address.
  const last = result.findLastIndex(({ type }) => type === PT_LOAD);
  return result.toSpliced(last + 1, 0, segment);
}

/** The first address behind everything that is loaded. */
function endOfImage(elf: Elf): bigint {
  let end = 0n;
  for (const { type, address, memorySize } of elf.programHeaders) {
    const segmentEnd = address + memorySize;
    if (type === PT_LOAD && segmentEnd > end) end = segmentEnd;
  }
  return end;
}

interface HeaderValues {
  readonly address: bigint;
  readonly entry: bigint;
  readonly arguments: readonly string[];
  readonly dropped: readonly string[];
  readonly added: readonly string[];
  readonly texts: readonly string[];
}

/** The blob: the code, its header filled in but for the build, and the strings and texts behind it. */
function fillIn(code: Uint8Array, values: HeaderValues): Uint8Array<ArrayBuffer> {
  const strings = [...values.arguments, ...values.dropped, ...values.added];
  for (const text of [...strings, ...values.texts]) {
    const at = text.indexOf("\0");
    if (at === -1) continue;
    throw new Error(`Cannot pack a text of ${text.length} characters: number ${at} is NUL, which would end it`);
  }
  const encode = (strings: readonly string[]) => new TextEncoder().encode(strings.map((each) => `${each}\0`).join(""));
  const [behind, texts] = [encode(strings), encode(values.texts)];
  const blob = new Uint8Array(code.length + behind.length + texts.length);
  blob.set(code);
  blob.set(behind, code.length);
  blob.set(texts, code.length + behind.length);
  const view = new DataView(blob.buffer);
  view.setUint32(OFFSET_OF.arguments, values.arguments.length, true);
  view.setUint32(OFFSET_OF.dropped, values.dropped.length, true);
  view.setUint32(OFFSET_OF.added, values.added.length, true);
  view.setBigUint64(OFFSET_OF.address, values.address, true);
  view.setBigUint64(OFFSET_OF.entry, values.entry, true);
  view.setBigUint64(OFFSET_OF.strings, BigInt(code.length), true);
  view.setBigUint64(OFFSET_OF.texts, BigInt(code.length + behind.length), true);
  view.setBigUint64(OFFSET_OF.bias, LOAD_ADDRESS, true);
  return blob;
}

/** Tells a build from others: a number that what is in it gives. */
async function buildOf(parts: readonly Uint8Array<ArrayBuffer>[]): Promise<bigint> {
  const digests = await Promise.all(parts.map((each) => crypto.subtle.digest("SHA-256", each)));
  const all = new Uint8Array(digests.flatMap((each) => [...new Uint8Array(each)]));
  return new DataView(await crypto.subtle.digest("SHA-256", all)).getBigUint64(0, true);
}

function checkEntry(path: string, code: Uint8Array<ArrayBuffer>): void {
  const refuse = (why: string) => new Error(`Cannot use ${path} as entry code: ${why}`);
  if (code.length <= ENTRY_OFFSET) throw refuse(`it has ${code.length} bytes`);
  const magic = String.fromCharCode(...code.subarray(0, MAGIC.length));
  if (magic !== MAGIC) {
    throw refuse(`it begins with ${JSON.stringify(magic)}, not with ${MAGIC}`);
  }
  const version = new DataView(code.buffer).getUint32(OFFSET_OF.version, true);
  if (version !== VERSION) {
    throw refuse(`its header has version ${version}, not ${VERSION}`);
  }
}

function pageUp(value: bigint): bigint {
  return (value + PAGE - 1n) / PAGE * PAGE;
}
