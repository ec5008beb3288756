/** A host dies, at a moment that the test chooses; what was being done goes on, and nobody has to do anything about it. */

import { assert, assertEquals } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { type Reader, Writer } from "./fifo.ts";
import { assertExecs, endContainer, killHost, type Machine, onlyHosted, withHosted } from "./host.ts";
import { modes } from "./modes.ts";
import { isAlive, parseMountInfo, processOf } from "./proc.ts";
import { assertStatus, type Shim, type ShimOptions, Status } from "./shim.ts";
import { GatedRuntime, later, type Moment, replaceHost, untilReaped, withoutHost } from "./takeover.ts";
import { until } from "./until.ts";

modes(["hosted"], "it is about hosts that take over");

/** How many hosts a test kills where more than one are to be. */
const HOSTS = 3;

onlyHosted(
  "those who wait for processes are answered by the host that is there in the end",
  () =>
    withHosted({}, async (shim, machine) => {
      const init = await shim.run();
      await shim.exec("e", ["sleep", "1000"]);
      const exec = await shim.startProcess("e");
      const waiting = [shim.wait(), shim.wait(), shim.wait("e"), shim.wait("e")].map(later);
      // On the same connection: when this is answered, the others have been read.
      await shim.shimPid();
      for (let i = 0; i < HOSTS; i++) {
        await replaceHost(machine);
        assertEquals([(await shim.state()).pid, (await shim.state("e")).pid], [init, exec]);
      }
      // Not even asked for anything.
      for (let i = 0; i < HOSTS; i++) await replaceHost(machine);
      await shim.kill(15, { id: "e" });
      const execExits = await Promise.all(waiting.slice(2));
      assertEquals(execExits.map(({ status }) => status), [143, 143]);
      await shim.kill(9);
      const exits = await Promise.all(waiting.slice(0, 2));
      assertEquals(exits.map(({ status }) => status), [137, 137]);
      assertEquals(await shim.deleteProcess("e"), { pid: exec, ...execExits[0]! });
      assertEquals(await shim.delete(), { pid: init, ...exits[0]! });
    }),
);

/** A call that has the OCI runtime do something. */
interface RuntimeCall {
  readonly name: string;
  /** What the runtime is asked for. */
  readonly command: string;
  readonly options?: ShimOptions;
  /** What is done before. */
  readonly prepare?: (shim: Shim, runtime: string) => Promise<unknown>;
  readonly call: (shim: Shim, runtime: string) => Promise<unknown>;
  /** Fails unless all is as it should be, once it has been answered. */
  readonly check: (shim: Shim, answer: unknown) => Promise<void>;
}

/** Fails unless a pid is that of a child of the shim's that lives. */
function assertChild(shim: Shim, pid: unknown): void {
  assertEquals(processOf(pid as number)?.ppid, shim.pid);
  assert(isAlive(pid as number));
}

/** Ends a container that runs, and fails unless it does whatever it should until then. */
async function assertWellUntilEnd(shim: Shim): Promise<void> {
  assertEquals((await shim.state()).status, Status.RUNNING);
  await assertExecs(shim, "last");
  await endContainer(shim);
}

/** What is mounted in the test's folder as the shim sees it, or another process. */
function mounted(shim: Shim, pid: number = shim.pid): string[] {
  const mounts = parseMountInfo(Deno.readTextFileSync(`/proc/${pid}/mountinfo`));
  return mounts.map(({ path }) => path).filter((path) => path.startsWith(`${shim.folder}/`));
}

/** Fails unless nothing is left of the container. Hosts that have died are reaped one by one. */
async function assertNothingLeft(shim: Shim): Promise<void> {
  await shim.expectNothingLeft();
  assertEquals(mounted(shim), []);
}

/** Creates and starts a container with a runtime. */
async function run(shim: Shim, runtime: string): Promise<void> {
  await shim.run({}, { runtime });
}

