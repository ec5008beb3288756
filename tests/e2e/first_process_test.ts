/** containerd as the first process of a pid namespace, which reaps nobody that it has not started itself. */

import { assertEquals } from "@std/assert";
import { forAll } from "./at_a_time.ts";
import { must, start } from "./command.ts";
import { inModes } from "./env.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { assertRuns, emptyFolder, onlyHosted, shell, TALKING, withHosted, withMachine } from "./host.ts";
import { descendants, isHost } from "./proc.ts";
import { withShim } from "./shim.ts";
import { GatedRuntime } from "./takeover.ts";
import { until } from "./until.ts";

/** How many containers a test has. */
const CONTAINERS = 6;
/** How many of them are there at a time. */
const AT_ONCE = 2;
/** How often it is seen what a slow holder has reaped. */
const ROUNDS = 4;

/** Runs a containerd as process 1, with a folder for hosts that is empty at first. */
const AS_FIRST = [
  ...["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount"],
  ...shell(emptyFolder()),
];

/** Processes of a containerd's pid namespace that have ended, and that nobody has reaped. */
function zombies(containerd: Containerd): string[] {
  return descendants(containerd.pid).filter(({ state }) => state === "Z").map(({ comm }) => comm).toSorted();
}

inModes(
  ["hosted", "alone"],
  "what the shim reaps becomes containerd's when the shim is killed",
  "where containerd is process 1, nothing of containers that are gone, or could not be made, stays as a zombie",
  () =>
    withContainerd(async (containerd) => {
      const ids = Array.from({ length: CONTAINERS }, () => containerd.newId());
      await forAll(ids, AT_ONCE, async (id) => assertEquals((await containerd.run(["/bin/true"], { id })).code, 0));
      assertEquals((await containerd.run(["no-such-command"])).code, 1);
      await until("all shims have ended", () => containerd.shims().length === 0);
      assertEquals(zombies(containerd), []);
    }, { prefix: AS_FIRST }),
);

/** How long a host waits for its next container, in ms. */
const LINGER_MS = 30_000;
/** How long it may take besides to notice, and to end, in ms. */
const ENDING_MS = 15_000;

onlyHosted(
  "a host without a container ends after 30 s, but where containerd is process 1 and would not reap it",
  () =>
    withMachine((machine) =>
      withContainerd(async (containerd) => {
        const hosts = () => descendants(containerd.pid).filter(({ pid }) => isHost(pid)).map(({ pid }) => pid);
        assertEquals((await containerd.run(["/bin/true"])).code, 0);
        const [host] = hosts();
        // The other waits as long, and begins later.
        await withShim({ prefix: machine.prefix, args: TALKING }, assertRuns);
        await machine.expectNoHosts(LINGER_MS + ENDING_MS);
        assertEquals([hosts(), zombies(containerd)], [[host!], []]);
        // It has what comes next.
        assertEquals((await containerd.run(["/bin/true"])).code, 0);
        assertEquals(hosts(), [host!]);
      }, { prefix: AS_FIRST })
    ),
);

/** Pids of a process's children, also of those that it has not reaped: proc_pid_tid_children(5). */
function childrenOf(pid: number): string {
  return Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`).trim();
}

/** Has a process wait for a CPU that another is never done with, until disposed of: sched(7). */
async function slowDown(pid: number): Promise<AsyncDisposable> {
  const spinning = start(["taskset", "--cpu-list", "0", "sh", "-c", "while :; do :; done"]);
  await must(["taskset", "--pid", "--cpu-list", "0", `${pid}`]);
  await must(["chrt", "--idle", "--pid", "0", `${pid}`]);
  return {
    async [Symbol.asyncDispose]() {
      await must(["chrt", "--other", "--pid", "0", `${pid}`]);
      spinning.kill("SIGKILL");
      await spinning.result;
    },
  };
}

for (const command of ["create", "delete"] as const) {
  const isCreated = command === "delete";
  inModes(
    ["hosted"],
    "a shim by itself has reaped what it knows to have ended",
    `${
      isCreated ? "Delete" : "a failed Create"
    } is answered when the holder has reaped all, however slow that is: containerd kills it then`,
    () =>
      withHosted({ args: [isCreated ? "true" : "no-such-command"] }, async (shim) => {
        const runtime = await GatedRuntime.make(shim);
        const creation = { runtime: runtime.path };
        for (let round = 0; round < ROUNDS; round++) {
          if (isCreated) {
            await shim.run({}, creation);
            await shim.wait();
          }
          await runtime.close("after", command);
          let left: string | undefined;
          const answered = (isCreated ? shim.delete() : shim.create({}, creation)).then(() => true, () => false)
            .finally(() => left = childrenOf(shim.pid));
          await runtime.reached();
          await using _slow = await slowDown(shim.pid);
          await runtime.open();
          assertEquals([await answered, left], [isCreated, ""]);
        }
      }),
  );
}
