/** A host that finds nothing written down that it can believe, and what hosts say of those before them. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import * as fds from "../../ffi/fd.ts";
import { recordOf } from "../../lib/record/changes.ts";
import { RECORD_VERSION, type ShimRecord } from "../../lib/record/record.ts";
import { type Header, readHeader, StateFile } from "../../lib/record/state_file.ts";
import { Code } from "../../lib/ttrpc/status.ts";
import { must } from "./command.ts";
import { oldFileOf } from "../old_file.ts";
import { Writer } from "./fifo.ts";
import {
  assertExecs,
  assertOpenFiles,
  endContainer,
  field,
  HOLDER_KIB,
  type Host,
  type Machine,
  onlyHosted,
  openFiles,
  withHosted,
} from "./host.ts";
import { modes } from "./modes.ts";
import { argumentsOf, isAlive, processOf } from "./proc.ts";
import { assertStatus, SERVICE, type Shim, type ShimOptions, Status } from "./shim.ts";
import {
  GatedRuntime,
  later,
  overwrite,
  replaceHost,
  STATE_FIRST,
  STATE_VERSION_AT,
  statePath,
  withoutHost,
} from "./takeover.ts";
import { until } from "./until.ts";
import { RawConnection } from "./wire.ts";

modes(["hosted"], "it is about hosts that take over");

/** Kills a machine's only host, does something before any other comes, and waits until it has. */
async function replaceHostAfter(machine: Machine, change: () => Promise<unknown> | void): Promise<Host> {
  const host = machine.host();
  // It writes nothing more.
  Deno.kill(host.pid, "SIGSTOP");
  await until("it has stopped", () => processOf(host.pid)?.state === "T");
  await change();
  Deno.kill(host.pid, "SIGKILL");
  return await until("there is another host", () => machine.hosts().find(({ pid }) => pid !== host.pid));
}

/** What becomes of what has been written down, and what the next host says of that. */
interface Damage {
  readonly name: string;
  readonly change: (path: string) => Promise<unknown> | void;
  readonly said: RegExp;
}

/** Gives what a function does with the file in which a shim's state is written down. */
function withState<T>(path: string, use: (fd: number) => T): T {
  const fd = fds.open(path, fds.O.RDWR);
  try {
    return use(fd);
  } finally {
    fds.close(fd);
  }
}

/** What is written down of a shim. */
function writtenOf(path: string): ShimRecord {
  return withState(path, (fd) => recordOf(StateFile.of(fd).read()!));
}

function headerOf(path: string): Header {
  return withState(path, (fd) => readHeader(fd)!);
}

const UNKNOWN = 'level=error msg="the saved state is invalid: what was being done is not known"';

const DAMAGES: readonly Damage[] = [
  {
    name: "has been cut off",
    change: (path) => withState(path, (fd) => fds.truncate(fd, headerOf(path).start + 100)),
    said: new RegExp(`${UNKNOWN}.*cannot be believed: it is not whole`),
  },
  {
    name: "is empty",
    change: (path) => withState(path, (fd) => fds.truncate(fd, 0)),
    said: /level=warning msg="the container goes on as far as the OCI runtime knows it/,
  },
  {
    name: "has been changed",
    change: (path) => overwrite(path, headerOf(path).start + 100, new Uint8Array(1)),
    said: new RegExp(`${UNKNOWN}.*cannot be believed: it is not what was written`),
  },
  {
    name: "is of another version",
    change: (path) => overwrite(path, STATE_VERSION_AT, new Uint8Array(new Uint32Array([4711]).buffer)),
    said: new RegExp(
      `${UNKNOWN}.*cannot be believed: it is of version 4711, and this shim reads versions up to ${RECORD_VERSION}`,
    ),
  },
  {
    name: "is of another kind",
    change: (path) =>
      withState(path, (fd) => StateFile.of(fd).replace(new Map([["container", "{}"]]), { host: 1, build: 1n })),
    said: new RegExp(`${UNKNOWN}.*cannot be believed: the record`),
  },
];

/** Runs a test with a shim whose bundle has the container's name, as those of containerd have. */
function withNamed(options: ShimOptions, test: (shim: Shim, machine: Machine) => Promise<void>): Promise<void> {
  return withHosted({ isNamed: true, ...options }, test);
}

/** Reads a log until it has said something, and gives the line. */
async function lineOf(log: { line(): Promise<string> }, expected: RegExp): Promise<string> {
  let text = "";
  for (;;) {
    const line = text.split("\n").find((each) => expected.test(each));
    if (line !== undefined) return line;
    text += await log.line();
  }
}

