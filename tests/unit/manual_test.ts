/** The manual page has what the program's tables have, and can be read. */

import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { type Flag, FLAGS } from "../../lib/cli.ts";
import { COMMANDS } from "../../lib/commands.ts";
import { manual } from "../../lib/standalone/manual.ts";
import { must, run } from "../e2e/command.ts";

const DATE = "2026-11-25";

/** Runs a program with the page in a file, whose path is its last argument. */
async function withPage<T>(use: (path: string) => Promise<T>): Promise<T> {
  const path = await Deno.makeTempFile({ suffix: ".8" });
  try {
    await Deno.writeTextFile(path, manual(DATE));
    return await use(path);
  } finally {
    await Deno.remove(path);
  }
}

/** The page as it is shown, in lines that are long enough for whatever is in it. */
function rendered(): Promise<string> {
  const environment = ["LC_ALL=C.UTF-8", "MANWIDTH=2000"];
  return withPage((path) => must(["env", "-u", "MAN_KEEP_FORMATTING", ...environment, "man", "-l", path]));
}

function assertHasFlags(text: string, flags: readonly Flag[]): void {
  for (const { name, alias, help } of flags) {
    assertMatch(text, new RegExp(`^ +(-.*, )?-${name}\\b`, "m"));
    if (alias !== undefined) assertMatch(text, new RegExp(`^ +-.*, -${alias}\\b`, "m"));
    assertStringIncludes(text, help.slice(1).replaceAll("`", ""));
  }
}

Deno.test("the manual page has each flag of a shim, and each command with its flags and exit codes", async () => {
  const text = (await rendered()).replace(/(\S) {2,}(?=\S)/g, "$1 ");
  assertHasFlags(text, FLAGS);
  for (const { name, summary, description, flags, exits = [] } of COMMANDS) {
    assertMatch(text, new RegExp(`^ +containerd-shim ${name}\\b`, "m"));
    for (const sentence of [summary, ...description]) assertStringIncludes(text, sentence.replaceAll("`", ""));
    assertHasFlags(text, flags);
    for (const [code, meaning] of exits) assertMatch(text, new RegExp(`^ +${code} .*${meaning.slice(0, 20)}`, "m"));
  }
});

Deno.test("the manual page has what man-pages(7) wants of one, its version and its date", async () => {
  const text = await rendered();
  const sections = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "EXIT STATUS", "ENVIRONMENT", "FILES"];
  assertEquals(text.match(/^[A-Z][A-Z ]+$/gm), [...sections, "SIGNALS", "NOTES", "EXAMPLES", "SEE ALSO"]);
  assertStringIncludes(text, "NAME\n       containerd-shim - ");
  assertMatch(text, new RegExp(`^containerd-shim ${config.version} +${DATE} `, "m"));
});

Deno.test("man has nothing to say against the manual page", () =>
  withPage(async (path) => {
    const check = ["env", "LC_ALL=C.UTF-8", "man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", path];
    const { code, stderr } = await run(check);
    assertEquals([code, stderr], [0, ""]);
  }));
