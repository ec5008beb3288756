/** The Debian package, installed, upgraded and removed beside containerd's own while containers run. */

import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { Builds } from "./builds.ts";
import { type Running, start } from "./command.ts";
import { ASIDE, hashOf, PACKAGE, type Packages, PATH, SMALL, VERSIONS, withPackages } from "./dpkg.ts";
import { OUR_EXECUTABLE } from "./env.ts";
import { killHost, onlyHosted } from "./host.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { isHolder } from "./proc.ts";
import { until } from "./until.ts";

modes(["hosted"], "what is installed, and where, does not depend on the mode; what runs meanwhile has hosts");

/** Runs `test` with a containerd of that machine's, which looks for its shim where it always does. */
function withDaemon(packages: Packages, test: (containerd: Containerd) => Promise<void>): Promise<void> {
  return withContainerd(test, {
    prefix: packages.machine.prefix,
    shim: { name: "installed", path: "containerd-shim" },
  });
}

const LASTING = ["/bin/sleep", "1000"];

/** Fails unless a container runs, and another process can be run in it. */
async function assertAnswers(containerd: Containerd, id: string): Promise<void> {
  assertEquals((await containerd.task(id))?.status, "RUNNING");
  assertEquals(await containerd.exec(id, ["--cwd", "/"], ["/bin/echo", "hello"]), "hello\n");
}

onlyHosted(
  "from when the package is installed until it is removed containers have this shim; those from before and from then " +
    "answer on, and end",
  () =>
    withPackages((packages) =>
      withDaemon(packages, async (containerd) => {
        const go = await packages.hash(PATH);
        assert(go !== undefined);
        const [before, during, after] = ["before", "during", "after"].map((id) => containerd.newId(id)) as [
          string,
          string,
          string,
        ];
        await containerd.runDetached(before, LASTING);
        assertEquals(await hashOf(containerd.shimOf(before)), go);

        await packages.dpkg("--install", await packages.make());
        const ours = await packages.hash(OUR_EXECUTABLE);
        assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [ours, go]);
        assertEquals(await packages.must("dpkg", "--verify", PACKAGE, "containerd"), "");
        await containerd.runDetached(during, LASTING);
        const holder = containerd.shimOf(during);
        assertEquals([isHolder(holder), await hashOf(holder)], [true, ours]);
        assertEquals(await hashOf(packages.machine.host().pid), ours);
        await assertAnswers(containerd, before);
        await assertAnswers(containerd, during);

        assertStringIncludes(await packages.dpkg("--remove", PACKAGE), "Containers that run keep the shim");
        assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [go, undefined]);
        assertEquals([await packages.diverted(), await packages.must("dpkg", "--verify", "containerd")], ["", ""]);
        await containerd.runDetached(after, LASTING);
        assertEquals(await hashOf(containerd.shimOf(after)), go);
        assertEquals([await hashOf(holder), await hashOf(packages.machine.host().pid)], [ours, ours]);
        for (const id of [before, during, after]) await assertAnswers(containerd, id);
        for (const id of [before, during, after]) await containerd.end(id);
      })
    ),
);

onlyHosted(
  "when the package has been removed, holders start their next host from the executable that is gone",
  () =>
    withPackages((packages) =>
      withDaemon(packages, async (containerd) => {
        await packages.dpkg("--install", await packages.make());
        const id = containerd.newId();
        await containerd.runDetached(id, LASTING);
        const ours = await hashOf(containerd.shimOf(id));
        await packages.dpkg("--remove", PACKAGE);
        const { pid } = await killHost(packages.machine);
        await assertAnswers(containerd, id);
        const next = packages.machine.host().pid;
        assertNotEquals(next, pid);
        assertEquals(await hashOf(next), ours);
        await containerd.end(id);
      })
    ),
);

