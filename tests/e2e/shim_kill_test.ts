/** Kill: which signal reaches which process. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { must, start } from "./command.ts";
import { expectFinishedNotFound } from "./behaviour.ts";
import { type CgroupVersion, expectFrozen, hasCgroups, setFrozen } from "./cgroups.ts";
import { inModes, IS_OURS } from "./env.ts";
import { cgroupsOf, containerCgroups } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { descendants, isAlive, processOf } from "./proc.ts";
import { assertStatus, type Shim, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "signals are sent, and exits known, in another way in each");

/** signal(7) */
const SIGUSR2 = 12, SIGTERM = 15, SIGKILL = 9;

Deno.test("Kill with an empty id is for init, and the signal that ends it is in its status", () =>
  // The first process of a pid namespace is killed by a signal that it does not handle only if that is SIGKILL.
  withShim({ namespaces: ["mount"] }, async (shim) => {
    await shim.run();
    await shim.kill(SIGTERM, { id: "" });
    assertEquals((await shim.wait()).status, 128 + SIGTERM);
    assertEquals((await shim.state()).status, Status.STOPPED);
    await shim.delete();
  }));

Deno.test("Kill reaches init alone, which may handle the signal", () =>
  withShim({
    args: ["sh", "-c", "trap 'exit 33' USR2; mkfifo /tmp/ready; : >/tmp/ready; while :; do sleep 0.01; done"],
  }, async (shim) => {
    await shim.run();
    await until("init handles the signal", () => Deno.statSync(`${shim.rootfs}/tmp/ready`).isFifo);
    await Deno.readTextFile(`${shim.rootfs}/tmp/ready`);
    await shim.kill(SIGUSR2);
    assertEquals((await shim.wait()).status, 33);
    await shim.delete();
  }));

Deno.test("Kill with all reaches every process of the container", () =>
  withShim({ namespaces: ["mount"] }, async (shim) => {
    const init = await shim.run();
    await shim.exec("other", ["sleep", "1000"]);
    const other = await shim.startProcess("other");
    await shim.kill(SIGTERM, { all: true });
    assertEquals((await shim.wait()).status, 128 + SIGTERM);
    assertEquals((await shim.wait("other")).status, 128 + SIGTERM);
    for (const pid of [init, other]) assertEquals(processOf(pid), undefined, "it has not been reaped");
    await shim.deleteProcess("other");
    await shim.delete();
  }));

Deno.test("Kill of an exec reaches it, and not init", () =>
  withShim({}, async (shim) => {
    const init = await shim.run();
    await shim.exec("other", ["sleep", "1000"]);
    await shim.startProcess("other");
    await shim.kill(SIGKILL, { id: "other" });
    assertEquals((await shim.wait("other")).status, 128 + SIGKILL);
    assert(isAlive(init));
    assertEquals((await shim.state()).status, Status.RUNNING);
  }));

Deno.test("Kill of a process that has finished answers NOT_FOUND", () => withShim({}, expectFinishedNotFound));

Deno.test(
  "Kill of an exec that has not started answers FAILED_PRECONDITION",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      await shim.exec("other", ["true"]);
      await assertStatus(shim.kill(SIGKILL, { id: "other" }), Code.FAILED_PRECONDITION, /./);
    }),
);

/** Reaps whatever becomes its child, as the first process of a pid namespace has to. */
const REAP_ALL = "$SIG{CHLD} = 'IGNORE'; sleep 1000";

/** Runs `test` with a pid namespace in which there is only its first process: its path. */
async function withPidNamespace(test: (path: string) => Promise<void>): Promise<void> {
  const holder = start(["unshare", "--pid", "--fork", "--kill-child", "perl", "-e", REAP_ALL], { patienceMs: 120_000 });
  try {
    const [child] = await until("the namespace is there", () => {
      const below = descendants(holder.pid).filter(({ comm }) => comm === "perl");
      return below.length > 0 && below;
    });
    await test(`/proc/${child!.pid}/ns/pid`);
  } finally {
    holder.kill("SIGKILL");
    await holder.result;
  }
}

