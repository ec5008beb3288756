/** lib/README.md says which room uses which: the imports are held against it. */

import { assertEquals } from "@std/assert";

const LIB = new URL("../../lib/", import.meta.url);

/** A room: its name as imports have it, and the rooms that it says it uses. */
interface Room {
  readonly name: string;
  readonly uses: readonly string[];
}

/** The list at the beginning of the tour, from above to below. */
function tour(): Room[] {
  const text = Deno.readTextFileSync(new URL("README.md", LIB)).split("\n## ")[0]!;
  return text.split(/^- /m).slice(1).map((item) => {
    const words = (part: string | undefined) => [...(part ?? "").matchAll(/`([^`]+)`/g)].map(([, word]) => word!);
    const [name] = words(/^\*\*(.*?)\*\*/.exec(item)![1]);
    return { name: nameOf(name!), uses: words(/\sUses\s(.*)\.\s*$/s.exec(item.split("\n\n")[0]!)?.[1]).sort() };
  });
}

/** What a room is called that a file of this path, below the repository or below lib/, is in. */
function nameOf(path: string): string {
  return path.replace(/^(\.\.\/|lib\/)/, "").replace(/\/.*$|\.ts$/, "");
}

/** Every file of the program, below the repository. */
function* sources(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(new URL(`../${folder}`, LIB))) {
    if (isDirectory) yield* sources(`${folder}/${name}`);
    else if (name.endsWith(".ts") && !name.endsWith(".d.ts")) yield `${folder}/${name}`;
  }
}

/** The rooms that each file's room uses, of types too. */
function imports(): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  const root = new URL("../", LIB);
  for (const path of ["main.ts", ...sources("lib"), ...sources("ffi")]) {
    const uses = found.get(nameOf(path)) ?? new Set<string>();
    found.set(nameOf(path), uses);
    const source = Deno.readTextFileSync(new URL(path, root)).replace(/^\s*(\/?\*|\/\/).*$/gm, "");
    for (const [, , imported] of source.matchAll(/\b(from|import)[\s(]*"(\.[^"]+(?<!\.json))"/g)) {
      const target = new URL(imported!, new URL(path, root)).href.slice(root.href.length);
      if (nameOf(target) !== nameOf(path)) uses.add(nameOf(target));
    }
  }
  return found;
}

Deno.test("lib/README.md names each room once, and what it uses: no more and no less than it imports", () => {
  const said = tour().map(({ name, uses }) => [name, uses]);
  const done = [...imports()].map(([name, uses]) => [name, [...uses].sort()]);
  assertEquals(Object.fromEntries(said), Object.fromEntries(done));
  assertEquals(said.length, done.length);
});

Deno.test("no room uses one that is above it", () => {
  const rooms = tour().map(({ name }) => name);
  const upwards = tour().flatMap(({ name, uses }, at) =>
    uses.filter((each) => rooms.indexOf(each) < at).map((each) => `${name} uses ${each}, which is above it`)
  );
  assertEquals(upwards, []);
});
