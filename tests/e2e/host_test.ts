/** Holders and hosts: what is shared, what is not, and who dies when. */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { Client } from "../../lib/ttrpc/client.ts";
import { forAll } from "./at_a_time.ts";
import { must } from "./command.ts";
import { SHIM } from "./env.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import {
  ALONE,
  assertExecs,
  assertHolder,
  assertOpenFiles,
  assertRuns,
  endContainer,
  field,
  group,
  HOLDER_KIB,
  HOSTS,
  killHost,
  type Machine,
  onlyHosted,
  openFiles,
  TALKING,
  untilEnded,
  withHosted,
  withHostedShims,
  withMachine,
  withShims,
} from "./host.ts";
import { names, RUNC_ROOT, shimSocket } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { argumentsOf, descendants, descriptorsOf, isAlive, isHolder, processOf } from "./proc.ts";
import { askPid, type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted"], "it is about hosts");

/** How many containers a host has unless told otherwise. */
const GROUP = 32;
/** In /proc/net/unix, the type of a socket that keeps messages apart, and the flag of one that listens. */
const SEQPACKET = "0005";
const LISTENS = "00010000";

/** Starts so many containers that do nothing. */
async function runMany(containerd: Containerd, count: number): Promise<string[]> {
  const ids = Array.from({ length: count }, () => containerd.newId());
  for (const id of ids) await containerd.runDetached(id, ["/bin/sleep", "1000"]);
  return ids;
}

/** Ends containers, all at once. */
async function endMany(containerd: Containerd, ids: readonly string[]): Promise<void> {
  await containerd.must("task", "delete", "--force", ...ids);
  await containerd.must("container", "delete", ...ids);
}

/** Fails unless a container of containerd's answers. */
async function assertAnswers(containerd: Containerd, id: string): Promise<void> {
  assertEquals(await containerd.exec(id, [], ["/bin/echo", "hello"]), "hello\n");
}

/** What the shim of a container answers that it is, to somebody else than containerd. */
async function shimInfo(containerd: Containerd, id: string): Promise<number> {
  const path = await shimSocket(containerd.address, containerd.namespace, id);
  using client = new Client(await Deno.connect({ transport: "unix", path }));
  return await askPid(client);
}

/** The sockets of a process that listen and keep messages apart, by their names. */
function packetSockets(pid: number): string[] {
  const inodes = new Set([...descriptorsOf(pid).values()].map((each) => /^socket:\[(\d+)\]$/.exec(each)?.[1]));
  return Deno.readTextFileSync(`/proc/${pid}/net/unix`).trim().split("\n").slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(([, , , flags, type, , inode]) => flags === LISTENS && type === SEQPACKET && inodes.has(inode))
    .map((fields) => fields[7]!);
}

onlyHosted(
  "containers share a host; what containerd has started is a holder each, and its container's parent",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const ids = await runMany(containerd, 3);
        assertEquals(machine.sizes(), [3]);
        for (const id of ids) {
          const holder = containerd.shimOf(id);
          assertHolder(holder);
          assertEquals(processOf(holder)?.comm, "containerd-shim");
          assertEquals(argumentsOf(holder).slice(0, 5), [
            ...[SHIM.path, "-namespace", containerd.namespace],
            ...["-workdir", `${containerd.workdirs}/${id}`],
          ]);
          assertEquals(await Deno.readLink(`/proc/${holder}/cwd`), `${containerd.bundles}/${id}`);
          assertEquals(await shimInfo(containerd, id), holder);
          assertEquals(processOf(holder)?.ppid, containerd.pid);
          assertEquals(processOf(await containerd.running(id))?.ppid, holder);
          const dirty = field(holder, "smaps_rollup", "Private_Dirty");
          assert(dirty <= HOLDER_KIB, `a holder has ${dirty} KiB of its own`);
        }
        await endMany(containerd, ids);
      }, { prefix: machine.prefix })
    ),
);

