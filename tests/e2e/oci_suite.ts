/** What every OCI runtime must do under the shim, on cgroups of either version. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { expectFinishedNotFound, expectPidsKnown, INIT_WITH_ONE_CHILD } from "./behaviour.ts";
import { type CgroupVersion, expectFrozen, hasCgroups, textOf } from "./cgroups.ts";
import { IS_OURS } from "./env.ts";
import { Writer } from "./fifo.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { containerCgroups, removeNamespace, RUNC_ROOT } from "./leftovers.ts";
import { processOf } from "./proc.ts";
import { assertStatus, type Shim, type ShimOptions, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

/** What the tests are run with. */
export interface Setup {
  readonly runtime: "runc" | "crun";
  readonly cgroups: CgroupVersion;
}

/** signal(7) */
const SIGKILL = 9, SIGUSR2 = 12, SIGTERM = 15;

/** What each runtime says of a command that it does not find. */
const NOT_FOUND = {
  runc: /exec: "no-such-command": executable file not found in \$PATH/,
  crun: /executable file `no-such-command` not found in \$PATH/,
};

/** Prints each line that it reads, with a word before. */
const ECHO = ["sh", "-c", "while read -r line; do echo got $line; done"];

/** Lives on when it is terminated: when init ends, the others are killed. */
const HANDLES_SIGTERM = ["sh", "-c", "trap 'echo terminated' TERM; echo ready; while :; do sleep 0.01; done"];

