/** The command line, read as Go's `flag` package reads it. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type Result, run } from "./command.ts";
import { inEachForm, IS_OURS, newPlace, onlyOurs, SHIM } from "./env.ts";
import { modes } from "./modes.ts";
import { argumentsOf } from "./proc.ts";
import { withShim } from "./shim.ts";

modes(["hosted", "alone"], "flags come to a host through a holder");

/** Runs the shim with these arguments, in a folder where it leaves nothing that anyone else would find. */
async function shim(...args: string[]): Promise<Result> {
  const { folder: cwd } = newPlace();
  try {
    return await run([SHIM.path, ...args], { cwd });
  } finally {
    await Deno.remove(cwd, { recursive: true });
  }
}

/** How the usage begins; Go names the program as it was called. */
const USAGE = /^Usage of (?:\S*\/)?containerd-shim:$/m;

/** Fails unless this is a complaint, then the usage, and exit code 2. */
function assertUsage(result: Result, complaint: string): void {
  assertEquals([result.code, result.stdout], [2, ""]);
  assertEquals(result.stderr.split("\n")[0], complaint);
  assertMatch(result.stderr, USAGE);
  assertStringIncludes(result.stderr, "\n  -namespace string\n    \t");
}

if (SHIM.name !== "deno run") {
  Deno.test("an unknown flag prints what is wrong and the usage, and exits with 2", async () => {
    assertUsage(await shim("-nosuch"), "flag provided but not defined: -nosuch");
    assertUsage(await shim("-namespace", "x", "--nosuch=1"), "flag provided but not defined: -nosuch");
  });

  Deno.test("a flag without its value prints what is wrong and the usage, and exits with 2", async () => {
    assertUsage(await shim("-namespace"), "flag needs an argument: -namespace");
  });

  Deno.test("a boolean that is neither true nor false prints what is wrong and the usage, and exits with 2", async () => {
    assertUsage(await shim("-debug=maybe"), `invalid boolean value "maybe" for -debug: parse error`);
  });

  for (const help of ["-help", "--help", "-h"]) {
    Deno.test(`${help} prints the usage, and exits with 0`, async () => {
      const { code, stdout, stderr } = await shim(help);
      assertEquals([code, stdout], [0, ""]);
      assertMatch(stderr, USAGE);
      for (const flag of ["namespace", "workdir", "address", "containerd-binary", "socket", "runtime-root", "criu"]) {
        assertStringIncludes(stderr, `\n  -${flag} `);
      }
      for (const flag of ["systemd-cgroup", "debug"]) assertStringIncludes(stderr, `\n  -${flag}\n`);
    });
  }
}

Deno.test("an empty namespace is an error", async () => {
  const message = "containerd-shim: shim namespace cannot be empty\n";
  for (const args of [[], ["-namespace="], ["-namespace", ""]]) {
    assertEquals(await shim(...args), { code: 1, stdout: "", stderr: message });
  }
});

Deno.test("a shim that is given no socket says so, and exits with 1", async () => {
  const { code, stdout, stderr } = await shim("-namespace", "x");
  assertEquals([code, stdout], [1, ""]);
  assert(stderr.startsWith("containerd-shim: "), stderr);
});

Deno.test("a socket's path that is too long is an error", async () => {
  const path = `/tmp/${"x".repeat(102)}`;
  const { code, stderr } = await shim("-namespace", "x", "-socket", `unix://${path}`);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "unix socket path too long (> 106)");
});

inEachForm(
  "flags are taken as -x v, -x=v, --x v and --x=v, booleans as -x and -x=false; the last counts",
  (form) =>
    withShim(
      {
        shim: form,
        flags: [
          "--runtime-root",
          "/nowhere",
          "--runtime-root=FOLDER/runc",
          "-debug=false",
          "-systemd-cgroup=false",
          "--debug",
        ],
      },
      async (shim) => {
        await shim.run();
        assertEquals([...Deno.readDirSync(`${shim.folder}/runc/${shim.namespace}`)].map(({ name }) => name), [shim.id]);
        assert(argumentsOf(shim.pid).includes(`--runtime-root=${shim.folder}/runc`));
      },
    ),
);

onlyOurs(
  "it does not know what containerd passes",
  "-criu-path is taken for -criu",
  () =>
    withShim({ flags: ["-criu-path", "/nowhere/criu"] }, async (shim) => {
      assertEquals(await shim.shimPid(), shim.pid);
      assert(IS_OURS);
    }),
);
