/** A host that hangs is killed, and only such a one: its containers, calls and exits go on with the next. */

import { assert, assertEquals } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { Builds, type Changes } from "./builds.ts";
import type { Reader } from "./fifo.ts";
import { withContainerd } from "./harness.ts";
import { assertExecs, endContainer, killHost, type Machine, onlyHosted, withMachine, withShims } from "./host.ts";
import { names } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive, processOf } from "./proc.ts";
import { assertStatus, type Shim, type ShimOptions, Status } from "./shim.ts";
import { withSystemLogs } from "./system_log.ts";
import { later, replaceHost } from "./takeover.ts";
import { pause, until } from "./until.ts";

modes(["hosted"], "only who has a host waits for one");

/** A command line's beginning that says how long a host may give no sign of life. */
function watchdog(seconds: number): string[] {
  return ["env", `CONTAINERD_SHIM_WATCHDOG=${seconds}`];
}

/** Runs a test with shims in one host that may give no sign of life for so long, on a machine of its own. */
function withWatched(
  seconds: number,
  options: readonly ShimOptions[],
  test: (shims: Shim[], machine: Machine) => Promise<void>,
): Promise<void> {
  return withMachine((machine) => {
    const prefix = [...machine.prefix, ...watchdog(seconds)];
    return withShims(options.map((each) => ({ prefix, ...each })), (shims) => test(shims, machine));
  });
}

/** Stops processes, and waits until they do nothing. */
async function stop(...pids: number[]): Promise<void> {
  for (const pid of pids) Deno.kill(pid, "SIGSTOP");
  for (const pid of pids) await until("it has stopped", () => processOf(pid)?.state === "T");
}

/** The log of a shim. */
function logOf(shim: Shim): Promise<Reader> {
  return shim.read(`${shim.workdir}/shim.stdout.log`);
}

/** Reads a log until it has a line. */
async function untilLogged(log: Reader, expected: RegExp): Promise<void> {
  for (let text = ""; !expected.test(text);) text += await log.line();
}

const HUNG = (times: number) =>
  new RegExp(`level=error msg="the host of this shim has hung, and was killed".* times=${times}`);

onlyHosted(
  "a host that hangs is killed, and another goes on with its containers, their calls and their exits",
  () =>
    withWatched(1, [{}, {}], async ([one, other], machine) => {
      const logs = [await logOf(one!), await logOf(other!)];
      const inits = [await one!.run(), await other!.run()];
      const waiting = [later(one!.wait()), later(other!.wait())];
      // When this is answered, the others have been read.
      await one!.shimPid();
      await other!.shimPid();
      const { pid } = machine.host();
      await stop(pid);
      Deno.kill(inits[0]!, "SIGKILL");
      // Called while nobody answers.
      assertEquals((await other!.state()).pid, inits[1]);
      assert(!isAlive(pid), "the host lives");
      assertEquals((await waiting[0]!).status, 137);
      assertEquals((await one!.events.exit(one!.id)).exit.exitStatus, 137);
      for (const log of logs) await untilLogged(log, HUNG(1));
      await assertExecs(other!, "e");
      await one!.delete();
      await endContainer(other!);
      assertEquals((await waiting[1]!).status, 137);
    }),
);

onlyHosted("a host that hangs twice is killed twice", () =>
  withWatched(1, [{}], async ([shim], machine) => {
    const log = await logOf(shim!);
    const init = await shim!.run();
    for (const times of [1, 2]) {
      await stop(machine.host().pid);
      assertEquals((await shim!.state()).pid, init);
      await untilLogged(log, HUNG(times));
    }
    await endContainer(shim!);
  }));

onlyHosted(
  "a host that is stopped for less than it may be goes on",
  () =>
    withWatched(2, [{}], async ([shim], machine) => {
      const init = await shim!.run();
      const { pid } = machine.host();
      await stop(pid);
      const state = later(shim!.state());
      await pause(1000);
      Deno.kill(pid, "SIGCONT");
      assertEquals((await state).pid, init);
      // Nor has it been killed by what it had not answered then.
      await pause(1500);
      assertEquals(machine.host().pid, pid);
      await endContainer(shim!);
    }),
);

onlyHosted(
  "a host that is stopped together with its holders goes on",
  () =>
    withWatched(1, [{}, {}], async (shims, machine) => {
      for (const shim of shims) await shim.run();
      const { pid } = machine.host();
      await stop(pid, ...shims.map((shim) => shim.pid));
      await pause(2000);
      // The holders are the first to go on.
      for (const shim of shims) shim.signal("SIGCONT");
      await pause(300);
      Deno.kill(pid, "SIGCONT");
      for (const shim of shims) assertEquals((await shim.state()).status, Status.RUNNING);
      assertEquals(machine.host().pid, pid);
      for (const shim of shims) await endContainer(shim);
    }),
);

onlyHosted("CONTAINERD_SHIM_WATCHDOG=0 has nobody killed", () =>
  withWatched(0, [{}], async ([shim], machine) => {
    await shim!.run();
    const { pid } = machine.host();
    const holder = () =>
      /voluntary_ctxt_switches:\s+(\d+)/.exec(Deno.readTextFileSync(`/proc/${shim!.pid}/status`))![1];
    await shim!.shimPid();
    const before = holder();
    await stop(pid);
    await pause(2500);
    assertEquals(holder(), before, "its holder wakes");
    Deno.kill(pid, "SIGCONT");
    await endContainer(shim!);
    assertEquals(machine.host().pid, pid);
  }));