onlyHosted(
  "ps shows a host by its name; it is nobody's child; its socket is where only its user gets",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const ids = await runMany(containerd, 2);
        const host = machine.host();
        assertMatch(host.path, new RegExp(`^${HOSTS}/\\d+-0$`));
        assertEquals(argumentsOf(host.pid), ["containerd-shim-host", "host", host.path]);
        assertEquals(processOf(host.pid)?.comm, "shim-host");
        assertEquals(await Deno.readLink(`/proc/${host.pid}/cwd`), "/");
        const { ppid } = processOf(host.pid)!;
        assert(![containerd.pid, ...containerd.shims()].includes(ppid), `its parent is ${processOf(ppid)?.comm}`);
        const inside = descendants(containerd.pid).map(({ pid }) => pid);
        assert(!inside.includes(host.pid), "it is below containerd");
        assertEquals(Deno.statSync(machine.folder).mode! & 0o7777, 0o700);
        assertEquals(packetSockets(host.pid), [host.path]);
        assert(Deno.statSync(machine.fileOf(host)).isSocket);
        assertEquals(Deno.statSync(machine.fileOf(host, ".lock")).mode! & 0o7777, 0o600);
        await endMany(containerd, ids);
      }, { prefix: machine.prefix })
    ),
);

onlyHosted(
  "CONTAINERD_SHIM_GROUP=2 has five containers in three hosts",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const ids = await runMany(containerd, 5);
        for (const id of ids) assertHolder(containerd.shimOf(id));
        assertEquals(machine.sizes(), [2, 2, 1]);
        // Where one has gone there is room for the next.
        await endMany(containerd, ids.slice(0, 1));
        await until("there is room", () => machine.sizes().join() === "1,2,1");
        const more = await runMany(containerd, 1);
        assertEquals(machine.sizes(), [2, 2, 1]);
        for (const id of [...ids.slice(1), ...more]) await assertAnswers(containerd, id);
        await endMany(containerd, [...ids.slice(1), ...more]);
      }, { prefix: [...machine.prefix, ...group(2)] })
    ),
);

onlyHosted(
  "CONTAINERD_SHIM_GROUP=1 has each container's shim alone",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const ids = await runMany(containerd, 2);
        for (const id of ids) assertHolder(containerd.shimOf(id), false);
        assertEquals(machine.hosts(), []);
        await endMany(containerd, ids);
      }, { prefix: [...machine.prefix, ...ALONE] })
    ),
);

for (const size of ["many", "2x", "-2", "2.5", ""]) {
  onlyHosted(`CONTAINERD_SHIM_GROUP=${size} is as if it were not set`, () =>
    withMachine((machine) => {
      const prefix = [...machine.prefix, ...group(size)];
      return withShims([{ prefix }, { prefix }, { prefix }], (shims) => {
        for (const { pid } of shims) assertHolder(pid);
        assertEquals(machine.sizes(), [3]);
        return Promise.resolve();
      });
    }));
}

/** How many containers are run at once, how many at a time are started, and how many are ended by one command. */
const MANY = 200;
const AT_A_TIME = 8;
const ENDED_TOGETHER = 25;

onlyHosted(
  "two hundred containers, started eight at a time where there is no host, are in seven, and nothing is left",
  () =>
    withMachine(async (machine) => {
      await withContainerd(async (containerd) => {
        const ids = Array.from({ length: MANY }, () => containerd.newId());
        await forAll(ids, AT_A_TIME, (id) => containerd.runDetached(id, ["/bin/sleep", "1000"]));

        const tasks = (await containerd.must("task", "ls")).match(/ RUNNING$/gm) ?? [];
        assertEquals(tasks.length, MANY);
        const shims = containerd.shims();
        assertEquals(shims.length, MANY);
        const alone = shims.filter((pid) => !isHolder(pid)).length;
        const full = Array.from({ length: Math.floor(MANY / GROUP) }, () => GROUP);
        assertEquals({ alone, sizes: machine.sizes() }, { alone: 0, sizes: [...full, MANY % GROUP] });

        for (let at = 0; at < MANY; at += ENDED_TOGETHER) await endMany(containerd, ids.slice(at, at + ENDED_TOGETHER));
        await until("all holders have ended", () => containerd.shims().length === 0);
      }, { prefix: machine.prefix, shimDebug: false });
      await until("the hosts have no containers", () => machine.sizes().every((size) => size === 0));
    }),
);

