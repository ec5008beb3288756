/** `containerd-shim inspect`: what it tells of each container, and that it tells it soon, whatever a shim is doing. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { forAll } from "./at_a_time.ts";
import { run, type Running, start } from "./command.ts";
import { type Form, inModes, onlyOurs, onlyOursInEachForm, OUR_EXECUTABLE } from "./env.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import {
  ALONE,
  endContainer,
  killHost,
  onlyHosted,
  untilEnded,
  withHostedShims,
  withMachine,
  withShims,
} from "./host.ts";
import { inspect, inspectAll, inspectArguments, inspectOne, only, parseTable } from "./inspect.ts";
import { modes } from "./modes.ts";
import { isHolder, processOf } from "./proc.ts";
import { type Shim, withShim } from "./shim.ts";
import { NOBODY } from "./stranger.ts";
import { statePath } from "./takeover.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "hosts are found, and asked, in another way than a shim by itself");

/** Debian's shim, which is installed together with containerd. */
const GO: Form = { name: "Go shim", path: "/usr/bin/containerd-shim" };

/** How many containers an administrator may have, and how soon all of them are to be told of, in ms. */
const MANY = 50;
const SOON_MS = 1000;
/** How many are started at once, and how often it is tried how long it takes. */
const AT_ONCE = 4;
const TRIES = 3;

const KIB = 1024;

/** What a shell says of a process that SIGINT has ended. */
const INTERRUPTED = 130;

const ANOTHER = "it is about this project's command";

/** Runs a command on a terminal that the test types on: script(1). */
function onTerminal(command: readonly string[], environment: readonly string[] = []): Running {
  const quoted = command.map((each) => `'${each}'`).join(" ");
  return start(["env", "-u", "NO_COLOR", ...environment, "script", "-qefc", quoted, "/dev/null"]);
}

/** Stops processes until `test` is over. */
async function whileStopped(pids: readonly number[], test: () => Promise<void>): Promise<void> {
  for (const pid of pids) Deno.kill(pid, "SIGSTOP");
  try {
    for (const pid of pids) await until("it is stopped", () => processOf(pid)?.state === "T");
    await test();
  } finally {
    for (const pid of pids) Deno.kill(pid, "SIGCONT");
  }
}

