/**
 * A host is killed again and again, while sixteen containers live in it that print, are typed to, run execs, start and end;
 * and nobody notices.
 *
 * TAKEOVERS says how often (none at all is possible), TAKEOVER_SEED repeats the moments of another run. TAKEOVER_LOG has
 * the shims say all that they can, and names the file that has what they and containerd have said in the end.
 */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { Exits } from "./exits.ts";
import type { Containerd } from "./harness.ts";
import { assertOpenFiles, type Host, type Machine, onlyHosted, openFiles, withMachine } from "./host.ts";
import { paths } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { bursting, numbered, NumberedLines } from "./numbered.ts";
import { Seeded } from "./seeded.ts";
import {
  Caller,
  DEATH,
  deleteStopped,
  END,
  type Lasting,
  runExec,
  runLogging,
  runNumbered,
  runShort,
  type Scene,
  startNumbered,
  startTyping,
  withScene,
} from "./storm.ts";
import { Echo } from "./talk.ts";
import { pause, until, within } from "./until.ts";

modes(["hosted"], "it is about hosts that take over");

/** How often the host is killed. */
const TAKEOVERS = Number(Deno.env.get("TAKEOVERS") ?? 40);
/** How many rounds there are at least, when fewer of them than that are to end with a kill. */
const ROUNDS = Number(Deno.env.get("TAKEOVER_ROUNDS") ?? 20);
/** What the moments of the kills come from. */
const SEED = Number(Deno.env.get("TAKEOVER_SEED") ?? Date.now() % 2 ** 32);
/** The file for the whole log. */
const LOG = Deno.env.get("TAKEOVER_LOG");
/** The longest that a host lives on after a call has been answered, in ms. */
const MAX_DELAY_MS = 400;
/** The longest that half of the hosts may be away, in ms, from the kill to the answer of State, with all CPUs busy. */
const MAX_MEDIAN_MS = 1000;
/** How often what happens is said, in kills. */
const SAID_EVERY = 50;
/** How many do the same at a time: execs, containers from start to end, and these step by step. */
const EXEC_WORKERS = 2;
const RUN_WORKERS = 1;
const STEP_WORKERS = 1;
/** The longest that each of them rests after each time, in ms: the machine is to have time for hosts. */
const MAX_REST_MS = 1000;
/** What is read slowly is read in so many bytes, each so many ms after the last. */
const SLOW_BYTES = 8192;
const SLOW_MS = 100;
/** How long anything may take that goes on for as long as the test, in ms. */
const WHOLE_TEST_MS = 120_000 + TAKEOVERS * 5000;

/** What in a containerd's log tells of the death of a shim: of any, or that one of these has ended. */
function deaths(log: string, living: readonly string[]): string[] {
  return log.split("\n").filter((line) => {
    return DEATH.test(line) || line.includes("shim reaped") && living.some((id) => line.includes(` id=${id} `));
  });
}

/** Reads a FIFO, so slowly that its writer has to wait, until the writer is told to end: numbered lines. */
async function readSlowly(path: string, isEnding: () => boolean): Promise<number> {
  const lines = new NumberedLines();
  using file = await within(`a writer of ${path}`, Deno.open(path));
  const buffer = new Uint8Array(SLOW_BYTES);
  for (let count = await file.read(buffer); count !== null; count = await file.read(buffer)) {
    lines.take(buffer.subarray(0, count));
    if (!isEnding()) await pause(SLOW_MS);
  }
  return lines.end();
}