/** Waits until containerd has forgotten tasks whose shims have died, and has removed all that it had of them. */
async function untilCleanedUp(containerd: Containerd, ids: readonly string[]): Promise<void> {
  const places = [containerd.bundles, containerd.workdirs, `${RUNC_ROOT}/${containerd.namespace}`];
  for (const id of ids) {
    await until(`nothing is left of ${id}`, async () => {
      return !places.some((each) => names(each).includes(id)) && await containerd.task(id) === undefined;
    });
  }
}

/** A container that goes on saying how often it has. */
const COUNTING = ["/bin/sh", "-c", "i=0; while sleep 0.05; do echo $((i += 1)); done"];

/** Waits until a container of {@linkcode COUNTING} has written more into its file. */
async function assertCounts(file: string): Promise<void> {
  const { size } = await Deno.stat(file);
  await until("the container has said more", async () => (await Deno.stat(file)).size > size);
}

onlyHosted(
  "SIGKILL to a holder ends one container's shim; containerd cleans up, and the others notice nothing",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const [counting, quiet] = [containerd.newId(), containerd.newId()];
        const file = `${containerd.folder}/counted`;
        await containerd.runDetached(counting, COUNTING, { io: ["--log-uri", `file://${file}`] });
        await containerd.runDetached(quiet, ["/bin/sleep", "1000"]);
        // What the host loads for its first process, it has loaded.
        for (const id of [counting, quiet]) await assertAnswers(containerd, id);
        const host = machine.host();
        const before = openFiles(host.pid);

        const id = containerd.newId();
        await containerd.runDetached(id, ["/bin/sleep", "1000"]);
        assertEquals(machine.sizes(), [3]);
        const init = await containerd.running(id);
        Deno.kill(containerd.shimOf(id), "SIGKILL");
        await untilEnded(init);
        await untilCleanedUp(containerd, [id]);
        await until("the host has one container less", () => machine.host().size === 2);
        await assertOpenFiles(host.pid, before);
        for (const other of [counting, quiet]) await assertAnswers(containerd, other);
        await assertCounts(file);

        await containerd.must("container", "delete", id);
        await containerd.runDetached(id, ["/bin/sleep", "1000"]);
        await assertAnswers(containerd, id);
        assertEquals(machine.host(), { ...host, size: 3 });
        await endMany(containerd, [id, counting, quiet]);
      }, { prefix: machine.prefix })
    ),
);

onlyHosted(
  "containers in a host live on when containerd is killed, and are all found again",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const ids = [containerd.newId(), containerd.newId(), containerd.newId()];
        const fileOf = (id: string) => `${containerd.folder}/${id}-counted`;
        for (const id of ids) await containerd.runDetached(id, COUNTING, { io: ["--log-uri", `file://${fileOf(id)}`] });
        const tasks = await Promise.all(ids.map((id) => containerd.task(id)));
        const holders = ids.map((id) => containerd.shimOf(id));
        const host = machine.host();

        await containerd.stop("SIGKILL");
        for (const id of ids) await assertCounts(fileOf(id));
        await containerd.start();
        assertEquals(await Promise.all(ids.map((id) => containerd.task(id))), tasks);
        assertEquals(ids.map((id) => containerd.shimOf(id)), holders);
        for (const id of ids) {
          await assertAnswers(containerd, id);
          await assertCounts(fileOf(id));
        }
        ids.push(...await runMany(containerd, 1));
        assertEquals(machine.host(), { ...host, size: 4 });
        await endMany(containerd, ids);
      }, { prefix: machine.prefix })
    ),
);

