/** `containerd-shim upgrade`: another build of the executable takes over from the hosts that run. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { containerd as api } from "../../lib/api/mod.js";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { RECORD_VERSION } from "../../lib/record/record.ts";
import { Builds, FAILING, HEEDLESS, hostPaths, Locks, OTHER_VERSION, upgrade } from "./builds.ts";
import { must } from "./command.ts";
import { type Form, OUR_EXECUTABLE } from "./env.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import {
  assertExecs,
  assertHolder,
  emptyFolder,
  endContainer,
  group,
  type Host,
  HOSTS,
  type Machine,
  onlyHosted,
  STATUS,
  untilEnded,
  withHosted,
  withHostedShims,
  withMachine,
  withShims,
} from "./host.ts";
import { names, RUNC_ROOT } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { numbered } from "./numbered.ts";
import { Log, Printed } from "./printing.ts";
import { isAlive, processOf } from "./proc.ts";
import { askPid, type Exit, SERVICE, type Shim, type ShimOptions, Status, withShim } from "./shim.ts";
import { statePath } from "./takeover.ts";
import { PATIENCE_MS, until } from "./until.ts";
import { encodeFrame, RawConnection, REQUEST } from "./wire.ts";

import v1 = api.runtime.linux.shim.v1;

modes(["hosted"], "it is about hosts that take over");

/** The build of our executable, and another. */
const OLD = OUR_EXECUTABLE;
const builds = new Builds();
let newer: Promise<string> | undefined;
const newBuild = () => newer ??= builds.make();
Deno.test.afterAll(() => builds[Symbol.asyncDispose]());

/** The files that have processes end which print numbered lines, as these see them: a container's first, which ends all. */
const END = "/end";
const END_EXECS = "/end-execs";

/** Has processes of a container end that print numbered lines. */
async function endPrinting(shim: Shim, end: string): Promise<void> {
  await Deno.writeTextFile(`${shim.rootfs}${end}`, "");
}

/** A command that prints numbered lines on both streams, until there is a file. */
function printing(status: number, end: string = END_EXECS): string[] {
  return ["sh", "-c", numbered(end, status)];
}

/** The same for a terminal, which is both. */
function printingOnTerminal(status: number, end: string = END_EXECS): string[] {
  return ["sh", "-c", `(${numbered(end, status)}) 2>/dev/null`];
}

/** How many lines {@linkcode numbered} prints at once. */
const LINES_AT_ONCE = 5;

/** Waits until everything has printed twice. */
async function allGoOn(printed: readonly Printed[]): Promise<void> {
  await Promise.all(printed.map((each) => each.goesOn(2 * LINES_AT_ONCE)));
}

/** Runs another process in a container that prints numbered lines. */
async function execPrinting(shim: Shim, id: string, status: number): Promise<Printed> {
  const { stdout, stderr } = await shim.execWithFifos(id, printing(status));
  return new Printed(stdout, stderr);
}

/** The same, on a terminal. */
async function execOnTerminal(shim: Shim, id: string, status: number): Promise<Printed> {
  const { stdin, stdout } = await shim.fifos(id);
  await shim.exec(id, printingOnTerminal(status), { stdin, stdout, terminal: true });
  const [output] = await Promise.all([shim.read(stdout), shim.startProcess(id)]);
  return new Printed(output);
}

/** Ends of a container's process that nobody asked about yet, as an answer that is looked at later. */
function waitFor(shim: Shim, id?: string): Promise<number> {
  const status = shim.wait(id, WHOLE_TEST_MS).then(({ status }) => status);
  status.catch(() => {});
  return status;
}

/** How long a host waits that has no container, in ms. */
const LINGER_MS = 30_000;
/** How long a Wait may take that is there for the whole test, in ms. */
const WHOLE_TEST_MS = 120_000;

/** The processes that a shim says it knows in a container, by their pids; what these have started comes and goes. */
async function knownPids(shim: Shim): Promise<Map<number, string>> {
  const known = [...await shim.pids()].flatMap(([pid, id]) => id === undefined ? [] : [[pid, id] as const]);
  return new Map(known.toSorted(([a], [b]) => a - b));
}

/** The exits that a shim has published, each once. */
function exits(shim: Shim): Map<string, number> {
  const told = shim.events.published().filter(({ topic }) => topic === "/tasks/exit").map(({ exit }) => exit);
  assertEquals(told.map(({ id }) => id).toSorted(), [...new Set(told.map(({ id }) => id))].toSorted());
  return new Map(told.map(({ id, exitStatus }) => [id, exitStatus]));
}

/** A logger that writes what it is given into two files beside it. */
const LOGGER = `#!/bin/sh
cd "$(dirname "$0")"
cat <&3 >out 5>&- &
cat <&4 >err 5>&- &
exec 3<&- 4<&- 5>&-
wait
`;

/** What a log or a dump says of a host that has died. */
const DIED = /hosts? of this shim (that have|has) died/;

/** Has a holder say what it does, and gives that. */
async function dump(shim: Shim, log: Log): Promise<string> {
  const dumped = log.next(/END dump/);
  shim.signal("SIGUSR1");
  return await dumped;
}

/** The file that a host is run from. */
function executableOf({ pid }: Host): string {
  return Deno.readLinkSync(`/proc/${pid}/exe`);
}

/** Fails unless a machine has one host, run from a file, which has so many containers, and gives that. */
function assertHost(machine: Machine, executable: string, size: number): Host {
  const host = machine.host();
  assertEquals({ executable: executableOf(host), size: host.size }, { executable, size });
  return host;
}

/** Has a build take over, and fails unless all of the only host's containers go to it. Gives the host that has them then. */
async function assertUpgrades(machine: Machine, executable: string): Promise<Host> {
  const host = machine.host();
  assertEquals(await upgrade(machine, executable), { code: 0, said: handedOver(host) });
  await untilEnded(host.pid);
  return assertHost(machine, executable, host.size);
}