onlyOursInEachForm(
  ANOTHER,
  "inspect tells of a container from before its creation to its end",
  (form) =>
    withShim({ shim: form, isNamed: true, args: ["cat"] }, async (shim) => {
      const { namespace, id } = shim;
      const all = async () => {
        const { code, reports } = await inspectAll(namespace);
        assertEquals([code, reports.length], [0, 1]);
        return reports[0]!;
      };
      const before = await all();
      assertEquals([before.state, before.initPid, before.execs, before.error], ["none", null, 0, null]);
      assertEquals([before.shimPid, before.shape], [shim.pid, isHolder(shim.pid) ? "hosted" : "alone"]);
      assertEquals([before.bundle, before.socket], [shim.bundle, shim.socketPath]);

      const { pid, fifos, stdout } = await shim.createWithFifos();
      assertEquals((await all()).state, "created");
      await shim.startProcess();
      const exec = await shim.execWithFifos("other", ["/bin/sleep", "1000"]);
      {
        using keyboard = await Deno.open(fifos.stdin, { write: true });
        await keyboard.write(new TextEncoder().encode("hello\n"));
        assertEquals(await stdout.line(), "hello\n");
      }
      const ended = shim.wait();
      ended.catch(() => {});
      await shim.shimPid();

      const running = await inspectOne(namespace, id);
      assertEquals([running.namespace, running.id, running.state], [namespace, id, "running"]);
      assertEquals([running.initPid, running.execs, running.exitStatus, running.lastEvent], [pid, 1, null, null]);
      assertEquals(running.processes?.map((each) => [each.id, each.pid, each.state]), [
        [id, pid, "running"],
        ["other", exec.pid, "running"],
      ]);
      assertEquals(running.processes?.[0]?.movedBytes, { stdin: 6, stdout: 6, stderr: 0 });
      assertEquals([running.movedBytes, running.eventsWaiting, running.hostDeaths?.count], [12, 0, 0]);
      assertEquals(running.callsInFlight?.map(({ method }) => method), ["Wait"]);
      assertEquals(running.memoryBytes! % KIB, 0);
      const age = Date.now() - Date.parse(running.startedAt!);
      assert(running.uptimeSeconds! >= 0 && Math.abs(age - running.uptimeSeconds! * 1000) < 2000, `${age} ms`);
      const dumped = `process ${id} pid ${pid} running stdout 6 bytes stderr 0 bytes stdin 6 bytes`;
      assert(running.dump!.includes(dumped), running.dump!.join("\n"));

      await shim.pause();
      const { rows: [row, ...others], remarks } = parseTable((await inspect("-namespace", namespace)).stdout);
      assertEquals([others, remarks], [[], []]);
      assertEquals([row!.NAMESPACE, row!.ID, row!.SHIM, row!.INIT], [namespace, id, `${shim.pid}`, `${pid}`]);
      assertEquals([row!.STATE, row!.EXECS, row!.MOVED, row!.WAITING], ["paused", "1", "12 B", "0"]);
      assertEquals(row!.HOST, `${running.host?.pid ?? "alone"}`);
      await shim.resume();

      await shim.kill(9);
      assertEquals((await ended).status, 137);
      await until("the event is delivered", async () => (await inspectOne(namespace, id)).eventsWaiting === 0);
      const stopped = await inspectOne(namespace, id);
      assertEquals([stopped.state, stopped.exitStatus, stopped.lastEvent?.topic], ["stopped", 137, "/tasks/exit"]);
      assert(Math.abs(Date.now() - Date.parse(stopped.exitedAt!)) < 60_000);
      const detail = (await inspect(`${namespace}/${id}`)).stdout;
      assertMatch(detail, /^Exit status: +137$/m);
      assertStringIncludes(detail, `\nprocess ${id} pid ${pid} stopped with status 137`);
      assertStringIncludes(detail, "\n=== END dump ===\n");
      await shim.wait("other");
      await shim.deleteProcess("other");
      await shim.delete();
      assertEquals((await all()).state, "none");
    }),
);

for (const socket of ["unix://FOLDER/own", "FOLDER/abstract", "FOLDER/ends-with@"]) {
  onlyOurs(
    ANOTHER,
    `inspect finds a shim that serves -socket ${socket}, however its flags are written`,
    () =>
      withShim({ socket, flags: ["-debug", "--runtime-root=FOLDER/runc", "-systemd-cgroup=false"] }, async (shim) => {
        const { code, reports: [report, ...others] } = await inspectAll(shim.namespace);
        assertEquals([code, others, report?.shimPid, report?.shape], [0, [], shim.pid, "alone"]);
      }),
  );
}

onlyHosted(
  "inspect tells how many live in a host, how much memory that has, and how many have died",
  () =>
    withHostedShims([{}, {}], async ([one, other], machine) => {
      await one!.run();
      const host = await killHost(machine);
      // Each is answered by the next.
      for (const shim of [one!, other!]) await shim.shimPid();
      const { namespace, id, pid } = one!;
      const report = await inspectOne(namespace, id);
      assertEquals([report.shimPid, report.shape, report.state], [pid, "hosted", "running"]);
      const next = machine.host();
      assertEquals([report.host?.pid, report.host?.socket, report.host?.containers], [next.pid, next.path, 2]);
      assert(next.pid !== host.pid && report.host!.memoryBytes! > report.memoryBytes!);
      assertEquals(report.hostDeaths?.count, 1);
      assertEquals(report.hostDeaths!.reason, "signal 9");
      assertMatch((await inspect(`${namespace}/${id}`)).stdout, /^Hosts that have died: +1, the last \d+s ago: /m);
      await endContainer(one!);
    }),
);

