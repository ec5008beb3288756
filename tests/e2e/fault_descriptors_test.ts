/** No descriptor is left, or no process may be started: who asks is told so, and nothing is lost. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { inGroup } from "./cgroups.ts";
import { must } from "./command.ts";
import { onlyOurs, WAY } from "./env.ts";
import {
  assertEnds,
  assertSameOpen,
  assertSupervised,
  openOf,
  processesOf,
  SENTENCE,
  type Served,
  untilDenoIsComplete,
  withServed,
} from "./fault.ts";
import { modes } from "./modes.ts";
import { descriptorsOf } from "./proc.ts";
import { askPid, type Shim, Status } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "other processes have descriptors and children in each");

/** What an error says when there is no descriptor left: the shim's words, or the runtime's. */
const TOO_MANY = /too many open files/i;

/** How many descriptors a call may want at most, all of them at once. */
const MOST = 24;

/** Runs `test` while a process has so many numbers of descriptors left and no more. */
async function withFree(pid: number, free: number, test: () => Promise<void>): Promise<void> {
  await untilDenoIsComplete(pid);
  const [before] = (await must(["prlimit", "--nofile", "--pid", `${pid}`, "--output", "SOFT,HARD", "--noheadings"]))
    .trim().split(/\s+/);
  const used = descriptorsOf(pid);
  let limit = 0;
  for (let left = free; left > 0 || used.has(limit); limit++) if (!used.has(limit)) left--;
  await must(["prlimit", "--pid", `${pid}`, `--nofile=${limit}:`]);
  try {
    await test();
  } finally {
    await must(["prlimit", "--pid", `${pid}`, `--nofile=${before}:`]);
  }
}

/** Whether a call has been made; it has failed for want of descriptors otherwise. */
async function isMade(call: Promise<unknown>): Promise<boolean> {
  try {
    await call;
    return true;
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    assertMatch(error.message, TOO_MANY);
    return false;
  }
}

/** Each process that a shim is made of, by a name for a test. */
const PROCESSES: readonly (readonly [string, (served: Served) => number])[] = [
  ["the process that answers", ({ server }) => server()],
  // By itself, it is the same one.
  ...WAY === "alone" ? [] : [["the process that containerd has started", ({ shim }: Served) => shim.pid] as const],
];