/** A container whose output the test itself reads, and slowly. (What ctr has not read when it ends, it forgets.) */
async function runReadSlowly(scene: Scene, status: number): Promise<Lasting> {
  const { containerd, course, exits, lines } = scene;
  const id = containerd.newId();
  const fifos = `${containerd.folder}/${id}-fifos`;
  // What it printed while ctr is there, ctr would read.
  const script = `while ! [ -e /tmp/${id} ]; do sleep 0.1; done; ${bursting(END, status)}`;
  await containerd.runDetached(id, ["/bin/sh", "-c", script], { io: ["--fifo-dir", fifos] });
  let isEnding = false;
  const counts = ["stdout", "stderr"].map((each) => {
    const [path] = paths(fifos).flatMap(paths).filter((path) => path.endsWith(each));
    return readSlowly(path!, () => isEnding || course.over);
  });
  for (const count of counts) count.catch((error) => course.fail(new Error(`output of ${id}: ${error.message}`)));
  await Deno.writeTextFile(`${containerd.rootfs}/tmp/${id}`, "");
  return {
    id,
    status,
    async end() {
      isEnding = true;
      const [stdout, stderr] = await within(`the end of ${id}'s output`, Promise.all(counts));
      assertEquals(stdout, stderr, `lines of ${id} on both streams`);
      lines.set(id, stdout!);
      await exits.told(id);
      await deleteStopped(containerd, id, status);
    },
  };
}

/** A shell's script that does nothing until it is told to end, and says when that is possible. */
function waiting(id: string, status: number): string {
  return `trap 'exit ${status}' TERM; touch /tmp/${id}; while :; do sleep 1000 & wait $!; done`;
}

/** Waits until a container of {@linkcode waiting} can be told to end. */
async function untilWaiting(containerd: Containerd, id: string): Promise<void> {
  await until(`${id} waits`, () => Deno.statSync(`${containerd.rootfs}/tmp/${id}`).isFile);
}

/** A container that does nothing itself. */
async function runWaiting(scene: Scene, status: number): Promise<Lasting> {
  const { containerd, exits } = scene;
  const id = containerd.newId();
  await containerd.runDetached(id, ["/bin/sh", "-c", waiting(id, status)]);
  await untilWaiting(containerd, id);
  return {
    id,
    status,
    async end() {
      await containerd.must("task", "kill", "--signal", "TERM", id);
      await exits.told(id);
      await deleteStopped(containerd, id, status);
    },
  };
}

/** How a container ends by SIGKILL. */
const KILLED = 128 + 9;

/** Runs a container step by step: every other one is paused for a while, and every other one is told to end. */
async function runSteps(scene: Scene, number: number): Promise<void> {
  const { course, containerd, exits } = scene;
  const id = containerd.newId();
  const isTold = number % 2 === 0;
  const isPaused = number % 4 < 2;
  const status = isTold ? 1 + number % 100 : KILLED;
  const step = <T>(name: string, call: () => Promise<T>) => course.call(name, `of ${id}`, call);

  await step("run --detach", () => containerd.runDetached(id, ["/bin/sh", "-c", waiting(id, status)]));
  const task = await step("task ls", () => containerd.task(id));
  assertEquals(task?.status, "RUNNING", id);
  await untilWaiting(containerd, id);
  assertMatch(await step("task ps", () => containerd.must("task", "ps", id)), new RegExp(`^${task!.pid} `, "m"));
  if (isPaused) {
    await step("task pause", () => containerd.must("task", "pause", id));
    assertEquals(await step("task ls", () => containerd.task(id)), { pid: task!.pid, status: "PAUSED" }, id);
    await step("task resume", () => containerd.must("task", "resume", id));
  }
  await step("task kill", () => containerd.must("task", "kill", "--signal", isTold ? "TERM" : "KILL", id));
  await step("exit", () => exits.told(id));
  await step("task delete", () => deleteStopped(containerd, id, status));
  exits.expect(status, id);
}

/** How long callers had to wait after kills, in ms. */
interface Away {
  /** Each time one of them, whose answer allowed the next kill. */
  readonly one: number[];
  /** All of them, however many kills that took. */
  readonly all: number[];
}

/** Waits until there is a host, and no other, besides the one that has been killed last, if that is still to be seen. */
async function livingHost(machine: Machine, killed: number | undefined): Promise<Host> {
  let hosts: Host[] = [];
  try {
    return await until("there is one host", () => {
      hosts = machine.hosts().filter(({ pid }) => pid !== killed);
      return hosts.length === 1 && hosts[0];
    });
  } catch (cause) {
    throw new Error(`There is not one host, but ${JSON.stringify(hosts)}`, { cause });
  }
}

