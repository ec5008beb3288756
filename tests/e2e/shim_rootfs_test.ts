/** The mounts that Create is given, and their end. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { isAlive, mountsBelow } from "./proc.ts";
import { type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

type Mounts = containerd.types.IMount[];

/** The test's folder of busybox as the root filesystem. */
function bind(shim: Shim, ...options: string[]): Mounts {
  return [{ type: "bind", source: shim.rootfs, options: ["rbind", ...options] }];
}

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