onlyHosted(
  "when the package is upgraded, containers that run keep their build until `containerd-shim upgrade` moves them",
  () =>
    withPackages((packages) =>
      withDaemon(packages, async (containerd) => {
        const { machine } = packages;
        await using builds = new Builds();
        const [first, second] = [await builds.make(), await builds.make()];
        const [one, two] = [await packages.hash(first), await packages.hash(second)];
        assertNotEquals(one, two);
        await packages.dpkg("--install", await packages.make(first));
        const [before, after] = [containerd.newId("before"), containerd.newId("after")];
        await containerd.runDetached(before, LASTING);
        const said = await packages.dpkg("--install", await packages.make(second, VERSIONS[1]));
        assertStringIncludes(said, "containerd-shim upgrade");
        assertEquals(await packages.status(), `installed ${VERSIONS[1]}`);

        assertEquals([await hashOf(containerd.shimOf(before)), await hashOf(machine.host().pid)], [one, one]);
        await assertAnswers(containerd, before);
        await killHost(machine);
        await assertAnswers(containerd, before);
        assertEquals(await hashOf(machine.host().pid), one);

        await containerd.runDetached(after, LASTING);
        assertEquals(await hashOf(containerd.shimOf(after)), two);
        assertEquals(machine.hosts().length, 2);

        const { code, stderr } = await packages.run("containerd-shim", "upgrade");
        assertEquals(code, 0, stderr);
        assertMatch(stderr, /with 1 container has handed over 1$/m);
        const moved = await until("one host is left", () => machine.hosts().length === 1 && machine.host());
        assertEquals(await hashOf(moved.pid), two);
        for (const id of [before, after]) {
          await assertAnswers(containerd, id);
          await containerd.end(id);
        }
      })
    ),
);

onlyHosted(
  "the package can be removed, purged, and installed again, and leaves nothing",
  () =>
    withPackages(async (packages) => {
      const go = await packages.hash(PATH);
      const path = await packages.make();
      const files = (await packages.must("dpkg-deb", "--fsys-tarfile", path)).length;
      assert(files > 0);
      for (const [remove, status] of [["--remove", "config-files"], ["--purge", ""]] as const) {
        await packages.dpkg("--install", path);
        assertEquals([await packages.status(), await packages.diverted()], [`installed ${VERSIONS[0]}`, PACKAGE]);
        // Once more, of the same version.
        await packages.dpkg("--install", path);
        assertEquals([await packages.hash(ASIDE), await packages.diverted()], [go, PACKAGE]);
        const listed = (await packages.must("dpkg", "--listfiles", PACKAGE)).trim().split("\n");
        await packages.dpkg(remove, PACKAGE);
        assertMatch(await packages.status(), new RegExp(`^${status || "$"}`));
        assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [go, undefined]);
        assertEquals(await packages.diverted(), "");
        for (const file of listed.filter((each) => each.includes(PACKAGE))) {
          assertEquals((await packages.run("test", "-e", file)).code, 1, file);
        }
      }
      await packages.dpkg("--install", path);
      await packages.dpkg("--remove", PACKAGE);
      await packages.dpkg("--purge", PACKAGE);
      assertEquals([await packages.status(), await packages.hash(PATH)], ["", go]);
    }),
);

onlyHosted(
  "the package has the program, its manual page, its parts and its licences",
  () =>
    withPackages(async (packages) => {
      await packages.dpkg("--install", await packages.make());
      assertMatch(await packages.must("containerd-shim", "-version"), /^containerd-shim +\d+\.\d+\.\d+$/m);
      assertStringIncludes(await packages.must("man", "-w", "containerd-shim"), "containerd-shim.8.gz");
      const documents = `/usr/share/doc/${PACKAGE}`;
      assertStringIncludes(await packages.must("cat", `${documents}/copyright`), "License: Apache-2.0");
      const parts = JSON.parse(await packages.must("cat", `${documents}/containerd-shim.cdx.json`));
      assertEquals(parts.metadata.component.hashes[0].content, await packages.hash(PATH));
      assertMatch(await packages.must("zcat", `${documents}/changelog.Debian.gz`), /^containerd-shim-deno \(/);
    }),
);

onlyHosted(
  "where containerd is 2.x, the package says when it is installed that nothing starts it, and else that containers do",
  () =>
    withPackages(async (packages) => {
      const said = await packages.dpkg("--install", await packages.make(SMALL));
      assertStringIncludes(said, "Containers of runtime v1 that are started from now on have this shim");
      const containerd = `${packages.folder}/containerd`;
      await Deno.writeTextFile(containerd, "#!/bin/sh\necho containerd github.com/containerd/containerd/v2 2.1.9 0\n");
      await packages.must("install", "-m", "755", containerd, "/usr/bin/containerd");
      const then = await packages.dpkg("--install", await packages.make(SMALL, VERSIONS[1]));
      assertStringIncludes(then, "containerd 2.1.9 has no runtime v1");
      assert(!then.includes("that are started from now on"), then);
    }),
);

/** A package of which the end is missing. */
async function cut(path: string): Promise<string> {
  const bytes = await Deno.readFile(path);
  const shorter = path.replace(/\.deb$/, "-cut.deb");
  await Deno.writeFile(shorter, bytes.subarray(0, bytes.length / 2));
  return shorter;
}

onlyHosted(
  "an installation that fails leaves the Go shim in place, and an upgrade that fails what was installed",
  () =>
    withPackages(async (packages) => {
      const go = await packages.hash(PATH);
      const failing = await packages.run("dpkg", "--no-triggers", "--install", await cut(await packages.make(SMALL)));
      assertNotEquals(failing.code, 0);
      assertStringIncludes(failing.stderr, "unexpected end of file");
      assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [go, undefined]);
      assertEquals([await packages.diverted(), await packages.must("dpkg", "--verify", "containerd")], ["", ""]);

      await packages.dpkg("--install", await packages.make(SMALL));
      const ours = await packages.hash(PATH);
      assertNotEquals(ours, go);
      const next = await packages.run(
        "dpkg",
        "--no-triggers",
        "--install",
        await cut(await packages.make(SMALL, VERSIONS[1])),
      );
      assertNotEquals(next.code, 0);
      assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [ours, go]);
      assertEquals([await packages.status(), await packages.diverted()], [`installed ${VERSIONS[0]}`, PACKAGE]);
    }),
);