const CALLS: readonly RuntimeCall[] = [
  {
    name: "Create",
    command: "create",
    call: (shim, runtime) => shim.create({}, { runtime }),
    async check(shim, pid) {
      assertChild(shim, pid);
      const { status, pid: told } = await shim.state();
      assertEquals([status, told], [Status.CREATED, pid]);
      assertEquals(await shim.startProcess(), pid);
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Create with streams",
    command: "create",
    options: { args: ["sh", "-c", "read line; echo got $line; echo error >&2; exit 3"] },
    call: (shim, runtime) => shim.createWithFifos({ runtime }),
    async check(shim, attached) {
      const { stdout, stderr, fifos } = attached as Awaited<ReturnType<Shim["createWithFifos"]>>;
      await shim.startProcess();
      using writer = await Writer.open(fifos.stdin);
      await writer.write("hello\n");
      assertEquals([await stdout.text(), await stderr.text()], ["got hello\n", "error\n"]);
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    },
  },
  {
    name: "Create with a terminal",
    command: "create",
    options: { terminal: true, args: ["sh", "-c", "read line; stty size; echo got $line; exit 3"] },
    async call(shim, runtime) {
      const { stdin, stdout } = await shim.fifos();
      const created = shim.create({ stdin, stdout, terminal: true }, { runtime });
      const [output] = await Promise.all([shim.read(stdout), created]);
      return { stdin, output };
    },
    async check(shim, attached) {
      const { stdin, output } = attached as { stdin: string; output: Reader };
      await shim.resize(100, 30);
      await shim.startProcess();
      using keyboard = await Writer.open(stdin);
      await keyboard.write("hello\n");
      assertEquals(await output.text(), "hello\r\n30 100\r\ngot hello\r\n");
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    },
  },
  {
    name: "Create with mounts",
    command: "create",
    options: { mountedRoot: true },
    call: (shim, runtime) =>
      shim.create({}, { runtime, rootfs: [{ type: "bind", source: shim.rootfs, options: ["rbind"] }] }),
    async check(shim, pid) {
      assertChild(shim, pid);
      assertEquals(mounted(shim), [`${shim.bundle}/rootfs`]);
      await shim.startProcess();
      await assertWellUntilEnd(shim);
      assertEquals(mounted(shim), []);
    },
  },
  {
    name: "Create of what cannot be",
    command: "create",
    options: { args: ["no-such-command"], mountedRoot: true },
    async call(shim, runtime) {
      const rootfs = [{ type: "bind", source: shim.rootfs, options: ["rbind"] }];
      await assertStatus(
        shim.create({}, { runtime, rootfs }),
        Code.UNKNOWN,
        /^OCI runtime create failed: .*exec: "no-such-command": executable file not found in \$PATH/,
      );
    },
    async check(shim) {
      await assertNothingLeft(shim);
      const config = `${shim.bundle}/config.json`;
      const text = await Deno.readTextFile(config);
      await Deno.writeTextFile(config, text.replace(`["no-such-command"]`, `["sleep","1000"]`));
      await shim.run({}, { rootfs: [{ type: "bind", source: shim.rootfs, options: ["rbind"] }] });
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Start",
    command: "start",
    prepare: (shim, runtime) => shim.create({}, { runtime }),
    call: (shim) => shim.startProcess(),
    async check(shim, pid) {
      assertChild(shim, pid);
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Start of a process that has ended when it is answered",
    command: "start",
    options: { args: ["sh", "-c", "exit 7"] },
    prepare: (shim, runtime) => shim.create({}, { runtime }),
    call: (shim) => shim.startProcess(),
    async check(shim, pid) {
      const { status, at } = await shim.wait();
      assertEquals(status, 7);
      assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 7);
      assertEquals(await shim.delete(), { pid: pid as number, status, at });
    },
  },
  {
    name: "Start of another process",
    command: "exec",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.exec("e", ["sh", "-c", "sleep 1000; exit 5"]);
    },
    call: (shim) => shim.startProcess("e"),
    async check(shim, pid) {
      assertChild(shim, pid);
      const waiting = later(shim.wait("e"));
      await shim.kill(9, { id: "e" });
      assertEquals((await waiting).status, 137);
      assertEquals((await shim.deleteProcess("e")).pid, pid);
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Start of another process that ends at once",
    command: "exec",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.exec("e", ["sh", "-c", "exit 5"]);
    },
    call: (shim) => shim.startProcess("e"),
    async check(shim, pid) {
      assertEquals((await shim.wait("e")).status, 5);
      const { exit } = await shim.events.exit("e");
      assertEquals([exit.pid, exit.exitStatus], [pid, 5]);
      await shim.deleteProcess("e");
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Start of another process with streams",
    command: "exec",
    prepare: run,
    call: (shim) => shim.execWithFifos("e", ["sh", "-c", "read line; echo got $line; echo error >&2; exit 5"]),
    async check(shim, attached) {
      const { stdout, stderr, fifos } = attached as Awaited<ReturnType<Shim["execWithFifos"]>>;
      using writer = await Writer.open(fifos.stdin);
      await writer.write("hello\n");
      assertEquals([await stdout.text(), await stderr.text()], ["got hello\n", "error\n"]);
      assertEquals((await shim.wait("e")).status, 5);
      await shim.deleteProcess("e");
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Start of another process with a terminal",
    command: "exec",
    prepare: run,
    async call(shim) {
      const { stdin, stdout } = await shim.fifos("e");
      await shim.exec("e", ["sh", "-c", "read line; stty size; echo got $line; exit 5"], {
        stdin,
        stdout,
        terminal: true,
      });
      const [output] = await Promise.all([shim.read(stdout), shim.startProcess("e")]);
      return { stdin, output };
    },
    async check(shim, attached) {
      const { stdin, output } = attached as { stdin: string; output: Reader };
      await shim.resize(100, 30, "e");
      using keyboard = await Writer.open(stdin);
      await keyboard.write("hello\n");
      assertEquals(await output.text(), "hello\r\n30 100\r\ngot hello\r\n");
      assertEquals((await shim.wait("e")).status, 5);
      await shim.deleteProcess("e");
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Start of another process that cannot be",
    command: "exec",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.exec("e", ["no-such-command"]);
    },
    async call(shim) {
      const message = /^OCI runtime exec failed: .*exec: "no-such-command": executable file not found in \$PATH/;
      await assertStatus(shim.startProcess("e"), Code.UNKNOWN, message);
    },
    async check(shim) {
      assertEquals((await shim.state("e")).status, Status.STOPPED);
      await shim.deleteProcess("e");
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Kill",
    command: "kill",
    prepare: run,
    call: (shim) => shim.kill(9),
    async check(shim) {
      const { status, at } = await shim.wait();
      assertEquals(status, 137);
      assertEquals(await shim.delete(), { pid: (await shim.events.exit(shim.id)).exit.pid, status, at });
    },
  },
  {
    name: "Pause",
    command: "pause",
    prepare: run,
    call: (shim) => shim.pause(),
    async check(shim) {
      assertEquals((await shim.state()).status, Status.PAUSED);
      await shim.resume();
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Resume",
    command: "resume",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.pause();
    },
    call: (shim) => shim.resume(),
    check: assertWellUntilEnd,
  },
  {
    name: "Update",
    command: "update",
    prepare: run,
    call: (shim) => shim.update({ pids: { limit: 77 } }),
    async check(shim) {
      const [member] = shim.containerProcesses();
      const cgroup = /^\d+:pids:(.*)$/m.exec(await Deno.readTextFile(`/proc/${member}/cgroup`))![1];
      assertEquals(await Deno.readTextFile(`/sys/fs/cgroup/pids${cgroup}/pids.max`), "77\n");
      await assertWellUntilEnd(shim);
    },
  },
  {
    name: "Delete",
    command: "delete",
    options: { args: ["sh", "-c", "exit 7"], mountedRoot: true },
    async prepare(shim, runtime) {
      await shim.run({}, { runtime, rootfs: [{ type: "bind", source: shim.rootfs, options: ["rbind"] }] });
      await shim.wait();
    },
    call: (shim) => shim.delete(),
    async check(shim, answer) {
      const { exit } = await shim.events.exit(shim.id);
      const { pid, status } = answer as Awaited<ReturnType<Shim["delete"]>>;
      assertEquals([pid, status], [exit.pid, 7]);
      await assertNothingLeft(shim);
      await assertStatus(shim.delete(), Code.FAILED_PRECONDITION, "container must be created");
    },
  },
  {
    name: "Delete of a container that has not been started",
    command: "delete",
    prepare: (shim, runtime) => shim.create({}, { runtime }),
    call: (shim) => shim.delete(),
    async check(shim) {
      await assertNothingLeft(shim);
    },
  },
  {
    name: "ListPids",
    command: "ps",
    prepare: run,
    call: (shim) => shim.pids(),
    async check(shim, answer) {
      const { pid } = await shim.state();
      assertEquals(answer, new Map([[pid, shim.id]]));
      await assertWellUntilEnd(shim);
    },
  },
];

/** Commands that change nothing may be run again. */
const REPEATABLE = ["ps"];

/** What the host's death is in the middle of. */
interface Gated {
  readonly shim: Shim;
  readonly machine: Machine;
  readonly runtime: GatedRuntime;
  /** The run of the runtime, which waits. */
  readonly pid: number;
}

/** Makes a call, has its runtime wait, and fails unless it is answered as it should when the test has had that go on. */
function whileRuntimeWaits(
  { command, options = {}, prepare, call, check }: RuntimeCall,
  moment: Moment,
  test: (gated: Gated) => Promise<void>,
): Promise<void> {
  return withHosted(options, async (shim, machine) => {
    const runtime = await GatedRuntime.make(shim);
    await prepare?.(shim, runtime.path);
    await runtime.close(moment, command);
    const answer = later(call(shim, runtime.path));
    const pid = await runtime.reached();
    await test({ shim, machine, runtime, pid });
    const answered = await answer;
    if (!REPEATABLE.includes(command)) assertEquals(runtime.runs(command), 1, `runs of ${command}`);
    await check(shim, answered);
  });
}

for (const each of CALLS) {
  for (const moment of ["before", "after"] as const) {
    const when = `when its runtime has done ${moment === "before" ? "nothing" : "everything"}`;
    onlyHosted(
      `${each.name} is answered, and done once, though hosts die ${when}`,
      () =>
        whileRuntimeWaits(each, moment, async ({ machine, runtime }) => {
          for (let i = 0; i < HOSTS; i++) await replaceHost(machine);
          await runtime.open();
        }),
    );
    onlyHosted(
      `${each.name} is answered, and done once, though its host dies ${when}, and that ends before the next comes`,
      () =>
        whileRuntimeWaits(each, moment, ({ shim, machine, runtime, pid }) =>
          withoutHost(machine, [shim], async () => {
            await runtime.open();
            await untilReaped(pid);
          })),
    );
  }
}

onlyHosted(
  "Delete that waits for containerd to take the exit is answered by the next host, and done once",
  () =>
    withHosted({ args: ["sh", "-c", "exit 7"] }, async (shim, machine) => {
      const runtime = await GatedRuntime.make(shim);
      const release = shim.events.hold();
      const pid = await shim.create({}, { runtime: runtime.path });
      await shim.startProcess();
      const exit = await shim.wait();
      const deleted = later(shim.delete());
      await until("the runtime has deleted it", () => runtime.runs("delete") === 1 && shim.leftovers().length === 0);
      await killHost(machine);
      assertEquals(await deleted, { pid, ...exit });
      release();
      await until("the exit is published again", () => shim.events.published().length > 1);
      for (const { exit: { id, exitStatus } } of shim.events.published()) {
        assertEquals([id, exitStatus], [shim.id, exit.status]);
      }
      assertEquals(runtime.runs("delete"), 1);
    }),
);

/** Less than a pipe and a FIFO hold, and more than one of them. */
const WAITING_LINES = 20_000;

onlyHosted(
  "DeleteProcess that waits for output to be read is answered by the next host",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const { stdout, pid } = await shim.execWithFifos("e", ["sh", "-c", `seq ${WAITING_LINES}; exit 5`]);
      const exit = await shim.wait("e");
      const deleted = later(shim.deleteProcess("e"));
      await shim.shimPid();
      await replaceHost(machine);
      assertEquals(await stdout.text(), Array.from({ length: WAITING_LINES }, (_, i) => `${i + 1}\n`).join(""));
      assertEquals(await deleted, { pid, ...exit });
      await assertStatus(shim.state("e"), Code.NOT_FOUND, "process e does not exist");
      await assertWellUntilEnd(shim);
    }),
);

onlyHosted(
  "a process that has been added and not started is there in the next host",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const { stdin, stdout, stderr } = await shim.fifos("e");
      const stdio = { stdin, stdout, stderr };
      await shim.exec("e", ["sh", "-c", "echo $0 $1; exit 5", "a b", "ä"], stdio);
      const before = await shim.state("e");
      assertEquals(before.status, Status.CREATED);
      await replaceHost(machine);
      assertEquals(await shim.state("e"), before);
      await assertStatus(shim.exec("e", ["true"]), Code.ALREADY_EXISTS, "id e is in use");
      const [output, error] = await Promise.all([shim.read(stdout), shim.read(stderr), shim.startProcess("e")]);
      assertEquals([await output.text(), await error.text()], ["a b ä\n", ""]);
      assertEquals((await shim.wait("e")).status, 5);
      await shim.deleteProcess("e");
      await shim.exec("e", ["true"]);
      await replaceHost(machine);
      await shim.deleteProcess("e");
      await assertWellUntilEnd(shim);
    }),
);

