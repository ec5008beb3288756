/** The mounts that Create is given, and their end. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { must, start } from "./command.ts";
import { inModes, onlyOurs } from "./env.ts";
import { loopsBelow, paths } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive, type MountInfo, mountsBelow, parseMountInfo, processes } from "./proc.ts";
import { assertStatus, type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted"], "mounts are made by the same code in each mode");

type Mounts = containerd.types.IMount[];

/** The test's folder of busybox as the root filesystem. */
function bind(shim: Shim, ...options: string[]): Mounts {
  return [{ type: "bind", source: shim.rootfs, options: ["rbind", ...options] }];
}

/** How long Delete may take where somebody uses the root filesystem, on a machine that is busy, in ms. */
const IN_USE_MS = 2000;

/** The same under an overlay, with folders of its own for what is written. */
async function overlay(shim: Shim): Promise<Mounts> {
  const [upper, work] = [`${shim.folder}/upper`, `${shim.folder}/overlay`];
  for (const each of [upper, work]) await Deno.mkdir(each);
  const options = [`lowerdir=${shim.rootfs}`, `upperdir=${upper}`, `workdir=${work}`];
  return [{ type: "overlay", source: "overlay", options }];
}

/** Runs the container to its end on these mounts, and fails unless they are there while it runs and gone afterwards. */
async function expectMounted(shim: Shim, mounts: Mounts, layers = 1): Promise<void> {
  const target = `${shim.bundle}/rootfs`;
  await shim.create({}, { rootfs: mounts });
  assertEquals(mountsBelow(shim.folder), Array(layers).fill(target));
  await shim.startProcess();
  assertEquals((await shim.wait()).status, 0);
  assertEquals(mountsBelow(shim.folder), Array(layers).fill(target));
  await shim.delete();
  assertEquals(mountsBelow(shim.folder), []);
}

Deno.test("a bind mount as root filesystem is mounted at Create, and unmounted at Delete", () =>
  withShim({ mountedRoot: true, args: ["sh", "-c", "echo written >/tmp/file"] }, async (shim) => {
    await expectMounted(shim, bind(shim));
    assertEquals(await Deno.readTextFile(`${shim.rootfs}/tmp/file`), "written\n");
  }));

Deno.test("a read-only bind mount cannot be written", () =>
  withShim({ mountedRoot: true, args: ["sh", "-c", "! echo written >/tmp/file"] }, async (shim) => {
    await expectMounted(shim, bind(shim, "ro"));
    await assertRejects(() => Deno.lstat(`${shim.rootfs}/tmp/file`), Deno.errors.NotFound);
  }));

Deno.test("an overlay as root filesystem is mounted, keeps what is written, and is unmounted", () =>
  withShim({ mountedRoot: true, args: ["sh", "-c", "echo written >/tmp/file"] }, async (shim) => {
    await expectMounted(shim, await overlay(shim));
    assertEquals(await Deno.readTextFile(`${shim.folder}/upper/tmp/file`), "written\n");
    await assertRejects(() => Deno.lstat(`${shim.rootfs}/tmp/file`), Deno.errors.NotFound);
  }));

Deno.test("mounts on top of each other are all unmounted", () =>
  withShim({ mountedRoot: true, args: ["true"] }, async (shim) => {
    await expectMounted(shim, [...bind(shim), ...bind(shim)], 2);
  }));

Deno.test("when one mount fails, the others are undone", () =>
  withShim({ mountedRoot: true, args: ["true"] }, async (shim) => {
    const missing = { type: "bind", source: `${shim.folder}/missing`, options: ["rbind"] };
    const error = await assertRejects(() => shim.create({}, { rootfs: [...bind(shim), missing] }), StatusError);
    assert(/no such file|ENOENT/i.test(error.message), error.message);
    assertEquals(shim.leftovers(), []);
    // And nothing is in the way of the next.
    await expectMounted(shim, bind(shim));
  }));

