/** The C library that the executable says it needs. */

import { assert, assertRejects, assertStringIncludes } from "@std/assert";
import { boundFunctions, checkLibrary, MINIMUM_GLIBC } from "../../lib/standalone/glibc.ts";

Deno.test("glibc is as old as Deno needs it, and README says so", async () => {
  await checkLibrary(Deno.execPath());
  const readme = await Deno.readTextFile(new URL("../../README.md", import.meta.url));
  assertStringIncludes(readme, `glibc ${MINIMUM_GLIBC} or later`);
});

Deno.test("a program that needs another glibc is refused", async () => {
  await assertRejects(() => checkLibrary("/bin/true"), Error, `, and not ${MINIMUM_GLIBC}`);
});

Deno.test("all functions of the C library that are bound are looked at", async () => {
  const names = await boundFunctions();
  for (const name of ["syscall", "posix_spawnp", "splice", "prctl", "gnu_get_libc_version"]) assert(names.has(name));
});
