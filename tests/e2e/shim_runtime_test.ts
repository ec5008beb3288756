/** How the shim runs the OCI runtime. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { onlyOurs, onlyOursInEachForm, OUR_EXECUTABLE } from "./env.ts";
import { modes } from "./modes.ts";
import { NULL_OR_LINK } from "./null.ts";
import { assertStatus, withShim } from "./shim.ts";

modes(["hosted", "alone"], "another process starts the runtime in each");

Deno.test("a runtime that there is not, or that cannot be executed, is named; the next Create works", () =>
  withShim({ args: ["true"] }, async (shim) => {
    const missing = /^OCI runtime create failed: .*exec: "no-such-runtime": executable file not found in \$PATH/;
    await assertStatus(shim.create({}, { runtime: "no-such-runtime" }), Code.UNKNOWN, missing);
    assertEquals(shim.leftovers(), []);
    const runtime = `${shim.folder}/no-program`;
    await Deno.writeTextFile(runtime, "", { mode: 0o644 });
    const refused = new RegExp(`^OCI runtime create failed: .*${runtime}.*permission denied`);
    await assertStatus(shim.create({}, { runtime }), Code.UNKNOWN, refused);
    assertEquals(shim.leftovers(), []);
    await shim.run();
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
  }));

/**
 * Keeps what it has been started with, and is runc then. Of its descriptors, the shell has one for the script itself. It
 * reads its own status without a command: while it starts one, the shell itself blocks every signal.
 */
const RECORDING_RUNTIME = `#!/bin/sh
{
  echo "$@"
  while read -r line; do
    case $line in SigBlk:*|SigIgn:*) echo "$line" ;; esac
  done </proc/$$/status
  for fd in /proc/$$/fd/*; do ${NULL_OR_LINK}; done | sort | uniq
  echo
} >>"$(dirname "$0")/record"
exec runc "$@"
`;

onlyOursInEachForm(
  "it hands on what it was started with",
  "the runtime is started with no signal blocked or ignored, and with no descriptor of the shim's",
  (form) =>
    withShim({ shim: form, args: ["sh", "-c", "exit 3"] }, async (shim) => {
      const runtime = await shim.makeProgram("recording-runc", RECORDING_RUNTIME);
      await shim.createWithFifos({ runtime });
      await shim.startProcess();
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();

      const runs = (await Deno.readTextFile(`${shim.folder}/record`)).trim().split("\n\n").map((run) =>
        run.split("\n")
      );
      const commands = runs.map(([args]) => / (create|start|state|kill|delete) /.exec(`${args} `)?.[1]);
      assertEquals(commands.filter((each) => each !== "kill"), ["create", "start", "delete"]);
      const root = `--root /run/containerd/runc/${shim.namespace}`;
      const log = `--log ${shim.bundle}/log.json --log-format json`;
      for (const [args, blocked, ignored, ...files] of runs) {
        assertMatch(args!, new RegExp(`^${root} ${log} .* ${shim.id}$`));
        assertEquals([blocked, ignored].map((each) => each!.split(/\s+/)), [
          ["SigBlk:", "0000000000000000"],
          ["SigIgn:", "0000000000000000"],
        ]);
        const expected = (file: string) =>
          /^\/dev\/null$|^\/memfd:runc-|^pipe:|^$/.test(file) || file.startsWith(`${shim.folder}/rec`);
        assert(files.every(expected), `${args} has these open:\n${files.join("\n")}`);
      }
      const [create] = runs;
      assert(create![0]!.includes(` --bundle ${shim.bundle} `), create![0]);
      assert(create![0]!.includes(` --pid-file ${shim.bundle}/init.pid `), create![0]);
    }),
);

onlyOurs(
  "its Go raises the limit for good",
  "the runtime has the limit of open files that the shim was started with, not what Deno makes of it",
  async () => {
    const limited = await Deno.makeTempFile();
    using cleanup = new DisposableStack();
    cleanup.defer(() => Deno.removeSync(limited));
    await Deno.writeTextFile(limited, `#!/bin/sh\nulimit -S -n 777\nexec '${OUR_EXECUTABLE}' "$@"\n`);
    await Deno.chmod(limited, 0o755);
    await withShim({ shim: { name: "limited", path: limited } }, async (shim) => {
      // runc is written in Go, and raises its own: what it is started with is what counts.
      const script = `#!/bin/sh\nulimit -S -n >>'${shim.folder}/limits'\nexec runc "$@"\n`;
      const runtime = await shim.makeProgram("limit-runc", script);
      await shim.run({}, { runtime });
      assertEquals(await Deno.readTextFile(`${shim.folder}/limits`), "777\n777\n");
      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    });
  },
);