onlyHosted(
  "where an administrator has diverted the Go shim, the package is not installed, and nothing is changed",
  () =>
    withPackages(async (packages) => {
      const go = await packages.hash(PATH);
      const elsewhere = `${PATH}.mine`;
      await packages.must("dpkg-divert", "--local", "--rename", "--divert", elsewhere, "--add", PATH);
      const { code, stderr } = await packages.run("dpkg", "--no-triggers", "--install", await packages.make(SMALL));
      assertNotEquals(code, 0);
      assertMatch(stderr, /clashes with 'local diversion of/);
      assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [undefined, undefined]);
      assertEquals([await packages.hash(elsewhere), await packages.diverted()], [go, "LOCAL"]);
    }),
);

onlyHosted(
  "containerd's own package is upgraded, removed and installed beside ours, which stays",
  () =>
    withPackages(async (packages) => {
      await packages.dpkg("--install", await packages.make(SMALL));
      const ours = await packages.hash(PATH);
      const newer = await packages.makeOther("containerd", "99-1", "echo newer");
      // Others may need what this package does not have.
      const force = ["--force-depends", "--force-breaks", "--force-conflicts"];
      await packages.dpkg(...force, "--install", newer);
      assertEquals(await packages.hash(PATH), ours);
      assertEquals(await packages.must(ASIDE), "newer\n");
      await packages.dpkg("--remove", PACKAGE);
      assertEquals(await packages.must(PATH), "newer\n");

      await packages.dpkg("--install", await packages.make(SMALL));
      await packages.dpkg(...force, "--remove", "containerd");
      assertEquals([await packages.hash(PATH), await packages.hash(ASIDE)], [ours, undefined]);
      await packages.dpkg("--remove", PACKAGE);
      assertEquals([await packages.hash(PATH), await packages.diverted()], [undefined, ""]);

      await packages.dpkg("--install", await packages.make(SMALL));
      await packages.dpkg(...force, "--install", newer);
      assertEquals([await packages.hash(PATH), await packages.must(ASIDE)], [ours, "newer\n"]);
      await packages.dpkg("--remove", PACKAGE);
      assertEquals(await packages.must(PATH), "newer\n");
    }),
);

/** Looks all the time, until its input ends, whether a program can be run, and says how often it could not. */
const LOOK = `
  my $missing = 0;
  syswrite STDOUT, "looking\n";
  $SIG{TERM} = sub { print "missing $missing\n"; exit };
  for (;;) { -x $ARGV[0] or $missing++; select undef, undef, undef, 0.0001 }
`;

async function look(packages: Packages): Promise<Running> {
  const looking = start([...packages.machine.prefix, "perl", "-e", LOOK, PATH], { patienceMs: 60_000 });
  await until("somebody looks", () => looking.stdoutSoFar() !== "");
  return looking;
}

onlyHosted(
  "there is a shim to be started at each moment of an installation and of an upgrade",
  () =>
    withPackages(async (packages) => {
      const paths = [await packages.make(), await packages.make(OUR_EXECUTABLE, VERSIONS[1])];
      const looking = await look(packages);
      for (const path of paths) await packages.dpkg("--install", path);
      looking.kill("SIGTERM");
      assertEquals((await looking.result).stdout, "looking\nmissing 0\n");
    }),
);