Deno.test("when runc fails, the mounts are undone", () =>
  withShim({ mountedRoot: true, args: ["no-such-command"] }, async (shim) => {
    await assertRejects(() => shim.create({}, { rootfs: bind(shim) }), StatusError, "OCI runtime create failed: ");
    assertEquals(shim.leftovers(), []);
  }));

Deno.test("deleting a container that was not started unmounts", () =>
  withShim({ mountedRoot: true }, async (shim) => {
    const pid = await shim.create({}, { rootfs: bind(shim) });
    await shim.delete();
    await until("its init has ended", () => !isAlive(pid));
    assertEquals(mountsBelow(shim.folder), []);
  }));

inModes(
  ["hosted"],
  "both undo mounts in the same way",
  "a root filesystem that somebody on the host uses is detached when its container is deleted, with what is mounted below",
  () =>
    withShim({ mountedRoot: true, args: ["true"] }, async (shim) => {
      // What is bound is to keep what is mounted in it.
      await must(["mount", "--bind", shim.rootfs, shim.rootfs]);
      await must(["mount", "--make-shared", shim.rootfs]);
      await must(["mount", "-t", "tmpfs", "tmpfs", `${shim.rootfs}/tmp`]);
      await Deno.writeTextFile(`${shim.rootfs}/tmp/file`, "below\n");
      const before = mountsBelow(shim.folder);
      await using cleanup = new AsyncDisposableStack();
      cleanup.defer(async () => {
        for (const each of before.toReversed()) await must(["umount", "-l", each]);
      });
      const target = `${shim.bundle}/rootfs`;
      await shim.run({}, { rootfs: bind(shim) });
      const user = start(["sh", "-c", `cd '${target}/tmp' && echo there && read -r line && cat file`]);
      await until("somebody is there", () => user.stdoutSoFar() === "there\n");
      await shim.wait();

      const startedAt = performance.now();
      await shim.delete();
      assert(performance.now() - startedAt < IN_USE_MS, `Delete has taken ${performance.now() - startedAt} ms`);
      assertEquals(mountsBelow(shim.folder), before);
      await Deno.remove(shim.bundle, { recursive: true });
      assertMatch(shim.unreadLog(), new RegExp(`level=warning msg="a mount is in use .*mount="?${target}\\b`));
      await user.write(new TextEncoder().encode("\n"));
      await user.closeStdin();
      assertEquals((await user.result).stdout, "there\nbelow\n");
    }),
  { isOnlyOurs: true },
);

/** What is mounted at the container's root, topmost last, when the runtime is started: one that fails, and runs nothing. */
async function mountedAtRoot(shim: Shim, mounts: Mounts): Promise<MountInfo[]> {
  const file = `${shim.folder}/mountinfo`;
  const runtime = await shim.makeProgram("fake-runc", `#!/bin/sh\ncat /proc/self/mountinfo >'${file}'\nexit 1\n`);
  await assertRejects(() => shim.create({}, { runtime, rootfs: mounts }), StatusError, "OCI runtime create failed: ");
  assertEquals(mountsBelow(shim.folder), []);
  return parseMountInfo(await Deno.readTextFile(file)).filter(({ path }) => path === `${shim.bundle}/rootfs`);
}

Deno.test("mounts are made in order: each may use what the one before has put there", () =>
  withShim({ mountedRoot: true, args: ["sh", "-c", "test -e /only-here && echo written >/tmp/file"] }, async (shim) => {
    const other = `${shim.folder}/other`;
    await Deno.mkdir(other);
    await Deno.writeTextFile(`${shim.rootfs}/only-here`, "");
    const [over] = await overlay(shim);
    const options = over!.options!.map((each) => each.replace(/^lowerdir=.*/, `lowerdir=${shim.bundle}/rootfs`));
    await expectMounted(
      shim,
      [{ type: "bind", source: other, options: ["rbind"] }, ...bind(shim, "ro"), { ...over!, options }],
      3,
    );
    assertEquals(await Deno.readTextFile(`${shim.folder}/upper/tmp/file`), "written\n");
  }));

