/** A runtime that hangs: what is answered meanwhile, what its call is answered, and that what it does later is known. */

import { assert, assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { Code } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { endContainer, onlyHosted, withHosted } from "./host.ts";
import { must } from "./command.ts";
import { RUNC_ROOT } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive, isHost, processOf } from "./proc.ts";
import { assertStatus, SERVICE, type Shim, type ShimOptions, Status, withShim } from "./shim.ts";
import { GatedRuntime, replaceHost } from "./takeover.ts";
import { until } from "./until.ts";
import { RawConnection } from "./wire.ts";

import v1 = containerd.runtime.linux.shim.v1;

modes(["hosted", "alone"], "a runtime that hangs is the child of another process in each");

/** The time-out of a call whose runtime hangs, in ms. */
const TIMEOUT_MS = 200;
/** What counts as at once, in ms, on a machine that is busy. */
const AT_ONCE_MS = 2000;
/** How long a call of the runtime's that hangs may keep a shim from ending: 10 s, and what is done before and after, in ms. */
const END_MS = 19_000;

const EMPTY = new Uint8Array();

/** A call that has the runtime do something. */
interface Hanging {
  readonly method: string;
  /** What the runtime is asked for. */
  readonly command: string;
  /** Has everything ready for it. */
  readonly prepare: (shim: Shim, runtime: string) => Promise<unknown>;
  readonly request: (shim: Shim, runtime: string) => { finish(): Uint8Array };
  /** Waits until what the runtime has done in the end is known, fails unless all is well, and ends the container. */
  readonly check: (shim: Shim) => Promise<void>;
  /** What State says meanwhile, or that there is nothing as yet. */
  readonly status: number | undefined;
}

const run = (shim: Shim, runtime: string) => shim.run({}, { runtime });

/** Waits until a process is said to be in a state. */
async function untilStatus(shim: Shim, status: number, id: string = shim.id): Promise<void> {
  await until(
    `${id} is in state ${status}`,
    async () => (await shim.state(id).catch(() => undefined))?.status === status,
  );
}

const HANGING: readonly Hanging[] = [
  {
    method: "Create",
    command: "create",
    prepare: () => Promise.resolve(),
    request: ({ id, bundle }, runtime) => v1.CreateTaskRequest.encode({ id, bundle, runtime }),
    status: undefined,
    async check(shim) {
      await untilStatus(shim, Status.CREATED);
      const { pid } = await shim.state();
      assertEquals(processOf(pid)?.ppid, shim.pid);
      assertEquals(await shim.startProcess(), pid);
      await endContainer(shim);
    },
  },
  {
    method: "Start",
    command: "start",
    prepare: (shim, runtime) => shim.create({}, { runtime }),
    request: ({ id }) => v1.StartRequest.encode({ id }),
    status: Status.CREATED,
    async check(shim) {
      await untilStatus(shim, Status.RUNNING);
      await endContainer(shim);
    },
  },
  {
    method: "Start of an exec",
    command: "exec",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.exec("e", ["sh", "-c", "exit 7"]);
    },
    request: () => v1.StartRequest.encode({ id: "e" }),
    status: Status.RUNNING,
    async check(shim) {
      assertEquals((await shim.wait("e")).status, 7);
      const { pid, exitStatus, status } = await shim.state("e");
      assertEquals([exitStatus, status], [7, Status.STOPPED]);
      await until("the exec has been reaped", () => processOf(pid) === undefined);
      assertEquals((await shim.events.exit("e")).exit.exitStatus, 7);
      await shim.deleteProcess("e");
      await endContainer(shim);
    },
  },
  {
    method: "Kill",
    command: "kill",
    prepare: run,
    request: ({ id }) => v1.KillRequest.encode({ id, signal: 9 }),
    status: Status.RUNNING,
    async check(shim) {
      assertEquals((await shim.wait()).status, 137);
      await shim.delete();
    },
  },
  {
    method: "Pause",
    command: "pause",
    prepare: run,
    request: () => ({ finish: () => EMPTY }),
    status: Status.PAUSING,
    async check(shim) {
      await untilStatus(shim, Status.PAUSED);
      await shim.resume();
      await endContainer(shim);
    },
  },
  {
    method: "Resume",
    command: "resume",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.pause();
    },
    request: () => ({ finish: () => EMPTY }),
    status: Status.PAUSED,
    async check(shim) {
      await untilStatus(shim, Status.RUNNING);
      await endContainer(shim);
    },
  },
  {
    method: "Update",
    command: "update",
    prepare: run,
    request: () =>
      v1.UpdateTaskRequest.encode({ resources: { value: new TextEncoder().encode('{"cpu":{"shares":500}}') } }),
    status: Status.RUNNING,
    async check(shim) {
      // Nothing else is done to a container before that.
      await endContainer(shim);
    },
  },
  {
    method: "ListPids",
    command: "ps",
    prepare: run,
    request: ({ id }) => v1.ListPidsRequest.encode({ id }),
    status: Status.RUNNING,
    async check(shim) {
      assertEquals((await shim.pids()).size, 1);
      await endContainer(shim);
    },
  },
  {
    method: "Delete",
    command: "delete",
    async prepare(shim, runtime) {
      await run(shim, runtime);
      await shim.kill(9);
      await shim.wait();
    },
    request: () => ({ finish: () => EMPTY }),
    status: Status.STOPPED,
    async check(shim) {
      await until(
        "there is no container any more",
        () => shim.state().then(() => false, ({ code }) => code === Code.NOT_FOUND),
      );
      await assertStatus(shim.delete(), Code.FAILED_PRECONDITION, "container must be created");
    },
  },
];

