/** Each file of end-to-end tests says in which modes its tests run. */

import { assertEquals } from "@std/assert";
import { CHOICES } from "../quick.ts";
import { flawOfStatements, statedModes } from "../stated.ts";

const E2E = new URL("../e2e/", import.meta.url);

const FILES = [...Deno.readDirSync(E2E)].map(({ name }) => name).filter((name) => name.endsWith("_test.ts")).sort();

function sourceOf(file: string): string {
  return Deno.readTextFileSync(new URL(file, E2E));
}

Deno.test("each file states the modes of its tests, before the first of them, so that tests/run.ts can read it", () => {
  const flaws = FILES.map((file) => [file, flawOfStatements(sourceOf(file))]);
  assertEquals(flaws.filter(([, flaw]) => flaw !== undefined), []);
});

Deno.test("what make check runs is in modes that the files state", () => {
  const wrong = FILES.flatMap((file) => {
    const stated = statedModes(sourceOf(file));
    return (CHOICES[file]?.ways ?? ["hosted"]).filter((way) => !stated.has(way)).map((way) => `${file}: ${way}`);
  });
  assertEquals(wrong, []);
});

Deno.test("what a file states is read from its text", () => {
  const stated = (source: string) => [...statedModes(source)];
  assertEquals(stated('modes(["hosted", "alone"], "why");\n'), ["hosted", "alone"]);
  assertEquals(stated('modes(["hosted"], "why");\n\nmodes(\n  ["mixed"],\n  "why",\n);\n'), ["hosted", "mixed"]);
  assertEquals(stated('inModes(["alone"], "why", "name", () => {});\nonlyHosted("name", () => {});\n'), [
    "alone",
    "hosted",
  ]);
  assertEquals(stated('// modes(["hosted"], "why");\n'), []);
});

Deno.test("what is wrong with what a file states is found", () => {
  const test = 'Deno.test("name", () => {});\n';
  assertEquals(flawOfStatements(`modes(["hosted"], "why");\n${test}`), undefined);
  assertEquals(flawOfStatements('inModes(["alone"], "why", "name", () => {});\n'), undefined);
  assertEquals(
    flawOfStatements(`${test}modes(["hosted"], "why");\n`),
    "a test is registered before modes(…) is called",
  );
  assertEquals(flawOfStatements(`for (;;) {\n  ${test}}\n`), "a test is registered before modes(…) is called");
  assertEquals(flawOfStatements(`modes(MODES, "why");\n${test}`), "modes are not written as literals");
  assertEquals(flawOfStatements(""), "it runs in no mode");
});