/** What is said of a host that has handed over all its containers, or so many. */
function handedOver({ pid, size }: Host, moved = size): string {
  const rest = moved === size ? "" : `, and ${size - moved} have come back or stayed`;
  return `host ${pid} with ${containers(size)} has handed over ${moved}${rest}\n`;
}

/** Removes the files of hosts that have been killed: they leave them to the next. */
function forgetDeadHosts(machine: Machine): void {
  const living = machine.hosts().map(({ path }) => path.replace(/.*\//, ""));
  for (const name of names(machine.folder)) {
    if (!living.includes(name.replace(/\.lock$/, ""))) Deno.removeSync(`${machine.folder}/${name}`);
  }
}

/** Fails unless a shim answers on a connection of its own. */
async function assertTakesConnections(shim: Shim): Promise<void> {
  using client = await shim.connect();
  assertEquals(await askPid(client), shim.pid);
}

function containers(count: number): string {
  return `${count} container${count === 1 ? "" : "s"}`;
}

onlyHosted("containers go to a host of another build, and back, and nobody notices", () =>
  withMachine((machine) => {
    const { prefix } = machine;
    const options = [
      { prefix, endsItself: true, args: printing(21, END) },
      { prefix, endsItself: true, args: printingOnTerminal(22, END), terminal: true },
      { prefix, endsItself: true },
      { prefix, endsItself: true, args: printing(24, END) },
    ];
    return withShims(options, async (shims) => {
      const [printer, terminal, quiet, logged] = shims as [Shim, Shim, Shim, Shim];
      const logs: Log[] = [];
      for (const shim of shims) logs.push(new Log(await shim.read(`${shim.workdir}/shim.stdout.log`)));

      const { stdout, stderr } = await printer.createWithFifos();
      const fifos = await terminal.fifos();
      const { stdin, stdout: screen } = fifos;
      const [output] = await Promise.all([
        terminal.read(screen),
        terminal.create({ stdin, stdout: screen, terminal: true }),
      ]);
      await quiet.create();
      const logger = await logged.makeProgram("logger", LOGGER);
      await logged.create({ stdout: `binary://${logger}`, stderr: `binary://${logger}` });
      const loggedFiles = ["out", "err"].map((each) => `${logged.folder}/${each}`);
      const inits: number[] = [];
      for (const shim of shims) inits.push(await shim.startProcess());
      const waits = shims.map((shim) => waitFor(shim));
      const execs = [[quiet, "e", 31], [terminal, "e", 32], [quiet, "t", 33]] as const;
      const initsPrint = [new Printed(stdout, stderr), new Printed(output)];
      const execsPrint = [
        await execPrinting(quiet, "e", 31),
        await execPrinting(terminal, "e", 32),
        await execOnTerminal(quiet, "t", 33),
      ];
      const execWaits = execs.map(([shim, id]) => waitFor(shim, id));

      const known = await Promise.all(shims.map(knownPids));
      const assertUnchanged = async (what: string) => {
        const sizes = loggedFiles.map((each) => Deno.statSync(each).size);
        await allGoOn([...initsPrint, ...execsPrint]);
        await until("more is logged", () => loggedFiles.every((each, i) => Deno.statSync(each).size > sizes[i]!));
        for (const [i, shim] of shims.entries()) {
          assertHolder(shim.pid);
          assertEquals(await shim.shimPid(), shim.pid);
          const { status, pid } = await shim.state();
          assertEquals({ status, pid }, { status: Status.RUNNING, pid: inits[i]! });
          assertEquals(processOf(inits[i]!)?.ppid, shim.pid);
          assertEquals(await knownPids(shim), known[i]!);
          const dumped = await dump(shim, logs[i]!);
          assertMatch(dumped, new RegExp(`in the host ${machine.host().pid} .* of 4`));
          assertMatch(dumped, new RegExp(`process c pid ${inits[i]!} running`));
          assertMatch(dumped, /call Wait in flight for/);
          assert(!DIED.test(logs[i]!.text), `${what}, a host is said to have died: ${logs[i]!.text}`);
        }
      };

      const first = assertHost(machine, OLD, 4);
      await assertUnchanged("at first");
      const second = await assertUpgrades(machine, await newBuild());
      await assertUnchanged("in the other build");
      // What is begun there, too.
      for (const shim of shims) await assertExecs(shim, "short");
      execsPrint.push(await execPrinting(printer, "later", 34));
      known[0] = await knownPids(printer);
      const laterWait = waitFor(printer, "later");
      const third = await assertUpgrades(machine, OLD);
      await assertUnchanged("back in the first build");
      assertEquals(new Set([first.pid, second.pid, third.pid]).size, 3);

      for (const shim of shims) await endPrinting(shim, END_EXECS);
      for (const each of execsPrint) assert(await each.ended() > 0);
      assertEquals(await Promise.all([...execWaits, laterWait]), [31, 32, 33, 34]);
      await allGoOn(initsPrint);
      for (const shim of [printer, terminal, logged]) await endPrinting(shim, END);
      for (const each of initsPrint) assert(await each.ended() > 0);
      await quiet.kill(9);
      assertEquals(await Promise.all(waits), [21, 22, 137, 24]);
      for (const [shim, id] of [...execs, [printer, "later"] as const]) await shim.deleteProcess(id);
      for (const [i, shim] of shims.entries()) {
        assertEquals((await shim.delete()).pid, inits[i]!);
        assertEquals(await shim.end("SIGTERM"), 0);
        assert(!DIED.test(await logs[i]!.all()), `a host is said to have died: ${logs[i]!.text}`);
        const expected = [
          new Map([["c", 21], ["short", STATUS], ["later", 34]]),
          new Map([["c", 22], ["short", STATUS], ["e", 32]]),
          new Map([["c", 137], ["short", STATUS], ["e", 31], ["t", 33]]),
          new Map([["c", 24], ["short", STATUS]]),
        ][i]!;
        await until("all exits are told", () => exits(shim).size === expected.size);
        assertEquals(exits(shim), expected);
      }
    });
  }));

onlyHosted(
  "--dry-run says what would be done, and does nothing",
  () =>
    withHostedShims([{}, {}], async (shims, machine) => {
      for (const shim of shims) await shim.run();
      const hosts = machine.hosts();
      const { pid } = machine.host();
      const written = () => shims.map((shim) => Deno.readFileSync(statePath(shim)));
      const states = written();
      for (const flag of ["--dry-run", "-dry-run"]) {
        assertEquals(await upgrade(machine, await newBuild(), flag), {
          code: 0,
          said: `host ${pid} with 2 containers would hand over to this build\n`,
        });
      }
      for (const flags of [[], ["--dry-run"]]) {
        assertEquals(await upgrade(machine, OLD, ...flags), {
          code: 0,
          said: `host ${pid} with 2 containers is of this build\n`,
        });
      }
      assertEquals(machine.hosts(), hosts);
      assertEquals(written(), states);
      for (const shim of shims) await assertExecs(shim, "e");
    }),
);

/** A machine on which nothing has ever made the folder for hosts. */
const NO_FOLDER = "mount -t tmpfs none /run";

for (const [what, setup] of [["its folder is empty", emptyFolder()], ["has no folder for one", NO_FOLDER]] as const) {
  onlyHosted(`where no host runs, and ${what}, there is nothing to do`, () =>
    withMachine(async (machine) => {
      for (const flags of [[], ["--dry-run"]]) {
        assertEquals(await upgrade(machine, OLD, ...flags), { code: 0, said: "no host runs\n" });
      }
      assertEquals(machine.hosts(), []);
    }, setup));
}

/** Has the exec e end that prints, and then its container; fails unless all is there that was printed, and its status. */
async function assertEndsPrinting(shim: Shim, printed: Printed, status: number): Promise<void> {
  await endPrinting(shim, END_EXECS);
  assert(await printed.ended() > 0);
  assertEquals((await shim.wait("e")).status, status);
  await shim.deleteProcess("e");
  await endContainer(shim);
}

onlyHosted(
  "a wrong argument is answered with the usage, and nothing is done; -h prints it",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const host = machine.host();
      for (
        const [args, code] of [
          [["-h"], 0],
          [["--help"], 0],
          [["--dry-run", "-h"], 0],
          [["now"], 2],
          [["--dry"], 2],
          [["-h", "now"], 0],
          [[""], 2],
        ] as const
      ) {
        const upgraded = await upgrade(machine, await newBuild(), ...args);
        assertEquals(upgraded.code, code, `${args}`);
        assertMatch(
          upgraded.said,
          code === 0 ? /^Usage: containerd-shim upgrade \[flags\]\n/ : /^[^\n]+\nUsage: containerd-shim upgrade /,
        );
      }
      assertEquals(machine.host(), host);
      await assertExecs(shim, "e");
    }),
);