onlyHosted(
  "a signal that another process is sent by the next host comes once",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const args = [
        "sh",
        "-c",
        "trap 'echo got it' USR1; trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done",
      ];
      const { stdout } = await shim.execWithFifos("e", args);
      assertEquals(await stdout.line(), "ready\n");
      for (let i = 0; i < HOSTS; i++) {
        await shim.kill(10, { id: "e" });
        assertEquals(await stdout.line(), "got it\n");
        await replaceHost(machine);
      }
      await shim.kill(15, { id: "e" });
      assertEquals(await stdout.text(), "");
      assertEquals((await shim.wait("e")).status, 5);
      await shim.deleteProcess("e");
      await endContainer(shim);
    }),
);

/** How the processes of a container end when they are told to, and how they are told. */
const ENDS = "trap 'exit 7' TERM; while :; do sleep 0.02; done";

onlyHosted(
  "what ends while there is no host has ended with its status, and is told of, at least once",
  () =>
    withHosted({ args: ["sh", "-c", ENDS] }, async (shim, machine) => {
      const init = await shim.run();
      const pids: Record<string, number> = { [shim.id]: init };
      const ids = ["e1", "e2", "e3"];
      for (const [i, id] of ids.entries()) {
        await shim.exec(id, ["sh", "-c", ENDS.replace("7", `${i + 1}`)]);
        pids[id] = await shim.startProcess(id);
      }
      const waiting = new Map([shim.id, "e1"].map((id) => [id, later(shim.wait(id))]));
      await shim.shimPid();
      // They have their traps.
      await until("all sleep", () => shim.containerProcesses().length === 8);
      await withoutHost(machine, [shim], async () => {
        Deno.kill(pids["e1"]!, "SIGTERM");
        Deno.kill(pids["e2"]!, "SIGTERM");
        Deno.kill(pids["e3"]!, "SIGKILL");
        for (const id of ids) await untilReaped(pids[id]!);
        Deno.kill(init, "SIGTERM");
        await untilReaped(init);
      });
      const statuses: Record<string, number> = { [shim.id]: 7, e1: 1, e2: 2, e3: 137 };
      for (const [id, status] of Object.entries(statuses)) {
        const exit = await (waiting.get(id) ?? shim.wait(id));
        assertEquals(exit.status, status, id);
        assertEquals((await shim.state(id)).status, Status.STOPPED);
        const { exit: told } = await shim.events.exit(id);
        assertEquals([told.pid, told.exitStatus], [pids[id], status], id);
        const deleted = id === shim.id ? undefined : await shim.deleteProcess(id);
        if (deleted !== undefined) assertEquals(deleted, { pid: pids[id]!, ...exit });
      }
      assertEquals((await shim.delete()).status, 7);
    }),
);