/** The method of a call: the first word of its name. */
function methodOf({ method }: Hanging): string {
  return method.split(" ")[0]!;
}

/** Makes a call whose time-out passes, and fails unless the shim says so: a client of ours would do that by itself. */
async function assertTimesOut(shim: Shim, method: string, payload: Uint8Array): Promise<void> {
  using connection = await RawConnection.open(shim.socketPath);
  await connection.request(SERVICE, method, { payload, timeoutMs: TIMEOUT_MS });
  const { response } = await connection.response();
  const message = `Cannot answer ${SERVICE}/${method}: its deadline of ${TIMEOUT_MS} ms has passed`;
  assertEquals([response.status?.code, response.status?.message], [Code.DEADLINE_EXCEEDED, message]);
}

/** Has a call's runtime hang, and fails unless its time-out is kept and all else is answered. */
async function hang(shim: Shim, hanging: Hanging): Promise<GatedRuntime> {
  const runtime = await GatedRuntime.make(shim);
  await hanging.prepare(shim, runtime.path);
  await runtime.close("before", hanging.command);
  const begun = performance.now();
  await assertTimesOut(shim, methodOf(hanging), hanging.request(shim, runtime.path).finish());
  await assertAnswers(shim, hanging);
  const ms = performance.now() - begun - TIMEOUT_MS;
  assert(ms < AT_ONCE_MS, `it has taken ${ms.toFixed(0)} ms more than its time-out`);
  assert(isAlive(await runtime.reached()), "the runtime has been ended");
  return runtime;
}

/** Fails unless State, Wait and ShimInfo are answered. */
async function assertAnswers(shim: Shim, { status }: Hanging): Promise<void> {
  assertEquals(await shim.shimPid(), shim.pid);
  if (status === undefined) {
    await assertStatus(shim.state(), Code.NOT_FOUND, /does not exist/);
    await assertStatus(shim.wait(), Code.NOT_FOUND, /does not exist/);
    return;
  }
  assertEquals((await shim.state()).status, status);
  if (status === Status.STOPPED) assertEquals((await shim.wait()).status, 137);
  else await assertTimesOut(shim, "Wait", v1.WaitRequest.encode({ id: shim.id }).finish());
}

/** What is said about a Go shim. */
const GO = "its State waits for the runtime, and calls have no time-outs";

for (const hanging of HANGING) {
  const { method, command } = hanging;
  onlyOurs(
    GO,
    `${method} whose runtime hangs answers DEADLINE_EXCEEDED in time, and what \`${command}\` does later is known`,
    () =>
      withShim({}, async (shim) => {
        const runtime = await hang(shim, hanging);
        await runtime.open();
        await hanging.check(shim);
        await assertNoChildren(shim);
      }),
  );

  onlyHosted(
    `${method} that has had no answer in time is finished by the next host, and what \`${command}\` does later is known`,
    () =>
      withHosted({}, async (shim, machine) => {
        const runtime = await hang(shim, hanging);
        await replaceHost(machine);
        await assertAnswers(shim, hanging);
        // What only looks may as well look again.
        if (command !== "ps") assertEquals(runtime.runs(command), 1);
        await runtime.open();
        await hanging.check(shim);
        await assertNoChildren(shim);
      }),
  );
}