onlyHosted(
  "a host of the other build that dies is followed by one of that build",
  () =>
    withHosted({}, async (shim, machine) => {
      const init = await shim.run();
      const log = new Log(await shim.read(`${shim.workdir}/shim.stdout.log`));
      const wait = waitFor(shim);
      const printed = await execPrinting(shim, "e", 31);
      const host = await assertUpgrades(machine, await newBuild());
      await printed.goesOn();
      const died = log.next(DIED);
      Deno.kill(host.pid, "SIGKILL");
      assertEquals((await shim.state()).pid, init);
      await printed.goesOn();
      const next = assertHost(machine, await newBuild(), 1);
      assert(next.pid !== host.pid);
      // It is this what says that others have not died.
      assertMatch(await died, new RegExp(`host=${host.pid} `));
      assertMatch(await dump(shim, log), DIED);
      await assertUpgrades(machine, OLD);
      await assertEndsPrinting(shim, printed, 31);
      assertEquals(await wait, 137);
      assert(isAlive(shim.pid));
      await until("the host has no container", () => machine.sizes().every((size) => size <= 1));
    }),
);

onlyHosted(
  "a build that reads another version of what has been written down takes nothing over",
  () =>
    withHostedShims([{}, {}], async (shims, machine) => {
      for (const shim of shims) await shim.run();
      const wait = waitFor(shims[0]!);
      const printed = await execPrinting(shims[0]!, "e", 31);
      const hosts = machine.hosts();
      const other = await builds.make({ changes: OTHER_VERSION });
      for (const flags of [["--dry-run"], []]) {
        assertEquals(await upgrade(machine, other, ...flags), {
          code: 1,
          said: `host ${hosts[0]!.pid} with 2 containers stays: it writes version ${RECORD_VERSION} of its ` +
            `containers' states, and this build reads versions up to ${RECORD_VERSION + 1}\n`,
        });
      }
      assertEquals(machine.hosts(), hosts);
      await printed.goesOn();
      for (const shim of shims) await assertExecs(shim, "short");
      await endPrinting(shims[0]!, END_EXECS);
      assert(await printed.ended() > 0);
      assertEquals((await shims[0]!.wait("e")).status, 31);
      await shims[0]!.deleteProcess("e");
      await endContainer(shims[0]!);
      assertEquals(await wait, 137);
    }),
);