onlyHosted(
  "what an init leaves behind that has no pid namespace is ended once, though hosts die meanwhile",
  () =>
    withHosted({
      namespaces: ["ipc", "uts", "mount"],
      args: ["sh", "-c", "sleep 1000 & sleep 1000 & trap 'exit 3' TERM; while :; do sleep 0.02; done"],
    }, async (shim, machine) => {
      const runtime = await GatedRuntime.make(shim);
      const init = await shim.run({}, { runtime: runtime.path });
      const waiting = later(shim.wait());
      await until("it has its children", () => shim.containerProcesses().length === 4);
      await runtime.close("before", "kill");
      Deno.kill(init, "SIGTERM");
      await runtime.reached();
      for (let i = 0; i < HOSTS; i++) {
        await replaceHost(machine);
        assertEquals((await shim.state()).status, Status.RUNNING);
      }
      await runtime.open();
      assertEquals((await waiting).status, 3);
      await until("all have ended", () => shim.containerProcesses().length === 0);
      assertEquals(runtime.runs("kill"), 1);
      assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 3);
      await shim.delete();
    }),
);

onlyHosted(
  "SIGTERM that comes while there is no host ends the container, and the shim with 0",
  () =>
    withHosted({ endsItself: true, mountedRoot: true }, async (shim, machine) => {
      const init = await shim.run({}, { rootfs: [{ type: "bind", source: shim.rootfs, options: ["rbind"] }] });
      await withoutHost(machine, [shim], () => {
        shim.signal("SIGTERM");
        return Promise.resolve();
      });
      assertEquals(await shim.status, 0);
      assert(!isAlive(init), "its container lives");
    }),
);

