/** Which commit is built, and what a package's version makes of that. */

import { assertEquals, assertMatch } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { type Commit, commitOf } from "../../lib/standalone/commit.ts";
import { versionOf } from "../../lib/packaging/deb.ts";
import { must } from "../e2e/command.ts";

const TIME = Date.UTC(2026, 10, 25, 10, 38, 17) / 1000;
const NOBODY = 65534;

/** Runs git(1) in a folder, as somebody, at some time. */
function git(folder: string, ...args: string[]): Promise<string> {
  const who = ["AUTHOR", "COMMITTER"].flatMap((role) => [
    `GIT_${role}_NAME=Some Body`,
    `GIT_${role}_EMAIL=some@body`,
    `GIT_${role}_DATE=@${TIME} +0000`,
  ]);
  return must(["env", ...who, "GIT_CONFIG_GLOBAL=/dev/null", "git", "-C", folder, ...args]);
}

/** Runs `test` with a repository of one commit. */
async function withRepository(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${folder}/sub`);
    await Deno.writeTextFile(`${folder}/sub/file`, "1");
    await git(folder, "init", "--quiet");
    await git(folder, "add", ".");
    await git(folder, "commit", "--quiet", "--message=one");
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("a commit has its hash, its time and its author; with changes it is dirty, also as another user's", () =>
  withRepository(async (folder) => {
    const hash = (await git(folder, "rev-parse", "HEAD")).trim();
    await must(["chown", "-R", `${NOBODY}`, folder]);
    const clean = await commitOf(`${folder}/`);
    assertEquals([clean?.name, clean?.time, clean?.author], [hash, TIME, "Some Body <some@body>"]);
    await Deno.writeTextFile(`${folder}/untracked`, "");
    assertEquals((await commitOf(folder))?.name, hash);
    await Deno.writeTextFile(`${folder}/sub/file`, "2");
    assertEquals((await commitOf(folder))?.name, `${hash}-dirty`);
  }));

Deno.test("a folder that is no repository's own has no commit, also not that of a repository around it", () =>
  withRepository(async (folder) => {
    assertEquals(await commitOf(`${folder}/sub/`), undefined);
    await Deno.remove(`${folder}/.git`, { recursive: true });
    assertEquals(await commitOf(folder), undefined);
  }));

Deno.test("a commit is tagged when nothing has been changed since", () =>
  withRepository(async (folder) => {
    assertEquals((await commitOf(folder))?.isTagged("v1"), false);
    await git(folder, "tag", "v1");
    const commit = await commitOf(folder);
    assertEquals([commit?.isTagged("v1"), commit?.isTagged("v2")], [true, false]);
    await Deno.writeTextFile(`${folder}/sub/file`, "2");
    assertEquals((await commitOf(folder))?.isTagged("v1"), false);
  }));

/** Whether dpkg takes a version for higher than another. */
async function isHigher(version: string, than: string): Promise<boolean> {
  return (await must(["sh", "-c", 'dpkg --compare-versions "$0" gt "$1" && echo yes || echo no', version, than])) ===
    "yes\n";
}

Deno.test("a package's version is the release's, or else that, the time and the commit: a later one is higher", async () => {
  const commit = (name: string, time: number, tag = ""): Commit => ({
    name,
    time,
    author: "",
    isTagged: (asked) => asked === tag,
  });
  const { version } = config;
  const release = versionOf(commit("f".repeat(40), TIME, `v${version}`));
  assertEquals([release, versionOf(undefined)], [`${version}-1`, `${version}-1`]);
  const first = versionOf(commit("f".repeat(40), TIME));
  assertEquals(first, `${version}+git20261125103817.ffffffff-1`);
  const changed = versionOf(commit(`${"f".repeat(40)}-dirty`, TIME));
  assertMatch(changed, /\.ffffffff\.dirty-1$/);
  const second = versionOf(commit("0".repeat(40), TIME + 1));
  for (const [high, low] of [[first, release], [changed, first], [second, changed]] as const) {
    assertEquals(await isHigher(high, low), true, `${high} is not higher than ${low}`);
  }
});
