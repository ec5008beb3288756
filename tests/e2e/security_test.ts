/** Who gets in, and what gets out: sockets, ids, files that another may have put there, descriptors and environment. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { IS_OURS, onlyOurs, onlyOursInEachForm, WAY } from "./env.ts";
import { assertEnds, assertSupervised, processesOf, untilDenoIsComplete, withServed } from "./fault.ts";
import { HOSTS, type Machine, withHosted } from "./host.ts";
import { modes } from "./modes.ts";
import { descriptorsOf } from "./proc.ts";
import { SERVICE, type Shim, Status, withShim } from "./shim.ts";
import { connectAs, NOBODY, SEQPACKET } from "./stranger.ts";
import { PATIENCE_MS, until } from "./until.ts";

import v1 = containerd.runtime.linux.shim.v1;

modes(["hosted", "alone"], "other processes have sockets, files and an environment in each");

const STRANGERS = [[NOBODY, NOBODY], [NOBODY, 0], [0, NOBODY]] as const;

for (const socket of ["unix://FOLDER/named", "FOLDER/abstract"]) {
  onlyOursInEachForm(
    "it makes its socket for everyone, and looks at the user alone",
    `a peer of another user or group is refused by the socket of -socket ${socket}`,
    (form) =>
      withShim({ shim: form, socket }, async (shim) => {
        const path = shim.socketPath;
        if (!path.startsWith("\0")) {
          assertEquals(Deno.statSync(path).mode! & 0o777, 0o600, "the mode of the socket");
          assertMatch(await connectAs(path, NOBODY, NOBODY), /^cannot connect: Permission denied/);
          await Deno.chmod(path, 0o777);
        }
        for (const [uid, gid] of STRANGERS) assertEquals(await connectAs(path, uid, gid), "refused");
        assertEquals(await connectAs(path, 0, 0), "answered");
        const init = await shim.run();
        await assertSupervised(shim, init);
        await assertEnds(shim, init);
      }),
  );
}

if (IS_OURS && WAY === "hosted") {
  onlyOurs(
    "it has no hosts",
    "a host refuses another user or group, also where nothing else keeps it out",
    () =>
      withHosted({}, async (shim, machine) => {
        const init = await shim.run();
        assertEquals(permissions(machine), ["700", "600", "600"]);
        const { path } = machine.host();
        const options = { type: SEQPACKET, prefix: machine.prefix };
        assertMatch(await connectAs(path, NOBODY, NOBODY, options), /^cannot connect: Permission denied/);
        for (const each of [machine.folder, machine.fileOf({ path })]) await Deno.chmod(each, 0o777);
        try {
          for (const [uid, gid] of STRANGERS) {
            assertMatch(await connectAs(path, uid, gid, options), /^(refused|read, and closed)$/);
          }
        } finally {
          await Deno.chmod(machine.folder, 0o700);
        }
        assertEquals(machine.sizes(), [1]);
        await assertSupervised(shim, init);
        await assertEnds(shim, init);
      }),
  );
}

/** Modes of the folder for hosts, of the socket of its host, and of its lock. */
function permissions(machine: Machine): string[] {
  const host = machine.host();
  assert(host.path.startsWith(`${HOSTS}/`));
  const files = [machine.folder, machine.fileOf(host), machine.fileOf(host, ".lock")];
  return files.map((each) => (Deno.statSync(each).mode! & 0o777).toString(8));
}

/** What is no id: each would be another file than one of the bundle's, or none. */
const BAD_IDS = [
  ...["..", ".", "../other", "../../etc/passwd", "/etc/passwd", "a/b", "a/../b", "a/", "./a", "..a", ".a"],
  ...["", " ", "-rf", "a b", "a\nb", "a\0b", "\0", "é", "a;b", "$(a)", "%2e%2e", "x".repeat(4096), "../".repeat(1365)],
];

/** A method's request for an id, and the codes that one may be answered with that is none. */
const METHODS: readonly (readonly [string, (id: string) => Uint8Array, readonly Code[]])[] = [
  ["State", (id) => v1.StateRequest.encode({ id }).finish(), [Code.NOT_FOUND]],
  ["Start", (id) => v1.StartRequest.encode({ id }).finish(), [Code.NOT_FOUND]],
  ["Wait", (id) => v1.WaitRequest.encode({ id }).finish(), [Code.NOT_FOUND]],
  ["CloseIO", (id) => v1.CloseIORequest.encode({ id, stdin: true }).finish(), [Code.NOT_FOUND]],
  ["DeleteProcess", (id) => v1.DeleteProcessRequest.encode({ id }).finish(), [Code.NOT_FOUND]],
  // An empty id means init, and is sent signal 0.
  ["Kill", (id) => v1.KillRequest.encode({ id: id || "..", signal: 9 }).finish(), [Code.NOT_FOUND]],
  ["ResizePty", (id) => v1.ResizePtyRequest.encode({ id }).finish(), [Code.NOT_FOUND, Code.INVALID_ARGUMENT]],
  ["Exec", execRequest, [Code.INVALID_ARGUMENT]],
];