/** Prints as often as it is told to, and on. */
const ECHOING = ["sh", "-c", 'trap "echo told" USR1; echo ready; while :; do sleep 0.02; done'];

for (const { name, change, said } of DAMAGES) {
  onlyHosted(
    `where what is written down ${name}, the container goes on as far as it is known`,
    () =>
      withNamed({ args: ECHOING }, async (shim, machine) => {
        const log = await shim.read(`${shim.workdir}/shim.stdout.log`);
        const { stdout, pid: init } = await shim.createWithFifos();
        await shim.startProcess();
        assertEquals(await stdout.line(), "ready\n");
        await shim.exec("e", ["sleep", "1000"]);
        const exec = await shim.startProcess("e");
        const waiting = later(shim.wait());
        await shim.shimPid();
        await replaceHostAfter(machine, () => change(statePath(shim)));

        const { status, pid } = await shim.state();
        assertEquals([status, pid], [Status.RUNNING, init]);
        await lineOf(log, said);
        assert(isAlive(init) && isAlive(exec), "a process has ended");
        Deno.kill(init, "SIGUSR1");
        assertEquals(await stdout.line(), "told\n");
        await assertStatus(shim.state("e"), Code.NOT_FOUND, "process e does not exist");
        await assertExecs(shim, "another");
        // What is written down now is whole.
        await replaceHost(machine);
        assertEquals((await shim.state()).pid, init);
        assertEquals(writtenOf(statePath(shim)).container?.init.pid, init);

        await shim.kill(9);
        const exit = await waiting;
        assertEquals(exit.status, 137);
        assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 137);
        assertEquals(await stdout.text(), "");
        assertEquals(await shim.delete(), { pid: init, ...exit });
      }),
  );
}

/** Has a host find nothing that it can believe. */
function spoil(shim: Shim): Promise<void> {
  return overwrite(statePath(shim), 0, new TextEncoder().encode("nonsense"));
}

onlyHosted(
  "where nothing can be believed, a container that has been created is started",
  () =>
    withNamed({}, async (shim, machine) => {
      const init = await shim.create();
      await replaceHostAfter(machine, () => spoil(shim));
      const { status, pid } = await shim.state();
      assertEquals([status, pid], [Status.CREATED, init]);
      assertEquals(await shim.startProcess(), init);
      await assertExecs(shim, "e");
      await endContainer(shim);
    }),
);

onlyHosted(
  "where nothing can be believed, a container that is paused goes on",
  () =>
    withNamed({}, async (shim, machine) => {
      await shim.run();
      await shim.pause();
      await replaceHostAfter(machine, () => spoil(shim));
      assertEquals((await shim.state()).status, Status.PAUSED);
      await shim.resume();
      await assertExecs(shim, "e");
      await endContainer(shim);
    }),
);

onlyHosted(
  "where nothing can be believed, a container that ends while there is no host has ended",
  () =>
    withNamed(
      { args: ["sh", "-c", "echo hello; trap 'exit 7' TERM; while :; do sleep 0.02; done"] },
      async (shim, machine) => {
        const { stdout, pid: init } = await shim.createWithFifos();
        await shim.startProcess();
        assertEquals(await stdout.line(), "hello\n");
        const waiting = later(shim.wait());
        await shim.shimPid();
        await withoutHost(machine, [shim], async () => {
          Deno.kill(init, "SIGTERM");
          await until("it has ended", () => !isAlive(init));
          await spoil(shim);
        });
        assertEquals((await waiting).status, 7);
        const { status, pid } = await shim.state();
        assertEquals([status, pid], [Status.STOPPED, init]);
        const { exit } = await shim.events.exit(shim.id);
        assertEquals([exit.pid, exit.exitStatus], [init, 7]);
        assertEquals(await stdout.text(), "");
        assertEquals((await shim.delete()).status, 7);
      },
    ),
);

onlyHosted(
  "where nothing can be believed, a container that had ended before is deleted",
  () =>
    withNamed({ args: ["sh", "-c", "exit 7"] }, async (shim, machine) => {
      const init = await shim.run();
      await shim.wait();
      await replaceHostAfter(machine, () => spoil(shim));
      assertEquals((await shim.state()).status, Status.STOPPED);
      // Nobody knows how it has ended; but that it has.
      await shim.wait();
      assertEquals((await shim.delete()).pid, init);
    }),
);