/** Kills hosts, each after a call has been answered since the last kill, and a while. */
async function killHosts(scene: Scene, callers: readonly Caller[], living: readonly string[]): Promise<Away> {
  const { course, machine, containerd } = scene;
  const random = new Seeded(SEED);
  const away: Away = { one: [], all: [] };
  let killed: number | undefined;
  const pending: Promise<void>[] = [];
  for (let round = 1; round <= Math.max(ROUNDS, TAKEOVERS) && !course.over; round++) {
    const caller = random.pick(callers);
    const waits = random.below(2) === 0;
    const delayMs = random.below(MAX_DELAY_MS + 1);
    // A host has answered that caller; every other time it has done more.
    if (round === 1 || waits) await course.nextAnswer();
    const host = await livingHost(machine, killed);
    await pause(delayMs);
    const dead = deaths(containerd.log(), living);
    if (dead.length > 0) throw new Error(`A shim is dead ${course.now()}:\n${dead.join("\n")}`);
    if (round <= TAKEOVERS) {
      killed = host.pid;
      Deno.kill(host.pid, "SIGKILL");
      const killedAt = performance.now();
      course.now = () => `${Math.round(performance.now() - killedAt)} ms after kill ${round}`;
    }
    const begun = performance.now();
    const answers = callers.map(async (each) => {
      await course.call("State", `over ${living[callers.indexOf(each)]}'s old connection`, () => each.state());
      const ms = performance.now() - begun;
      if (round > TAKEOVERS) return;
      away.all.push(ms);
      if (each === caller) away.one.push(ms);
    });
    for (const each of answers) {
      each.catch((error) => course.fail(error));
      pending.push(each);
    }
    await answers[callers.indexOf(caller)];
    if (round % SAID_EVERY === 0) {
      console.log(`${Math.min(round, TAKEOVERS)} kills: ${count(course.answers)}; to an answer: ${summary(away.one)}`);
    }
  }
  await Promise.all(pending);
  return away;
}

