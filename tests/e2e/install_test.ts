/** `make install` and `make uninstall`: what they put where, what they leave alone, and what they say. */

import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { Builds } from "./builds.ts";
import { must, type Result, run } from "./command.ts";
import { hashOf, PACKAGE, PATH, SMALL, withPackages } from "./dpkg.ts";
import { newPlace, OUR_EXECUTABLE, REPOSITORY } from "./env.ts";
import {
  assertExecs,
  assertRuns,
  endContainer,
  killHost,
  type Machine,
  onlyHosted,
  TALKING,
  untilEnded,
  withMachine,
} from "./host.ts";
import { removeFolder } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { withShim } from "./shim.ts";

modes(["hosted"], "what is installed, and where, does not depend on the mode; what runs meanwhile has hosts");

/** Runs make for a target, there or on some machine. */
function make(target: string, variables: readonly string[], prefix: readonly string[] = []): Promise<Result> {
  return run([...prefix, "make", "--silent", "-C", REPOSITORY, target, ...variables]);
}

/** Runs `test` with an empty folder to install into. */
async function withFolder(test: (folder: string, ...variables: string[]) => Promise<void>): Promise<void> {
  const { folder } = newPlace();
  try {
    await test(folder, `DESTDIR=${folder}`, "PREFIX=/opt");
  } finally {
    await removeFolder(folder);
  }
}

/** The files below a folder, and links, as find(1) shows them. */
async function files(folder: string): Promise<string[]> {
  return (await must(["find", folder, "!", "-type", "d", "-printf", "%P %m\n"])).split("\n").filter(Boolean).toSorted();
}

const EXECUTABLE = "opt/bin/containerd-shim";
const PAGE = "opt/share/man/man8/containerd-shim.8";
const DOCUMENTS = "opt/share/doc/containerd-shim";

onlyHosted(
  "make install puts program, manual page and documents below PREFIX in DESTDIR; make uninstall removes them",
  () =>
    withFolder(async (folder, ...where) => {
      for (const _ of ["first", "over itself"]) {
        const { code, stdout, stderr } = await make("install", where);
        assertEquals([code, stderr], [0, ""]);
        assertStringIncludes(stdout, `Installed ${folder}/${EXECUTABLE}`);
      }
      const installed = await files(folder);
      for (
        const each of [`${EXECUTABLE} 755`, `${PAGE} 644`, `${DOCUMENTS}/LICENSE 644`, `${DOCUMENTS}/README.md 644`]
      ) {
        assert(installed.includes(each), `there is no ${each} in ${installed}`);
      }
      await must(["cmp", `${folder}/${EXECUTABLE}`, OUR_EXECUTABLE]);
      const { code, stderr } = await make("uninstall", where);
      assertEquals([code, stderr], [0, ""]);
      assertEquals(await files(folder), []);
    }),
);

onlyHosted(
  "make install does not replace a file that is not this project's, and says what to do; nor does uninstall remove it",
  () =>
    withFolder(async (folder, ...where) => {
      await Deno.mkdir(`${folder}/opt/bin`, { recursive: true });
      const path = `${folder}/${EXECUTABLE}`;
      const foreign: (() => Promise<void>)[] = [
        () => Deno.copyFile(SMALL, path),
        () => Deno.writeTextFile(path, "#!/bin/sh\n"),
        // A link may be how somebody has chosen among several.
        () => Deno.symlink(OUR_EXECUTABLE, path),
        () => Deno.symlink("/nowhere", path),
        () => Deno.mkdir(path),
      ];
      for (const put of foreign) {
        await put();
        const before = await must(["ls", "-l", "--time-style=full-iso", path]);
        const { code, stderr } = await make("install", where);
        assertNotEquals(code, 0);
        assertStringIncludes(stderr, `${path} is not replaced: it is not this project's.`);
        assertStringIncludes(stderr, `dpkg-divert --local --add --rename --divert ${path}.go ${path}`);
        assertStringIncludes(stderr, "make deb");
        assertStringIncludes(
          (await make("uninstall", where)).stderr,
          `${path} is not removed: it is not this project's.`,
        );
        assertEquals(await must(["ls", "-l", "--time-style=full-iso", path]), before);
        assertEquals((await files(folder)).filter((each) => !each.startsWith(EXECUTABLE)), []);
        await Deno.remove(path);
      }
    }),
);