for (const [what, processOf] of PROCESSES) {
  onlyOurs(
    "its exec hangs",
    `execs fail, with whatever number of descriptors ${what} has left, until there are enough`,
    () =>
      withServed({}, async (served) => {
        const { shim } = served;
        const init = await shim.run();
        const fifos = await shim.fifos("other");
        // Readers that are there already, so that nothing waits for them.
        using _readers = keepOpen(fifos.stdout, fifos.stderr);
        await assertSupervised(shim, init);
        const before = openOf(processesOf(served));
        let [failed, made] = [0, 0];
        for (let free = 0; free < MOST && made < 2; free++) {
          await shim.exec("other", ["true"], fifos);
          await withFree(processOf(served), free, async () => {
            const isStarted = await isMade(shim.startProcess("other"));
            isStarted ? made++ : failed++;
            assertEquals((await shim.state()).status, Status.RUNNING);
            assertEquals((await shim.wait("other")).status, isStarted ? 0 : 255);
          });
          await shim.deleteProcess("other");
          // What has been killed may still be on its way out.
          await until(
            `no process is left of the exec with ${free} descriptors`,
            () => shim.containerProcesses().join() === `${init}`,
          );
        }
        assert(failed > 0 && made > 0, `${failed} have failed, and ${made} have not`);
        await assertSameOpen(before);
        await assertSupervised(shim, init);
        await assertEnds(shim, init);
      }),
  );

  for (const terminal of [false, true]) {
    onlyOurs(
      "its Create hangs",
      `Create${terminal ? " with a terminal" : ""} fails, with whatever number of descriptors ${what} has left, ` +
        "until there are enough",
      () =>
        withServed({ terminal }, async (served) => {
          const { shim } = served;
          const { stdin, stdout, stderr } = await shim.fifos();
          using _readers = terminal ? keepOpen(stdout) : keepOpen(stdout, stderr);
          const stdio = terminal ? { stdin, stdout, terminal } : { stdin, stdout, stderr };
          // What it has open from its first call on.
          await assertRejects(() => shim.create({}, { runtime: "no-such-runtime" }));
          const before = openOf(processesOf(served));
          let [failed, isDone] = [0, false];
          for (let free = 0; free < MOST && !isDone; free++) {
            await withFree(processOf(served), free, async () => {
              isDone = await isMade(shim.create(stdio));
              assertEquals(await shim.shimPid(), shim.pid);
            });
            if (isDone) break;
            failed++;
            await until("nothing is left of it", () => shim.leftovers().length === 0);
            await assertSameOpen(before);
          }
          assert(failed > 0 && isDone, `${failed} have failed`);
          const init = await shim.startProcess();
          await assertSupervised(shim, init);
          await assertEnds(shim, init);
        }),
    );
  }

  onlyOurs(
    "it does not come back to those that wait",
    `a connection waits while ${what} has no descriptor left, and others are served; then it is answered`,
    () =>
      withServed({}, async (served) => {
        const { shim } = served;
        const init = await shim.run();
        const answered: number[] = [];
        const waiting: Promise<void>[] = [];
        await withFree(processOf(served), 0, async () => {
          for (let i = 0; i < 5; i++) waiting.push(askAnew(shim).then((pid) => void answered.push(pid)));
          for (let i = 0; i < 50; i++) assertEquals((await shim.state()).pid, init);
        });
        await Promise.all(waiting);
        assertEquals(answered, [1, 2, 3, 4, 5].map(() => shim.pid));
        await assertSupervised(shim, init);
        await assertEnds(shim, init);
      }),
  );

  onlyOurs(
    "it starts no process to tell of an exit, and loses it",
    `an exit is told while ${what} has no descriptor left, and published when there are some`,
    () =>
      withServed({}, async (served) => {
        const { shim } = served;
        const init = await shim.run();
        await withFree(processOf(served), 0, async () => {
          const waiting = shim.wait();
          Deno.kill(init, "SIGKILL");
          assertEquals((await waiting).status, 137);
          assertEquals((await shim.state()).status, Status.STOPPED);
        });
        const { exit } = await shim.events.exit(shim.id);
        assertEquals([exit.pid, exit.exitStatus], [init, 137]);
        await shim.delete();
      }),
  );
}

onlyOurs(
  "it says so in other words",
  "calls fail with a sentence while no process can be started, and work afterwards; the container is supervised",
  () =>
    withServed({}, async (served) => {
      const { shim } = served;
      const init = await shim.run();
      await shim.exec("other", ["true"]);
      await inGroup(`${shim.namespace}-full`, "pids", processesOf(served), async (group) => {
        group.set("pids.max", "1");
        for (
          const call of [() => shim.startProcess("other"), () => shim.kill(9), () => shim.pause(), () => shim.pids()]
        ) {
          const error = await assertRejects(call, StatusError);
          assertMatch(error.message, /resource temporarily unavailable/i);
        }
        assertEquals((await shim.state()).status, Status.RUNNING);
        assertEquals((await shim.wait("other")).status, 255);
      });
      await shim.deleteProcess("other");
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

onlyOurs(
  "it says so in other words",
  "Create fails with a sentence while no process can be started, leaves nothing, and works afterwards",
  () =>
    withServed({}, async (served) => {
      const { shim } = served;
      await inGroup(`${shim.namespace}-full`, "pids", processesOf(served), async (group) => {
        group.set("pids.max", "1");
        const error = await assertRejects(() => shim.create(), StatusError);
        assertMatch(error.message, /^OCI runtime create failed: .*resource temporarily unavailable/i);
        assertMatch(error.message, SENTENCE);
      });
      assertEquals(shim.leftovers(), []);
      const init = await shim.run();
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

/** A shim's pid, asked for on a connection of its own. */
async function askAnew(shim: Shim): Promise<number> {
  using client = await shim.connect();
  return await askPid(client);
}

/** Holds FIFOs open, as a client does that is there. */
function keepOpen(...paths: readonly string[]): Disposable {
  const files = paths.map((path) => Deno.openSync(path, { read: true, write: true }));
  return { [Symbol.dispose]: () => files.forEach((each) => each.close()) };
}