onlyHosted("to inspect a shim changes nothing that is written down", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const record = statePath(shim);
    const written = () => ({ ...Deno.statSync(record), atime: null });
    const before = written();
    for (let i = 0; i < TRIES; i++) assertEquals((await inspectOne(shim.namespace, shim.id)).state, "running");
    assertEquals(written(), before);
    await endContainer(shim);
  }));

modes(["hosted", "mixed"], "shims of both kinds are told of side by side");

onlyOurs(
  ANOTHER,
  "inspect tells of 50 containers, all that is so, within a second",
  () =>
    withContainerd(async (containerd) => {
      const ids = Array.from({ length: MANY }, () => containerd.newId());
      await forAll(ids, AT_ONCE, (id) => containerd.runDetached(id, ["/bin/sleep", "1000"]));
      const { namespace } = containerd;
      const { code, reports } = await inspectAll(namespace);
      assertEquals(code, 0);
      assertEquals(reports.map(({ id }) => id), ids.toSorted());
      const { rows } = parseTable((await inspect("-namespace", namespace)).stdout);
      assertEquals(rows.map(({ ID }) => ID), ids.toSorted());
      for (const id of ids) {
        const report = only(reports, id);
        const init = Number(await Deno.readTextFile(`${containerd.bundles}/${id}/init.pid`));
        assertEquals([report.shimPid, report.initPid], [containerd.shimOf(id), init]);
        assertEquals([report.state, report.execs, report.error], ["running", 0, null]);
        const row = rows.find(({ ID }) => ID === id)!;
        assertEquals([row.SHIM, row.INIT, row.STATE], [`${report.shimPid}`, `${report.initPid}`, "running"]);
      }
      const times = [];
      for (let i = 0; i < TRIES; i++) {
        const before = performance.now();
        await inspect("-namespace", namespace);
        times.push(performance.now() - before);
      }
      console.log(`${MANY} containers: ${times.map((ms) => `${Math.round(ms)} ms`).join(", ")}`);
      assert(Math.min(...times) < SOON_MS, `${times} ms`);

      // One that hangs, and one that has died, with nobody to clean up.
      const [hanging, dead] = ids as [string, string];
      await containerd.stop("SIGKILL");
      const died = containerd.shimOf(dead);
      Deno.kill(died, "SIGKILL");
      await untilEnded(died);
      await whileStopped([containerd.shimOf(hanging)], async () => {
        const before = performance.now();
        const { code, reports } = await inspectAll(namespace);
        const ms = performance.now() - before;
        console.log(`one of them hanging, and one dead: ${Math.round(ms)} ms`);
        assertEquals([code, reports.length], [1, MANY]);
        const report = only(reports, dead);
        assertEquals([report.shimPid, report.state, report.shape], [died, "dead", null]);
        assertStringIncludes(report.error!, `${containerd.bundles}/${dead}`);
        const stopped = only(reports, hanging);
        assertEquals([stopped.state, stopped.initPid], ["hanging", null]);
        assertStringIncludes(stopped.error!, "stopped by a signal");
        const others = reports.filter(({ id }) => id !== dead && id !== hanging);
        assertEquals(new Set(others.map(({ state, error }) => `${state} ${error}`)), new Set(["running null"]));
        const { stdout } = await inspect("-namespace", namespace);
        assertEquals(parseTable(stdout).remarks.length, 2, stdout);
      });
      await containerd.start();
      await forAll(ids, AT_ONCE, (id) => id === dead ? containerd.must("container", "delete", id) : containerd.end(id));
    }),
);

modes(["hosted"], "what has been found is shown by the same code in each mode");

