/**
 * Relocates a position-independent executable to a fixed address, once for all its processes.
 *
 * Left to ld.so, Deno's 160,000 relative relocations are written at each start: 2.5 MB that no process shares with another,
 * 620 page faults and some 2 ms. What is relocated here stays in the page cache, the same for all. The executable is then
 * not where the kernel chooses, as Debian's Go shim is not; libraries, stacks, heaps and V8's code are.
 */

import { ET_EXEC, type ProgramHeader, PT_DYNAMIC, PT_LOAD, readAt, writeAt } from "./elf.ts";

/** Tags of a dynamic section's entries, elf(5). */
const DT_NULL = 0n, DT_RELA = 7n, DT_RELASZ = 8n, DT_RELACOUNT = 0x6fff_fff9n;
const DYNAMIC_BYTES = 16;

/** `Elf64_Rela`: where, what (its low word is the type), and the addend. */
const RELA_BYTES = 24;
const R_X86_64_RELATIVE = 8n;

/** Where the executable is loaded: the lowest address at which Linux puts those whose place it chooses itself. */
export const LOAD_ADDRESS = 0x5555_5555_4000n;

/**
 * Applies the relative relocations of `file` for {@link LOAD_ADDRESS}, and takes them off the list that ld.so works on.
 *
 * @param headers its program headers as they were linked
 * @param path for errors
 * @throws {Error} when the file has relocations that are not what a linker makes
 */
export async function relocate(file: Deno.FsFile, headers: readonly ProgramHeader[], path: string): Promise<void> {
  const refuse = (why: string) => new Error(`Cannot relocate ${path}: ${why}`);
  const dynamic = headers.find(({ type }) => type === PT_DYNAMIC);
  if (dynamic === undefined) return;
  const section = await read(file, dynamic.offset, Number(dynamic.fileSize), refuse);
  const tags = new DataView(section.buffer);
  const places = new Map<bigint, number>();
  for (let at = 0; at + DYNAMIC_BYTES <= section.length; at += DYNAMIC_BYTES) {
    const tag = tags.getBigUint64(at, true);
    if (tag === DT_NULL) break;
    places.set(tag, at + 8);
  }
  const value = (tag: bigint) => places.has(tag) ? tags.getBigUint64(places.get(tag)!, true) : 0n;
  // The linker has put the relative ones first.
  const [table, size, count] = [value(DT_RELA), value(DT_RELASZ), value(DT_RELACOUNT)];
  const bytes = count * BigInt(RELA_BYTES);
  if (count === 0n) return;
  if (bytes > size) throw refuse(`its ${count} relative relocations are more than it has`);

  const segments: { readonly header: ProgramHeader; readonly view: DataView<ArrayBuffer>; changed: boolean }[] = [];
  for (const header of headers) {
    if (header.type !== PT_LOAD) continue;
    const bytes = await read(file, header.offset, Number(header.fileSize), refuse);
    segments.push({ header, view: new DataView(bytes.buffer), changed: false });
  }
  const find = (address: bigint, length: bigint) => {
    const found = segments.find(({ header }) =>
      address >= header.address && address + length <= header.address + header.fileSize
    );
    if (found === undefined) throw refuse(`address ${address} is in none of its segments`);
    return { found, at: Number(address - found.header.address) };
  };
  const { found: holder, at: first } = find(table, bytes);
  for (let at = first; at < first + Number(bytes); at += RELA_BYTES) {
    const [address, info, addend] = [0, 8, 16].map((offset) => holder.view.getBigUint64(at + offset, true));
    if (info !== R_X86_64_RELATIVE) throw refuse(`relocation ${(at - first) / RELA_BYTES} is of type ${info}`);
    const { found, at: place } = find(address!, 8n);
    found.view.setBigUint64(place, LOAD_ADDRESS + addend!, true);
    found.changed = true;
  }
  for (const { header, view, changed } of segments) {
    if (changed) await writeAt(file, header.offset, new Uint8Array(view.buffer));
  }
  // Read again: it lies in one of the segments.
  const rest = new Uint8Array(8);
  const put = async (tag: bigint, value: bigint) => {
    new DataView(rest.buffer).setBigUint64(0, value, true);
    await writeAt(file, dynamic.offset + BigInt(places.get(tag)!), rest);
  };
  await put(DT_RELA, table + bytes);
  await put(DT_RELASZ, size - bytes);
  await put(DT_RELACOUNT, 0n);
}

async function read(
  file: Deno.FsFile,
  offset: bigint,
  length: number,
  refuse: (why: string) => Error,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = await readAt(file, offset, length);
  if (bytes === undefined) throw refuse("it ends within a segment");
  return bytes;
}

/** The program headers at {@link LOAD_ADDRESS}, and the type of an executable that is nowhere else. */
export function atLoadAddress(headers: readonly ProgramHeader[]): { headers: ProgramHeader[]; type: number } {
  return { headers: headers.map((each) => ({ ...each, address: each.address + LOAD_ADDRESS })), type: ET_EXEC };
}