const INIT_WITH_CHILD = ["sh", "-c", "sleep 1000 & read _; exit 5"];

/** Has init end while a child of its and an exec live, and fails unless both end, and their ends are told. */
async function expectAllEnd(shim: Shim): Promise<void> {
  const { fifos: { stdin } } = await shim.createWithFifos();
  await shim.startProcess();
  await shim.exec("other", ["sleep", "1000"]);
  const other = await shim.startProcess("other");
  const all = await until("init has started its child", () => {
    const pids = shim.containerProcesses();
    return pids.length === 3 && pids;
  });
  await Deno.writeTextFile(stdin, "\n");
  assertEquals((await shim.wait()).status, 5);
  assertEquals((await shim.wait("other")).status, 128 + SIGKILL);
  const exits = [await shim.events.exit("other"), await shim.events.exit(shim.id)];
  assertEquals(exits.map(({ exit }) => [exit.id, exit.exitStatus]), [["other", 128 + SIGKILL], [shim.id, 5]]);
  await until("nothing of the container is alive", () => !all.some(isAlive));
  assertEquals(processOf(other), undefined, "it has not been reaped");
  await shim.deleteProcess("other");
  await shim.delete();
}

Deno.test("when init ends, what shares no pid namespace with it is killed, its children and execs", () =>
  withShim({ args: INIT_WITH_CHILD, namespaces: ["mount"] }, expectAllEnd));

Deno.test("so it is when the pid namespace is another's, given by its path", () =>
  withPidNamespace((path) =>
    withShim({ args: INIT_WITH_CHILD, namespaces: ["mount", { type: "pid", path }] }, async (shim) => {
      await expectAllEnd(shim);
      await Deno.stat(path); // and nobody else has been killed
    })
  ));

Deno.test("in a pid namespace of its own, the kernel does that: the runtime is not asked to", () =>
  withShim({ args: INIT_WITH_CHILD }, async (shim) => {
    const runtime = await shim.makeProgram("recording-runc", RECORDING);
    const { fifos: { stdin } } = await shim.createWithFifos({ runtime });
    await shim.startProcess();
    await Deno.writeTextFile(stdin, "\n");
    assertEquals((await shim.wait()).status, 5);
    await shim.delete();
    assert(!/ kill /.test(await Deno.readTextFile(`${shim.folder}/record`)));
  }));

/** Keeps what it is asked for. */
const RECORDING = `#!/bin/sh
echo "$@" >>"$(dirname "$0")/record"
exec runc "$@"
`;

/** Says when it is asked to kill, and does so only when it is told to. */
const SLOW_TO_KILL = `#!/bin/sh
case " $* " in *" kill "*) echo "$@" >"$(dirname "$0")/asked"; read _ <"$(dirname "$0")/go" ;; esac
exec runc "$@"
`;

Deno.test("init's exit is told only when the runtime has killed what is left", () =>
  withShim({ args: INIT_WITH_CHILD, namespaces: ["mount"] }, async (shim) => {
    const runtime = await shim.makeProgram("slow-runc", SLOW_TO_KILL);
    await must(["mkfifo", `${shim.folder}/asked`, `${shim.folder}/go`]);
    const { fifos: { stdin } } = await shim.createWithFifos({ runtime });
    await shim.startProcess();
    let told = false;
    const waiting = shim.wait().finally(() => told = true);
    // Where the test fails before it comes to that, this is not what failed.
    waiting.catch(() => {});
    await Deno.writeTextFile(stdin, "\n");
    assertMatch(await Deno.readTextFile(`${shim.folder}/asked`), / kill --all c (9|KILL|SIGKILL)\n$/);
    // What is answered now was asked after the exit.
    for (let i = 0; i < 20; i++) await shim.shimPid();
    // The Go shim answers this only afterwards.
    if (IS_OURS) assertEquals((await shim.state()).status, Status.RUNNING);
    assertEquals([told, shim.events.published()], [false, []]);
    await Deno.writeTextFile(`${shim.folder}/go`, "\n");
    assertEquals((await waiting).status, 5);
    assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 5);
    await until("nothing of the container is alive", () => shim.containerProcesses().filter(isAlive).length === 0);
    await shim.delete();
  }));