onlyHosted(
  "make install does not replace a manual page that is not this project's",
  () =>
    withFolder(async (folder, ...where) => {
      await Deno.mkdir(`${folder}/opt/share/man/man8`, { recursive: true });
      await Deno.writeTextFile(`${folder}/${PAGE}`, ".TH OTHER 8\n");
      assertStringIncludes((await make("install", where)).stderr, `${PAGE} is not replaced`);
      assertStringIncludes((await make("uninstall", where)).stderr, `${PAGE} is not removed`);
      assertEquals(await Deno.readTextFile(`${folder}/${PAGE}`), ".TH OTHER 8\n");
      assertEquals((await files(folder)).length, 1);
    }),
);

onlyHosted(
  "make uninstall leaves what else is in the folders, and says so",
  () =>
    withFolder(async (folder, ...where) => {
      await make("install", where);
      await Deno.writeTextFile(`${folder}/${DOCUMENTS}/notes`, "");
      const { code, stderr } = await make("uninstall", where);
      assertEquals(code, 0);
      assertMatch(stderr, /containerd-shim is left: there are other files in it/);
      assertEquals((await files(folder)).map((each) => each.split(" ")[0]), [`${DOCUMENTS}/notes`]);
    }),
);

onlyHosted(
  "make install over an older build leaves what runs alone, which goes on with the old file, and hosts with it",
  () =>
    withFolder((folder, ...where) =>
      withMachine(async (machine) => {
        await using builds = new Builds();
        const older = await builds.make();
        await Deno.mkdir(`${folder}/opt/bin`, { recursive: true });
        const path = `${folder}/${EXECUTABLE}`;
        await Deno.copyFile(older, path);
        const form = { name: "installed", path };
        await withShim({ prefix: machine.prefix, shim: form }, async (shim) => {
          await shim.run();
          const old = await hashOf(shim.pid);
          assertEquals((await make("install", where)).stderr, "");
          assertEquals(await hashOf(shim.pid), old);
          await assertExecs(shim, "e1");
          await killHost(machine);
          await assertExecs(shim, "e2");
          assertEquals(await hashOf(machine.host().pid), old);
          await withShim({ prefix: machine.prefix, shim: form, args: TALKING }, async (next) => {
            assertNotEquals(await hashOf(next.pid), old);
            await assertRuns(next);
          });
          assertEquals((await make("uninstall", where)).stderr, "");
          await killHostsOf(machine, old);
          await assertExecs(shim, "e3");
          await endContainer(shim);
        });
      })
    ),
);

/** Kills the hosts that run an executable with this hash. */
async function killHostsOf(machine: Machine, hash: string): Promise<void> {
  for (const { pid } of machine.hosts()) {
    if (await hashOf(pid) !== hash) continue;
    Deno.kill(pid, "SIGKILL");
    await untilEnded(pid);
  }
}

onlyHosted(
  "make install does not replace a package's shim until it has been diverted as told; uninstall says how to put it back",
  () =>
    withPackages(async (packages) => {
      const { prefix } = packages.machine;
      const go = await packages.hash(PATH);
      const where = ["PREFIX=/usr"];
      const refused = await make("install", where, prefix);
      assertNotEquals(refused.code, 0);
      assertStringIncludes(refused.stderr, `${PATH} is not replaced: it is package containerd's.`);
      assertStringIncludes(
        (await make("uninstall", where, prefix)).stderr,
        `${PATH} is not removed: it is package containerd's`,
      );
      assertEquals(await packages.hash(PATH), go);

      const divert = /^ +(dpkg-divert --local .*)$/m.exec(refused.stderr)![1]!;
      await packages.must("sh", "-c", divert);
      for (const _ of ["first", "over itself"]) assertEquals((await make("install", where, prefix)).stderr, "");
      assertMatch(await packages.must("containerd-shim", "-version"), /^containerd-shim +\d/);
      const { stdout } = await make("uninstall", where, prefix);
      const back = /^ +(dpkg-divert --rename --remove .*)$/m.exec(stdout)![1]!;
      await packages.must("sh", "-c", back);
      assertEquals([await packages.hash(PATH), await packages.diverted()], [go, ""]);
    }),
);

onlyHosted(
  "make install does not replace what our own package has installed, nor does make uninstall remove it",
  () =>
    withPackages(async (packages) => {
      await packages.dpkg("--install", await packages.make());
      const ours = await packages.hash(PATH);
      for (const target of ["install", "uninstall"]) {
        const { code, stderr } = await make(target, ["PREFIX=/usr"], packages.machine.prefix);
        assertNotEquals(code, 0);
        assertStringIncludes(stderr, `it is package ${PACKAGE}'s`);
      }
      assertEquals(await packages.hash(PATH), ours);
      assertEquals(await packages.must("dpkg", "--verify", PACKAGE), "");
    }),
);
