/** lib/MESSAGES.md has every error and warning that the program logs: the table is held against the sources. */

import { assertEquals } from "@std/assert";

const LIB = new URL("../../lib/", import.meta.url);

/** What those who pass a message on call it. */
const PASSED_ON = "message";

function* sources(folder: URL): Generator<URL> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (isDirectory) yield* sources(new URL(`${name}/`, folder));
    else if (name.endsWith(".ts") && !name.endsWith(".d.ts")) yield new URL(name, folder);
  }
}

/** What a holder reports itself. */
const ENTRY = new URL("standalone/entry.c", LIB);

/** "level: message" of each call that logs one of these levels: of a message that is not written there, the expression. */
function logged(): string[] {
  const found = new Set<string>();
  for (const file of sources(LIB)) {
    const calls =
      /(?:\blog\??\.|#log\.)(warn|error)\(\s*(?:"((?:[^"\\]|\\.)*)"|([^",]*))|\btell(?:All)?\("([^"]* [^"]*)"|\breport\("(error|warning)", "([^"]*)"/g;
    for (const [, level, message, other, told, grave, reported] of Deno.readTextFileSync(file).matchAll(calls)) {
      if (other === PASSED_ON) continue;
      const name = grave ?? (level === "warn" ? "warning" : "error");
      found.add(`${name}: ${message ?? told ?? reported ?? `(${other})`}`);
    }
  }
  for (const [, message] of Deno.readTextFileSync(ENTRY).matchAll(/\breport\("([^"]*)"\)/g)) {
    found.add(`error: ${message}`);
  }
  return [...found].sort();
}

Deno.test("lib/MESSAGES.md has each error and warning that is logged, by its level, and no other", () => {
  const table = Deno.readTextFileSync(new URL("MESSAGES.md", LIB)).matchAll(/^\| (error|warning) \| (.*?) \|/gm);
  assertEquals([...table].map(([, level, message]) => `${level}: ${message}`).sort(), logged());
});
