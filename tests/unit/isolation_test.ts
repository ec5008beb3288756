/** docs/isolation.md names tests that there are. */

import { assert, assertEquals } from "@std/assert";

const PAGE = new URL("../../docs/isolation.md", import.meta.url);
const E2E = new URL("../e2e/", import.meta.url);

/** A test as the page names it. */
const NAMED = /`(\w+_test)`: "([^"]+)"/g;

const page = Deno.readTextFileSync(PAGE);

/** The names that a file's tests are registered with: of its strings, each that is an argument. */
function registered(file: string): string[] {
  const source = Deno.readTextFileSync(new URL(`${file}.ts`, E2E));
  return [...source.matchAll(/(?:^ *|\()"((?:[^"\\\n]|\\.)+)",/gm)].map(([, name]) => name!);
}

Deno.test("each test that docs/isolation.md names is there, in that file", () => {
  const named = [...page.matchAll(NAMED)].map(([, file, name]) => [file!, name!] as const);
  assert(named.length > 0, "it names none");
  assertEquals(named.filter(([file, name]) => !registered(file).includes(name)), []);
});

Deno.test("each row of docs/isolation.md names a test", () => {
  const rows = page.split("\n").filter((line) => line.startsWith("| ")).filter((line) =>
    !/^\| (---|one container|what \|)/.test(line)
  );
  assert(rows.length > 0, "it has none");
  assertEquals(rows.filter((row) => row.search(NAMED) < 0), []);
});
