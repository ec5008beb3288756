/** What the machine does to a container, or to its shim: takes away folders and cgroups, stops processes, sets the clock. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { textOf } from "./cgroups.ts";
import { must } from "./command.ts";
import { IS_OURS, onlyOurs, WAY } from "./env.ts";
import { assertEnds, assertPublished, assertSupervised, processesOf, type Served, withServed } from "./fault.ts";
import { containerCgroups, hierarchies } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive, processOf } from "./proc.ts";
import { type Shim, Status } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "other processes can be stopped, or be killed, in each");

/** Takes away a container's cgroups, whose processes go to the root of each hierarchy. */
async function removeCgroups(shim: Shim): Promise<void> {
  for (const folder of containerCgroups(shim.namespace)) {
    const root = hierarchies().find((each) => folder.startsWith(`${each}/`))!;
    for (const pid of textOf(`${folder}/cgroup.procs`).trim().split("\n").filter(Boolean)) {
      await Deno.writeTextFile(`${root}/cgroup.procs`, pid);
    }
    await until("the cgroup is gone", async () => {
      await Deno.remove(folder);
      return true;
    });
  }
}

Deno.test("a container whose cgroups are gone is known, is killed, waited for and deleted", () =>
  withServed({}, async ({ shim }) => {
    const init = await shim.run();
    await removeCgroups(shim);
    const { status, pid } = await shim.state();
    assertEquals({ status, pid }, { status: Status.RUNNING, pid: init });
    // What needs a cgroup says so.
    for (const call of [() => shim.pause(), () => shim.update({ cpu: { shares: 512 } })]) {
      const error = await assertRejects(call, StatusError);
      assertMatch(error.message, /\w.* \w/);
      assertEquals(error.code, Code.UNKNOWN);
    }
    assertEquals((await shim.state()).status, Status.RUNNING);
    await assertEnds(shim, init);
  }));

onlyOurs(
  "it cannot start its runtime any more",
  "a container whose bundle is removed while it runs is known, is killed, waited for and deleted",
  () =>
    withServed({}, async ({ shim }) => {
      const { pid: init, fifos, stdout } = await shim.createWithFifos();
      await shim.startProcess();
      await Deno.remove(shim.bundle, { recursive: true });
      const { status, pid } = await shim.state();
      assertEquals({ status, pid }, { status: Status.RUNNING, pid: init });
      await shim.exec("other", ["true"]);
      const error = await assertRejects(() => shim.startProcess("other"), StatusError);
      assertMatch(error.message, /no such file or directory/i);
      assertEquals((await shim.wait("other")).status, 255);
      await shim.deleteProcess("other");
      assertEquals([...await shim.pids()], [[init, shim.id]]);
      await shim.pause();
      assertEquals((await shim.state()).status, Status.PAUSED);
      await shim.resume();
      await assertEnds(shim, init);
      assertEquals(await stdout.text(), "");
      assert((await Deno.stat(fifos.stdout)).isFifo);
    }),
);

onlyOurs(
  "it cannot start its runtime any more",
  "a shim whose bundle is removed while its container runs ends with it when it is told to",
  () =>
    withServed({ endsItself: true }, async ({ shim }) => {
      const init = await shim.run();
      await Deno.remove(shim.bundle, { recursive: true });
      shim.signal("SIGTERM");
      assertEquals(await shim.status, 0);
      await until("the container has ended", () => !isAlive(init));
    }),
);

/** What calls are made of while processes of a shim are stopped. */
async function assertGoesOn(served: Served, stopped: readonly number[]): Promise<void> {
  const { shim } = served;
  const init = await shim.run();
  await shim.exec("other", ["sh", "-c", "exit 3"]);
  await shim.startProcess("other");
  assertEquals((await shim.wait("other")).status, 3);
  for (const pid of stopped) {
    Deno.kill(pid, "SIGSTOP");
    await until("it has stopped", () => processOf(pid)?.state === "T");
  }
  let waiting, calls;
  try {
    waiting = shim.wait();
    // More than one of each, on several connections, some of which are made now.
    calls = Promise.all([
      shim.state(),
      shim.shimPid(),
      shim.pids(),
      shim.deleteProcess("other"),
      shim.exec("third", ["sh", "-c", "exit 4"]).then(() => shim.startProcess("third")),
      ...[1, 2, 3].map(() => shim.connect().then((client) => client.close())),
    ]);
    waiting.catch(() => {});
    calls.catch(() => {});
    Deno.kill(init, "SIGKILL");
    await until("the container has ended", () => processOf(init)?.state !== "S");
  } finally {
    for (const pid of stopped) Deno.kill(pid, "SIGCONT");
  }
  assertEquals((await waiting).status, 137);
  await calls.catch((error) => {
    // The third is added to a container that has ended: it may be too late for that.
    assertMatch(error.message, /stopped|OCI runtime exec failed|not running/);
  });
  await assertPublished(shim, shim.id, init, 137);
  assertEquals((await shim.state()).status, Status.STOPPED);
  await until("it is deleted", () => shim.delete().then(() => true));
}

Deno.test("a shim that is stopped answers each call when it goes on, and tells of the exits of meanwhile", () =>
  withServed({}, (served) => assertGoesOn(served, [served.shim.pid])));