/** What containerd's log has of a shim that has ended, or that it takes for dead. */
const SHIM_GONE = /shim reaped|cleaning up after|failed to clean up|shim disconnected|cleanup warnings|dead shim/;

/** How often a test kills the host. */
const KILLS = 3;

onlyHosted(
  "a host's death is nobody else's: its containers have another, in the same holders, and containerd notices nothing",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const counting = containerd.newId();
        const file = `${containerd.folder}/counted`;
        await containerd.runDetached(counting, COUNTING, { io: ["--log-uri", `file://${file}`] });
        const ids = [counting, ...await runMany(containerd, 2)];
        const holders = ids.map((id) => containerd.shimOf(id));
        const tasks = () => Promise.all(ids.map((id) => containerd.task(id)));
        const before = await tasks();
        const first = machine.host();
        for (let kill = 1; kill <= KILLS; kill++) {
          const dead = await killHost(machine);
          assertEquals(await tasks(), before);
          for (const id of ids) await assertAnswers(containerd, id);
          await assertCounts(file);
          assertEquals(ids.map((id) => containerd.shimOf(id)), holders);
          const host = machine.host();
          assertNotEquals(host.pid, dead.pid);
          assertEquals(host, { ...first, pid: host.pid, size: 3 });
        }

        // The next container is there too.
        ids.push(...await runMany(containerd, 1));
        assertEquals(machine.sizes(), [4]);
        await assertAnswers(containerd, ids.at(-1)!);
        assertEquals(containerd.log().split("\n").filter((line) => SHIM_GONE.test(line)), []);
        await containerd.must("task", "kill", "--signal", "9", counting);
        await until("it has stopped", async () => (await containerd.task(counting))?.status === "STOPPED");
        await containerd.must("task", "delete", counting);
        await containerd.must("container", "delete", counting);
        await endMany(containerd, ids.slice(1));
        await until("the host has no containers", () => machine.host().size === 0);
      }, { prefix: machine.prefix })
    ),
);

onlyHosted(
  "a holder whose host is killed has another, on the same connection, and its container lives on",
  () =>
    withHosted({}, async (shim, machine) => {
      const init = await shim.run();
      const ended = shim.wait();
      const before = await shim.state();
      for (let kill = 1; kill <= KILLS; kill++) {
        await killHost(machine);
        assertEquals(await shim.state(), before);
        assertEquals(await shim.shimPid(), shim.pid);
        assertHolder(shim.pid);
        assert(isAlive(init), "its container has ended");
        assertEquals(processOf(init)?.ppid, shim.pid);
        await assertExecs(shim, `e${kill}`);
      }
      await shim.kill(9);
      assertEquals((await ended).status, 137);
      assertEquals((await shim.delete()).pid, init);
    }),
);

onlyHosted(
  "a holder that ends while there is no host, takes nothing with it but its container's shim",
  () =>
    withHostedShims([{}, { endsItself: true }], async ([other, shim], machine) => {
      for (const each of [other!, shim!]) await each.run();
      const host = machine.host();
      // The one that is stopped finds no other.
      shim!.signal("SIGSTOP");
      await until("it has stopped", () => processOf(shim!.pid)?.state === "T");
      Deno.kill(host.pid, "SIGKILL");
      await until("the other has another host", () => machine.hosts().some(({ pid }) => pid !== host.pid));
      shim!.signal("SIGKILL");
      await untilEnded(shim!.pid);
      await assertExecs(other!, "e");
      assertEquals(machine.sizes(), [1]);
      await must(["runc", "--root", `${RUNC_ROOT}/${shim!.namespace}`, "delete", "--force", shim!.id]);
    }),
);