/** Has what stands there loop for ever instead. */
const forEver = (found: string) => "{for(;;);}".padEnd(found.length);

/** A build whose host hangs in a call that changes something, which is noted before. */
const HANGS_IN_UPDATE: Changes = [[
  /\["Update",this\.#[\w$]+\([\w$]+\.UpdateTaskRequest,[\w$]+,\(\{[^}]*\}\)=>[\w$]+\(this\.#[\w$]+\([\w$]+\)\)/,
  (found) => found.replace(/(?<==>).*/, forEver),
]];

/** A build whose host hangs in a call that is not noted, because it is answered at once. */
const HANGS_IN_RESIZE: Changes = [[
  /\["ResizePty",[\w$]+\([\w$]+\.ResizePtyRequest,[\w$]+,\(\{[^}]*\}\)=>this\.#[\w$]+\([\w$,]+\)\)/,
  (found) => found.replace(/(?<==>).*(?=\)$)/, forEver),
]];

const HANGING: readonly (readonly [method: string, changes: Changes, call: (shim: Shim) => Promise<void>])[] = [
  ["Update", HANGS_IN_UPDATE, (shim) => shim.update({})],
  ["ResizePty", HANGS_IN_RESIZE, (shim) => shim.resize(80, 24)],
];

for (const [method, changes, call] of HANGING) {
  onlyHosted(`a call that hangs two hosts is refused, and not made again: ${method}`, async () => {
    await using builds = new Builds();
    const shim = { name: "hanging build", path: await builds.make({ changes }) };
    await withWatched(1, [{ shim }, { shim }], async ([shim, other], machine) => {
      const init = await shim!.run();
      const otherInit = await other!.run();
      const waiting = later(shim!.wait());
      await shim!.shimPid();
      const message = "2 hosts of the shim have hung while they were answering it";
      await assertStatus(call(shim!), Code.UNAVAILABLE, message);
      const { pid } = machine.host();
      assertEquals((await shim!.state()).pid, init);
      assertEquals((await other!.state()).pid, otherInit);
      await assertExecs(shim!, "e");
      await endContainer(shim!);
      assertEquals((await waiting).status, 137);
      await endContainer(other!);
      assertEquals(machine.host().pid, pid);
    });
  });
}

/** The user of a folder that a shim is not. */
const NOBODY = 65534;
const NO_HOST = "the shim has no host: no call is answered, and on SIGTERM it ends without its container";

onlyHosted(
  "a shim that can have no host says so, goes on when it can, and on SIGTERM leaves its container to containerd",
  () =>
    withSystemLogs(["syslog"], (machine, { syslog }) =>
      withContainerd(async (containerd) => {
        const id = containerd.newId();
        await containerd.runDetached(id, ["/bin/sleep", "1000"]);
        const shim = containerd.shimOf(id);
        // A folder that is not its user's can be anybody's.
        await Deno.chown(machine.folder, NOBODY, null);
        await killHost(machine);
        const said = () =>
          syslog!.received().map((each) => new TextDecoder().decode(each)).filter((each) => each.includes(NO_HOST));
        await until("the system's log has it", () => said().length > 0);
        assertEquals(said(), [`<27>containerd-shim: ${NO_HOST} path=${containerd.bundles}/${id}`]);
        await Deno.chown(machine.folder, 0, null);
        assertEquals((await containerd.running(id)) > 0, true);
        const { pid } = machine.host();

        await Deno.chown(machine.folder, NOBODY, null);
        const { pid: init } = (await containerd.task(id))!;
        assertEquals((await killHost(machine)).pid, pid);
        Deno.kill(shim, "SIGTERM");
        await until("it has ended", () => !isAlive(shim));
        await until("containerd has removed the container", () => !isAlive(init));
        await containerd.must("task", "delete", "--force", id).catch(() => {});
        await containerd.must("container", "delete", id);
        // There is no host to remove them.
        for (const each of names(machine.folder)) await Deno.remove(`${machine.folder}/${each}`);
      }, { prefix: [...machine.prefix, ...watchdog(1)] })),
);

onlyHosted(
  "a shim whose hosts' folder has been opened to others meanwhile closes it, and goes on with another host",
  () =>
    withMachine((machine) =>
      withShims([{ prefix: machine.prefix }], async ([shim]) => {
        const init = await shim!.run();
        await Deno.chmod(machine.folder, 0o755);
        await replaceHost(machine);
        assertEquals((await shim!.state()).pid, init);
        assertEquals((await Deno.stat(machine.folder)).mode! & 0o7777, 0o700);
        await endContainer(shim!);
      })
    ),
);

onlyHosted(
  "a host that hangs before it has answered is passed over, and another goes on",
  () =>
    withWatched(1, [{}], async ([shim], machine) => {
      const init = await shim!.run();
      const { pid } = machine.host();
      await stop(shim!.pid);
      Deno.kill(pid, "SIGKILL");
      await until("it has ended", () => !isAlive(pid));
      // The next is there before its holder comes, has said how many it has, and hangs then.
      await withShims([{ prefix: [...machine.prefix, ...watchdog(1)], endsItself: true }], async ([other]) => {
        const next = machine.host().pid;
        await other!.end("SIGTERM");
        await stop(next);
        shim!.signal("SIGCONT");
        assertEquals((await shim!.state()).pid, init);
        assert(!isAlive(next), "the host that hangs lives");
      });
      await endContainer(shim!);
    }),
);