/** Registers all of it for one setup. */
export function testRuntime(setup: Setup): void {
  const { runtime, cgroups } = setup;
  const possible = hasCgroups(cgroups);

  /** `onlyOurs` is why another shim fails it, if it does with this setup. */
  const test = (name: string, onlyOurs: string | undefined, run: () => Promise<void>) => {
    const reasons = [
      ...possible ? [] : ["this machine cannot have such cgroups"],
      ...IS_OURS || onlyOurs === undefined ? [] : [`not with another shim: ${onlyOurs}`],
    ];
    const where = reasons.map((each) => ` [${each}]`).join("");
    Deno.test({ name: `${name} (${runtime}, cgroup v${cgroups})${where}`, ignore: reasons.length > 0, fn: run });
  };
  const shimTest = (
    name: string,
    { onlyOurs, ...options }: ShimOptions & { readonly onlyOurs?: string | undefined },
    run: (shim: Shim) => Promise<void>,
  ) => test(name, onlyOurs, () => withShim({ ...setup, ...options }, run));
  const containerdTest = (name: string, run: (containerd: Containerd) => Promise<void>) =>
    test(name, undefined, () => withContainerd(run, setup));

  shimTest("a container is created, runs, stops and is deleted", {
    args: ["sh", "-c", "echo out; echo err >&2; exit 7"],
  }, async (shim) => {
    const { pid, stdout, stderr } = await shim.createWithFifos();
    assertEquals((await shim.state()).status, Status.CREATED);
    assertEquals(shim.containerProcesses(), [pid]);
    await assertCgroups(pid, setup);
    assertEquals(await shim.startProcess(), pid);
    assertEquals([await stdout.text(), await stderr.text()], ["out\n", "err\n"]);
    assertEquals((await shim.wait()).status, 7);
    assertEquals((await shim.state()).status, Status.STOPPED);
    assertEquals(processOf(pid), undefined, "it has not been reaped");
    assertEquals((await shim.delete()).status, 7);
    await shim.expectNothingLeft();
  });

  shimTest("a container that has been created and not started is deleted", {}, async (shim) => {
    const pid = await shim.create();
    await shim.delete();
    await until("its init has ended", () => processOf(pid) === undefined);
    await shim.expectNothingLeft();
  });

  shimTest("an exec has streams, a status and a pid of its own", {}, async (shim) => {
    const init = await shim.run();
    const { pid, fifos, stdout, stderr } = await shim.execWithFifos("other", [
      ...["sh", "-c", "read line; echo got $line; echo err >&2; exit 6"],
    ]);
    assert(pid !== init);
    assertEquals(shim.containerProcesses().sort(), [init, pid].sort());
    {
      using writer = await Writer.open(fifos.stdin);
      await writer.write("something\n");
    }
    assertEquals([await stdout.text(), await stderr.text()], ["got something\n", "err\n"]);
    assertEquals((await shim.wait("other")).status, 6);
    assertEquals((await shim.deleteProcess("other")).status, 6);
  });

  shimTest("an exec has a terminal, and its size", {}, async (shim) => {
    await shim.run();
    const { stdin, stdout } = await shim.fifos("other");
    await shim.exec("other", ["sh", "-c", "stty size; read line; tty; stty size; echo $line; exit 6"], {
      ...{ stdin, stdout, terminal: true },
    });
    await shim.resize(100, 30, "other");
    const [output] = await Promise.all([shim.read(stdout), shim.startProcess("other")]);
    // Said before its start, it is there when it starts.
    assertEquals(await output.line(), "30 100\r\n");
    await shim.resize(90, 20, "other");
    using keyboard = await Writer.open(stdin);
    await keyboard.write("typed\n");
    assertMatch(await output.text(), /^typed\r\n\/dev\/(pts\/0|console)\r\n20 90\r\ntyped\r\n$/);
    assertEquals((await shim.wait("other")).status, 6);
    await shim.deleteProcess("other");
  });

  shimTest("a container has a terminal", {
    terminal: true,
    args: ["sh", "-c", "read line; tty; stty size; echo $line; exit 5"],
  }, async (shim) => {
    const { stdin, stdout } = await shim.fifos();
    const [output] = await Promise.all([shim.read(stdout), shim.create({ stdin, stdout, terminal: true })]);
    await shim.resize(100, 30);
    await shim.startProcess();
    using keyboard = await Writer.open(stdin);
    await keyboard.write("typed\n");
    assertMatch(await output.text(), /^typed\r\n\/dev\/(pts\/0|console)\r\n30 100\r\ntyped\r\n$/);
    assertEquals((await shim.wait()).status, 5);
    await shim.delete();
  });

  shimTest("ListPids knows init and execs by their ids, and lists what they have started", {
    args: INIT_WITH_ONE_CHILD,
  }, expectPidsKnown);

  shimTest("a paused container stands still, with its execs, and goes on when it is resumed", {
    args: ECHO,
  }, async (shim) => {
    const { fifos, stdout } = await shim.createWithFifos();
    await shim.startProcess();
    await shim.exec("other", ["sleep", "1000"]);
    await shim.startProcess("other");
    using writer = await Writer.open(fifos.stdin);
    await writer.write("before\n");
    assertEquals(await stdout.line(), "got before\n");

    await shim.pause();
    await expectFrozen(shim.namespace, true);
    assertEquals((await shim.state()).status, Status.PAUSED);
    assertEquals((await shim.state("other")).status, Status.PAUSED);
    await writer.write("meanwhile\n");

    await shim.resume();
    await expectFrozen(shim.namespace, false);
    assertEquals((await shim.state()).status, Status.RUNNING);
    assertEquals((await shim.state("other")).status, Status.RUNNING);
    assertEquals(await stdout.line(), "got meanwhile\n");
  });

  shimTest("Kill with SIGKILL ends a paused container", {
    onlyOurs: runtime === "crun" && cgroups === 1 ? "it stays frozen, and alive" : undefined,
  }, async (shim) => {
    await shim.run();
    await shim.pause();
    await shim.kill(SIGKILL);
    assertEquals((await shim.wait()).status, 128 + SIGKILL);
    assertEquals((await shim.delete()).status, 128 + SIGKILL);
  });

  shimTest("Kill reaches init alone, which may handle the signal", {
    args: ["sh", "-c", "trap 'exit 33' USR2; echo ready; while :; do sleep 0.01; done"],
  }, async (shim) => {
    const { stdout } = await shim.createWithFifos();
    await shim.startProcess();
    assertEquals(await stdout.line(), "ready\n");
    await shim.kill(SIGUSR2);
    assertEquals((await shim.wait()).status, 33);
    await shim.delete();
  });

  shimTest("Kill with all reaches every process of the container", {
    args: HANDLES_SIGTERM,
    namespaces: ["mount"],
  }, async (shim) => {
    const init = await shim.createWithFifos();
    await shim.startProcess();
    const other = await shim.execWithFifos("other", HANDLES_SIGTERM);
    for (const { stdout } of [init, other]) assertEquals(await stdout.line(), "ready\n");
    await shim.kill(SIGTERM, { all: true });
    for (const { stdout } of [init, other]) assertEquals(await stdout.line(), "terminated\n");
    await shim.kill(SIGKILL, { all: true });
    assertEquals((await shim.wait()).status, 128 + SIGKILL);
    assertEquals((await shim.wait("other")).status, 128 + SIGKILL);
    for (const { pid } of [init, other]) assertEquals(processOf(pid), undefined, "it has not been reaped");
    // What they have started is on its way out too; runc keeps a cgroup with a process in it, and does not say so.
    await until("nothing is in the cgroup", () => shim.containerProcesses().length === 0);
    await shim.deleteProcess("other");
    await shim.delete();
  });

  shimTest("when init ends, what shares no pid namespace with it is killed", {
    args: ["sh", "-c", "sleep 1000 & exit 5"],
    namespaces: ["mount"],
  }, async (shim) => {
    await shim.run();
    assertEquals((await shim.wait()).status, 5);
    await until("nothing is in the cgroup", () => shim.containerProcesses().length === 0);
    await shim.delete();
  });

  shimTest("Kill of what has finished answers NOT_FOUND", {}, expectFinishedNotFound);

  shimTest("of a container that the runtime has lost, Kill answers NOT_FOUND, and Delete removes the rest", {
    onlyOurs: runtime === "crun" ? "it does not know how crun says so" : undefined,
  }, async (shim) => {
    const pid = await shim.run();
    await Deno.remove(`${RUNC_ROOT}/${shim.namespace}/${shim.id}`, { recursive: true });
    await assertStatus(shim.kill(SIGKILL), Code.NOT_FOUND, "no such container");
    Deno.kill(pid, "SIGKILL");
    await shim.wait();
    assertEquals((await shim.delete()).status, 128 + SIGKILL);
    // What nobody knows any more.
    await removeNamespace(shim.namespace);
  });

  shimTest("ListPids of a container that has ended is empty", {
    args: ["true"],
    onlyOurs: runtime === "crun" ? "crun crashes" : undefined,
  }, async (shim) => {
    await shim.run();
    await shim.wait();
    assertEquals(await shim.pids(), new Map());
    await shim.delete();
  });

  shimTest("Update changes what a container may use, or says that its cgroup cannot", {}, async (shim) => {
    const init = await shim.run();
    const limit = () => containerCgroups(shim.namespace).map((each) => textOf(`${each}/pids.max`)).find(Boolean);
    if (limit()) {
      await shim.update({ pids: { limit: 77 } });
      assertEquals(limit(), "77\n");
    } else {
      // Version 2 has a controller only if no hierarchy of version 1 has it.
      await assertStatus(shim.update({ pids: { limit: 77 } }), Code.UNKNOWN, /\bpids\b/);
    }
    assertEquals((await shim.state()).status, Status.RUNNING);
    assertEquals(shim.containerProcesses(), [init]);
  });

  for (const paused of [false, true]) {
    shimTest(`SIGTERM to the shim ends a container that ${paused ? "is paused" : "runs"}, with its execs`, {
      onlyOurs: "it leaves a container that has not ended by itself",
      endsItself: true,
    }, async (shim) => {
      await shim.run();
      await shim.exec("other", ["sleep", "1000"]);
      await shim.startProcess("other");
      if (paused) await shim.pause();
      assertEquals(await shim.end("SIGTERM"), 0);
      assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 128 + SIGKILL);
      // And withShim looks for what is left.
    });
  }

  shimTest("a failed Create answers with the runtime's message and leaves nothing; the next one works", {
    args: ["no-such-command"],
  }, async (shim) => {
    await assertStatus(
      shim.create(),
      Code.UNKNOWN,
      new RegExp(`^OCI runtime create failed: .*${NOT_FOUND[runtime].source}`),
    );
    await shim.expectNothingLeft();
    const config = `${shim.bundle}/config.json`;
    await Deno.writeTextFile(config, (await Deno.readTextFile(config)).replace("no-such-command", "true"));
    await shim.run();
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
  });

  shimTest("a failed exec answers with the runtime's message, and can be waited for and deleted", {}, async (shim) => {
    const init = await shim.run();
    await shim.exec("other", ["no-such-command"]);
    await assertStatus(shim.startProcess("other"), Code.UNKNOWN, NOT_FOUND[runtime]);
    // With the Go shim it is as if it had never been started.
    if (IS_OURS) {
      assertEquals((await shim.state("other")).status, Status.STOPPED);
      assert((await shim.wait("other")).status !== 0);
    }
    await shim.deleteProcess("other");
    assertEquals((await shim.state()).status, Status.RUNNING);
    await until("init is alone", () => {
      const pids = shim.containerProcesses();
      return pids.length === 1 && pids[0] === init;
    });
  });

  containerdTest("ctr run prints a container's output and exits with its status", async (containerd) => {
    assertEquals(await containerd.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]), {
      ...{ code: 7, stdout: "out\n", stderr: "err\n" },
    });
  });

  containerdTest("ctr run of a command that does not exist gives the runtime's message", async (containerd) => {
    const { code, stdout, stderr } = await containerd.run(["no-such-command"]);
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, new RegExp(`^ctr: OCI runtime create failed: .*${NOT_FOUND[runtime].source}`));
  });

  containerdTest("ctr task exec, ps, pause, resume, kill and delete do what they say", async (containerd) => {
    const id = containerd.newId();
    await containerd.runDetached(id, ["/bin/sleep", "1000"]);
    const init = await containerd.running(id);
    await assertCgroups(init, setup);
    assertEquals(await containerd.exec(id, [], ["/bin/echo", "from exec"]), "from exec\n");
    assertMatch(await containerd.must("task", "ps", id), new RegExp(`^PID\\s+INFO\n${init}\\b.*\n$`));

    await containerd.must("task", "pause", id);
    await expectFrozen(containerd.namespace, true);
    assertEquals(await containerd.task(id), { pid: init, status: "PAUSED" });
    await containerd.must("task", "resume", id);
    await expectFrozen(containerd.namespace, false);
    await containerd.end(id);
  });
}

/** Fails unless a process is in a container's cgroup of this version, and in none of another. */
async function assertCgroups(pid: number, { cgroups }: Setup): Promise<void> {
  const lines = (await Deno.readTextFile(`/proc/${pid}/cgroup`)).trim().split("\n");
  const inContainers = lines.filter((line) => /\/c1?$/.test(line));
  assert(inContainers.length > 0, lines.join("\n"));
  for (const line of inContainers) assertEquals(line.startsWith("0::") ? 2 : 1, cgroups, line);
}