onlyOurs(
  ANOTHER,
  "inspect tells which shims hang, within the time that it is told to give them",
  () =>
    withMachine((machine) =>
      withShims([
        { prefix: machine.prefix },
        { prefix: [...ALONE] },
        { prefix: [...ALONE] },
      ], async ([hosted, alone, well]) => {
        const hosts = machine.hosts().map(({ pid }) => pid);
        const stopped = hosts.length > 0 ? [...hosts, alone!.pid] : [hosted!.pid, alone!.pid];
        await whileStopped(stopped, async () => {
          for (const shim of [hosted!, alone!]) {
            const { code, reports } = await inspectAll(shim.namespace, "-timeout", "200ms");
            assertEquals([code, reports.length, reports[0]!.state, reports[0]!.shape], [1, 1, "hanging", null]);
            assertMatch(reports[0]!.error!, /^no answer within 200 ms/);
            assertEquals([reports[0]!.shimPid, reports[0]!.initPid], [shim.pid, null]);
          }
          assertEquals((await inspectAll(well!.namespace)).code, 0);
        });
        assertEquals((await inspectAll(hosted!.namespace)).code, 0);
      })
    ),
);

onlyOurs(
  ANOTHER,
  "inspect tells of a Go shim beside ours what its own service does",
  () =>
    withContainerd((ours) =>
      withContainerd(async (theirs) => {
        const runIn = async (containerd: Containerd) => {
          const id = containerd.newId("c");
          await containerd.runDetached(id, ["/bin/sleep", "1000"]);
          await containerd.exec(id, ["--detach"], ["/bin/sleep", "1000"]);
          return id;
        };
        const id = await runIn(ours);
        assertEquals(await runIn(theirs), id);
        const [mine, go] = [await inspectOne(ours.namespace, id), await inspectOne(theirs.namespace, id)];
        assertEquals([mine.state, mine.execs, go.state, go.execs], ["running", 1, "running", 1]);
        assertEquals([go.shimPid, go.initPid, go.shape], [theirs.shimOf(id), (await theirs.task(id))!.pid, "other"]);
        assertEquals(go.processes?.map(({ id, state, movedBytes }) => [id, state, movedBytes]), [
          [id, "running", null],
          ["e1", "running", null],
        ]);
        assertEquals([go.host, go.movedBytes, go.eventsWaiting, go.lastEvent, go.dump], [null, null, null, null, null]);
        assert(go.memoryBytes! > 0 && go.uptimeSeconds! > 0);
        const { rows: [row] } = parseTable((await inspect("-namespace", theirs.namespace)).stdout);
        assertEquals([row!.HOST, row!.STATE, row!.EXECS, row!.MOVED], ["other", "running", "1", "-"]);
        assertMatch((await inspect(`${theirs.namespace}/${id}`)).stdout, /^process e1 pid \d+ running$/m);

        // The same name in two namespaces is none.
        const { code, stdout, stderr } = await inspect(id);
        assertEquals([code, stdout], [1, ""]);
        for (const { namespace } of [ours, theirs]) assertStringIncludes(stderr, `${namespace}/${id}`);
        assertEquals((await inspect("-namespace", ours.namespace, id)).code, 0);

        await theirs.must("task", "pause", id);
        assertEquals((await inspectOne(theirs.namespace, id)).state, "paused");
        await theirs.must("task", "resume", id);
        await theirs.must("task", "kill", "--signal", "9", id);
        await until("it has stopped", async () => (await inspectOne(theirs.namespace, id)).exitStatus === 137);
        // It has been asked often, and is still there.
        await theirs.must("task", "delete", id);
        await theirs.must("container", "delete", id);
        await ours.end(id);
      }, { shim: GO })
    ),
);

/** A shim whose container runs. */
function withRunning(test: (shim: Shim) => Promise<void>): Promise<void> {
  return withShim({}, async (shim) => {
    await shim.run();
    await test(shim);
    await endContainer(shim);
  });
}

onlyOurs(
  ANOTHER,
  "inspect has colours on a terminal, unless NO_COLOR says otherwise, and none elsewhere",
  () =>
    withRunning(async ({ namespace }) => {
      const command = inspectArguments("-namespace", namespace);
      const shown = async (environment: readonly string[]) => (await onTerminal(command, environment).result).stdout;
      assertStringIncludes(await shown([]), "\x1b[32mrunning\x1b[0m");
      assertStringIncludes(await shown(["NO_COLOR="]), "\x1b[32mrunning\x1b[0m");
      const plain = await shown(["NO_COLOR=1"]);
      assert(!plain.includes("\x1b"), plain);
      assertStringIncludes(plain, "running");
      assert(!(await inspect("-namespace", namespace)).stdout.includes("\x1b"));
    }),
);