onlyHosted(
  "a host that is told to end does so when its last container has, and the next container has another",
  () =>
    withHosted({ endsItself: true }, async (shim, machine) => {
      await shim.run();
      const first = machine.host();
      Deno.kill(first.pid, "SIGTERM");
      await withShim({ prefix: machine.prefix, args: TALKING }, async (other) => {
        assertHolder(other.pid);
        await assertRuns(other);
        assertEquals(machine.sizes(), [1, 1]);
      });
      await assertExecs(shim, "e");
      await endContainer(shim);
      assertEquals(await shim.end("SIGTERM"), 0);
      await untilEnded(first.pid);
    }),
);

/** Reads a log until it has said what was waited for. */
async function logUntil(log: { line(): Promise<string> }, expected: RegExp): Promise<string> {
  let text = "";
  while (!expected.test(text)) text += await log.line();
  return text;
}

onlyHosted("each container's log is its own, and names it", () =>
  withMachine((machine) => {
    const options = { prefix: machine.prefix, flags: ["-debug"], args: TALKING };
    return withShims([options, options], async (shims) => {
      assertEquals(machine.sizes(), [2]);
      const logs = await Promise.all(shims.map((shim) => shim.read(`${shim.workdir}/shim.stdout.log`)));
      await Promise.all(shims.map(assertRuns));
      for (const [i, shim] of shims.entries()) {
        const lines = (await logUntil(logs[i]!, /method=Delete/)).trimEnd().split("\n");
        for (const line of lines) {
          for (const each of [`pid=${shim.pid}`, `path=${shim.bundle}`, `namespace=${shim.namespace}`]) {
            assert(`${line} `.includes(` ${each} `), `a line of ${shim.namespace}'s log does not say ${each}: ${line}`);
          }
        }
        for (const message of ["serving api on unix socket", "call answered"]) {
          assert(lines.some((line) => line.includes(message)), `there is no ${JSON.stringify(message)}`);
        }
      }
    });
  }));

/** What a dump says of its processes. */
function dumped(text: string): string[] {
  return [...text.matchAll(/process \S+ pid (\d+) running/g)].map(([, pid]) => pid!).toSorted();
}

/** A file as soon as it has been written. */
function written(path: string, ending: string): Promise<string> {
  return until(`${path} is there`, async () => {
    const text = await Deno.readTextFile(path);
    return text.includes(ending) && text;
  });
}

onlyHosted(
  "SIGUSR1 to a holder tells of its container, and to the host of all, beside its socket",
  () =>
    withHostedShims([{}, {}], async (shims, machine) => {
      const inits: string[] = [];
      for (const shim of shims) inits.push(`${await shim.run()}`);
      const host = machine.host();
      shims[0]!.signal("SIGUSR1");
      const text = await written(`${shims[0]!.bundle}/shim.dump.log`, "END dump");
      assertEquals(dumped(text), inits.slice(0, 1));
      assert(text.includes(`in the host ${host.pid} (${host.path}) of 2`), text);

      Deno.kill(host.pid, "SIGUSR1");
      const all = await written(machine.fileOf(host, ".dump"), "resident");
      assertEquals(dumped(all), inits.toSorted());
      assertEquals(Deno.statSync(machine.fileOf(host, ".dump")).mode! & 0o7777, 0o600);

      // What comes first is done first: had the other dumped too, it would have by now.
      shims[1]!.signal("SIGUSR1");
      assertEquals(dumped(await written(`${shims[1]!.bundle}/shim.dump.log`, "END dump")), inits.slice(1));
      assertEquals(dumped(await Deno.readTextFile(`${shims[0]!.bundle}/shim.dump.log`)), inits.slice(0, 1));
    }),
);

onlyHosted(
  "SIGTERM to a holder ends its container alone, and it exits with 0",
  () =>
    withHosted({}, async (other, machine) => {
      const living = await other.run();
      await withShim({ prefix: machine.prefix, endsItself: true }, async (shim) => {
        const init = await shim.run();
        assertEquals(machine.sizes(), [2]);
        assertEquals(await shim.end("SIGTERM"), 0);
        assertEquals(processOf(init), undefined);
      });
      await until("the host has one container less", () => machine.host().size === 1);
      assert(isAlive(living), "the other's container has ended");
      await assertExecs(other, "e");
    }),
);

