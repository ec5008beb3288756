/**
 * Reads and writes the two parts of an ELF file that decide how the kernel starts it: the ELF header and the program headers
 * (elf(5)). Only 64-bit, little-endian, position-independent executables for x86-64.
 */

/** Values of `p_type`. */
export const PT_NULL = 0, PT_LOAD = 1, PT_DYNAMIC = 2, PT_INTERP = 3, PT_NOTE = 4;

/** Bits of `p_flags`. */
export const PF_X = 1, PF_R = 4;

const ELF_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
const ELFCLASS64 = 2, ELFDATA2LSB = 1, ET_DYN = 3, EM_X86_64 = 62;
/** The `e_type` of an executable whose addresses are where it is loaded. */
export const ET_EXEC = 2;
/** The `EI_OSABI` of what runs without a system's loader: Linux does not look at it, and ld.so refuses it. */
const ELFOSABI_STANDALONE = 255;
const EI_OSABI = 7,
  E_TYPE = 16,
  E_MACHINE = 18,
  E_ENTRY = 24,
  E_PHOFF = 32,
  E_SHOFF = 40,
  E_PHENTSIZE = 54,
  E_PHNUM = 56,
  E_SHNUM = 60,
  E_SHSTRNDX = 62;

/** One program header, `Elf64_Phdr`; addresses are relative to where the file is loaded. */
export interface ProgramHeader {
  /** `p_type`: PT_LOAD and others. */
  type: number;
  /** `p_flags`: PF_R, PF_W, PF_X. */
  flags: number;
  /** Where it begins in the file. */
  offset: bigint;
  /** Where it begins in memory. */
  address: bigint;
  /** What there is of it in the file, in bytes. */
  fileSize: bigint;
  /** What there is of it in memory: the rest is zeros. */
  memorySize: bigint;
  /** `p_align`, a power of two. */
  align: bigint;
}

/** What the kernel reads of an executable. */
export interface Elf {
  /** The bytes of the ELF header. */
  header: Uint8Array<ArrayBuffer>;
  /** `e_type`: ET_DYN as it is read. */
  type: number;
  /** Address of the first instruction, `e_entry`. */
  entry: bigint;
  /** In the order of the file. */
  programHeaders: ProgramHeader[];
}

/**
 * Reads the ELF header and the program headers of `path`.
 *
 * @throws {Error} if the file is not a position-independent 64-bit x86-64 executable, with what it is instead.
 */
export async function readElf(path: string): Promise<Elf> {
  using file = await Deno.open(path);
  const refuse = (reason: string) => new Error(`Cannot pack ${path}: ${reason}`);
  const header = await readAt(file, 0n, ELF_HEADER_BYTES);
  if (header === undefined || header[0] !== 0x7f || String.fromCharCode(...header.subarray(1, 4)) !== "ELF") {
    throw refuse("it is not an ELF file");
  }
  if (header[4] !== ELFCLASS64 || header[5] !== ELFDATA2LSB) {
    throw refuse(`it is not a 64-bit little-endian ELF file (class ${header[4]}, data encoding ${header[5]})`);
  }
  const view = new DataView(header.buffer);
  const machine = view.getUint16(E_MACHINE, true);
  if (machine !== EM_X86_64) {
    throw refuse(`it is for machine ${machine}, not for x86-64 (${EM_X86_64})`);
  }
  const type = view.getUint16(E_TYPE, true);
  if (type !== ET_DYN) {
    throw refuse(`its ELF type is ${type}, not that of a position-independent executable (${ET_DYN})`);
  }
  const size = view.getUint16(E_PHENTSIZE, true);
  if (size !== PROGRAM_HEADER_BYTES) {
    throw refuse(`its program headers have ${size} bytes, not ${PROGRAM_HEADER_BYTES}`);
  }
  const count = view.getUint16(E_PHNUM, true);
  const table = await readAt(file, view.getBigUint64(E_PHOFF, true), count * PROGRAM_HEADER_BYTES);
  if (table === undefined) {
    throw refuse(`it ends within its program headers`);
  }

  const entries = new DataView(table.buffer);
  const programHeaders = Array.from(
    { length: count },
    (_, index): ProgramHeader => {
      const at = index * PROGRAM_HEADER_BYTES;
      return {
        type: entries.getUint32(at, true),
        flags: entries.getUint32(at + 4, true),
        offset: entries.getBigUint64(at + 8, true),
        address: entries.getBigUint64(at + 16, true),
        fileSize: entries.getBigUint64(at + 32, true),
        memorySize: entries.getBigUint64(at + 40, true),
        align: entries.getBigUint64(at + 48, true),
      };
    },
  );
  return { header, type, entry: view.getBigUint64(E_ENTRY, true), programHeaders };
}

/**
 * Writes `elf` over the headers of `file`, which has as many program headers already. The section headers, which nothing needs
 * to run, are left out: strip(1) would rebuild the file from them, without what they do not name. And it is said to be of no
 * system's: ldd(1) has ld.so look at the file, which takes its addresses for others than they are, and would crash.
 */
export async function writeElf(file: Deno.FsFile, elf: Elf): Promise<void> {
  const header = elf.header.slice();
  const view = new DataView(header.buffer);
  view.setUint8(EI_OSABI, ELFOSABI_STANDALONE);
  view.setUint16(E_TYPE, elf.type, true);
  view.setBigUint64(E_ENTRY, elf.entry, true);
  view.setBigUint64(E_SHOFF, 0n, true);
  view.setUint16(E_SHNUM, 0, true);
  view.setUint16(E_SHSTRNDX, 0, true);
  await writeAt(file, 0n, header);

  const table = new Uint8Array(elf.programHeaders.length * PROGRAM_HEADER_BYTES);
  const entries = new DataView(table.buffer);
  for (const [index, programHeader] of elf.programHeaders.entries()) {
    const at = index * PROGRAM_HEADER_BYTES;
    entries.setUint32(at, programHeader.type, true);
    entries.setUint32(at + 4, programHeader.flags, true);
    entries.setBigUint64(at + 8, programHeader.offset, true);
    entries.setBigUint64(at + 16, programHeader.address, true);
    entries.setBigUint64(at + 24, programHeader.address, true); // p_paddr, which Linux ignores
    entries.setBigUint64(at + 32, programHeader.fileSize, true);
    entries.setBigUint64(at + 40, programHeader.memorySize, true);
    entries.setBigUint64(at + 48, programHeader.align, true);
  }
  await writeAt(file, view.getBigUint64(E_PHOFF, true), table);
}

/** Writes all of `bytes` at `offset`. */
export async function writeAt(file: Deno.FsFile, offset: bigint, bytes: Uint8Array): Promise<void> {
  await file.seek(offset, Deno.SeekMode.Start);
  for (let written = 0; written < bytes.length;) {
    written += await file.write(bytes.subarray(written));
  }
}

/** `length` bytes at `offset`; undefined when the file ends before. */
export async function readAt(
  file: Deno.FsFile,
  offset: bigint,
  length: number,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const bytes = new Uint8Array(length);
  await file.seek(offset, Deno.SeekMode.Start);
  for (let got = 0; got < length;) {
    const count = await file.read(bytes.subarray(got));
    if (count === null) return undefined;
    got += count;
  }
  return bytes;
}
