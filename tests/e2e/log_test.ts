/** The shim's log, as an administrator finds it in containerd's. */

import { assertEquals, assertMatch } from "@std/assert";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";

modes(["hosted", "alone"], "another process writes the log in each");

/** A line as logrus writes it, with the message that a shim begins with. */
const FIRST_LINE =
  /^time="[-\dT:.]+Z" level=debug msg="serving api on unix socket"(?: \w+=\S+)* socket="\[inherited from parent\]"(?: us_since_start=\d+)?$/m;

Deno.test("with shim_debug the shim's log is in containerd's, as logrus writes it", () =>
  withContainerd(async (containerd) => {
    assertEquals((await containerd.run(["/bin/true"])).code, 0);
    assertMatch(containerd.log(), FIRST_LINE);
  }));

Deno.test("without shim_debug a shim that has no trouble logs nothing", () =>
  withContainerd(async (containerd) => {
    assertEquals((await containerd.run(["/bin/true"])).code, 0);
    const lines = containerd.log().split("\n");
    // Up to here the daemon itself was starting.
    const booted = lines.findIndex((line) => line.includes("containerd successfully booted"));
    const unexpected = lines.slice(booted + 1).filter((line) =>
      !/^$|deprecated since containerd v1\.4|shim .* started|shim reaped/.test(line)
    );
    assertEquals(unexpected, []);
  }, { shimDebug: false }));