onlyHosted("where nothing can be believed, a terminal goes on", () =>
  withNamed({
    terminal: true,
    args: ["sh", "-c", "stty -echo; echo ready; while read line; do echo got $line; done; exit 5"],
  }, async (shim, machine) => {
    const { stdin, stdout } = await shim.fifos();
    const [output] = await Promise.all([shim.read(stdout), shim.create({ stdin, stdout, terminal: true })]);
    await shim.startProcess();
    assertEquals(await output.line(), "ready\r\n");
    using keyboard = await Writer.open(stdin);
    await replaceHostAfter(machine, () => spoil(shim));
    assertEquals((await shim.state()).status, Status.RUNNING);
    await keyboard.write("hello\n");
    assertEquals(await output.line(), "got hello\r\n");
    await endContainer(shim);
  }));

onlyHosted(
  "where nothing can be believed, the mounts of a container are unmounted at its end",
  () =>
    withNamed({ mountedRoot: true }, async (shim, machine) => {
      await shim.run({}, { rootfs: [{ type: "bind", source: shim.rootfs, options: ["rbind"] }] });
      const mounts = () => Deno.readTextFileSync(`/proc/${shim.pid}/mountinfo`).includes(`${shim.bundle}/rootfs`);
      assert(mounts(), "it is not mounted");
      await replaceHostAfter(machine, () => spoil(shim));
      await endContainer(shim);
      assert(!mounts(), "it is still mounted");
    }),
);

onlyHosted(
  "where nothing can be believed, and there has been no container, one is created",
  () =>
    withNamed({}, async (shim, machine) => {
      await replaceHostAfter(machine, () => spoil(shim));
      await assertStatus(shim.state(), Code.NOT_FOUND, `process ${shim.id} does not exist`);
      await shim.run();
      await assertExecs(shim, "e");
      await endContainer(shim);
    }),
);

onlyHosted(
  "where nothing can be believed, what was being changed is refused, and what waits goes on",
  () =>
    withNamed({}, async (shim, machine) => {
      const runtime = await GatedRuntime.make(shim);
      await shim.run({}, { runtime: runtime.path });
      const waiting = later(shim.wait());
      await shim.shimPid();
      await runtime.close("before", "kill");
      const kill = later(shim.kill(9));
      await runtime.reached();
      await replaceHostAfter(machine, () => spoil(shim));
      const message = "the shim's host has died, and what was done by then is not known";
      await assertStatus(kill, Code.UNAVAILABLE, message);
      assertEquals((await shim.state()).status, Status.RUNNING);
      await runtime.open();
      assertEquals((await waiting).status, 137);
      await shim.delete();
    }),
);

onlyHosted(
  "where nothing can be believed, a shim that is told to end ends its container",
  () =>
    withNamed({ endsItself: true }, async (shim, machine) => {
      const init = await shim.run();
      await replaceHostAfter(machine, () => spoil(shim));
      assertEquals(await shim.end("SIGTERM"), 0);
      assert(!isAlive(init), "its container lives");
    }),
);

onlyHosted(
  "a shim whose folder has been removed, after its container, goes on in another host",
  () =>
    withHosted({ endsItself: true, args: ["sh", "-c", "exit 7"] }, async (shim, machine) => {
      const log = await shim.read(`${shim.workdir}/shim.stdout.log`);
      await shim.run();
      await shim.wait();
      await shim.delete();
      // As containerd does, and kills the shim then.
      await Deno.remove(shim.bundle, { recursive: true });
      for (const times of [1, 2]) {
        const { pid } = machine.host();
        await replaceHost(machine);
        assertEquals(await shim.shimPid(), shim.pid);
        await assertStatus(shim.state(), Code.NOT_FOUND, `process ${shim.id} does not exist`);
        await lineOf(log, new RegExp(`the host of this shim has died.* host=${pid} .*times=${times}`));
      }
      assertEquals(await shim.end("SIGTERM"), 0);
    }),
);

/** Has a process write no file that is larger: EFBIG, for its SIGXFSZ is blocked. */
async function limitFiles(pid: number, size: number | "unlimited"): Promise<void> {
  await must(["prlimit", "--pid", `${pid}`, `--fsize=${size}:unlimited`]);
}