Deno.test("what has been mounted through a symbolic link, which runc refuses, is undone", () =>
  withShim({ mountedRoot: true, args: ["true"] }, async (shim) => {
    const elsewhere = `${shim.folder}/elsewhere`;
    await Deno.mkdir(elsewhere);
    await Deno.symlink(elsewhere, `${shim.bundle}/rootfs`);
    await assertStatus(shim.create({}, { rootfs: bind(shim) }), Code.UNKNOWN, /invalid rootfs: .*symlink/);
    assertEquals(mountsBelow(shim.folder), []);
  }));

Deno.test("a read-only bind keeps its other flags, and the container sees them all", () =>
  withShim({ mountedRoot: true, args: ["awk", '$5 == "/"', "/proc/self/mountinfo"] }, async (shim) => {
    const { stdout } = await shim.createWithFifos({ rootfs: bind(shim, "ro", "nosuid", "nodev") });
    await shim.startProcess();
    assertEquals((await shim.wait()).status, 0);
    const text = await stdout.text();
    await shim.delete();
    const [root] = parseMountInfo(text);
    for (const flag of ["ro", "nosuid", "nodev"]) assert(root!.flags.includes(flag), text);
  }));

Deno.test("a read-only bind is noexec too, when that is asked for", () =>
  withShim({ mountedRoot: true }, async (shim) => {
    const [root] = await mountedAtRoot(shim, bind(shim, "ro", "nosuid", "nodev", "noexec"));
    assertEquals(root!.flags.filter((flag) => flag !== "relatime"), ["ro", "nosuid", "nodev", "noexec"]);
  }));

onlyOurs(
  "it needs ro besides",
  "a bind that is not read-only has its flags too",
  () =>
    withShim({ mountedRoot: true }, async (shim) => {
      const [root] = await mountedAtRoot(shim, bind(shim, "nosuid", "nodev", "noexec"));
      assertEquals(root!.flags.filter((flag) => flag !== "relatime"), ["rw", "nosuid", "nodev", "noexec"]);
    }),
);

for (const propagation of ["private", "shared"] as const) {
  onlyOurs(
    "it cannot unmount what has mounts below it",
    `rbind brings along what is mounted below, bind does not; it is unmounted, and stays where it was (${propagation})`,
    () =>
      withShim({ mountedRoot: true, args: ["cat", "/tmp/file"] }, async (shim) => {
        // A mount of its own, so that what it propagates to is known.
        await must(["mount", "--bind", shim.rootfs, shim.rootfs]);
        await must(["mount", `--make-r${propagation}`, shim.rootfs]);
        const submount = `${shim.rootfs}/tmp`;
        await must(["mount", "-t", "tmpfs", "tmpfs", submount]);
        await Deno.writeTextFile(`${submount}/file`, "below\n");
        const before = mountsBelow(shim.folder);
        try {
          for (const [option, status, output] of [["rbind", 0, "below\n"], ["bind", 1, ""]] as const) {
            const rootfs = [{ type: "bind", source: shim.rootfs, options: [option] }];
            const { stdout, fifos } = await shim.createWithFifos({ rootfs });
            await shim.startProcess();
            assertEquals(await stdout.text(), output);
            assertEquals((await shim.wait()).status, status);
            await shim.delete();
            assertEquals(mountsBelow(shim.folder), before);
            for (const each of Object.values(fifos)) await Deno.remove(each);
          }
        } finally {
          // So that what is unmounted here is unmounted nowhere else, also when the test has failed.
          await must(["mount", "--make-rprivate", shim.rootfs]);
        }
        for (const mount of [submount, shim.rootfs]) await must(["umount", mount]);
      }),
  );
}

/** Folders of one file each, and the test's folder of busybox below them, as lowerdir has them. */
async function layers(shim: Shim, folder: string, count: number): Promise<string[]> {
  const made = Array.from({ length: count }, (_, i) => `${folder}/${i}/fs`);
  for (const [i, each] of made.entries()) {
    await Deno.mkdir(each, { recursive: true });
    await Deno.writeTextFile(`${each}/file-${i}`, "");
  }
  await Deno.symlink(shim.rootfs, `${folder}/rootfs`);
  return [...made, `${folder}/rootfs`];
}