onlyOurs(ANOTHER, "inspect -watch draws anew on a terminal until ^C, which ends it", () =>
  withRunning(async (shim) => {
    const command = onTerminal(inspectArguments("--watch", "-namespace", shim.namespace));
    const looks = () => command.stdoutSoFar().split("\x1b[H").slice(1);
    await until("it has looked twice", () => looks().length >= 2);
    assertStringIncludes(looks()[0]!, "running");
    await shim.pause();
    await until("it shows what has changed", () => looks().at(-1)!.includes("paused"));
    await shim.resume();
    await command.write(new TextEncoder().encode("\x03"));
    assertEquals((await command.result).code, INTERRUPTED);
  }));

onlyOurs(
  ANOTHER,
  "inspect -watch prints one after the other where there is no terminal, and goes when its reader has",
  () =>
    withRunning(async ({ namespace }) => {
      const watch = inspectArguments("-watch", "-json", "-namespace", namespace);
      const script = '{ "$@"; echo "ended with $?" >&2; } | head -n 2';
      const { stdout, stderr } = await start(["sh", "-c", script, "sh", ...watch]).result;
      const looks = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
      assertEquals(looks.map(([report]) => report.state), ["running", "running"]);
      assertEquals(stderr, "ended with 141\n");
    }),
);

onlyHosted("^C ends inspect and upgrade while they wait for a host that hangs", () =>
  withMachine(async (machine) => {
    await withShim({ prefix: machine.prefix }, async (shim) => {
      await whileStopped([machine.host().pid], async () => {
        for (const args of [["upgrade", "--dry-run"], ["inspect", "-timeout", "60s", "-namespace", shim.namespace]]) {
          const command = start([...machine.prefix, OUR_EXECUTABLE, ...args]);
          await until("it waits", () => Deno.readTextFileSync(`/proc/${command.pid}/cmdline`).includes(args[0]!));
          await until("it lets signals through", () => isInterruptible(command.pid));
          command.kill("SIGINT");
          assertEquals((await command.result).code, INTERRUPTED);
        }
      });
    });
  }));