onlyHosted(
  "what a container ends with while there is no host is told of by the next",
  () =>
    withHosted({ args: ["sh", "-c", ENDS] }, async (shim, machine) => {
      const init = await shim.run();
      await until("it sleeps", () => shim.containerProcesses().length === 2);
      await withoutHost(machine, [shim], async () => {
        Deno.kill(init, "SIGTERM");
        await untilReaped(init);
      });
      const { exit } = await shim.events.exit(shim.id);
      assertEquals([exit.pid, exit.exitStatus], [init, 7]);
      assertEquals((await shim.delete()).status, 7);
    }),
);

for (const command of ["kill", "delete"] as const) {
  for (const moment of ["before", "after"] as const) {
    const when = `${moment} its container has been ${command === "kill" ? "killed" : "deleted"}`;
    onlyHosted(
      `a shim that has been told to end does so, though hosts die ${when}`,
      () =>
        withHosted({ endsItself: true, mountedRoot: true }, async (shim, machine) => {
          const runtime = await GatedRuntime.make(shim);
          const rootfs = [{ type: "bind", source: shim.rootfs, options: ["rbind"] }];
          const init = await shim.run({}, { rootfs, runtime: runtime.path });
          const waiting = later(shim.wait());
          await shim.shimPid();
          await runtime.close(moment, command);
          shim.signal("SIGTERM");
          await runtime.reached();
          for (let i = 0; i < HOSTS; i++) await replaceHost(machine);
          await runtime.open();
          assertEquals(await shim.status, 0);
          assertEquals((await waiting).status, 137);
          assert(!isAlive(init), "its container lives");
          assertEquals([runtime.runs("kill"), runtime.runs("delete")], [1, 1]);
          assertEquals(mounted(shim, machine.host().pid), []);
        }),
    );
  }
}