/** Has a build fail to take over, which must be said, and fails unless all is in the same host as before, and is answered. */
async function assertStays(
  machine: Machine,
  shims: readonly Shim[],
  executable: string,
  meanwhile: () => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const logs: Log[] = [];
  for (const shim of shims) logs.push(new Log(await shim.read(`${shim.workdir}/shim.stdout.log`)));
  const host = machine.hosts().find(({ size }) => size > 0)!;
  const pids = await Promise.all(shims.map(knownPids));
  const upgrading = upgrade(machine, executable);
  upgrading.catch(() => {});
  await meanwhile();
  const count = shims.length;
  const { code, said } = await upgrading;
  assert(said.includes(handedOver({ ...host, size: count }, 0)), said);
  assertEquals(code, 1);
  assertEquals(machine.hosts().filter(({ size }) => size > 0), [{ ...host, size: count }]);
  assertEquals(await Promise.all(shims.map(knownPids)), pids);
  for (const [i, shim] of shims.entries()) {
    assertHolder(shim.pid);
    await assertExecs(shim, "short");
    assert(!DIED.test(await dump(shim, logs[i]!)), `a host is said to have died: ${logs[i]!.text}`);
  }
}

onlyHosted(
  "a host that cannot read what has been written down refuses, and all go back to where they were",
  () =>
    withHostedShims([{}, {}], async (shims, machine) => {
      for (const shim of shims) await shim.run();
      const [shim] = shims as [Shim, Shim];
      const wait = waitFor(shim);
      const printed = await execPrinting(shim, "e", 31);
      await assertStays(machine, shims, await builds.make({ changes: [...OTHER_VERSION, ...HEEDLESS] }));
      await printed.goesOn();
      await assertEndsPrinting(shim, printed, 31);
      assertEquals(await wait, 137);
    }),
);

/** A build whose hosts are not found. */
interface Absent {
  readonly executable: string;
  /** Ends that, and gives a build that has hosts. */
  readonly help: () => Promise<string>;
}

/** Why no host of another build is found; what is done for that is undone in any case. */
const ABSENCES: readonly (readonly [string, (machine: Machine, undo: AsyncDisposableStack) => Promise<Absent>])[] = [
  ["that cannot start a host", async (machine, undo) => {
    const executable = await newBuild();
    const locks = await Locks.take(machine, await hostPaths(machine, executable));
    undo.defer(() => locks.release());
    return { executable, help: () => locks.release().then(() => executable) };
  }],
  ["whose host does not answer", async (machine) => {
    const executable = await newBuild();
    await withShim(
      { prefix: machine.prefix, shim: { name: "other build", path: executable } },
      () => Promise.resolve(),
    );
    const { pid } = machine.host();
    Deno.kill(pid, "SIGSTOP");
    return { executable, help: () => Promise.resolve(Deno.kill(pid, "SIGCONT")).then(() => executable) };
  }],
  ["whose hosts end at once", async () => ({ executable: await builds.make({ changes: FAILING }), help: newBuild })],
];

for (const [what, prepare] of ABSENCES) {
  onlyHosted(
    `containers come back from a build ${what}, all calls are answered, and a later upgrade works`,
    () =>
      withMachine(async (machine) => {
        await using undo = new AsyncDisposableStack();
        const { executable, help } = await prepare(machine, undo);
        const { prefix } = machine;
        await withShims([{ prefix, args: printing(21, END) }, { prefix }, { prefix }], async (shims) => {
          const [printer, quiet] = shims as [Shim, Shim, Shim];
          const { stdout, stderr } = await printer.createWithFifos();
          await printer.startProcess();
          for (const shim of shims.slice(1)) await shim.run();
          const printed = [new Printed(stdout, stderr), await execPrinting(quiet, "e", 31)];
          const waits = [waitFor(printer), waitFor(quiet), waitFor(quiet, "e")];
          const host = machine.hosts().find(({ size }) => size > 0)!;
          await assertStays(machine, shims, executable, async () => {
            const hasLeft = () => machine.hosts().some(({ pid, size }) => pid === host.pid && size === 0);
            await until("the holders have left", hasLeft);
            await Promise.all(shims.map(async (shim) => {
              await Promise.all([shim.state(), assertExecs(shim, "meanwhile"), assertTakesConnections(shim)]);
            }));
          });
          await allGoOn(printed);

          const next = await help();
          const { code, said } = await upgrade(machine, next);
          assert(said.includes(handedOver(host)), said);
          assertEquals(code, 0, said);
          await untilEnded(host.pid);
          assertHost(machine, next, shims.length);
          await allGoOn(printed);
          for (const shim of shims) await assertExecs(shim, "later");
          await endPrinting(quiet, END_EXECS);
          await endPrinting(printer, END);
          for (const each of printed) assert(await each.ended() > 0);
          await quiet.kill(9);
          assertEquals(await Promise.all(waits), [21, 137, 31]);
        });
        forgetDeadHosts(machine);
      }),
  );
}

