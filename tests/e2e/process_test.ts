/** What others see of the shim's process: its file, its name, its command line, its signals. */

import { assert, assertEquals } from "@std/assert";
import { EXECUTABLE, inEachForm, IS_OURS, onlyOurs } from "./env.ts";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { argumentsOf, descendants, processOf, threadMasks } from "./proc.ts";

modes(["hosted", "alone"], "it is about the process that containerd starts");

/** Some of those that the shim takes over: signal(7). */
const TAKEN_OVER = { SIGHUP: 1, SIGINT: 2, SIGUSR1: 10, SIGUSR2: 12, SIGPIPE: 13, SIGTERM: 15, SIGCHLD: 17 };

onlyOurs(
  "it is not this project's file",
  "ps shows our file, by its name, and what containerd has typed",
  () =>
    withContainerd(async (containerd) => {
      const id = containerd.newId();
      await containerd.runDetached(id, ["/bin/sleep", "1000"]);
      const pid = containerd.shimOf(id);
      assertEquals(await Deno.readLink(`/proc/${pid}/exe`), await Deno.realPath(EXECUTABLE));
      assertEquals(processOf(pid)?.comm, "containerd-shim");
      assertEquals(argumentsOf(pid), [
        EXECUTABLE,
        "-namespace",
        containerd.namespace,
        "-workdir",
        `${containerd.workdirs}/${id}`,
        "-address",
        containerd.address,
        "-containerd-binary",
        await Deno.readLink(`/proc/${containerd.pid}/exe`),
        "-debug",
      ]);
      assertEquals(await Deno.readLink(`/proc/${pid}/cwd`), `${containerd.bundles}/${id}`);
      await containerd.end(id);
    }),
);

/** Signals 32 and 33, which a C library that starts a process may leave ignored: the Go shim passes that on. */
const OF_THE_C_LIBRARY = 3n << 31n;

inEachForm(
  "all threads of the shim block its signals, and no process of the container does",
  (form) =>
    withContainerd(async (containerd) => {
      const id = containerd.newId();
      await containerd.runDetached(id, ["/bin/sleep", "1000"]);
      const shim = containerd.shimOf(id);
      const init = await containerd.running(id);
      await containerd.exec(id, ["--detach"], ["/bin/sleep", "1000"]);

      if (IS_OURS) {
        for (const { name, blocked } of threadMasks(shim)) {
          for (const [signal, number] of Object.entries(TAKEN_OVER)) {
            assert((blocked >> BigInt(number - 1)) & 1n, `thread ${name} of the shim does not block ${signal}`);
          }
        }
      }
      const inside = descendants(shim);
      assertEquals(inside.map(({ ppid }) => ppid), [shim, shim]);
      assert(inside.some(({ pid }) => pid === init));
      for (const { pid } of inside) {
        const [masks] = threadMasks(pid);
        const ignored = masks!.ignored & (IS_OURS ? -1n : ~OF_THE_C_LIBRARY);
        assertEquals({ blocked: masks!.blocked, ignored }, { blocked: 0n, ignored: 0n });
      }
      await containerd.end(id);
    }, { shim: form }),
);
