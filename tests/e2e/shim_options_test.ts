/** What the shim's flags and the options of Create become for the OCI runtime. */

import { assert, assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { onlyOurs } from "./env.ts";
import { modes } from "./modes.ts";
import { type Shim, withShim } from "./shim.ts";

modes(["hosted"], "the runtime is given its arguments by the same code in each mode; flags_test has what is not");

const { CreateOptions } = containerd.linux.runc;

/** Makes a runtime that is runc, less one flag that it is given, and writes its arguments down. */
async function makeRecorder(shim: Shim, without = ""): Promise<string> {
  const script = `#!/bin/sh
echo "$*" >>'${shim.folder}/arguments'
for each; do shift; [ "$each" = "${without}" ] || set -- "$@" "$each"; done
exec runc "$@"
`;
  return await shim.makeProgram("recorder", script);
}

/** Runs the container with a recorder, and gives the arguments of `create`. */
async function createArguments(
  shim: Shim,
  options: containerd.linux.runc.CreateOptions.$Properties = {},
  without = "",
): Promise<string> {
  const value = CreateOptions.encode(options).finish();
  const runtime = await makeRecorder(shim, without);
  await shim.run({}, { runtime, options: { type_url: "containerd.linux.runc.CreateOptions", value } });
  await shim.kill(9);
  await shim.wait();
  await shim.delete();
  const lines = (await Deno.readTextFile(`${shim.folder}/arguments`)).trim().split("\n");
  return ` ${lines.find((line) => line.includes(" create "))} `;
}

Deno.test("-criu names criu to the runtime", () =>
  withShim({ flags: ["-criu", "/some/criu"] }, async (shim) => {
    assert((await createArguments(shim)).includes(" --criu /some/criu "));
  }));

onlyOurs(
  "it does not know what containerd passes",
  "-criu-path names criu to the runtime",
  () =>
    withShim({ flags: ["-criu-path=/some/criu"] }, async (shim) => {
      assert((await createArguments(shim)).includes(" --criu /some/criu "));
    }),
);

Deno.test("-systemd-cgroup has the runtime manage cgroups through systemd", () =>
  withShim({ flags: ["-systemd-cgroup"] }, async (shim) => {
    // There may be no systemd: the runtime itself is not told.
    assert((await createArguments(shim, {}, "--systemd-cgroup")).includes(" --systemd-cgroup "));
  }));

Deno.test("without such flags the runtime is told nothing of criu and systemd", () =>
  withShim({}, async (shim) => {
    const args = await createArguments(shim);
    assertEquals(/--criu|--systemd-cgroup|--no-pivot|--no-new-keyring/.exec(args), null);
  }));

Deno.test("no_pivot_root and no_new_keyring of Create's options are passed on", () =>
  withShim({}, async (shim) => {
    const args = await createArguments(shim, { noPivotRoot: true, noNewKeyring: true });
    assert(args.includes(" --no-pivot ") && args.includes(" --no-new-keyring "), args);
  }));

Deno.test("io_uid and io_gid own the pipes that the runtime is given", () =>
  withShim({ args: ["true"] }, async (shim) => {
    const script = `#!/bin/sh
case " $* " in *" create "*)
  owners=$(for n in 0 1 2; do stat -L -c '%u %g' /proc/$$/fd/$n; done)
  echo "$owners" >'${shim.folder}/owned';;
esac
exec runc "$@"
`;
    const runtime = await shim.makeProgram("owners", script);
    const value = CreateOptions.encode({ ioUid: 1234, ioGid: 5678 }).finish();
    const options = { type_url: "containerd.linux.runc.CreateOptions", value };
    await shim.createWithFifos({ runtime, options });
    await shim.startProcess();
    assertEquals(await Deno.readTextFile(`${shim.folder}/owned`), "1234 5678\n".repeat(3));
    await shim.wait();
    await shim.delete();
  }));

Deno.test("-runtime-root is where the runtime keeps its state, with a folder for the namespace", () =>
  withShim({ flags: ["-runtime-root", "FOLDER/runc"] }, async (shim) => {
    const args = await createArguments(shim);
    assert(args.startsWith(` --root ${shim.folder}/runc/${shim.namespace} `), args);
  }));
