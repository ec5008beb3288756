/** Images of checkpoints, as containerd keeps them. */

import { google } from "../../lib/api/mod.js";
import { must } from "./command.ts";
import { type Containerd, RUNTIME } from "./harness.ts";

/** The type of what a runtime was configured with, in containerd's words (images/mediatypes.go). */
const RUNTIME_OPTIONS = "application/vnd.containerd.container.checkpoint.runtime.options+proto";
const INDEX = "application/vnd.oci.image.index.v1+json";

/** What {@linkcode makeRestorable} is told that `ctr task checkpoint` leaves out. */
export interface Restorable {
  /** The image that the container had. */
  readonly image: string;
  readonly snapshotter: string;
  /** The CRIU that containerd is to tell the shim of, if it is. */
  readonly criuPath?: string;
}

/**
 * Makes an image that `ctr container restore` takes from one that `ctr task checkpoint` has made.
 *
 * The one wants to be told the image, the runtime and its options, which the other does not write down; and `ctr run`,
 * which once took a checkpoint, takes none any more.
 *
 * @param checkpoint the name that `ctr task checkpoint` has printed
 * @returns the name of the image
 */
export async function makeRestorable(
  containerd: Containerd,
  checkpoint: string,
  { image, snapshotter, criuPath }: Restorable,
): Promise<string> {
  const row = (await containerd.must("images", "ls")).split("\n").find((line) => line.startsWith(`${checkpoint} `));
  const digest = /sha256:[0-9a-f]+/.exec(row ?? "")?.[0];
  if (digest === undefined) throw new Error(`There is no image ${checkpoint}`);
  const index = JSON.parse(await containerd.must("content", "get", digest));

  const folder = `${containerd.folder}/restorable`;
  await Deno.mkdir(`${folder}/blobs/sha256`, { recursive: true });
  const add = async (mediaType: string, bytes: Uint8Array<ArrayBuffer>) => {
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
    await Deno.writeFile(`${folder}/blobs/sha256/${hash}`, bytes);
    return { mediaType, digest: `sha256:${hash}`, size: bytes.length };
  };
  const addJson = (mediaType: string, value: unknown) =>
    add(mediaType, new TextEncoder().encode(JSON.stringify(value)));

  const value = runcOptions(criuPath);
  const options = google.protobuf.Any.encode({ type_url: "containerd.linux.runc.RuncOptions", value }).finish();
  const restorable = await addJson(INDEX, {
    ...index,
    manifests: [...index.manifests, await add(RUNTIME_OPTIONS, options.slice())],
    annotations: {
      "org.opencontainers.image.ref.name": image,
      "io.containerd.checkpoint.runtime": RUNTIME,
      "io.containerd.checkpoint.snapshotter": snapshotter,
    },
  });
  const name = "localhost/restorable:test";
  const manifests = [{ ...restorable, annotations: { "io.containerd.image.name": name } }];
  await Deno.writeTextFile(`${folder}/index.json`, JSON.stringify({ schemaVersion: 2, manifests }));
  await Deno.writeTextFile(`${folder}/oci-layout`, JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  await must(["tar", "-C", folder, "-cf", `${folder}.tar`, "oci-layout", "index.json", "blobs"]);
  await containerd.must("images", "import", "--no-unpack", `${folder}.tar`);
  return name;
}

/** A containerd.linux.runc.RuncOptions: its field 3 is criu_path. */
function runcOptions(criuPath: string | undefined): Uint8Array {
  if (criuPath === undefined) return new Uint8Array();
  const path = new TextEncoder().encode(criuPath);
  return new Uint8Array([3 << 3 | 2, path.length, ...path]);
}
