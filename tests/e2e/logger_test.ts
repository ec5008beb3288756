/** Output that goes to a logger, which a binary:// URI names. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { IS_OURS, onlyOurs } from "./env.ts";
import { withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";
import { NULL_OR_LINK } from "./null.ts";
import { countDescriptors, isAlive } from "./proc.ts";
import { assertStatus, type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "another process starts loggers in each");

/** Makes a logger of a shell script, and gives its URI; FOLDER in the script stands for the test's folder. */
function makeLogger(folder: string, script: string, query = ""): string {
  const path = `${folder}/my logger`;
  Deno.writeTextFileSync(path, `#!/bin/sh\n${script.replaceAll("FOLDER", folder)}\n`, { mode: 0o755 });
  return `binary://${encodeURI(path)}${query}`;
}

/** A logger that writes down what it is given, each output in its own file, and ends with its input. */
const PLAIN = `
printf '%s\\n' "$@" >FOLDER/arguments
env >FOLDER/environment
ls -l /proc/self/fd/ >FOLDER/descriptors
for fd in /proc/$$/fd/0 /proc/$$/fd/2; do ${NULL_OR_LINK}; done >FOLDER/nulls
cat <&3 >FOLDER/out 5>&- &
cat <&4 >FOLDER/err 5>&- &
exec 3<&- 4<&- 5>&-
wait
echo ended >FOLDER/ended`;

/** Creates the container with a logger for all its output, and starts it. */
async function runLogged(shim: Shim, uri: string, terminal = false): Promise<void> {
  await shim.run({ stdout: uri, stderr: terminal ? "" : uri, terminal });
}

Deno.test("a logger is given stdout and stderr, its arguments, and an environment that names the container", () =>
  withShim({ args: ["sh", "-c", "echo out; echo err >&2"] }, async (shim) => {
    await runLogged(shim, makeLogger(shim.folder, PLAIN, "?key=a%20value"));
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
    await until("stdout is logged", () => readIfThere(`${shim.folder}/out`) === "out\n");
    await until("stderr is logged", () => readIfThere(`${shim.folder}/err`) === "err\n");
    assertEquals(Deno.readTextFileSync(`${shim.folder}/arguments`), "key\na value\n");
    const environment = Deno.readTextFileSync(`${shim.folder}/environment`).trim().split("\n")
      .filter((each) => !/^(PWD|OLDPWD|SHLVL|_)=/.test(each)).sort();
    assertEquals(environment, [`CONTAINER_ID=${shim.id}`, `CONTAINER_NAMESPACE=${shim.namespace}`]);
  }));

onlyOurs(
  "it hands on descriptors of its own",
  "a logger has its six descriptors and no other",
  () =>
    withShim({ args: ["true"] }, async (shim) => {
      await runLogged(shim, makeLogger(shim.folder, PLAIN));
      await shim.wait();
      await shim.delete();
      const lines = Deno.readTextFileSync(`${shim.folder}/descriptors`).trim().split("\n").slice(1);
      // The list is in 1, and the folder that is listed is the last.
      assertEquals(lines.map((line) => / (\d+) -> /.exec(line)?.[1]), ["0", "1", "2", "3", "4", "5", "6"]);
      for (const number of [3, 4, 5]) assertMatch(lines[number]!, /-> pipe:/);
      assertEquals(Deno.readTextFileSync(`${shim.folder}/nulls`), "/dev/null\n/dev/null\n");
    }),
);

Deno.test("many arguments of a logger are given once each, without order", () =>
  withShim({ args: ["true"] }, async (shim) => {
    await runLogged(shim, makeLogger(shim.folder, PLAIN, "?b=1&a=2&b=3&empty"));
    await shim.wait();
    await shim.delete();
    const args = Deno.readTextFileSync(`${shim.folder}/arguments`).split("\n").slice(0, -1);
    const pairs = Array.from({ length: args.length / 2 }, (_, i) => `${args[2 * i]}=${args[2 * i + 1]}`);
    assertEquals(pairs.sort(), ["a=2", "b=1", "empty="]);
  }));