onlyHosted(
  "a shim that is asked for a dump while there is no host, makes one",
  () =>
    withHosted({}, async (shim, machine) => {
      const init = await shim.run();
      await withoutHost(machine, [shim], () => {
        shim.signal("SIGUSR1");
        return Promise.resolve();
      });
      const path = `${shim.bundle}/shim.dump.log`;
      const text = await until("the dump is there", () => Deno.readTextFile(path));
      assert(text.includes(`process ${shim.id} pid ${init} running`), text);
      await endContainer(shim);
    }),
);

/** How many hosts may die within 100 ms of going on with a call, before it is taken for the reason: lib/shim.ts. */
const MOST_TRIES = 10;

onlyHosted(
  "a call that too many hosts have died of is refused, and the container lives on",
  () =>
    withHosted({}, async (shim, machine) => {
      const runtime = await GatedRuntime.make(shim);
      const init = await shim.create({}, { runtime: runtime.path });
      await runtime.close("before", "start");
      const start = later(shim.startProcess());
      const waiting = later(shim.wait());
      await runtime.reached();
      let isAnswered = false;
      start.catch(() => isAnswered = true);
      const refused = assertStatus(start, Code.UNAVAILABLE, `${MOST_TRIES} hosts of the shim have died of it`);
      refused.catch(() => {});
      for (let i = 0; i < 10 * MOST_TRIES && !isAnswered; i++) {
        await replaceHost(machine);
        // When this is answered, it has gone on with the call.
        await shim.shimPid();
      }
      await refused;
      await runtime.open();
      assertEquals((await shim.state()).pid, init);
      await shim.kill(9);
      assertEquals((await waiting).status, 137);
      await shim.delete();
    }),
);
