/** What a release says of itself, and what makes it. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);

async function notes(version: string): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command("sh", { args: [`${ROOT}.github/notes.sh`, version] })
    .output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

Deno.test("a release's notes are its section of CHANGELOG.md, whole and no more", async () => {
  const changelog = Deno.readTextFileSync(`${ROOT}CHANGELOG.md`);
  const sections = changelog.split(/^## /m).slice(1);
  assert(sections[0]!.startsWith("[Unreleased]"), "what is not released stands first");
  assert(sections.length > 1);
  for (const section of sections.slice(1)) {
    const [, version, text] = /^\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d\n([^]*)$/.exec(section)!;
    const { code, stdout } = await notes(version!);
    assertEquals([code, stdout.trim()], [0, text!.trim()]);
  }
});

Deno.test("there are no notes for a version that CHANGELOG.md has nothing of", async () => {
  const { code, stdout, stderr } = await notes("9.9.9");
  assertEquals([code, stdout], [1, ""]);
  assertStringIncludes(stderr, "9.9.9");
});

Deno.test("the workflow's actions are named by their commits", () => {
  const workflow = Deno.readTextFileSync(`${ROOT}.github/workflows/ci.yml`);
  const used = [...workflow.matchAll(/uses: *(.*)/g)].map(([, action]) => action!);
  assert(used.length > 0);
  for (const action of used) assertMatch(action, /^[\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
});
