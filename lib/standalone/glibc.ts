/**
 * The C library that the executable needs: what Deno itself needs, if ffi/ has no function of a newer one. That is looked at
 * when the executable is made, because nothing else tells on a machine whose library has them all.
 */

/** The oldest glibc that will do, as README has it, and what the entry says where there is none. */
export const MINIMUM_GLIBC = "2.27";

/** The folder in which functions of the C library are bound. */
const FFI = decodeURIComponent(new URL("../../ffi/", import.meta.url).pathname);

/** What binds them, up to its end; and a function in that. */
const BOUND = /\blibc\(\{(.*?)\}\)/gs;
const FUNCTION = /(\w+): \[\[/g;
const CALL = /\blibc\(/g;

/**
 * Fails unless {@linkcode MINIMUM_GLIBC} is what Deno needs, and has each function that ffi/ binds.
 *
 * A function's version is that of this machine's library by which a program is linked today. Where a function has come from
 * another library of glibc's, from libpthread say, that is the version since when it is in this one.
 *
 * @param deno the executable that the program is put into
 * @throws {Error} with what is newer
 */
export async function checkLibrary(deno: string): Promise<void> {
  const imported = [...(await symbolsOf(deno)).matchAll(/\*UND\*.*\(GLIBC_([\d.]+)\) (\S+)$/gm)];
  const needed = imported.map(([, version]) => version!).reduce((a, b) => isNewer(b, a) ? b : a, "0");
  if (needed !== MINIMUM_GLIBC) {
    throw new Error(`Deno needs glibc ${needed}, and not ${MINIMUM_GLIBC}`);
  }
  const library = /\S+\/libc\.so\.6$/m.exec(await Deno.readTextFile("/proc/self/maps"))?.[0];
  if (library === undefined) throw new Error("Cannot check for what glibc it is: there is no libc.so.6 here");
  const versions = new Map<string, string>();
  // Those in parentheses are for programs that have been linked long ago.
  for (const [, version, name] of (await symbolsOf(library)).matchAll(/ GLIBC_([\d.]+) +(\S+)$/gm)) {
    versions.set(name!, version!);
  }
  for (const name of await boundFunctions()) {
    const version = versions.get(name);
    if (version === undefined) throw new Error(`ffi/ has ${name}, which is not in the C library`);
    if (isNewer(version, MINIMUM_GLIBC)) throw new Error(`ffi/ has ${name}, which needs glibc ${version}`);
  }
}

/** The names of all functions of the C library that ffi/ and version.ts bind. */
export async function boundFunctions(): Promise<Set<string>> {
  const files = [`${FFI}../lib/version.ts`];
  for await (const { name } of Deno.readDir(FFI)) if (name.endsWith(".ts")) files.push(`${FFI}${name}`);
  const names = new Set<string>();
  for (const file of files) {
    const text = await Deno.readTextFile(file);
    const bound = [...text.matchAll(BOUND)];
    // One that cannot be read would not be looked at.
    const calls = [...text.matchAll(CALL)].length;
    if (calls !== bound.length) {
      throw new Error(`${file}: ${calls - bound.length} of its ${calls} libc(…) cannot be read`);
    }
    for (const [, functions] of bound) for (const [, name] of functions!.matchAll(FUNCTION)) names.add(name!);
  }
  return names;
}

/** The dynamic symbols of a file, a line each. */
async function symbolsOf(path: string): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("objdump", { args: ["-T", path] }).output();
  if (!success) throw new Error(`objdump -T ${path} failed: ${new TextDecoder().decode(stderr).trim()}`);
  return new TextDecoder().decode(stdout);
}

/** Whether version `a` is newer than `b`. */
function isNewer(a: string, b: string): boolean {
  const [x, y] = [a, b].map((each) => each.split(".").map(Number)) as [number[], number[]];
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    if ((x[i] ?? 0) !== (y[i] ?? 0)) return (x[i] ?? 0) > (y[i] ?? 0);
  }
  return false;
}
