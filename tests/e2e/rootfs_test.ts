/** Root filesystems: a folder, and an image on containerd's snapshotters. */

import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { mountsBelow } from "./proc.ts";
import { makeImage } from "./rootfs.ts";

modes(["hosted"], "mounts are made by the same code in each mode");

const IMAGE = "localhost/busybox:test";

Deno.test("a container sees its root filesystem, and what it writes is there", () =>
  withContainerd(async (containerd) => {
    const { rootfs } = containerd;
    await Deno.writeTextFile(`${rootfs}/etc/motd`, "from outside\n");
    const result = await containerd.run(["/bin/sh", "-c", "cat /etc/motd; echo from inside >/tmp/file"]);
    assertEquals(result, { code: 0, stdout: "from outside\n", stderr: "" });
    assertEquals(await Deno.readTextFile(`${rootfs}/tmp/file`), "from inside\n");
  }));

Deno.test("a read-only container cannot write", () =>
  withContainerd(async (containerd) => {
    const result = await containerd.run(["/bin/sh", "-c", "echo >/tmp/file"], { flags: ["--read-only"] });
    assertEquals(result.code, 1);
    assertStringIncludes(result.stderr, "Read-only file system");
  }));

for (
  const [snapshotter, mounted] of [["overlayfs", /^overlay \/ overlay rw,/], [
    "native",
    /^\S+ \/ (?!overlay)\S+ rw,/,
  ]] as const
) {
  Deno.test(`an image on ${snapshotter} runs, is mounted while it does, and is unmounted`, () =>
    withContainerd(async (containerd) => {
      const { folder } = containerd;
      await Deno.mkdir(`${folder}/image`);
      const archive = await makeImage(containerd.rootfs, `${folder}/image`, IMAGE);
      await containerd.must("images", "import", "--snapshotter", snapshotter, archive);
      const flags = ["--snapshotter", snapshotter, "--rm"];

      const script = "grep ' / ' /proc/mounts; echo changed >/etc/new && cat /etc/new; exit 9";
      const result = await containerd.run(["/bin/sh", "-c", script], { image: IMAGE, flags });
      assertEquals([result.code, result.stderr], [9, ""]);
      assertMatch(result.stdout, mounted);
      assertMatch(result.stdout, /\nchanged\n$/);

      const id = containerd.newId();
      const running = containerd.startRun(id, ["sleep", "1000"], { image: IMAGE, flags });
      await containerd.running(id);
      assertEquals(mountsBelow(`${folder}/state`), [`${containerd.bundles}/${id}/rootfs`]);
      await containerd.must("task", "kill", "--signal", "9", id);
      assertEquals((await running.result).code, 137);
      // And withContainerd looks for mounts that are left.
    }));
}

Deno.test("an image whose command does not exist is unmounted", () =>
  withContainerd(async (containerd) => {
    await Deno.mkdir(`${containerd.folder}/image`);
    const archive = await makeImage(containerd.rootfs, `${containerd.folder}/image`, IMAGE);
    await containerd.must("images", "import", "--snapshotter", "overlayfs", archive);
    const flags = ["--snapshotter", "overlayfs", "--rm"];
    const result = await containerd.run(["no-such-command"], { image: IMAGE, flags });
    assertEquals(result.code, 1);
    assertMatch(result.stderr, /^ctr: OCI runtime create failed: .*"no-such-command": executable file not found/);
  }));
