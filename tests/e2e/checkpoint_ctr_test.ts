/** Checkpoints and restores by ctr and a real containerd, which keeps them as images. */

import { assertEquals, assertMatch } from "@std/assert";
import { makeRestorable } from "./checkpoint_image.ts";
import { must } from "./command.ts";
import { criuTest } from "./criu.ts";
import { CONTAINERD } from "./env.ts";
import { Reader, Writer } from "./fifo.ts";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { argumentsOf, filesOf } from "./proc.ts";
import { makeImage } from "./rootfs.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "what is restored has another parent in each");

const IMAGE = "localhost/busybox:test";
const SNAPSHOTTER = "overlayfs";

/** Whether containerd tells a shim which CRIU it is configured with. */
const PASSES_CRIU = / v?1\.[0-6]\./.test(await must([CONTAINERD, "--version"]));

/** Counts the lines that it reads. */
const COUNTER = ["sh", "-c", "n=0; while read -r line; do n=$((n + 1)); echo $n; done"];

/** Has a counter go on in a new container, whose shim is told of this CRIU, or else finds it in its PATH. */
function restoreCounter(criu: string, toldOf?: string): Promise<void> {
  return withContainerd(async (containerd) => {
    const { folder } = containerd;
    await Deno.mkdir(`${folder}/image`);
    const archive = await makeImage(containerd.rootfs, `${folder}/image`, IMAGE);
    await containerd.must("images", "import", "--snapshotter", SNAPSHOTTER, archive);

    const first = containerd.newId();
    const running = containerd.startRun(first, COUNTER, { image: IMAGE, flags: ["--snapshotter", SNAPSHOTTER] });
    for (const line of ["1\n", "1\n2\n"]) {
      await running.write(new TextEncoder().encode("\n"));
      await until("it counts", () => running.stdoutSoFar() === line);
    }
    const checkpoint = (await containerd.must("task", "checkpoint", "--exit", first)).trim();
    assertEquals(await running.result, { code: 137, stdout: "1\n2\n", stderr: "" });
    await containerd.must("container", "delete", first);

    const options = { image: IMAGE, snapshotter: SNAPSHOTTER, ...(toldOf === undefined ? {} : { criuPath: toldOf }) };
    const restorable = await makeRestorable(containerd, checkpoint, options);
    const second = containerd.newId();
    // It does not stay until the container ends.
    assertEquals(await containerd.must("container", "restore", "--live", second, restorable), "");
    const pid = await containerd.running(second);
    const shim = containerd.shimOf(second);
    assertEquals(argumentsOf(shim).includes("-criu-path"), toldOf !== undefined);
    const files = filesOf(shim);
    const [stdin, stdout] = ["stdin", "stdout"].map((name) =>
      files.find((path) => path.endsWith(`/${second}-${name}`))
    );
    using output = await Reader.open(stdout!);
    {
      using input = await Writer.open(stdin!);
      for (const line of ["3\n", "4\n"]) {
        await input.write("\n");
        assertEquals(await output.line(), line);
      }
    }
    assertEquals((await containerd.task(second))?.pid, pid);
    await containerd.end(second);
  }, { programs: criu.replace(/\/[^/]*$/, "") });
}

criuTest(
  "a counter goes on from where it was, in a new container: ctr task checkpoint, ctr container restore",
  (criu) => restoreCounter(criu),
);

criuTest(
  "the CRIU that containerd is configured with restores a container",
  async (criu) => {
    const folder = await Deno.makeTempDir();
    try {
      const script = `#!/bin/sh\necho "$@" >>'${folder}/record'\nexec '${criu}' "$@"\n`;
      await Deno.writeTextFile(`${folder}/its-own-criu`, script, { mode: 0o755 });
      await restoreCounter(criu, `${folder}/its-own-criu`);
      assertMatch(await Deno.readTextFile(`${folder}/record`), /^(swrk \d+\n)+$/);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
  {
    notWithAnother: "it does not know the flag that containerd passes",
    skip: PASSES_CRIU ? undefined : "containerd 1.7 passes it on no more",
  },
);