/** Whether SIGINT would end a process of ours at once. */
function isInterruptible(pid: number): boolean {
  const status = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/status`);
  const SIGINT_BIT = 2n;
  return (BigInt(`0x${/^SigBlk:\s*([0-9a-f]+)$/m.exec(status)![1]}`) & SIGINT_BIT) === 0n &&
    /^Name:\s*containerd-shim/m.test(status);
}

onlyOurs(
  ANOTHER,
  "inspect tells a user of shims that are not his that he cannot ask them",
  () =>
    withRunning(async ({ namespace, pid }) => {
      const asNobody = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];
      // He may not come to where our executable is, on some machines.
      const script = 'exec 5<"$0"; exec "$@" /proc/self/fd/5 inspect -json -namespace ' + namespace;
      const { code, stdout, stderr } = await run(["sh", "-c", script, OUR_EXECUTABLE, ...asNobody]);
      assertEquals([code, stderr], [1, ""]);
      const [report] = JSON.parse(stdout);
      assertEquals([report.shimPid, report.state, report.initPid], [pid, "no answer", null]);
      assertEquals(report.error, "it is user 0's, and answers nobody else");
    }),
);

onlyOurs(
  ANOTHER,
  "a name that is no container's, and a wrong command line, are told of and have exit codes of their own",
  async () => {
    const none = await inspect("no-such-container");
    assertEquals(none, { code: 1, stdout: "", stderr: "containerd-shim: no container no-such-container has a shim\n" });
    for (
      const [args, complaint] of [
        [["-nosuch"], "flag provided but not defined: -nosuch"],
        [["one", "two"], "inspect takes one ID: one two"],
        [["-timeout", "soon"], 'invalid value "soon" for -timeout: it is a number with ms or s'],
        [["-timeout", "0s"], 'invalid value "0s" for -timeout: it is a number with ms or s'],
      ] as const
    ) {
      const { code, stdout, stderr } = await inspect(...args);
      assertEquals([code, stdout, stderr.split("\n")[0]], [2, "", complaint]);
      assertMatch(stderr, /^Usage: containerd-shim inspect \[flags\] \[ID\]$/m);
    }
    const help = await inspect("-help");
    assertEquals([help.code, help.stdout], [0, ""]);
    for (const flag of ["json", "namespace", "timeout", "watch"]) assertStringIncludes(help.stderr, `\n  -${flag}`);
    assertEquals(await inspectAll("no-such-namespace"), { code: 0, reports: [] });
  },
);

/** Looks like a shim that listens, by a name that is a link to another's socket by now; says when it does. */
const IMPOSTOR = `
  use Socket;
  my ($name, $target, $ready) = splice @ARGV, 0, 3;
  socket my $socket, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  bind $socket, pack_sockaddr_un($name) and listen $socket, 1 or die "$name: $!";
  unlink $name and symlink $target, $name or die "$name: $!";
  open my $file, '>', $ready or die "$ready: $!";
  sleep 1000;
`;

inModes(
  ["alone"],
  "it asks no shim that lives in a mode",
  "inspect follows no link that another process has made",
  () =>
    withShim({}, async (shim) => {
      // In a mount namespace of its own, as a container's processes are.
      const [folder, ready] = [`${shim.folder}/impostor`, `${shim.folder}/ready`];
      await Deno.mkdir(folder);
      await using sink = new AsyncDisposableStack();
      let connections = 0;
      const listener = Deno.listen({ transport: "unix", path: `${shim.folder}/target` });
      sink.defer(() => listener.close());
      (async () => {
        for await (const conn of listener) {
          connections++;
          conn.close();
        }
      })();
      const flags = ["-namespace", "impostor", "-workdir", "/w/fake", "-address", "/a"];
      const perl = ["perl", "-e", IMPOSTOR, `${folder}/s`, `${shim.folder}/target`, ready, ...flags];
      const impostor = new Deno.Command("unshare", { args: ["--mount", ...perl], stdin: "null" }).spawn();
      sink.defer(async () => {
        impostor.kill("SIGKILL");
        await impostor.status;
      });
      await until("it listens", () => Deno.statSync(ready).isFile);
      const { code, reports } = await inspectAll("impostor");
      assertEquals([code, reports.length, reports[0]?.id, reports[0]?.state], [1, 1, "fake", "no answer"]);
      assertMatch(reports[0]!.error!, /too many levels of symbolic links/);
      assertEquals(connections, 0);
    }),
  { isOnlyOurs: true },
);

inModes(
  ["hosted", "alone"],
  "whose child a container is",
  "inspect shows no shim that a process of a container makes up",
  () =>
    withShim({ mountedRoot: true, args: ["sleep", "1000"] }, async (shim) => {
      // The machine's programs, for one that can listen.
      await shim.run({}, { rootfs: [{ type: "bind", source: "/", options: ["rbind", "ro"] }] });
      const flags = ["-namespace", shim.namespace, "-workdir", "/w/fake", "-address", "/a"];
      const args = ["/usr/bin/perl", "-e", IMPOSTOR, "/dev/s", "/dev/null", "/dev/ready", ...flags];
      await shim.exec("e", args);
      const pid = await shim.startProcess("e");
      await until("it listens", () => Deno.statSync(`/proc/${pid}/root/dev/ready`).isFile);
      const { reports } = await inspectAll(shim.namespace);
      assertEquals(reports.map(({ shimPid }) => shimPid), [shim.pid]);
      await endContainer(shim);
    }),
  { isOnlyOurs: true },
);