/** Runs a container on these layers, which lists the files of theirs that it sees. */
async function expectLayers(shim: Shim, lowers: readonly string[], folder = shim.folder): Promise<void> {
  const [upper, work] = [`${folder}/upper`, `${folder}/scratch`];
  for (const each of [upper, work]) await Deno.mkdir(each);
  const options = [`workdir=${work}`, `lowerdir=${lowers.join(":")}`, `upperdir=${upper}`];
  assert(options.join().length > 4096, "the options do not pass one page");
  const { stdout } = await shim.createWithFifos({ rootfs: [{ type: "overlay", source: "overlay", options }] });
  assertEquals(mountsBelow(shim.folder), [`${shim.bundle}/rootfs`]);
  await shim.startProcess();
  const seen = (await stdout.text()).trim().split("\n").sort();
  assertEquals(seen, lowers.slice(0, -1).map((_, i) => `/file-${i}`).sort());
  assertEquals((await shim.wait()).status, 0);
  assertEquals(await Deno.readLink(`/proc/${shim.pid}/cwd`), shim.bundle, "the shim is elsewhere");
  await shim.delete();
  assertEquals(mountsBelow(shim.folder), []);
}

const LIST = ["sh", "-c", "echo /file-* | tr ' ' '\\n'"];

Deno.test("an overlay of 200 layers with long paths, whose options pass one page, is mounted with all of them", () =>
  withShim({ mountedRoot: true, args: LIST }, async (shim) => {
    await expectLayers(shim, await layers(shim, `${shim.folder}/${"long-".repeat(40)}`, 200));
  }));

onlyOurs(
  "it takes an escaped colon for the end of a layer",
  "so is one of layers whose paths have a colon in them",
  () =>
    withShim({ mountedRoot: true, args: LIST }, async (shim) => {
      const lowers = await layers(shim, `${shim.folder}/a:b\\c/${"long-".repeat(40)}`, 200);
      await expectLayers(shim, lowers.map((each) => each.replace(/[:\\]/g, "\\$&")));
    }),
);