function execRequest(id: string): Uint8Array {
  const value = new TextEncoder().encode(JSON.stringify({ args: ["true"], cwd: "/", env: ["PATH=/bin"] }));
  return v1.ExecProcessRequest.encode({ id, spec: { value } }).finish();
}

/** The code that a call is answered with. */
async function codeOf(shim: Shim, method: string, request: Uint8Array): Promise<Code> {
  using client = await shim.connect();
  try {
    await client.call(SERVICE, method, request, { timeoutMs: PATIENCE_MS });
    return Code.OK;
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    assert(error.message.length > 0, "it is refused without a word");
    return error.code;
  }
}

/** All that is in a folder, and of what kind and size. */
function tree(folder: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) => {
    const path = `${folder}/${name}`;
    if (isDirectory) return [path, ...tree(path)];
    // What the shim writes of itself changes, and is where it is to be.
    return name === "log.json" ? [] : [`${path} ${Deno.lstatSync(path).size}`];
  }).toSorted();
}

onlyOursInEachForm(
  "it makes files of whatever id",
  "an id that would leave the bundle is refused by each method that has one, with a code, and no file is made or lost",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      for (const id of BAD_IDS) {
        const request = v1.CreateTaskRequest.encode({ id, bundle: shim.bundle, runtime: "runc" }).finish();
        assertEquals(await codeOf(shim, "Create", request), Code.INVALID_ARGUMENT, `Create ${JSON.stringify(id)}`);
      }
      const init = await shim.run();
      const before = tree(shim.folder);
      for (const id of BAD_IDS) {
        for (const [method, request, codes] of METHODS) {
          const code = await codeOf(shim, method, request(id));
          assert(codes.includes(code), `${method} of ${JSON.stringify(id).slice(0, 50)} answers ${code}`);
        }
      }
      assertEquals(tree(shim.folder), before);
      assertEquals((await shim.state()).status, Status.RUNNING);
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

onlyOursInEachForm(
  "it overwrites them",
  "an exec may have the name of a file of the bundle: config, init, shim, log, rootfs",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      const init = await shim.run();
      await Deno.writeTextFile(`${shim.bundle}/shim.pid`, `${shim.pid}`);
      const files = ["config.json", "init.pid", "shim.pid"].map((each) => `${shim.bundle}/${each}`);
      const before = files.map((each) => Deno.readTextFileSync(each));
      for (
        const id of ["config", "config.json", "init", "init.pid", "shim", "shim.pid", "shim.state", "log", "rootfs"]
      ) {
        await shim.exec(id, ["sh", "-c", "exit 3"]);
        await shim.startProcess(id);
        assertEquals((await shim.wait(id)).status, 3);
        await shim.deleteProcess(id);
        assertEquals(files.map((each) => Deno.readTextFileSync(each)), before, id);
      }
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

const VICTIM = "what is somebody else's\n";

/** Files of the bundle that are written by the shim, or for it: one that another has put there may be a link. */
const BUNDLE_FILES = [
  "init.pid",
  "other.pid",
  "other.process.json",
  "shim.dump.log",
  "criu-dump.log",
];

for (const isThere of [true, false]) {
  onlyOursInEachForm(
    "it follows them",
    `a link in place of a file of the shim's is not followed, where it leads to ${isThere ? "a file" : "nothing yet"}`,
    (form) =>
      withShim({ shim: form }, async (shim) => {
        const victims = BUNDLE_FILES.map((name) => `${shim.folder}/victim-${name}`);
        BUNDLE_FILES.forEach((name, i) => {
          if (isThere) Deno.writeTextFileSync(victims[i]!, VICTIM);
          Deno.symlinkSync(victims[i]!, `${shim.bundle}/${name}`);
        });
        const folder = `${shim.folder}/victims`;
        await Deno.mkdir(folder);
        await Deno.symlink(folder, `${shim.workdir}/criu-work`);

        const init = await shim.run();
        await shim.exec("other", ["true"]);
        await shim.startProcess("other");
        assertEquals((await shim.wait("other")).status, 0);
        await shim.deleteProcess("other");
        await shim.checkpoint(`${shim.folder}/image`).catch(() => {});
        // Nobody reads the log: the dump is written to its file too.
        shim.signal("SIGUSR1");
        const dump = `${shim.bundle}/shim.dump.log`;
        await until("there is a dump", () =>
          Deno.lstatSync(dump).isFile && Deno.readTextFileSync(dump).includes("END dump"));
        assertEquals(Deno.statSync(dump).mode! & 0o777, 0o600, "the mode of the dump");
        await assertSupervised(shim, init);
        await assertEnds(shim, init);

        for (const each of victims) {
          if (isThere) {
            assertEquals(Deno.readTextFileSync(each), VICTIM, each);
          } else {assertEquals(
              [...Deno.readDirSync(shim.folder)].filter(({ name }) =>
                each.endsWith(name)
              ),
              [],
              each,
            );}
        }
        assertEquals([...Deno.readDirSync(folder)], []);
      }),
  );
}

onlyOurs(
  "it follows them",
  "a link in place of a log's FIFO is not followed: the shim says so, and does not start",
  async () => {
    for (const name of ["stdout", "stderr"]) {
      const { folder, rejected, output, status } = await startWithLink(name);
      assert(rejected);
      assertEquals(status, 1);
      assertMatch(
        output,
        new RegExp(`^containerd-shim: open .*shim\\.${name}\\.log: too many levels of symbolic links\n$`),
      );
      assertEquals(folder, VICTIM);
    }
  },
);

/** Starts a shim whose log is a link, and tells what comes of it. */
async function startWithLink(name: string) {
  const workdir = await Deno.makeTempDir();
  const victim = await Deno.makeTempFile();
  const { Shim } = await import("./shim.ts");
  await Deno.writeTextFile(victim, VICTIM);
  await Deno.symlink(victim, `${workdir}/shim.${name}.log`);
  const shim = new Shim({ elsewhere: { workdir } });
  try {
    const rejected = await shim.start().then(() => false, () => true);
    const status = await shim.status;
    return { rejected, status, output: shim.output(), folder: await Deno.readTextFile(victim) };
  } finally {
    await shim.remove();
    await Deno.remove(workdir, { recursive: true });
    await Deno.remove(victim);
  }
}

/** Writes down who may see the folder of the console's socket, and is runc then. */
const LOOKING_RUNTIME = `#!/bin/sh
for each; do [ "$previous" = --console-socket ] && stat -c '%a %u %n' "\${each%/*}" >>"$(dirname "$0")/modes"; previous=$each; done
exec runc "$@"
`;

onlyOursInEachForm(
  "it needs streams for it",
  "the socket that a terminal is sent through is in a folder that only this user may enter, and is removed",
  (form) =>
    withShim({ shim: form, terminal: true }, async (shim) => {
      const runtime = await shim.makeProgram("looking-runtime", LOOKING_RUNTIME);
      await shim.run({ terminal: true }, { runtime });
      const [, mode, folder] = /^(\d+ \d+) (.*)\n$/.exec(await Deno.readTextFile(`${shim.folder}/modes`))!;
      assertEquals(mode, "700 0");
      assertThrows(() => Deno.lstatSync(folder!), Deno.errors.NotFound);
      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    }),
);

/** What a shim is started with that is nobody else's: a variable, and descriptors of a folder. */
const STRAY = [
  ...["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SECRET=of the shim's", "NOTIFY_SOCKET=/run/systemd/notify"],
  ...WAY === "alone" ? ["CONTAINERD_SHIM_GROUP=1"] : [],
  ...[
    "perl",
    "-MPOSIX",
    "-e",
    "open my $f, '<', '/' or die; POSIX::dup2(fileno $f, $_) for 7, 9, 20, 99; exec @ARGV or die",
  ],
];

/** Prints a process's descriptors and its environment, and stays. */
const SHOW = ["sh", "-c", "ls -l /proc/self/fd; env; exec sleep 1000"];

/** What is printed by that: each descriptor's number and file, and each variable. */
function shown(text: string): { readonly fds: string[]; readonly files: string[]; readonly variables: string[] } {
  const lines = text.replaceAll("\r", "").split("\n");
  const links = lines.map((line) => / (\d+) -> (.*)$/.exec(line)).filter((each) => each !== null)
    // What is listed is open as long as it is being listed.
    .filter(([, , file]) => !/^\/proc\/\d+\/fd$/.test(file!));
  return {
    fds: links.map(([, fd]) => fd!).toSorted(),
    files: links.map(([, , file]) => file!),
    variables: lines.filter((line) => /^[A-Z_]+=/.test(line)).map((line) => line.split("=")[0]!).toSorted(),
  };
}

/** What a container's process has besides what its specification says: runc finds HOME, and the shell the others. */
const VARIABLES = ["HOME", "PATH", "PWD", "SHLVL"];

onlyOursInEachForm(
  "its exec with a terminal has no standard error",
  "nothing of the shim's descriptors or environment reaches a container or its execs, with a terminal or without",
  (form) =>
    withShim({ shim: form, prefix: STRAY, args: SHOW }, async (shim) => {
      const { stdout, pid } = await shim.createWithFifos();
      await shim.startProcess();
      await assertClean(pid, await untilShown(stdout), "pipe:");
      const other = await shim.execWithFifos("other", SHOW);
      await assertClean(other.pid, await untilShown(other.stdout), "pipe:");

      const fifos = await shim.fifos("tty");
      await shim.exec("tty", SHOW, { stdin: fifos.stdin, stdout: fifos.stdout, terminal: true });
      const [reader, tty] = await Promise.all([shim.read(fifos.stdout), shim.startProcess("tty")]);
      await assertClean(tty, await untilShown(reader), "/dev/pts/");
      for (const id of ["other", "tty"]) {
        await shim.kill(9, { id });
        await shim.wait(id);
        await shim.deleteProcess(id);
      }
    }),
);

/** Fails unless a process has its standard streams alone, and nothing of anyone's environment, as it and the kernel see it. */
async function assertClean(pid: number, text: string, stream: string): Promise<void> {
  const { fds, files, variables } = shown(text);
  const own = variables.filter((each) => each !== "TERM");
  assertEquals([fds, own], [["0", "1", "2"], VARIABLES]);
  assert(files.every((each) => each.startsWith(stream)), files.join());
  await until("it sleeps", () => Deno.readTextFileSync(`/proc/${pid}/comm`) === "sleep\n");
  assertEquals([...descriptorsOf(pid).keys()].toSorted(), [0, 1, 2]);
  assert(!/SECRET|NOTIFY|CONTAINERD|DENO/.test(Deno.readTextFileSync(`/proc/${pid}/environ`)));
}

/** Reads what init prints, up to its last variable. */
async function untilShown(stdout: { line(): Promise<string> }): Promise<string> {
  let text = "";
  while (!VARIABLES.every((each) => new RegExp(`^${each}=`, "m").test(text))) text += await stdout.line();
  return text;
}

onlyOursInEachForm(
  "nothing of the kind, but its limit of threads",
  "the runtime has the shim's environment, as it was started with, without what is containerd's alone or the shim's own",
  (form) =>
    withShim({ shim: form, prefix: STRAY }, async (shim) => {
      const script =
        `#!/bin/sh\ntr '\\0' '\\n' </proc/$$/environ | sort >>'${shim.folder}/environment'\nexec runc "$@"\n`;
      const runtime = await shim.makeProgram("telling-runtime", script);
      const init = await shim.run({}, { runtime });
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
      const variables = new Set((await Deno.readTextFile(`${shim.folder}/environment`)).trimEnd().split("\n"));
      const group = WAY === "alone" || variables.has("CONTAINERD_SHIM_GROUP=1") ? ["CONTAINERD_SHIM_GROUP=1"] : [];
      // What the scripts that start it add of themselves.
      for (const each of variables) if (/^(PWD|OLDPWD|_|SHLVL)=/.test(each)) variables.delete(each);
      assertEquals([...variables].toSorted(), [...group, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SECRET=of the shim's"]);
    }),
);

onlyOurs(
  "it never has any",
  "neither a shim nor its host has a socket but Unix ones, also when it is sent SIGUSR1",
  () =>
    withServed({}, async (served) => {
      const { shim } = served;
      const init = await shim.run();
      // Deno's own handler of SIGUSR1, which is there after half a second, would open its debugger to the network.
      for (const pid of processesOf(served)) await untilDenoIsComplete(pid);
      for (const pid of processesOf(served)) Deno.kill(pid, "SIGUSR1");
      await assertSupervised(shim, init);
      for (const pid of processesOf(served)) {
        const unix = new Set(
          Deno.readTextFileSync(`/proc/${pid}/net/unix`).split("\n").map((line) => line.trim().split(/\s+/)[6]),
        );
        const sockets = [...descriptorsOf(pid).values()].filter((each) => each.startsWith("socket:"));
        const others = sockets.filter((each) => !unix.has(each.slice("socket:[".length, -1)));
        assertEquals(others, [], `process ${pid} has other sockets`);
      }
      await assertEnds(shim, init);
    }),
);

onlyOurs(
  "it is no program of Deno's",
  "Deno takes away /proc, without which there is no shim, with whatever other permission: so the shim has all of them",
  async () => {
    const script =
      "try { Deno.readTextFileSync('/proc/self/limits'); console.log('all') } catch { console.log('none') }";
    const printed = async (...flags: string[]) => {
      const args = [
        "run",
        "--no-prompt",
        "--quiet",
        ...flags,
        `data:application/javascript,${encodeURIComponent(script)}`,
      ];
      return new TextDecoder().decode((await new Deno.Command(Deno.execPath(), { args }).output()).stdout).trim();
    };
    assertEquals(await printed("-A"), "all");
    for (const each of ["net", "run", "sys", "import", "env"]) {
      // When this is no longer so, the executable can do without: lib/standalone/pack.ts.
      assertEquals(await printed("-A", `--deny-${each}`), "none", `--deny-${each}`);
    }
  },
);