for (const ready of ["exec 5>&-", "echo >&5"]) {
  Deno.test(`a container is not created before its logger says that it is ready (${ready})`, () =>
    withShim({ args: ["echo", "out"] }, async (shim) => {
      const script = `mkfifo FOLDER/go; read line <FOLDER/go; ${ready}; exec cat <&3 >FOLDER/out`;
      const uri = makeLogger(shim.folder, script);
      let created = false;
      const running = runLogged(shim, uri).then(() => created = true);
      await until("the logger waits", () => {
        try {
          return Deno.statSync(`${shim.folder}/go`).isFifo;
        } catch {
          return false;
        }
      });
      // Others are answered meanwhile, and runc has not been started.
      await shim.shimPid();
      assertEquals([created, shim.containerProcesses()], [false, []]);
      await Deno.writeTextFile(`${shim.folder}/go`, "go\n");
      await running;
      assertEquals((await shim.wait()).status, 0);
      await shim.delete();
      await until("the output is there", () => readIfThere(`${shim.folder}/out`) === "out\n");
    }));
}

Deno.test("a logger that cannot be started fails Create, and names it", () =>
  withShim({}, async (shim) => {
    const uri = `binary://${shim.folder}/no-such-logger`;
    await assertStatus(shim.create({ stdout: uri, stderr: uri }), Code.UNKNOWN, /no-such-logger.*no such file/s);
    assertEquals(shim.containerProcesses(), []);
  }));

Deno.test("a logger that is still there when its container is deleted is sent SIGTERM", () =>
  withShim({ args: ["true"] }, async (shim) => {
    const script = `trap 'echo told >FOLDER/told; exit' TERM; echo $$ >FOLDER/pid; exec 5>&-; ` +
      `while :; do sleep 0.02; done`;
    await runLogged(shim, makeLogger(shim.folder, script));
    const pid = await until("the logger runs", () => Number(readIfThere(`${shim.folder}/pid`)));
    await shim.wait();
    await shim.delete();
    await until("the logger has ended", () => !isAlive(pid));
    assertEquals(readIfThere(`${shim.folder}/told`), "told\n");
  }));

Deno.test("a logger that does not end when it is told is killed after 12 s, and Delete waits for that", () =>
  withShim({ args: ["true"] }, async (shim) => {
    const script = `trap '' TERM; echo $$ >FOLDER/pid; exec 5>&-; while :; do sleep 0.02; done`;
    await runLogged(shim, makeLogger(shim.folder, script));
    const pid = await until("the logger runs", () => Number(readIfThere(`${shim.folder}/pid`)));
    await shim.wait();
    const start = performance.now();
    await shim.delete();
    const seconds = (performance.now() - start) / 1000;
    assert(seconds >= 12 && seconds < 18, `Delete took ${seconds} s`);
    await until("the logger has ended", () => !isAlive(pid));
  }));

Deno.test("a terminal's output goes to a logger too", () =>
  withShim({ terminal: true, args: ["sh", "-c", "tty; seq 1 10000; echo err >&2"] }, async (shim) => {
    await runLogged(shim, makeLogger(shim.folder, PLAIN), true);
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
    await until("the last line is logged", () => readIfThere(`${shim.folder}/out`)?.endsWith("err\r\n"));
    const lines = Deno.readTextFileSync(`${shim.folder}/out`).split("\r\n");
    assertMatch(lines[0]!, /^\/dev\/(console|pts\/0)$/);
    assertEquals(lines.slice(1), [...Array.from({ length: 10_000 }, (_, i) => `${i + 1}`), "err", ""]);
    assertEquals(readIfThere(`${shim.folder}/err`), "");
  }));

Deno.test("an exec has a logger of its own, which is told the exec's id", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const uri = makeLogger(shim.folder, PLAIN);
    await shim.exec("other", ["sh", "-c", "echo out; echo err >&2; exit 3"], { stdout: uri, stderr: uri });
    await shim.startProcess("other");
    assertEquals((await shim.wait("other")).status, 3);
    await shim.deleteProcess("other");
    await until("stdout is logged", () => readIfThere(`${shim.folder}/out`) === "out\n");
    await until("stderr is logged", () => readIfThere(`${shim.folder}/err`) === "err\n");
    assertMatch(readIfThere(`${shim.folder}/environment`)!, /^CONTAINER_ID=other$/m);
  }));