function count(counts: ReadonlyMap<string, number>): string {
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

function summary(values: readonly number[]): string {
  return `median ${median(values).toFixed(1)} ms, worst ${Math.max(0, ...values).toFixed(1)} ms`;
}

/** Runs all containers, kills hosts, and ends the containers. */
async function storm(scene: Scene): Promise<void> {
  const { course, machine, containerd, exits, lines } = scene;

  const waiters: Lasting[] = [];
  for (let i = 0; i < 7; i++) waiters.push(await runWaiting(scene, 10 + i));
  const typists = (["terminal", "echoing terminal", "pipe"] as const).map((kind, i) =>
    startTyping(scene, kind, 20 + i)
  );
  const printers = [
    ...[30, 31, 32].map((status) => runNumbered(scene, numbered, status)),
    runNumbered(scene, bursting, 33),
    await runReadSlowly(scene, 34),
    await runLogging(scene, 35),
  ];
  for (const typist of typists) await typist.ready();
  const containers = [...waiters, ...typists, ...printers];
  const ids = containers.map(({ id }) => id);
  const inits = new Map<string, number>();
  for (const id of ids) inits.set(id, await containerd.running(id));
  const holders = ids.map((id) => containerd.shimOf(id));
  assertEquals(machine.sizes(), [ids.length]);
  for (const { id, status } of containers) exits.expect(status, id);

  // An exec lasts as long.
  const execArguments = containerd.execArguments(ids[0]!, [], ["/bin/sh", "-c", numbered(END, 40)]);
  const execId = execArguments[execArguments.indexOf("--exec-id") + 1]!;
  const exec = startNumbered(scene, execId, 40, execArguments);
  exits.expect(40, ids[0]!, execId);

  const called = [...waiters.slice(0, 3), printers[0]!];
  const callers = await Promise.all(called.map(({ id }) => Caller.open(scene, id)));

  // What all of these have open once they have done what they will do.
  for (const id of ids) await runExec(scene, id, 0);
  const open = new Map([...holders, machine.host().pid].map((pid) => [pid, openFiles(pid)]));

  const random = new Seeded(SEED + 1);
  const started = performance.now();
  let number = 1;
  const repeat = (workers: number, work: (number: number) => Promise<void>) =>
    course.repeat(workers, async () => {
      await work(number++);
      await pause(random.below(MAX_REST_MS));
    });
  let away: Away = { one: [], all: [] };
  const killer = async () => {
    try {
      away = await killHosts(scene, callers, [...called.map(({ id }) => id), ...ids]);
    } catch (error) {
      course.fail(error);
    }
    course.end();
  };
  await Promise.all([
    killer(),
    ...repeat(EXEC_WORKERS, (number) => runExec(scene, random.pick(ids), number)),
    ...repeat(RUN_WORKERS, (number) => runShort(scene, number)),
    ...repeat(STEP_WORKERS, (number) => runSteps(scene, number)),
    ...typists.flatMap((each) => course.repeat(1, () => course.call("line typed", `to ${each.id}`, () => each.use()))),
  ]);
  course.throwFailures();
  const seconds = ((performance.now() - started) / 1000).toFixed(0);

  // Nobody has noticed anything.
  for (const id of ids) {
    assertEquals(await containerd.task(id), { pid: inits.get(id), status: "RUNNING" }, id);
    await runExec(scene, id, number++);
  }
  assertEquals(ids.map((id) => containerd.shimOf(id)), holders);
  assertEquals(deaths(containerd.log(), ids), []);
  for (const [pid, files] of open) await assertOpenFiles(holders.includes(pid) ? pid : machine.host().pid, files);
  course.throwFailures();

  for (const each of callers) each.expectEnd();
  await Deno.writeTextFile(`${containerd.rootfs}${END}`, "");
  for (const each of [exec, ...typists, ...printers, ...waiters]) {
    await course.call("end", `of ${each.id}`, () => each.end());
  }
  assertEquals(await Promise.all(callers.map(({ status }) => status)), called.map(({ status }) => status));
  const told = await exits.allTold();
  await containerd.expectNothingLeft();
  assertEquals(deaths(containerd.log(), []), []);
  course.throwFailures();

  console.log(`${TAKEOVERS} kills in ${seconds} s: ${count(course.answers)}`);
  console.log(`lines on each stream: ${count(lines)}`);
  console.log(`${told} exits told, ${exits.repeated} of them more than once`);
  console.log(`from a kill to an answer: ${summary(away.one)}; to each of ${callers.length}: ${summary(away.all)}`);
  assert(median(away.one) <= MAX_MEDIAN_MS, `the median is over ${MAX_MEDIAN_MS} ms`);
}

onlyHosted(`a host that is killed ${TAKEOVERS} times is followed by another each time, and nobody notices`, () => {
  console.log(`TAKEOVER_SEED=${SEED}`);
  return withMachine((machine) => {
    const settings = { machine, wholeTestMs: WHOLE_TEST_MS, seed: SEED };
    return withScene(settings, { shimDebug: LOG !== undefined }, async (scene) => {
      try {
        await storm(scene);
      } finally {
        if (LOG !== undefined) await Deno.writeTextFile(LOG, scene.containerd.log());
      }
    });
  });
});

/** Reads numbered lines in pieces of each size. */
function readNumbered(text: string): number {
  const bytes = new TextEncoder().encode(text);
  const counts = [1, 2, 3, 7, 1000].map((size) => {
    const lines = new NumberedLines();
    for (let at = 0; at < bytes.length; at += size) lines.take(bytes.subarray(at, at + size));
    return lines.end();
  });
  assertEquals(new Set(counts).size, 1);
  return counts[0]!;
}

onlyHosted("what looks at numbered lines finds each that is lost, repeated, moved or torn", () => {
  const lines = Array.from({ length: 1234 }, (_, i) => `${i + 1}`);
  const text = (...each: readonly string[]) => `${each.join("\n")}\n`;
  assertEquals(readNumbered(text(...lines, "end 1234")), 1234);
  assertEquals(readNumbered(text("end 0")), 0);
  for (
    const [wrong, message] of [
      [text(...lines.toSpliced(99, 1), "end 1234"), 'after line 99 comes "101"'],
      [text(...lines.toSpliced(99, 0, "99"), "end 1234"), 'after line 99 comes "99"'],
      [text(...lines.toSpliced(98, 2, "100", "99"), "end 1234"), 'after line 98 comes "100"'],
      [text(...lines.toSpliced(0, 1), "end 1234"), 'after line 0 comes "2"'],
      [text(...lines.toSpliced(1000, 4, "10011002", "1003", "1004"), "end 1234"), 'after line 1000 comes "10011002"'],
      [text(...lines.toSpliced(9, 1, "1", "0"), "end 1234"), 'after line 9 comes "1"'],
      [text(...lines.toSpliced(9, 1, "010"), "end 1234"), 'after line 9 comes "010"'],
      [text(...lines.toSpliced(9, 0, ""), "end 1234"), 'after line 9 comes ""'],
      [text(...lines.slice(0, -1), "end 1234"), 'after line 1233 comes "end 1234"'],
      [text(...lines), "the lines end with 1234, and it is not the last"],
      [text(...lines, "end 1234").slice(0, -1), 'the last line, after 1234 others, is cut off: "end 1234"'],
      [text(...lines).slice(0, -2), 'the last line, after 1233 others, is cut off: "123"'],
      [text(...lines, "end 1234", "end 1234"), 'after the end, after 1234 lines, comes "end 1234"'],
      [text(...lines, "end 1234", "1235"), 'after the end, after 1234 lines, comes "1235"'],
    ] as const
  ) assertThrows(() => readNumbered(wrong), Error, message);
  return Promise.resolve();
});

onlyHosted("what looks at what is typed finds what is lost, repeated or changed", async () => {
  const cameBack = async (...pieces: readonly string[]) => {
    const echo = new Echo();
    echo.expect("1 a\n");
    echo.expect("2 b\n");
    for (const each of pieces) echo.take(each);
    await echo.hasCome();
  };
  await cameBack("1 a\r\n2 b\r\r\n");
  await cameBack("1", " a\r", "\n2 b", "\n");
  for (const wrong of [["1 a\n", "1 a\n"], ["2 b\n"], ["1 a\n", "2 b\n", "2 b\n"], ["1 a\n2", "2 b\n"], ["1 \n"]]) {
    await assertRejects(() => cameBack(...wrong), Error, "characters comes");
  }
});

onlyHosted("what looks at exits finds those that are not told, or with another status", () => {
  const line = (container: string, id: string, status?: number) => {
    const exit = { container_id: container, id, pid: 1, ...status === undefined ? {} : { exit_status: status } };
    return `2026-01-01 00:00:00.1 +0000 UTC here /tasks/exit ${JSON.stringify(exit)}\n`;
  };
  const problems = (told: string) => {
    const exits = new Exits();
    exits.expect(7, "c1");
    exits.expect(0, "c1", "e1");
    for (const each of told) exits.take(each);
    return exits.problems();
  };
  const both = line("c1", "c1", 7) + line("c1", "e1");
  assertEquals(problems(both), []);
  assertEquals(problems(both + both), []);
  assertEquals(problems(line("c1", "c1", 7)), ["nothing tells of the exit of e1 in c1 with 0"]);
  assertEquals(problems(line("c2", "e1") + line("c1", "c1", 7)), ["nothing tells of the exit of e1 in c1 with 0"]);
  assertEquals(problems(both + line("c1", "e1", 137)), ["e1 in c1 ended with 0; told is 0,137"]);
  return Promise.resolve();
});

onlyHosted("what looks at containerd's log finds the death of a shim, and not the end of one", () => {
  const log = (...lines: readonly string[]) => lines.map((each) => `time="now" level=info msg=${each}`).join("\n");
  const ended = '"shim reaped" id=c17 ';
  assertEquals(deaths(log('"shim bin started" pid=4', ended), ["c1"]), []);
  assertEquals(deaths(log(ended), ["c1", "c17"]).length, 1);
  assertEquals(deaths(log('"cleaning up after shim dead" id=c17 namespace=n'), []).length, 1);
  return Promise.resolve();
});