/** A version of cgroups that this machine can have alone, which crun wants. */
const ALONE: CgroupVersion = hasCgroups(1) ? 1 : 2;

const RUNTIMES = [{ runtime: "runc" }, { runtime: "crun", cgroups: ALONE }] as const;

/** Whose first thread ends, and another lives; status 44 at SIGUSR2. */
const LEADERLESS = `
  #include <pthread.h>
  #include <signal.h>
  #include <sys/syscall.h>
  #include <unistd.h>
  static void leave(int signal) { _exit(44); }
  static void *live(void *none) { for (;;) pause(); }
  int main(void) {
    pthread_t thread;
    signal(SIGUSR2, leave);
    pthread_create(&thread, NULL, live, NULL);
    syscall(SYS_exit, 0);
  }
`;

/** Puts a program into the container's root filesystem: /bin/program. */
async function compile(shim: Shim, source: string): Promise<void> {
  await Deno.writeTextFile(`${shim.folder}/program.c`, source);
  await must(["gcc", "-static", "-pthread", "-o", `${shim.rootfs}/bin/program`, `${shim.folder}/program.c`]);
}

for (const setup of RUNTIMES) {
  const { runtime } = setup;
  inModes(
    ["hosted", "alone"],
    "the process that signals it is its parent in one, and not in the other",
    `an init whose first thread has ended is reached by Kill, with all and without (${runtime})`,
    () =>
      withShim({ ...setup, args: ["/bin/program"] }, async (shim) => {
        await compile(shim, LEADERLESS);
        for (
          const [signal, all, status] of [[SIGUSR2, false, 44], [SIGKILL, false, 137], [SIGKILL, true, 137]] as const
        ) {
          const init = await shim.run();
          await until("its first thread has ended", () => processOf(init)?.state === "Z");
          assertEquals((await shim.state()).status, Status.RUNNING);
          await shim.kill(signal, { all });
          assertEquals((await shim.wait()).status, status);
          await assertStatus(shim.kill(signal), Code.NOT_FOUND, "process already finished");
          await shim.delete();
        }
      }),
  );
}

// Version 2 lets SIGKILL through, and runc thaws what it kills.
if (ALONE === 1) {
  const setup = RUNTIMES[1];
  inModes(
    ["hosted"],
    "both ask the runtime for the same",
    "SIGKILL ends a container that somebody else has frozen",
    () =>
      withShim(setup, async (shim) => {
        await shim.run();
        for (const each of containerCgroups(shim.namespace)) setFrozen(each, true);
        await expectFrozen(shim.namespace, true);
        await shim.kill(SIGKILL);
        assertEquals((await shim.wait()).status, 137);
        await shim.delete();
      }),
  );

  inModes(
    ["hosted"],
    "both look for it in the same way",
    "SIGKILL to what is frozen, and stays so, is answered by what keeps it from its end",
    () =>
      withShim(setup, async (shim) => {
        await shim.run();
        await shim.exec("other", ["sleep", "1000"]);
        await shim.startProcess("other");
        // More than the container is in it.
        const [folder] = cgroupsOf(shim.namespace).filter((each) => each.includes("freezer"));
        setFrozen(folder!, true);
        await expectFrozen(shim.namespace, true);
        const frozen = new RegExp(`^process \\d+ has been sent SIGKILL, and ends when ${folder}/c is thawed$`);
        await assertStatus(shim.kill(SIGKILL, { id: "other" }), Code.UNAVAILABLE, frozen);
        await assertStatus(shim.kill(SIGKILL), Code.UNAVAILABLE, frozen);
        assertEquals((await shim.state()).status, Status.RUNNING);
        setFrozen(folder!, false);
        assertEquals([(await shim.wait()).status, (await shim.wait("other")).status], [137, 137]);
        await shim.delete();
      }),
  );
}