onlyHosted(
  "where nothing can be written down any more, what was before is not believed, and it can be again",
  () =>
    withNamed({}, async (shim, machine) => {
      const log = await shim.read(`${shim.workdir}/shim.stdout.log`);
      const init = await shim.create();
      await limitFiles(machine.host().pid, STATE_FIRST);
      await shim.startProcess();
      await lineOf(log, /its state cannot be written down.*file too large/i);
      await replaceHost(machine);
      // It has been started, and is not as it was written down before that.
      const { status, pid } = await shim.state();
      assertEquals([status, pid], [Status.RUNNING, init]);

      await limitFiles(machine.host().pid, STATE_FIRST);
      await shim.pause();
      await lineOf(log, /its state cannot be written down/);
      await limitFiles(machine.host().pid, "unlimited");
      await shim.resume();
      await shim.exec("e", ["true"]);
      await replaceHost(machine);
      assertEquals((await shim.state("e")).status, Status.CREATED);
      await shim.deleteProcess("e");
      await assertExecs(shim, "e2");
      await endContainer(shim);
    }),
);

onlyHosted(
  "the log of a shim, and its dump, tell of each host that has died, and how",
  () =>
    withHosted({}, async (shim, machine) => {
      const log = await shim.read(`${shim.workdir}/shim.stdout.log`);
      const init = await shim.run();
      for (const times of [1, 2, 3]) {
        const { pid } = machine.host();
        await replaceHost(machine);
        const line = await lineOf(log, /the host of this shim has died/);
        assertMatch(line, /level=warning/);
        for (
          const each of [`host=${pid}`, `how="signal 9"`, `times=${times}`, `pid=${shim.pid}`, `path=${shim.bundle}`]
        ) {
          assert(`${line} `.includes(` ${each} `), `it does not say ${each}: ${line}`);
        }
      }
      log.close();
      shim.signal("SIGUSR1");
      const path = `${shim.bundle}/shim.dump.log`;
      const died = /^.*hosts of this shim that have died: (\d+), the last at (\S+), by (.*)$/m;
      const text = await until("all of the dump is there", async () => {
        const text = await Deno.readTextFile(path);
        return died.test(text) && text;
      });
      const [, count, at, how] = died.exec(text)!;
      assertEquals([count, how], ["3", "signal 9"]);
      const age = Date.now() - new Date(at!).getTime();
      assert(age >= 0 && age < 60_000, `${at} is not just now`);
      assertMatch(text, new RegExp(`process ${shim.id} pid ${init} running`));
      await endContainer(shim);
    }),
);

onlyHosted("a host that ends by another signal is told of with that", () =>
  withHosted({}, async (shim, machine) => {
    const log = await shim.read(`${shim.workdir}/shim.stdout.log`);
    await shim.run();
    const { pid } = machine.host();
    Deno.kill(pid, "SIGPROF");
    await until("there is another host", () => machine.hosts().some((each) => each.pid !== pid));
    assertMatch(await lineOf(log, /the host of this shim has died/), new RegExp(` host=${pid} how="signal 27" `));
    await endContainer(shim);
  }));

/** How many hosts are killed one after the other. */
const TAKEOVERS = 10;

onlyHosted(
  "ten hosts leave as much open as one, and the holder is as small",
  () =>
    withHosted({}, async (shim, machine) => {
      // Some of everything that there can be.
      await shim.createWithFifos();
      await shim.startProcess();
      await shim.execWithFifos("e1", ["sleep", "1000"]);
      const { stdin, stdout } = await shim.fifos("e2");
      await shim.exec("e2", ["sleep", "1000"], { stdin, stdout, terminal: true });
      await Promise.all([shim.read(stdout), shim.startProcess("e2")]);
      await shim.exec("e3", ["sleep", "1000"]);
      const ids = [shim.id, "e1", "e2", "e3"];
      const waiting = ids.map((id) => later(shim.wait(id)));
      const others = await Promise.all([1, 2, 3].map(() => RawConnection.open(shim.socketPath)));
      for (const each of others) {
        await each.request(SERVICE, "ShimInfo", { stream: 1 });
        await each.response();
      }
      const states = () => Promise.all(ids.map((id) => shim.state(id)));
      const before = await states();
      const [holder, host] = [openFiles(shim.pid), openFiles(machine.host().pid)];
      for (let i = 0; i < TAKEOVERS; i++) {
        await replaceHost(machine);
        assertEquals(await states(), before);
      }
      // As many, and not fewer.
      await until("the same is open", () => JSON.stringify(openFiles(shim.pid)) === JSON.stringify(holder))
        .catch(() => assertEquals(openFiles(shim.pid), holder));
      await assertOpenFiles(machine.host().pid, host);
      const dirty = field(shim.pid, "smaps_rollup", "Private_Dirty");
      assert(dirty <= HOLDER_KIB, `the holder has ${dirty} KiB of its own`);
      assertEquals(argumentsOf(shim.pid).slice(1), shim.arguments.slice(1));

      for (const each of others) {
        await each.request(SERVICE, "ShimInfo", { stream: 3 });
        assertEquals((await each.response()).stream, 3);
        each[Symbol.dispose]();
      }
      await shim.startProcess("e3");
      for (const id of ["e1", "e2", "e3"]) await shim.kill(9, { id });
      for (const [i, id] of ["e1", "e2", "e3"].entries()) {
        assertEquals((await waiting[i + 1]!).status, 137);
        await shim.deleteProcess(id);
      }
      await shim.kill(9);
      await waiting[0];
      await shim.delete();
    }),
);

