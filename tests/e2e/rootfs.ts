/** Something for containers to run: a folder, and an image, of busybox. */

import { must } from "./command.ts";

/** Where busybox-static puts its program. */
const BUSYBOX = "/bin/busybox";

/** Makes a root filesystem of busybox and links to it. */
export async function makeRootfs(folder: string): Promise<void> {
  for (const each of ["bin", "proc", "dev", "sys", "tmp", "etc"]) {
    await Deno.mkdir(`${folder}/${each}`, { recursive: true });
  }
  await Deno.copyFile(BUSYBOX, `${folder}/bin/busybox`);
  for (const applet of (await must([BUSYBOX, "--list"])).trim().split("\n")) {
    if (applet !== "busybox") await Deno.symlink("busybox", `${folder}/bin/${applet}`);
  }
}

/**
 * Packs a root filesystem as an image of one layer, the way `docker save` did, for `ctr images import`.
 *
 * @param folder for the files that are packed; must exist
 * @returns the archive's path
 */
export async function makeImage(rootfs: string, folder: string, name: string): Promise<string> {
  await must(["tar", "-C", rootfs, "--owner=0", "--group=0", "-cf", `${folder}/layer.tar`, "."]);
  const [layer] = (await must(["sha256sum", `${folder}/layer.tar`])).split(" ");
  const config = {
    architecture: ARCHITECTURES[Deno.build.arch],
    os: "linux",
    config: { Env: ["PATH=/bin"], Cmd: ["/bin/sh"] },
    rootfs: { type: "layers", diff_ids: [`sha256:${layer}`] },
  };
  await Deno.writeTextFile(`${folder}/config.json`, JSON.stringify(config));
  const manifest = [{ Config: "config.json", RepoTags: [name], Layers: ["layer.tar"] }];
  await Deno.writeTextFile(`${folder}/manifest.json`, JSON.stringify(manifest));
  const archive = `${folder}/image.tar`;
  await must(["tar", "-C", folder, "-cf", archive, "manifest.json", "config.json", "layer.tar"]);
  return archive;
}

/** Go's names, which images use. */
const ARCHITECTURES = { x86_64: "amd64", aarch64: "arm64" };