/** Fails unless everything that the shim has started has been reaped. */
async function assertNoChildren(shim: Shim): Promise<void> {
  await until("the shim has no children but hosts", () => shim.children().every(({ pid }) => isHost(pid)));
}

/** An OCI runtime that hangs at some of its commands, before it has done anything, and is runc otherwise. */
function hangingRuntime(shim: Shim, ...commands: readonly string[]): Promise<string> {
  const script = `#!/bin/sh\ncase " $* " in *" ${
    commands.join(' "*|*" ')
  } "*) exec sleep 1000;; esac\nexec runc "$@"\n`;
  return shim.makeProgram("hanging-runtime", script);
}

/** Has a shim end whose runtime hangs, with a call of it or without, and fails unless it does in time. */
async function assertEnds(commands: readonly string[], hanging?: Hanging, options: ShimOptions = {}): Promise<void> {
  await withShim({ ...options, endsItself: true }, async (shim) => {
    const runtime = await hangingRuntime(shim, ...commands);
    await (hanging?.prepare ?? run)(shim, runtime);
    if (hanging !== undefined) {
      shim.call(methodOf(hanging), hanging.request(shim, runtime).finish(), { decode: () => {} }).catch(() => {});
      await until("the runtime hangs", () => shim.children().some(({ comm }) => comm === "sleep"));
    }
    const waiting = shim.wait().catch(() => undefined);
    await shim.shimPid();
    const begun = performance.now();
    assertEquals(await shim.end("SIGTERM"), 0);
    const ms = performance.now() - begun;
    assert(ms < END_MS, `with a runtime that hangs at ${commands} it has taken ${ms.toFixed(0)} ms`);
    if (hanging?.status !== undefined) assertEquals((await waiting)?.status, 137);
    assertEquals(shim.containerProcesses(), []);
    // What the runtime has of a container, it alone can remove.
    if (commands.includes("delete")) {
      await must(["runc", "--root", `${RUNC_ROOT}/${shim.namespace}`, "delete", shim.id]);
    }
  });
}

/** Those of which another process, or nothing, is left for the end. */
const AT_THE_END = ["create", "start", "exec", "kill", "pause"];

onlyOurs(
  GO,
  "SIGTERM to a shim whose runtime hangs at a call ends the container and the shim within twenty seconds",
  async () => {
    const those = HANGING.filter(({ command }) => AT_THE_END.includes(command));
    assertEquals(those.length, AT_THE_END.length);
    await Promise.all(those.map((each) => assertEnds([each.command], each)));
  },
);

for (const commands of [["kill"], ["delete"]]) {
  onlyOurs(
    GO,
    `SIGTERM to a shim whose runtime hangs at every \`${commands}\` ends the container and the shim within twenty seconds`,
    () => assertEnds(commands),
  );
}

onlyHosted(
  "SIGTERM to a shim whose runtime hangs ends the shim also when its host is killed meanwhile",
  () =>
    withHosted({ endsItself: true }, async (shim, machine) => {
      const runtime = await hangingRuntime(shim, "pause");
      await run(shim, runtime);
      const pausing = shim.pause().catch((error) => error);
      await until("the runtime hangs", () => shim.children().some(({ comm }) => comm === "sleep"));
      shim.signal("SIGTERM");
      await replaceHost(machine);
      assertEquals(await shim.status, 0);
      await pausing;
    }),
);

onlyOurs(
  GO,
  "the end of an init is told within twenty seconds, though the runtime hangs that is to kill what is left of it",
  () =>
    withShim({ namespaces: ["mount"], endsItself: true }, async (shim) => {
      const runtime = await hangingRuntime(shim, "kill");
      const init = await run(shim, runtime);
      Deno.kill(init, "SIGKILL");
      assertEquals((await shim.wait()).status, 137);
      assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 137);
      await shim.delete();
      const [hanging] = shim.children();
      assertEquals(hanging?.comm, "sleep", "the runtime does not hang");
      assertEquals(await shim.end("SIGTERM"), 0);
      await until("the runtime has ended too", () => !isAlive(hanging!.pid));
    }),
);