onlyHosted(
  "what a host of a build before version 3 has written in the bundle is gone on with, and removed",
  () =>
    withNamed({ args: ECHOING }, async (shim, machine) => {
      const { stdout, pid: init } = await shim.createWithFifos();
      await shim.startProcess();
      assertEquals(await stdout.line(), "ready\n");
      await shim.exec("e", ["sleep", "1000"]);
      await shim.exec("registered", ["sh", "-c", "exit 7"]);
      const exec = await shim.startProcess("e");
      const waiting = later(shim.wait("e"));
      await shim.shimPid();
      const files = ["shim.state", "shim.state.before"].map((each) => `${shim.bundle}/${each}`);
      await replaceHostAfter(machine, async () => {
        const record = writtenOf(statePath(shim));
        withState(statePath(shim), (fd) => fds.truncate(fd, 0));
        await Deno.writeTextFile(files[0]!, oldFileOf(record));
        await Deno.writeTextFile(files[1]!, "what was before");
      });
      for (let i = 0; i < 2; i++) {
        assertEquals([(await shim.state()).pid, (await shim.state("e")).pid], [init, exec]);
        await until("the files are removed", () => !files.some(exists));
        await replaceHost(machine);
      }
      Deno.kill(init, "SIGUSR1");
      assertEquals(await stdout.line(), "told\n");
      await shim.startProcess("registered");
      assertEquals((await shim.wait("registered")).status, 7);
      await shim.kill(9, { id: "e" });
      assertEquals((await waiting).status, 137);
      await endContainer(shim);
    }),
);

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

onlyHosted(
  "what is written down of a shim is no file of its bundle",
  () =>
    withHosted({ endsItself: true }, async (shim, machine) => {
      const files = () =>
        [...Deno.readDirSync(shim.bundle)].map(({ name }) => name).filter((each) => /state/.test(each));
      await shim.run();
      await replaceHost(machine);
      await shim.state();
      assertEquals(files(), []);
      await endContainer(shim);
      assertEquals(await shim.end("SIGTERM"), 0);
      assertEquals(files(), []);
    }),
);

/** How many execs a container is to have registered, and how many are registered at a time. */
const MANY_EXECS = 2000;
const AT_ONCE = 200;

/** How many bytes are written down of a shim while something is done: not so much that the file is compacted. */
async function bytesWritten(shim: Shim, run: () => Promise<unknown>): Promise<number> {
  const before = headerOf(statePath(shim));
  await run();
  const after = headerOf(statePath(shim));
  assertEquals(after.start, before.start, "it has been compacted");
  return after.end - before.end;
}

onlyHosted(
  "with 2,000 execs registered, what is written down of another is as much as with none, and all are there in the next host",
  () =>
    withNamed({}, async (shim, machine) => {
      await shim.run();
      const life = (id: string) =>
        bytesWritten(shim, async () => {
          await shim.exec(id, ["true"]);
          await shim.startProcess(id);
          await shim.wait(id);
          await shim.deleteProcess(id);
        });
      const alone = await life("x0000");
      for (let i = 0; i < MANY_EXECS; i += AT_ONCE) {
        await Promise.all(Array.from({ length: AT_ONCE }, (_, j) => shim.exec(`e${i + j}`, ["true"])));
      }
      const among = await life("x0001");
      // All execs would be hundreds of KB. How often something is written down depends on what falls together.
      assert(among < 2 * alone, `${among} bytes, ${alone} alone`);
      assertEquals(writtenOf(statePath(shim)).container?.execs.length, MANY_EXECS);

      await replaceHost(machine);
      assertEquals((await shim.state(`e${MANY_EXECS - 1}`)).status, Status.CREATED);
      await shim.startProcess("e0");
      assertEquals((await shim.wait("e0")).status, 0);
      await endContainer(shim);
    }),
);