onlyOurs(
  "it gives up",
  "so is one of layers that have only the root folder in common",
  () =>
    withShim({ mountedRoot: true, args: LIST }, async (shim) => {
      const other = await Deno.makeTempDir({ dir: "/var/tmp" });
      using cleanup = new DisposableStack();
      cleanup.defer(() => Deno.removeSync(other, { recursive: true }));
      // A byte is saved with each: one for the first, so that what is too long is so by less than there are layers.
      const count = 60;
      const size = Math.floor(
        (4096 - `workdir=${other}/scratch,lowerdir=,upperdir=${other}/upper`.length) / (count + 1),
      );
      const lowers = await layers(shim, `${other}/${"x".repeat(size - `${other}//00/fs:`.length)}`, count);
      const own = `${shim.folder}/${"y".repeat(size + count - `${shim.folder}/`.length)}`;
      await Deno.symlink(shim.rootfs, own);
      const all = [...lowers.slice(0, -1), own];
      await expectLayers(shim, all, other);
    }),
);

Deno.test("an overlay of more layers than any options can name is an error that says so", () =>
  withShim({ mountedRoot: true }, async (shim) => {
    const lowerdir = Array.from({ length: 300 }, (_, i) => `${shim.folder}/layers/${i}/a-long-path-of-its-own`).join(
      ":",
    );
    const rootfs = [{ type: "overlay", source: "overlay", options: [`lowerdir=${lowerdir}`] }];
    await assertStatus(shim.create({}, { rootfs }), Code.UNKNOWN, /overlay.*(too long|longer than the 4096 bytes)/);
    assertEquals(shim.leftovers(), []);
  }));

onlyOurs(
  "it has them cut off",
  "options of any filesystem that pass one page are an error that says so",
  () =>
    withShim({ mountedRoot: true }, async (shim) => {
      const rootfs = [{ type: "tmpfs", source: "tmpfs", options: [`mode=${"0".repeat(4096)}755`] }];
      await assertStatus(shim.create({}, { rootfs }), Code.UNKNOWN, /tmpfs.*longer than the 4096 bytes/);
      assertEquals(shim.leftovers(), []);
    }),
);

for (
  const [word, expected] of [
    ["private", /^$/],
    ["rprivate", /^$/],
    ["shared", /^shared:\d+$/],
    ["rshared", /^shared:\d+$/],
    ["slave", /^master:\d+$/],
    ["rslave", /^master:\d+$/],
    ["unbindable", /^unbindable$/],
    ["runbindable", /^unbindable$/],
  ] as const
) {
  onlyOurs(
    "it hands the words to the filesystem",
    `a bind with the word ${word} propagates so`,
    () =>
      withShim({ mountedRoot: true }, async (shim) => {
        // The second is of the first, and with that its peer.
        const of = { type: "bind", source: `${shim.bundle}/rootfs`, options: ["rbind", word] };
        const mounts = await mountedAtRoot(shim, [...bind(shim, "shared"), of]);
        assertMatch(mounts[0]!.propagation.join(" "), /^shared:\d+/);
        assertMatch(mounts[1]!.propagation.join(" "), expected);
      }),
  );
}

Deno.test("what is no flag is the filesystem's own option", () =>
  withShim({ mountedRoot: true }, async (shim) => {
    const options = ["nosuid", "mode=751", "size=1m"];
    const [root] = await mountedAtRoot(shim, [{ type: "tmpfs", source: "tmpfs", options }]);
    assertEquals(root!.type, "tmpfs");
    assert(root!.flags.includes("nosuid"));
    for (const option of ["mode=751", "size=1024k"]) assert(root!.options.includes(option), root!.options.join());
  }));

Deno.test("a filesystem that the system does not know is an error that names it", () =>
  withShim({ mountedRoot: true }, async (shim) => {
    const rootfs = [{ type: "no-such-fs", source: "none", options: [] }];
    await assertStatus(shim.create({}, { rootfs }), Code.UNKNOWN, /no-such-fs.*no such device/);
    assertEquals(shim.leftovers(), []);
  }));

/** Why loop devices cannot be tried here; nothing where they can. */
const NO_LOOPS = paths("/dev").includes("/dev/loop-control")
  ? /\text4$/m.test(Deno.readTextFileSync("/proc/filesystems")) ? "" : "this Linux has no ext4"
  : "this Linux has no loop devices";

/** Registers a test of a root filesystem that is a file. */
function onLoops(name: string, test: () => Promise<void>): void {
  Deno.test({ name: NO_LOOPS === "" ? name : `${name} [${NO_LOOPS}]`, ignore: NO_LOOPS !== "", fn: test });
}

/** Makes a file with the test's folder of busybox as an ext4 filesystem. */
async function makeExt4(shim: Shim): Promise<string> {
  const image = `${shim.folder}/image`;
  await must(["mke2fs", "-q", "-t", "ext4", "-d", shim.rootfs, image, "16M"]);
  return image;
}

onLoops(
  "a file with a filesystem is mounted by the word loop, written, and its device is free afterwards",
  () =>
    withShim({ mountedRoot: true, args: ["sh", "-c", "echo written >/tmp/file"] }, async (shim) => {
      const image = await makeExt4(shim);
      const rootfs = [{ type: "ext4", source: image, options: ["loop"] }];
      await shim.create({}, { rootfs });
      assertEquals(loopsBelow(shim.folder).map(({ file }) => file), [image]);
      await shim.startProcess();
      assertEquals((await shim.wait()).status, 0);
      await shim.delete();
      assertEquals(mountsBelow(shim.folder), []);
      await until("the device is free", () => loopsBelow(shim.folder).length === 0);
      await Deno.mkdir(`${shim.folder}/look`);
      await must(["mount", "-o", "loop,ro", image, `${shim.folder}/look`]);
      assertEquals(await Deno.readTextFile(`${shim.folder}/look/tmp/file`), "written\n");
      await must(["umount", `${shim.folder}/look`]);
      await until("the device is free", () => loopsBelow(shim.folder).length === 0);
    }),
);

onLoops(
  "with loop and ro the file needs not be writable, and is not written",
  () =>
    withShim(
      { mountedRoot: true, args: ["sh", "-c", "ls /bin/busybox && ! echo written >/tmp/file"] },
      async (shim) => {
        const image = await makeExt4(shim);
        const before = await must(["sha256sum", image]);
        // Nobody can open it to write, not even root.
        const [ro] = [`${shim.folder}/ro`];
        await Deno.mkdir(ro);
        await must(["mount", "--bind", shim.folder, ro]);
        await must(["mount", "-o", "remount,bind,ro", ro]);
        const { stdout } = await shim.createWithFifos({
          rootfs: [{ type: "ext4", source: `${ro}/image`, options: ["loop", "ro"] }],
        });
        await shim.startProcess();
        assertEquals(await stdout.text(), "/bin/busybox\n");
        assertEquals((await shim.wait()).status, 0);
        await shim.delete();
        await until("the device is free", () => loopsBelow(shim.folder).length === 0);
        await must(["umount", ro]);
        assertEquals(await must(["sha256sum", image]), before);
      },
    ),
);

onLoops(
  "a file that is not there, or has no filesystem in it, is an error that names it and keeps no device",
  () =>
    withShim({ mountedRoot: true }, async (shim) => {
      const file = `${shim.folder}/image`;
      const rootfs = [...bind(shim), { type: "ext4", source: file, options: ["loop"] }];
      await assertStatus(shim.create({}, { rootfs }), Code.UNKNOWN, new RegExp(`${file}.*no such file or directory`));
      await Deno.writeFile(file, new Uint8Array(1 << 20));
      await assertStatus(
        shim.create({}, { rootfs }),
        Code.UNKNOWN,
        // The Go shim's ends with a kind of error, which is left out.
        new RegExp(`${file}.*(invalid argument|\\[loop\\]\\})`),
      );
      assertEquals(shim.leftovers(), []);
      await until("the device is free", () => loopsBelow(shim.folder).length === 0);
    }),
);

onLoops("many shims that want a loop device at once each get one", async () => {
  const count = 6;
  let created = 0;
  const all = Promise.withResolvers<void>();
  await Promise.all(Array.from({ length: count }, () =>
    withShim({ mountedRoot: true }, async (shim) => {
      const image = await makeExt4(shim);
      await shim.create({}, { rootfs: [{ type: "ext4", source: image, options: ["loop"] }] });
      assertEquals(loopsBelow(shim.folder).map(({ file }) => file), [image]);
      if (++created === count) all.resolve();
      await all.promise;
      await shim.delete();
      await until("the device is free", () => loopsBelow(shim.folder).length === 0);
    })));
});

Deno.test("a filesystem that is a program is mounted by its helper, and ends with the container", () =>
  withShim({ mountedRoot: true, args: ["sh", "-c", "echo written >/tmp/file"] }, async (shim) => {
    const rootfs = (await overlay(shim)).map((each) => ({ ...each, type: "fuse3.fuse-overlayfs" }));
    await shim.create({}, { rootfs });
    assertEquals(mountsBelow(shim.folder), [`${shim.bundle}/rootfs`]);
    await shim.startProcess();
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
    assertEquals(mountsBelow(shim.folder), []);
    await until(
      "its program has ended",
      () => !processes().some(({ comm, ppid }) => comm === "fuse-overlayfs" && ppid === shim.pid),
    );
    assertEquals(await Deno.readTextFile(`${shim.folder}/upper/tmp/file`), "written\n");
  }));

Deno.test("a program that cannot mount is an error with what it says", () =>
  withShim({ mountedRoot: true }, async (shim) => {
    const rootfs = [{ type: "fuse3.no-such-program", source: "none", options: [] }];
    await assertStatus(shim.create({}, { rootfs }), Code.UNKNOWN, /mount\.fuse3.*no-such-program.*not found/s);
    assertEquals(shim.leftovers(), []);
  }));