onlyOurs(
  "it keeps the pipe's ends",
  "a logger reads the end of file when the process has ended",
  () =>
    withShim({ args: ["sh", "-c", "echo out"] }, async (shim) => {
      const before = countDescriptors(shim.pid);
      await runLogged(shim, makeLogger(shim.folder, PLAIN));
      await shim.wait();
      // Before Delete.
      await until("the logger has ended", () => readIfThere(`${shim.folder}/ended`));
      await shim.delete();
      await until("no descriptor of it is left", () => countDescriptors(shim.pid) <= before);
    }),
);

onlyOurs(
  "it looks at stdout alone",
  "stdout goes to a logger and stderr to a file, and the other way round",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const uri = makeLogger(shim.folder, PLAIN);
      const file = `file://${shim.folder}/logs/file`;
      const print = ["sh", "-c", "echo out; echo err >&2"];
      for (
        const [id, stdio] of Object.entries({
          a: [uri, file, "out\n", "", "err\n"],
          b: [file, uri, "", "err\n", "out\n"],
        })
      ) {
        const [stdout, stderr, out, err, inFile] = stdio as [string, string, string, string, string];
        await shim.exec(id, print, { stdout, stderr });
        await shim.startProcess(id);
        await shim.wait(id);
        await shim.deleteProcess(id);
        await until("the logger has ended", () => readIfThere(`${shim.folder}/ended`));
        assertEquals([readIfThere(`${shim.folder}/out`), readIfThere(`${shim.folder}/err`)], [out, err]);
        assertEquals(readIfThere(`${shim.folder}/logs/file`), inFile);
        for (const each of ["logs/file", "ended"]) Deno.removeSync(`${shim.folder}/${each}`);
      }
    }),
);

onlyOurs(
  "it opens FIFOs alone there",
  "a terminal's output is appended to a file",
  () =>
    withShim({ terminal: true, args: ["sh", "-c", "seq 1 10000"] }, async (shim) => {
      const path = `${shim.folder}/logs/file`;
      Deno.mkdirSync(`${shim.folder}/logs`);
      Deno.writeTextFileSync(path, "before\n");
      await shim.run({ stdout: `file://${path}`, terminal: true });
      assertEquals((await shim.wait()).status, 0);
      await shim.delete();
      const lines = Array.from({ length: 10_000 }, (_, i) => `${i + 1}\r\n`);
      assertEquals(Deno.readTextFileSync(path), `before\n${lines.join("")}`);
      await shim.run({ stdout: path, terminal: true });
      await shim.wait();
      await shim.delete();
      assertEquals(Deno.readTextFileSync(path), `before\n${lines.join("")}${lines.join("")}`);
    }),
);

Deno.test("a scheme that is not known fails Create, and is named", () =>
  withShim({}, async (shim) => {
    const call = shim.create({ stdout: "gopher://x", stderr: "gopher://x" });
    await assertStatus(call, IS_OURS ? Code.INVALID_ARGUMENT : Code.UNKNOWN, /unknown STDIO scheme gopher/);
  }));

onlyOurs(
  "containerd does not tell it the namespace in the way it wants",
  "ctr run --log-uri binary:// has a logger write down what a container prints",
  () =>
    withContainerd(async (containerd) => {
      const uri = makeLogger(containerd.folder, PLAIN);
      const id = containerd.newId();
      await containerd.runDetached(id, ["/bin/sh", "-c", "echo out; echo err >&2"], { io: ["--log-uri", uri] });
      await until("the logger has ended", () => readIfThere(`${containerd.folder}/out`) === "out\n");
      await until("it has stopped", async () => (await containerd.task(id))?.status === "STOPPED");
      await containerd.must("task", "delete", id);
      await containerd.must("container", "delete", id);
      assertEquals(readIfThere(`${containerd.folder}/err`), "err\n");
      assertMatch(readIfThere(`${containerd.folder}/environment`)!, new RegExp(`^CONTAINER_ID=${id}$`, "m"));
    }),
);

function readIfThere(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
