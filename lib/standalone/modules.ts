/**
 * The modules that `deno bundle` splits a program into, as scripts that are evaluated when they are first wanted.
 *
 * Of a program in one piece V8 parses everything at start, also what is not called then. Here each module is a text of its
 * own; a small loader evaluates the main one, which has the others evaluated as it imports them.
 */

/** A module: its file's name, and its text. */
export interface Module {
  /** With its extension, without a folder. */
  readonly name: string;
  /** A script, for {@link link} to put together. */
  readonly text: string;
}

/** A reference to another module, in an import of either kind; and what the bundler adds to a name: a hash, of its path too. */
const REFERENCE = /"\.\/([\w.-]+\.js)"/g;
const HASH = /-[0-9A-Z]{8}\.js$/;

/**
 * The modules that `main` needs, in the order in which they are first named, and by names that say nothing of the folder in which
 * they were bundled: the same program is always the same text.
 *
 * @throws {Error} when one is named that there is not
 */
export function renamed(modules: readonly Module[], main: string): Module[] {
  const texts = new Map(modules.map(({ name, text }) => [name, text]));
  const names = new Map([[main, main]]);
  const used = new Set(names.values());
  for (const name of names.keys()) {
    const text = texts.get(name);
    if (text === undefined) throw new Error(`Cannot find ${name}, which a module imports`);
    for (const [, found] of text.matchAll(REFERENCE)) {
      if (names.has(found!)) continue;
      const base = found!.replace(HASH, "");
      let other = `${base}.js`;
      for (let i = 2; used.has(other); i++) other = `${base}-${i}.js`;
      used.add(other);
      names.set(found!, other);
    }
  }
  return Array.from(names, ([name, other]) => (
    { name: other, text: texts.get(name)!.replace(REFERENCE, (_, found) => `"./${names.get(found)!}"`) }
  ));
}

/** As esbuild writes them when it minifies: at the beginning, at the end, and a call. */
const IMPORT = /^import(?:(\{[^}]*\})from)?"\.\/([\w.-]+)";/;
const EXPORT = /export(\{[^}]*\});\s*$/;
const DYNAMIC_IMPORT = /\bimport\("\.\/([\w.-]+)"\)/g;

/** `{a as b,c}` of an import or export as pairs. */
function names(clause: string): [from: string, to: string][] {
  return clause.slice(1, -1).split(",").filter((each) => each !== "").map((each) => {
    const [from, to = from] = each.split(" as ") as [string, string?];
    return [from, to!];
  });
}

/**
 * A module as a script, whose value is a function of the loader and of the object that the module's exports go to.
 *
 * @throws {Error} when it is not written as it was when this was
 */
export function scriptOf({ name, text }: Module): string {
  const imports: string[] = [];
  let rest = text;
  for (let found = IMPORT.exec(rest); found !== null; found = IMPORT.exec(rest)) {
    const [whole, clause = "{}", from] = found;
    const taken = names(clause).map(([from, to]) => `${from}:${to}`);
    imports.push(`const{${taken.join()}}=__load("${from}");`);
    rest = rest.slice(whole.length);
  }
  const given = EXPORT.exec(rest);
  const exports = given === null ? [] : names(given[1]!).map(([from, to]) => `${to}:${from}`);
  if (given !== null) rest = rest.slice(0, given.index);
  rest = rest.replace(DYNAMIC_IMPORT, '__import("$1")');
  const left =
    /\b(?:import\s*[("'{*]|import\s+[\w$]+\s+from\b|import\.meta|export\s*[{*]|export\s+(?:default|const|let|var|function|class)\b)/
      .exec(rest);
  if (left !== null) throw new Error(`Cannot make a script of ${name}: it has ${left[0]} at ${left.index}`);
  // In parentheses: V8 takes it for a function that is called at once, and parses it once.
  return `((__load,__import,__exports)=>{"use strict";${imports.join("")}${rest}` +
    `;Object.assign(__exports,{${exports.join()}})})\n//# sourceURL=containerd-shim/${name}`;
}

/**
 * The program that loads the texts of `scripts`, which are one after the other at the address that the environment says, and
 * begins with `main`.
 */
export function loaderOf(scripts: readonly Module[], main: string): string {
  const offsets: Record<string, number> = {};
  let offset = 0;
  for (const { name, text } of scripts) {
    offsets[name] = offset;
    offset += new TextEncoder().encode(text).length + 1;
  }
  return `const texts=BigInt(Deno.env.get("CONTAINERD_SHIM_TEXTS")),offsets=${JSON.stringify(offsets)},loaded={};` +
    `function load(name){let exports=loaded[name];if(exports===undefined){loaded[name]=exports={};` +
    `const at=Deno.UnsafePointer.create(texts+BigInt(offsets[name]));` +
    `(0,eval)(Deno.UnsafePointerView.getCString(at))(load,async(name)=>load(name),exports)}return exports}` +
    `load(${JSON.stringify(main)});`;
}