onlyHosted("the files of hosts that have died do not matter", () =>
  withMachine(async (machine) => {
    const prefix = [...machine.prefix, ...group(2)];
    await withShim({ prefix, endsItself: true }, (first) =>
      withShims([{ prefix }, { prefix }], async (shims) => {
        await first.run();
        for (const shim of shims) await shim.run();
        assertEquals(machine.sizes(), [2, 1]);
        assertEquals(await first.end("SIGTERM"), 0);
        await until("there is room", () => machine.sizes().join() === "1,1");
        const [host, dying] = machine.hosts() as [Host, Host];
        Deno.kill(dying.pid, "SIGKILL");
        for (const shim of shims) await shim.state();
        assertEquals(machine.host(), { ...host, size: 2 });
        assert(names(machine.folder).includes(dying.path.replace(/.*\//, "")), "it has left nothing");
        assertEquals(await upgrade(machine, await newBuild()), { code: 0, said: handedOver({ ...host, size: 2 }) });
        assertHost(machine, await newBuild(), 2);
      }));
    forgetDeadHosts(machine);
  }));

onlyHosted(
  "containers come back to the build that they were moved to, not to the one that they were started with",
  () =>
    withMachine(async (machine) => {
      const third = await builds.make();
      const locks = await Locks.take(machine, await hostPaths(machine, third));
      await using undo = new AsyncDisposableStack();
      undo.defer(() => locks.release());
      await withShims([{ prefix: machine.prefix }, { prefix: machine.prefix }], async (shims) => {
        for (const shim of shims) await shim.run();
        await assertUpgrades(machine, await newBuild());
        await assertStays(machine, shims, third);
        assertHost(machine, await newBuild(), 2);
        await locks.release();
        await assertUpgrades(machine, third);
        for (const shim of shims) await assertExecs(shim, "later");
      });
    }),
);

onlyHosted(
  "all hosts of another build hand over, those without a container too, or say that containers have come back",
  () =>
    withMachine(async (machine) => {
      const prefix = [...machine.prefix, ...group(2)];
      const executable = await newBuild();
      const locks = await Locks.take(machine, await hostPaths(machine, executable));
      await using undo = new AsyncDisposableStack();
      undo.defer(() => locks.release());
      await withShim({ prefix, endsItself: true }, (first) =>
        withShims([{ prefix }, { prefix }, { prefix }], async (shims) => {
          for (const shim of [first, ...shims]) {
            await shim.run();
          }
          assertEquals(machine.sizes(), [2, 2]);
          // One that comes back finds room in the host that is not its own.
          assertEquals(await first.end("SIGTERM"), 0);
          await until("there is room", () =>
            machine.sizes().join() === "1,2");
          const hosts = machine.hosts();
          const { code, said } = await upgrade(machine, executable);
          assertEquals(said, hosts.map((host) => handedOver(host, 0)).join(""));
          assertEquals(code, 1);
          assertEquals(machine.sizes().reduce((sum, size) => sum + size), 3);

          await locks.release();
          const old = machine.hosts();
          assertEquals(await upgrade(machine, executable), {
            code: 0,
            said: old.map((host) => handedOver(host)).join(""),
          });
          for (const { pid } of old) await untilEnded(pid);
          assertEquals(machine.sizes(), [2, 1]);
          assertEquals(machine.hosts().map(executableOf), [executable, executable]);
          for (const shim of shims) await assertExecs(shim, "later");
        }));
      await until("the hosts have no containers", () =>
        machine.sizes().every((size) => size === 0));
      const idle = machine.hosts();
      assertEquals(await upgrade(machine, OLD), { code: 0, said: idle.map((host) => handedOver(host)).join("") });
      for (const { pid } of idle) await untilEnded(pid);
      assertEquals(names(machine.folder), []);
    }),
);

/** Makes a file that containerd starts shims from, which is our build at first. */
async function replaceable(): Promise<Form & { replace(): Promise<void> }> {
  const path = await builds.make({ isOurs: true });
  return {
    name: "replaceable",
    path,
    replace: async () => await Deno.rename(await builds.make(), path),
  };
}

/** Starts a container of containerd's that does nothing. */
async function runQuiet(containerd: Containerd): Promise<string> {
  const id = containerd.newId();
  await containerd.runDetached(id, ["/bin/sleep", "1000"]);
  return id;
}

for (const isBefore of [true, false]) {
  onlyHosted(
    `where containerd's executable has been replaced, containers started ${
      isBefore ? "before" : "after"
    } the upgrade ` +
      "share the new build's host with those that there were",
    () =>
      withMachine(async (machine) => {
        const shim = await replaceable();
        await withContainerd(async (containerd) => {
          const ids = [await runQuiet(containerd), await runQuiet(containerd)];
          const old = assertHost(machine, shim.path, 2);
          const holders = ids.map((id) => containerd.shimOf(id));
          const inits = await Promise.all(ids.map((id) => containerd.running(id)));
          await shim.replace();
          assertEquals(executableOf(old), `${shim.path} (deleted)`);
          if (isBefore) {
            ids.push(await runQuiet(containerd));
            assertEquals(machine.sizes().toSorted(), [1, 2]);
          }
          const { code, said } = await upgrade(machine, shim.path);
          assert(said.includes(handedOver(old)), said);
          assertEquals({ code, lines: said.split("\n").length - 1 }, { code: 0, lines: isBefore ? 2 : 1 });
          await untilEnded(old.pid);
          if (!isBefore) ids.push(await runQuiet(containerd));
          const host = assertHost(machine, shim.path, 3);

          for (const [i, id] of ids.entries()) {
            assertHolder(containerd.shimOf(id));
            assertEquals(containerd.shimOf(id), holders[i] ?? containerd.shimOf(id));
            assertEquals(await containerd.running(id), inits[i] ?? await containerd.running(id));
            assertEquals(await containerd.exec(id, [], ["/bin/echo", "hello"]), "hello\n");
          }
          // A containerd that comes back finds them.
          await containerd.stop("SIGKILL");
          await containerd.start();
          for (const id of ids) {
            assertEquals(await containerd.exec(id, [], ["/bin/echo", "hello"]), "hello\n");
            await containerd.end(id);
          }
          await until("its containers have ended", () => machine.host().size === 0);
          assertEquals(machine.host().pid, host.pid);
        }, { prefix: machine.prefix, shim });
      }),
  );
}

/** A command of the runtime that is slow, and the call that runs it. */
interface Slow {
  /** What it is, where the command does not tell. */
  readonly name?: string;
  readonly command: string;
  readonly options?: ShimOptions;
  /** What is done before. */
  readonly before: (shim: Shim, runtime: string) => Promise<unknown>;
  readonly call: (shim: Shim, runtime: string) => Promise<unknown>;
  /** Fails unless this was the right answer, and what was to be done is. */
  readonly check: (shim: Shim, answer: unknown) => Promise<void>;
}

const run = (shim: Shim, runtime: string) => shim.run({}, { runtime });

const SLOW: readonly Slow[] = [
  {
    command: "create",
    before: () => Promise.resolve(),
    call: (shim, runtime) => shim.create({}, { runtime }),
    check: async (shim, answer) => {
      assertEquals(answer, (await shim.state()).pid);
      assertEquals((await shim.state()).status, Status.CREATED);
      assertEquals(await shim.startProcess(), answer);
    },
  },
  {
    name: "create with a root filesystem to be mounted",
    command: "create",
    options: { mountedRoot: true, args: ["sh", "-c", "exit 6"] },
    before: () => Promise.resolve(),
    call: (shim, runtime) => {
      const rootfs = [{ type: "bind", source: shim.rootfs, options: ["rbind"] }];
      return shim.create({}, { runtime, rootfs });
    },
    check: async (shim, answer) => {
      assertEquals(answer, (await shim.state()).pid);
      assertEquals(await shim.startProcess(), answer);
      assertEquals((await shim.wait()).status, 6);
      await shim.delete();
    },
  },
  {
    name: "create with a terminal",
    command: "create",
    options: { terminal: true, args: ["sh", "-c", "tty >/dev/null && exit 6"] },
    before: () => Promise.resolve(),
    call: (shim, runtime) => shim.create({ terminal: true }, { runtime }),
    check: async (shim, answer) => {
      assertEquals(await shim.startProcess(), answer);
      assertEquals((await shim.wait()).status, 6);
      await shim.delete();
    },
  },
  {
    command: "start",
    before: (shim, runtime) => shim.create({}, { runtime }),
    call: (shim) => shim.startProcess(),
    check: async (shim, answer) => {
      const { status, pid } = await shim.state();
      assertEquals({ status, pid }, { status: Status.RUNNING, pid: answer as number });
    },
  },
  {
    command: "exec",
    before: async (shim, runtime) => {
      await run(shim, runtime);
      await shim.exec("e", ["sh", "-c", "exit 7"]);
    },
    call: (shim) => shim.startProcess("e"),
    check: async (shim, answer) => {
      assertEquals((await shim.wait("e")).status, 7);
      const { pid, status } = await shim.deleteProcess("e");
      assertEquals({ pid, status }, { pid: answer as number, status: 7 });
    },
  },
  {
    name: "exec with a terminal",
    command: "exec",
    before: async (shim, runtime) => {
      await run(shim, runtime);
      await shim.exec("e", ["sh", "-c", "tty >/dev/null && exit 7"], { terminal: true });
    },
    call: (shim) => shim.startProcess("e"),
    check: async (shim, answer) => {
      assertEquals((await shim.wait("e")).status, 7);
      assertEquals((await shim.deleteProcess("e")).pid, answer as number);
    },
  },
  {
    command: "pause",
    before: run,
    call: (shim) => shim.pause(),
    check: async (shim) => {
      assertEquals((await shim.state()).status, Status.PAUSED);
      await shim.resume();
    },
  },
  {
    command: "resume",
    before: async (shim, runtime) => {
      await run(shim, runtime);
      await shim.pause();
    },
    call: (shim) => shim.resume(),
    check: async (shim) => assertEquals((await shim.state()).status, Status.RUNNING),
  },
  {
    command: "update",
    before: run,
    call: (shim) => shim.update({ pids: { limit: 77 } }),
    check: async (shim) => {
      const [member] = shim.containerProcesses();
      const cgroup = /^\d+:pids:(.*)$/m.exec(await Deno.readTextFile(`/proc/${member}/cgroup`))![1];
      assertEquals(await Deno.readTextFile(`/sys/fs/cgroup/pids${cgroup}/pids.max`), "77\n");
    },
  },
  {
    command: "kill",
    before: run,
    call: (shim) => shim.kill(9),
    check: async (shim) => assertEquals((await shim.wait()).status, 137),
  },
  {
    command: "delete",
    before: async (shim, runtime) => {
      await run(shim, runtime);
      await shim.kill(9);
      await shim.wait();
    },
    call: (shim) => shim.delete(),
    check: async (_shim, answer) => {
      assertEquals((answer as Exit).status, 137);
      await Promise.resolve();
    },
  },
];

/** A runc that notes each command, and is slow with one, until there is a file. */
function slowRuntime(folder: string, command: string): string {
  return `#!/bin/sh
echo "$*" >>'${folder}/commands'
case " $* " in *" ${command} "*)
  touch '${folder}/begun'
  while ! [ -e '${folder}/go' ]; do sleep 0.02; done
esac
exec runc "$@"
`;
}

/** Has calls begun that a slow runtime is needed for, each of a shim, and gives what is known of each. */
function beginSlow(
  shims: readonly Shim[],
): Promise<(Slow & { readonly shim: Shim; readonly answer: Promise<unknown> })[]> {
  return Promise.all(SLOW.map(async (each, i) => {
    const shim = shims[i]!;
    const runtime = await shim.makeProgram("slow", slowRuntime(shim.folder, each.command));
    await each.before(shim, runtime);
    const answer = each.call(shim, runtime);
    answer.catch(() => {});
    await until(`${each.command} has begun`, () => Deno.statSync(`${shim.folder}/begun`).isFile);
    return { ...each, shim, answer };
  }));
}

for (const isLate of [false, true]) {
  const when = isLate ? "longer than it is waited for" : "for a moment";
  onlyHosted(
    `what is being done to containers ${when}, while their host hands over, is done once, and answered`,
    () =>
      withMachine((machine) => {
        const { prefix } = machine;
        return withShims([...SLOW.map(({ options }) => ({ ...options, prefix })), { prefix }], async (shims) => {
          await shims.at(-1)!.run();
          const slow = await beginSlow(shims);
          const executable = await newBuild();
          const old = assertHost(machine, OLD, shims.length);
          const upgrading = upgrade(machine, executable);
          upgrading.catch(() => {});
          const hasOld = (count: number) => machine.hosts().some(({ pid, size }) => pid === old.pid && size === count);
          await until("the other has left", () => hasOld(slow.length));
          // What is asked for meanwhile is answered afterwards.
          const pids = Promise.all(slow.map(({ shim }) => shim.shimPid()));
          pids.catch(() => {});
          if (isLate) await until("all have left", () => machine.hosts().every(({ pid }) => pid !== old.pid));
          else assert(hasOld(slow.length), "the host has not waited");
          for (const { shim } of slow) await Deno.writeTextFile(`${shim.folder}/go`, "");
          const failures: string[] = [];
          for (const { shim, answer, command, name = command, check } of slow) {
            try {
              await check(shim, await answer);
              const commands = (await Deno.readTextFile(`${shim.folder}/commands`)).trim().split("\n");
              assertEquals(commands.filter((each) => ` ${each} `.includes(` ${command} `)).length, 1);
            } catch (error) {
              failures.push(`${name}: ${(error as Error).message}`);
            }
          }
          assertEquals(failures, []);
          assertEquals(await upgrading, { code: 0, said: handedOver(old) });
          await untilEnded(old.pid);
          assertHost(machine, executable, shims.length);
          assertEquals(await pids, slow.map(({ shim }) => shim.pid));
        });
      }),
  );
}

onlyHosted(
  "a connection that is made while a host waits for a call, to hand over, is answered",
  () =>
    withHostedShims([{}, {}], async (shims, machine) => {
      const [slow, quick] = shims as [Shim, Shim];
      await quick.run();
      const runtime = await slow.makeProgram("slow", slowRuntime(slow.folder, "create"));
      const created = slow.create({}, { runtime });
      created.catch(() => {});
      await until("create has begun", () => Deno.statSync(`${slow.folder}/begun`).isFile);
      const old = assertHost(machine, OLD, 2);
      const upgrading = upgrade(machine, await newBuild());
      upgrading.catch(() => {});
      await until("the other has left", () => machine.hosts().some(({ pid, size }) => pid === old.pid && size === 1));
      using client = await slow.connect();
      const answer = askPid(client);
      answer.catch(() => {});
      await Deno.writeTextFile(`${slow.folder}/go`, "");
      assertEquals(await answer, slow.pid);
      await created;
      assertEquals(await upgrading, { code: 0, said: handedOver(old) });
    }),
);

onlyHosted(
  "the death of a container's shim just when it is to go does not keep its host from handing over the others",
  () =>
    withMachine((machine) =>
      withShim(
        { prefix: machine.prefix, endsItself: true },
        (dying) =>
          withShim({ prefix: machine.prefix }, async (shim) => {
            const runtime = await dying.makeProgram("slow", slowRuntime(dying.folder, "kill"));
            await dying.run({}, { runtime });
            await shim.run();
            const old = assertHost(machine, OLD, 2);
            // The host waits for this call before it sends the first away.
            const killed = dying.kill(9);
            killed.catch(() => {});
            await until("kill has begun", () => Deno.statSync(`${dying.folder}/begun`).isFile);
            const upgrading = upgrade(machine, await newBuild());
            upgrading.catch(() => {});
            await until("the other has left", () =>
              machine.hosts().some(({ pid, size }) => pid === old.pid && size === 1));
            dying.signal("SIGKILL");
            await dying.status;
            await Deno.writeTextFile(`${dying.folder}/go`, "");

            const { said } = await upgrading;
            assertMatch(said, new RegExp(`^host ${old.pid} with 2 containers has handed over `));
            await assertExecs(shim, "later");
            // Whether the dead one has stayed may be a question: that it is nobody's any more is none.
            await until("the old host has ended", () =>
              !isAlive(old.pid), LINGER_MS + PATIENCE_MS);
            assertHost(machine, await newBuild(), 1);
            await must(["runc", "--root", `${RUNC_ROOT}/${dying.namespace}`, "delete", "--force", dying.id]);
          }),
      )
    ),
);

for (const isLate of [false, true]) {
  onlyHosted(
    `a container's shim that is ending${isLate ? " for long" : ""}, while its host hands over, ends in the other build`,
    () =>
      withHostedShims([{ endsItself: true }, {}], async (shims, machine) => {
        const [ending, quick] = shims as [Shim, Shim];
        await quick.run();
        const runtime = await ending.makeProgram("slow", slowRuntime(ending.folder, "delete"));
        const init = await ending.run({}, { runtime });
        const wait = waitFor(ending);
        await ending.shimPid();
        ending.signal("SIGTERM");
        await until("delete has begun", () => Deno.statSync(`${ending.folder}/begun`).isFile);
        const old = assertHost(machine, OLD, 2);
        const upgrading = upgrade(machine, await newBuild());
        upgrading.catch(() => {});
        const hasOld = (count: number) => machine.hosts().some(({ pid, size }) => pid === old.pid && size === count);
        await until("the other has left", () => hasOld(1) || hasOld(0));
        if (isLate) await until("all have left", () => machine.hosts().every(({ pid }) => pid !== old.pid));
        await Deno.writeTextFile(`${ending.folder}/go`, "");
        assertEquals(await ending.status, 0);
        assertEquals(await wait, 137);
        assertEquals(processOf(init), undefined);

        assertEquals((await upgrading).code, 0);
        await untilEnded(old.pid);
        await until("the other host has one", () => machine.host().size === 1);
        await assertExecs(quick, "later");
      }),
  );
}

/** Parts of a frame that may have come: in the middle of its header, all of that, and all but the last byte. */
const PARTS = [3, 10, -1];

onlyHosted(
  "a request of which a part has come before its host hands over, and the rest after, is answered",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const frames = ["", "x".repeat(100_000)].map((value) => {
        const request = { service: SERVICE, method: "ShimInfo", metadata: [{ key: "padding", value }] };
        return encodeFrame({ stream: 1, type: REQUEST, payload: ttrpc.Request.encode(request).finish() });
      });
      const executables = [await newBuild(), OLD];
      for (
        const [i, [frame, part]] of frames.flatMap((frame) => PARTS.map((part) => [frame, part] as const)).entries()
      ) {
        using connection = await RawConnection.open(shim.socketPath);
        await connection.write(frame.subarray(0, part));
        // It was sent before this, which is answered.
        await shim.shimPid();
        await assertUpgrades(machine, executables[i % 2]!);
        await connection.write(frame.subarray(part));
        const { response } = await connection.response();
        assertEquals(v1.ShimInfoResponse.decode(response.payload).shimPid, shim.pid);
      }
    }),
);

/** Starts a host as a shim does that has found none: what it listens on is descriptor 3, and its lock is 4. */
const START_HOST = `
  use Fcntl ':flock';
  use strict;
  use Socket qw(:DEFAULT SOCK_NONBLOCK);
  my ($program, $path) = @ARGV;
  $^F = 4; # the highest descriptor that is not close-on-exec
  socket my $socket, AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0 or die "socket: $!";
  open my $lock, '+>', "$path.lock" or die "$path.lock: $!";
  fileno $socket == 3 and fileno $lock == 4 or die "other descriptors are open";
  flock $lock, LOCK_EX or die "$path.lock: $!";
  bind $socket, pack_sockaddr_un($path) and listen $socket, 128 or die "$path: $!";
  open $_, '+<', '/dev/null' for *STDIN, *STDOUT, *STDERR;
  exec { $program } 'containerd-shim-host', 'host', $path;
`;

onlyHosted("a host knows its build before it has had a container", () =>
  withMachine(async (machine) => {
    const path = `${HOSTS}/1-0`;
    const [program, ...args] = [...machine.prefix, "perl", "-e", START_HOST, OLD, path] as [string, ...string[]];
    const process = new Deno.Command(program, { args, stdin: "null", stdout: "null", stderr: "inherit" }).spawn();
    const said = `host ${process.pid} with 0 containers`;
    await until("the host answers", async () => (await upgrade(machine, OLD, "--dry-run")).said.startsWith(said));
    assertEquals(await upgrade(machine, OLD), { code: 0, said: `${said} is of this build\n` });
    const host = machine.host();
    assertEquals(host.pid, process.pid);
    assertEquals(await upgrade(machine, await newBuild()), { code: 0, said: handedOver(host) });
    assertEquals((await process.status).code, 0);
    assertEquals(machine.hosts(), []);
  }));

/** Asks a host of the path to hand over to a build that is not there, as an `upgrade` of 0.1 does; prints its answer. */
const ASK_AS_0_1 = `
  use Socket;
  my ($path, $program) = @ARGV;
  socket my $host, AF_UNIX, SOCK_SEQPACKET, 0 or die "socket: $!";
  connect $host, pack_sockaddr_un($path) or die "$path: $!";
  open my $executable, '<', $program or die "$program: $!";
  my ($UPGRADE, $protocol, $build, $goes) = (100, 2, 1, 1);
  my $request = pack "LLQLL", $UPGRADE, $protocol, $build, $goes, 0;
  my $rights = pack "Qllll", 20, 1, 1, fileno $executable, 0; # SOL_SOCKET, SCM_RIGHTS
  my $piece = pack "PQ", $request, length $request;
  my $message = pack "QLx4PQPQlx4", 0, 0, $piece, 1, $rights, length $rights, 0;
  syscall(46, fileno $host, $message, 0) == length $request or die "sendmsg: $!";
  sysread $host, my $answer, 1 << 16;
  print $answer;
`;

onlyHosted(
  "a host does not send a holder to a build that does not understand it",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const { pid, path } = machine.host();
      const about = JSON.parse(await must([...machine.prefix, "perl", "-e", ASK_AS_0_1, path, "/bin/true"]));
      // There is no field that 0.1 does not know.
      assertEquals(Object.keys(about), ["pid", "build", "recordVersion", "containers", "moved", "stayed"]);
      assertEquals([about.containers, about.moved, about.stayed], [1, 0, 1]);
      assertEquals(machine.host().pid, pid);
      await assertExecs(shim, "later");
      await endContainer(shim);
    }),
);