if (IS_OURS && WAY !== "alone") {
  onlyOurs(
    "it has no host",
    "a host that is stopped answers each call when it goes on, and tells of the exits",
    () => withServed({}, (served) => assertGoesOn(served, [served.server()])),
  );

  onlyOurs(
    "it has no host",
    "a holder and its host that are both stopped answer each call when they go on",
    () => withServed({}, (served) => assertGoesOn(served, processesOf(served))),
  );
}

/** Takes more memory than it may. */
const GREEDY = ["sh", "-c", "read line; exec tail /dev/zero"];

const MEMORY_LIMIT = 16 << 20;

onlyOurs(
  "it tells of it later",
  "an init that the kernel kills for want of memory has ended with 137; that is published once",
  () =>
    withServed({ args: GREEDY }, async ({ shim }) => {
      const { pid: init, fifos } = await shim.createWithFifos();
      await shim.update({ memory: { limit: MEMORY_LIMIT, swap: MEMORY_LIMIT } });
      await shim.startProcess();
      const waiting = shim.wait();
      await Deno.writeTextFile(fifos.stdin, "go\n");
      assertEquals((await waiting).status, 137);
      await assertPublished(shim, shim.id, init, 137);
      assertEquals((await shim.state()).status, Status.STOPPED);
      assertEquals((await shim.delete()).status, 137);
      // API.md: in runtime v1 the shim publishes exits alone.
      assertEquals(shim.events.published().map(({ topic }) => topic), ["/tasks/exit"]);
    }),
);

onlyOurs(
  "it tells of it later",
  "an exec that the kernel kills for want of memory has ended with 137; the container lives on",
  () =>
    withServed({}, async ({ shim }) => {
      const init = await shim.run();
      await shim.update({ memory: { limit: MEMORY_LIMIT, swap: MEMORY_LIMIT } });
      await shim.exec("other", ["tail", "/dev/zero"]);
      const other = await shim.startProcess("other");
      assertEquals((await shim.wait("other")).status, 137);
      await assertPublished(shim, "other", other, 137);
      await shim.deleteProcess("other");
      await shim.update({ memory: { limit: -1, swap: -1 } });
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

/**
 * Has a process's wall clock, as the C library tells it, be off by so many seconds as a file says. The machine's own is left
 * alone; a time namespace has no wall clock of its own (time_namespaces(7)).
 */
const CLOCK = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset(void) {
  char text[32] = {0};
  int fd = open(FILE_NAME, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  long count = read(fd, text, sizeof text - 1);
  close(fd);
  return count > 0 ? atol(text) : 0;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = syscall(SYS_clock_gettime, clock, time);
  if (clock == CLOCK_REALTIME) time->tv_sec += offset();
  return result;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
`;

modes(["hosted"], "times are measured by the same code in each mode");

const HOUR = 3600;

for (const hours of [-1, 1]) {
  const how = hours < 0 ? "back" : "forward";
  onlyOurs(
    "it has the clock of its own system calls",
    `a clock that is set ${how} by an hour shortens and lengthens nothing: deadlines, drains, events, exits`,
    async () => {
      const folder = await Deno.makeTempDir();
      using cleanup = new DisposableStack();
      cleanup.defer(() => Deno.removeSync(folder, { recursive: true }));
      await Deno.writeTextFile(`${folder}/clock.c`, CLOCK);
      const define = `-DFILE_NAME="${folder}/offset"`;
      await must(["gcc", "-O1", "-shared", "-fPIC", define, "-o", `${folder}/clock.so`, `${folder}/clock.c`]);
      await withServed({ prefix: ["env", `LD_PRELOAD=${folder}/clock.so`], events: "none" }, async ({ shim }) => {
        const init = await shim.run();
        const setClock = () => Deno.writeTextFile(`${folder}/offset`, `${hours * HOUR}`);
        // A deadline that is on, an exit that waits for containerd, and output that nobody reads.
        const start = performance.now();
        const late = assertRejects(() => shim.wait(shim.id, 1000), StatusError);
        await shim.exec("other", ["sh", "-c", "exit 3"]);
        await shim.startProcess("other");
        await shim.wait("other");
        await setClock();
        assertEquals((await late).code, Code.DEADLINE_EXCEEDED);
        const took = performance.now() - start;
        assert(took >= 900 && took < 10_000, `the deadline of 1000 ms has passed after ${took} ms`);
        await assertSupervised(shim, init);
        shim.events.serve();
        shim.disconnect();
        await shim.shimPid();
        assertEquals((await shim.events.exit("other")).exit.exitStatus, 3);
        const fifos = await shim.fifos("flood");
        await shim.exec("flood", ["cat", "/dev/zero"], { stdout: fifos.stdout });
        await shim.startProcess("flood");
        await shim.kill(9, { id: "flood" });
        await shim.wait("flood");
        const before = performance.now();
        await shim.deleteProcess("flood");
        assert(performance.now() - before < 6000, "the end of output is waited for too long");
        await shim.kill(9);
        const { status, at } = await shim.wait();
        assertEquals(status, 137);
        const expected = Date.now() / 1000 + hours * HOUR;
        assert(Math.abs(at - expected) < 60, `it ended at ${at}, by a clock that says ${expected}`);
        await assertPublished(shim, shim.id, init, 137);
        assertEquals((await shim.delete()).status, 137);
      });
    },
  );
}
