/** `ctr run`: a container's output, input and exit status. */

import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { onlyOurs } from "./env.ts";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "the main job");

Deno.test("ctr run prints a container's output and exits with 0", () =>
  withContainerd(async (containerd) => {
    const result = await containerd.run(["/bin/echo", "hello from inside"]);
    assertEquals(result, { code: 0, stdout: "hello from inside\n", stderr: "" });
  }));

Deno.test("ctr run keeps stderr apart from stdout", () =>
  withContainerd(async (containerd) => {
    const result = await containerd.run(["/bin/sh", "-c", "echo out; echo err >&2; echo out again"]);
    assertEquals(result, { code: 0, stdout: "out\nout again\n", stderr: "err\n" });
  }));

Deno.test("ctr run exits with a container's status", () =>
  withContainerd(async (containerd) => {
    for (const code of [0, 1, 7, 255]) {
      assertEquals((await containerd.run(["/bin/sh", "-c", `exit ${code}`])).code, code);
    }
  }));

Deno.test("ctr run exits with 137 when the container is killed", () =>
  withContainerd(async (containerd) => {
    const id = containerd.newId();
    const running = containerd.startRun(id, ["/bin/sleep", "1000"], { flags: ["--rm"] });
    await containerd.running(id);
    await containerd.must("task", "kill", "--signal", "9", id);
    assertEquals(await running.result, { code: 137, stdout: "", stderr: "" });
  }));

Deno.test("a container reads what ctr run is given while it runs, then end of file", () =>
  withContainerd(async (containerd) => {
    const running = containerd.startRun(containerd.newId(), ["/bin/cat"], { flags: ["--rm"] });
    for (const line of ["first\n", "second\n"]) {
      const before = running.stdoutSoFar();
      await running.write(new TextEncoder().encode(line));
      await until("the line comes back", () => running.stdoutSoFar() === before + line);
    }
    await running.closeStdin();
    assertEquals(await running.result, { code: 0, stdout: "first\nsecond\n", stderr: "" });
  }));

onlyOurs(
  "ctr reads end of file before it can pass it on, and the container waits forever",
  "echo x | ctr run cat prints x and ends",
  () =>
    withContainerd(async (containerd) => {
      // Many times, because it depends on who comes first.
      for (let i = 0; i < 20; i++) {
        assertEquals(await containerd.run(["/bin/cat"], { stdin: "x\n" }), { code: 0, stdout: "x\n", stderr: "" });
      }
    }),
);

Deno.test("a command that does not exist gives runc's own message", () =>
  withContainerd(async (containerd) => {
    const { code, stdout, stderr } = await containerd.run(["/bin/no-such-command"]);
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, /^ctr: OCI runtime create failed: runc create failed: /);
    assertStringIncludes(stderr, `exec: "/bin/no-such-command": stat /bin/no-such-command: no such file or directory`);
  }));

Deno.test("a container with no stdio at all runs and tells its status", () =>
  withContainerd(async (containerd) => {
    const result = await containerd.run(["/bin/sh", "-c", "echo nowhere; exit 3"], { flags: ["--null-io"] });
    assertEquals(result, { code: 3, stdout: "", stderr: "" });
  }));