/** Plays a host that says this of itself, once, and listens before it prints a line. */
const PLAY_HOST = `
  use Socket;
  my ($path, $answer) = @ARGV;
  socket my $listener, AF_UNIX, SOCK_SEQPACKET, 0 or die "socket: $!";
  bind $listener, pack_sockaddr_un($path) and listen $listener, 1 or die "$path: $!";
  syswrite STDOUT, "listens\n";
  accept my $asker, $listener or die "accept: $!";
  sysread $asker, my $request, 100;
  syswrite $asker, $answer;
  <STDIN>;
  unlink $path;
`;

onlyHosted(
  "a host whose holders speak a newer version of the protocol stays, and that is said",
  () =>
    withMachine(async (machine) => {
      const about = { pid: 7, build: "1", recordVersion: 1, containers: 2, moved: 0, stayed: 2, protocol: 99 };
      const [program, ...args] = [
        ...machine.prefix,
        "perl",
        "-e",
        PLAY_HOST,
        `${HOSTS}/1-0`,
        JSON.stringify(about),
      ] as [
        string,
        ...string[],
      ];
      const host = new Deno.Command(program, { args, stdin: "piped", stdout: "piped" }).spawn();
      const reader = host.stdout.getReader();
      try {
        await reader.read();
        const { code, said } = await upgrade(machine, OLD);
        assertEquals(code, 1);
        assertMatch(
          said,
          /^host 7 with 2 containers stays: its containers' processes speak version 99 of the protocol /,
        );
      } finally {
        await reader.cancel();
        await host.stdin.close();
        await host.status;
      }
    }),
);