onlyHosted(
  "a holder that is stopped hinders no other, and goes on where it was",
  () =>
    withHostedShims([{}, {}], async ([stopped, other], machine) => {
      for (const shim of [stopped!, other!]) await shim.run();
      stopped!.signal("SIGSTOP");
      await until("it has stopped", () => processOf(stopped!.pid)?.state === "T");
      // What needs the holder waits for it; what does not, does not.
      const exec = assertExecs(stopped!, "e");
      exec.catch(() => {});
      assertEquals(await stopped!.shimPid(), stopped!.pid);
      for (let number = 1; number <= 5; number++) await assertExecs(other!, `e${number}`);
      await withShim({ prefix: machine.prefix, args: TALKING }, async (third) => {
        assertHolder(third.pid);
        await assertRuns(third);
      });
      assertEquals(processOf(stopped!.pid)?.state, "T");
      stopped!.signal("SIGCONT");
      await exec;
      await endContainer(stopped!);
    }),
);

/** How many containers are run and execs are made before the host is looked at, and how many in all. */
const FIRST = 40;
const RUNS = 200;
/** How much more private memory a host may have afterwards: 10 KiB for each of the others, in KiB. */
const GROWTH_KIB = 1600;
/** How many threads more: those of Deno's pool come and go. */
const THREAD_GROWTH = 2;

/** Fails unless a host, having done this often, is what it was when it had done it some times. */
async function assertNoLeak(machine: Machine, repeat: (count: number) => Promise<void>): Promise<void> {
  await repeat(FIRST);
  const { pid } = machine.host();
  const [threads, memory] = [field(pid, "status", "Threads"), field(pid, "smaps_rollup", "Private_Dirty")];
  const files = openFiles(pid);
  await repeat(RUNS - FIRST);
  await assertOpenFiles(pid, files);
  const more = {
    threads: field(pid, "status", "Threads") - threads,
    memory: field(pid, "smaps_rollup", "Private_Dirty") - memory,
  };
  assert(more.threads <= THREAD_GROWTH, `the host has ${more.threads} threads more`);
  assert(more.memory <= GROWTH_KIB, `the host has ${more.memory} KiB more`);
  assertEquals(machine.host().pid, pid);
}

onlyHosted(
  "two hundred containers, one after another in one host, leave nothing in it",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const [id] = await runMany(containerd, 1);
        await assertNoLeak(machine, async (count) => {
          for (let i = 0; i < count; i++) {
            const result = await containerd.run(["/bin/sh", "-c", `echo ${i}; exit ${i % 7}`]);
            assertEquals(result, { code: i % 7, stdout: `${i}\n`, stderr: "" });
          }
          await until("their holders have ended", () => machine.host().size === 1);
        });
        await endMany(containerd, [id!]);
      }, { prefix: machine.prefix })
    ),
);

onlyHosted(
  "two hundred execs in four containers of one host leave nothing in it, nor in the holders",
  () =>
    withMachine((machine) =>
      withShims(Array.from({ length: 4 }, () => ({ prefix: machine.prefix })), async (shims) => {
        for (const shim of shims) await shim.run();
        let number = 0;
        const execs = async (count: number) => {
          const each = async (shim: Shim) => {
            for (let i = 0; i < count / shims.length; i++) await assertExecs(shim, `e${++number}`);
          };
          await Promise.all(shims.map(each));
        };
        await execs(shims.length);
        const held = shims.map(({ pid }) => openFiles(pid));
        await assertNoLeak(machine, execs);
        for (const [i, { pid }] of shims.entries()) {
          await assertOpenFiles(pid, held[i]!);
          const dirty = field(pid, "smaps_rollup", "Private_Dirty");
          assert(dirty <= HOLDER_KIB, `a holder has ${dirty} KiB of its own`);
        }
      })
    ),
);
