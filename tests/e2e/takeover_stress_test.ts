/**
 * A host is killed again and again, while sixteen containers live in it that print, are typed to, run execs, start and end;
 * and nobody notices.
 *
 * TAKEOVERS says how often (none at all is possible), TAKEOVER_SEED repeats the moments of another run. TAKEOVER_LOG has
 * the shims say all that they can, and names the file that has what they and containerd have said in the end.
 */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { containerd as api } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { type Result, run, type Running, start } from "./command.ts";
import { collectExits, Exits } from "./exits.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { assertOpenFiles, type Host, type Machine, onlyHosted, openFiles, withMachine } from "./host.ts";
import { paths, shimSocket } from "./leftovers.ts";
import { bursting, countNumbered, numbered, NumberedLines } from "./numbered.ts";
import { isAlive } from "./proc.ts";
import { Seeded } from "./seeded.ts";
import { SERVICE, Status } from "./shim.ts";
import { Echo, type Ended, Program } from "./talk.ts";
import { PATIENCE_MS, pause, until, within } from "./until.ts";

import v1 = api.runtime.linux.shim.v1;

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
/** The longest between two lines that are typed, in ms, and how much may be on its way then, in characters. */
const MAX_TYPING_MS = 60;
const MAX_TYPED = 300;
/** What is read slowly is read in so many bytes, each so many ms after the last. */
const SLOW_BYTES = 8192;
const SLOW_MS = 100;
/** The longest line that is typed besides its number. */
const MAX_LINE = 60;
/** How long anything may take that goes on for as long as the test, in ms. */
const WHOLE_TEST_MS = 120_000 + TAKEOVERS * 5000;

/** What containerd's log says when a shim has died that should not have. */
const DEATH = /cleaning up after|failed to clean up|shim disconnected|cleanup warnings|shim dead|dead shim/;

/** What in a containerd's log tells of the death of a shim: of any, or that one of these has ended. */
function deaths(log: string, living: readonly string[]): string[] {
  return log.split("\n").filter((line) => {
    return DEATH.test(line) || line.includes("shim reaped") && living.some((id) => line.includes(` id=${id} `));
  });
}

/** What goes on while hosts are killed, and how it has gone. */
class Course {
  /** Whether what goes on is to come to its end. */
  over = false;
  /** How many hosts have been killed. */
  kills = 0;
  /** How many calls of each kind have been answered. */
  readonly answers = new Map<string, number>();
  readonly #failures: Error[] = [];
  #killedAt = performance.now();
  #nextAnswer = Promise.withResolvers<void>();

  /** When it is now, by the kills. */
  now(): string {
    return `${Math.round(performance.now() - this.#killedAt)} ms after kill ${this.kills}`;
  }

  killed(): void {
    this.kills++;
    this.#killedAt = performance.now();
  }

  /** Does something that must succeed; an error says when that was, by the kills. */
  async call<T>(kind: string, what: string, call: () => Promise<T>): Promise<T> {
    const begun = this.now();
    try {
      const value = await call();
      this.answers.set(kind, (this.answers.get(kind) ?? 0) + 1);
      this.#nextAnswer.resolve();
      this.#nextAnswer = Promise.withResolvers();
      return value;
    } catch (cause) {
      throw new Error(`${kind} ${what}, begun ${begun}, failed ${this.now()}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Resolves when the next call has been answered, or none will be. */
  async nextAnswer(): Promise<void> {
    if (!this.over) await within("the next answer", this.#nextAnswer.promise);
  }

  /** Ends it all. */
  end(): void {
    this.over = true;
    this.#nextAnswer.resolve();
  }

  fail(error: unknown): void {
    if (this.#failures.length === 0) console.error(`Failed ${this.now()}: ${(error as Error).message}`);
    this.#failures.push(error as Error);
    this.end();
  }

  /** Does something until all is over, or something has failed. */
  async repeat(work: () => Promise<void>): Promise<void> {
    try {
      while (!this.over) await work();
    } catch (error) {
      this.fail(error);
    }
  }

  /** @throws {Error} with everything that has failed */
  throwFailures(): void {
    if (this.#failures.length === 0) return;
    throw new Error(this.#failures.map(({ message }) => message).join("\n"));
  }
}

/** A container, or an exec, that lives as long as the test. */
interface Lasting {
  readonly id: string;
  readonly status: number;
  /** Has it end, waits for that, and fails unless all is well with it. */
  end(): Promise<void>;
}

/** The test's parts, as they need each other. */
interface Scene {
  readonly course: Course;
  readonly machine: Machine;
  readonly containerd: Containerd;
  readonly exits: Exits;
  /** The file that has all containers end that print numbered lines: as they see it, and as we do. */
  readonly endFile: { readonly inside: string; readonly outside: string };
  /** What is to be ended in any case. */
  readonly programs: { kill(): unknown }[];
  /** How many lines have been printed, by what has printed them. */
  readonly lines: Map<string, number>;
}

/** Fails unless a command has ended with this status, and has nothing to complain about. */
function assertEnded({ code, stderr }: Ended | Result, status: number): void {
  assertEquals({ code, stderr }, { code: status, stderr: "" });
}

/** Starts a command with its output in two files, to be read when it has ended: numbered lines, in each as many. */
function startNumbered(scene: Scene, id: string, status: number, command: readonly string[]): Lasting {
  const { containerd, lines } = scene;
  const files = ["stdout", "stderr"].map((each) => `${containerd.folder}/${id}-${each}`);
  const shell = ["sh", "-c", 'exec >"$0" 2>"$1" </dev/null; shift; exec "$@"', ...files];
  const running: Running = start([...shell, ...command], { patienceMs: WHOLE_TEST_MS });
  running.result.catch(() => {});
  scene.programs.push({ kill: () => isAlive(running.pid) && running.kill("SIGKILL") });
  return {
    id,
    status,
    async end() {
      assertEnded(await within(`the end of ${id}`, running.result), status);
      const counts = await Promise.all(files.map(countNumbered));
      assertEquals(counts[0], counts[1], `lines of ${id} on both streams`);
      assert(counts[0]! > 0, `${id} has printed nothing`);
      lines.set(id, counts[0]!);
    },
  };
}

/** A container with ctr in the foreground that prints numbered lines. */
function runNumbered(scene: Scene, script: typeof numbered, status: number): Lasting {
  const id = scene.containerd.newId();
  const command = ["/bin/sh", "-c", script(scene.endFile.inside, status)];
  return startNumbered(scene, id, status, scene.containerd.runArguments(id, command, { flags: ["--rm"] }));
}

/** A container that nobody is attached to, and whose stdout is a file: the shim writes to it. */
async function runLogging(scene: Scene, status: number): Promise<Lasting> {
  const { containerd, exits, lines } = scene;
  const id = containerd.newId();
  const file = `${containerd.folder}/${id}-log`;
  // There is one file for both streams.
  const script = `(${numbered(scene.endFile.inside, status)}) 2>/dev/null`;
  await containerd.runDetached(id, ["/bin/sh", "-c", script], { io: ["--log-uri", `file://${file}`] });
  return {
    id,
    status,
    async end() {
      await exits.told(id);
      await deleteStopped(containerd, id, status);
      lines.set(id, await countNumbered(file));
    },
  };
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
  const { containerd, course, endFile, exits, lines } = scene;
  const id = containerd.newId();
  const fifos = `${containerd.folder}/${id}-fifos`;
  // What it printed while ctr is there, ctr would read.
  const script = `while ! [ -e /tmp/${id} ]; do sleep 0.1; done; ${bursting(endFile.inside, status)}`;
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

/** Deletes a container that has ended, and fails unless it did so with this status. */
async function deleteStopped(containerd: Containerd, id: string, status: number): Promise<void> {
  const { code, stderr } = await containerd.ctr("task", "delete", id);
  assertEquals(code, 0, stderr);
  assertMatch(stderr, new RegExp(`exit code ${status}"$`, "m"));
  await containerd.must("container", "delete", id);
}

/** Somebody who types to a container, which answers. */
class Typist implements Lasting {
  readonly id: string;
  readonly status: number;
  readonly #random: Seeded;
  readonly #program: Program;
  readonly #echo = new Echo();
  readonly #reply: (line: string) => string;
  readonly #maximum: number;
  readonly #last: string;
  #typed = 0;

  /**
   * @param command runs the container, which says `ready`
   * @param reply what comes back for each line that is typed
   * @param maximum how much may have to come back before the next line is typed, in characters
   * @param last what is typed to have it end, before its input does
   */
  constructor(scene: Scene, { id, status, command, reply, maximum, last }: {
    readonly id: string;
    readonly status: number;
    readonly command: readonly string[];
    readonly reply: (line: string) => string;
    readonly maximum: number;
    readonly last: string;
  }) {
    this.id = id;
    this.status = status;
    this.#random = new Seeded(SEED + status);
    this.#reply = reply;
    this.#maximum = maximum;
    this.#last = last;
    this.#echo.expect("ready\n");
    this.#program = new Program(command, (text) => this.#echo.take(text));
    scene.programs.push(this.#program);
  }

  /** How many lines have been typed. */
  get typed(): number {
    return this.#typed;
  }

  /** Types another line, and waits until not too much has to come back. */
  async type(): Promise<void> {
    const line = `${++this.#typed} ${"typing ".repeat(MAX_LINE).slice(0, this.#random.below(MAX_LINE))}.\n`;
    await pause(this.#random.below(MAX_TYPING_MS));
    await this.ready();
    this.#echo.expect(this.#reply(line));
    await this.#program.write(line);
    await this.#echo.hasCome(this.#maximum);
  }

  /** Waits until the container says that it listens. */
  async ready(): Promise<void> {
    if (this.#typed === 0) await this.#echo.hasCome();
  }

  async end(): Promise<void> {
    await this.#echo.hasCome();
    if (this.#last.endsWith("\n")) this.#echo.expect(this.#last);
    if (this.#last !== "") await this.#program.write(this.#last);
    else await this.#program.closeStdin();
    assertEnded(await within(`the end of ${this.id}`, this.#program.ended), this.status);
    await this.#echo.hasCome();
  }
}

/** Somebody at a terminal, which script(1) makes, or at a pipe. */
function startTyping(scene: Scene, kind: "terminal" | "echoing terminal" | "pipe", status: number): Typist {
  const id = scene.containerd.newId();
  const scripts = {
    "terminal": "stty -echo; echo ready; cat",
    "echoing terminal": 'echo ready; while read -r line && [ "$line" != end ]; do echo "got $line"; done',
    "pipe": "echo ready; cat",
  };
  const flags = kind === "pipe" ? ["--rm"] : ["--rm", "--tty"];
  const shell = ["/bin/sh", "-c", `${scripts[kind]}; exit ${status}`];
  const ctr = scene.containerd.runArguments(id, shell, { flags });
  const quoted = ctr.map((each) => `'${each}'`).join(" ");
  return new Typist(scene, {
    id,
    status,
    command: kind === "pipe" ? ctr : ["script", "-qfec", `exec ${quoted}`, "/dev/null"],
    // A terminal shows what is typed when it is, which is in the middle of what is printed, if that has not yet come.
    ...kind === "echoing terminal"
      ? { reply: (line: string) => `${line}got ${line}`, maximum: 0 }
      : { reply: (line: string) => line, maximum: MAX_TYPED },
    last: { "terminal": "\x04", "echoing terminal": "end\n", "pipe": "" }[kind],
  });
}

/** Runs an exec in one of some containers, which says something or nothing, and ends with its number. */
async function runExec(scene: Scene, id: string, number: number): Promise<void> {
  const { course, containerd, exits } = scene;
  const status = number % 256;
  const talks = number % 3 > 0;
  const says = talks ? `echo line ${number}; echo error ${number} >&2; ` : "";
  const args = containerd.execArguments(id, [], ["/bin/sh", "-c", `${says}exit ${status}`]);
  const execId = args[args.indexOf("--exec-id") + 1]!;
  await course.call("exec", `${execId} in ${id}`, async () => {
    const expected = talks ? { stdout: `line ${number}\n`, stderr: `error ${number}\n` } : { stdout: "", stderr: "" };
    assertEquals(await run(args), { code: status, ...expected });
  });
  exits.expect(status, id, execId);
}

/** Runs a container to its end. */
async function runShort({ course, containerd, exits }: Scene, number: number): Promise<void> {
  const id = containerd.newId();
  const status = number % 256;
  const script = `echo out ${number}; echo err ${number} >&2; exit ${status}`;
  await course.call("container", id, async () => {
    const result = await containerd.run(["/bin/sh", "-c", script], { id });
    assertEquals(result, { code: status, stdout: `out ${number}\n`, stderr: `err ${number}\n` });
  });
  exits.expect(status, id);
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

/** A connection to a container's shim that is never to break, with a Wait that is answered at the end. */
class Caller {
  readonly #id: string;
  readonly #client: Client;
  readonly #wait: Promise<number>;
  #isClosing = false;

  private constructor(course: Course, id: string, client: Client) {
    this.#id = id;
    this.#client = client;
    client.closed.then(() => {
      if (!this.#isClosing) course.fail(new Error(`the connection to ${id}'s shim broke ${course.now()}`));
    });
    this.#wait = this.#startWait();
    this.#wait.catch((error) => {
      if (!this.#isClosing) course.fail(new Error(`Wait of ${id} failed ${course.now()}: ${error.message}`));
    });
  }

  static async open({ course, containerd }: Scene, id: string): Promise<Caller> {
    const path = await shimSocket(containerd.address, containerd.namespace, id);
    return new Caller(course, id, new Client(await Deno.connect({ transport: "unix", path })));
  }

  async #startWait(): Promise<number> {
    const answer = await this.#client.call(SERVICE, "Wait", v1.WaitRequest.encode({ id: this.#id }).finish());
    return v1.WaitResponse.decode(answer).exitStatus;
  }

  /** Asks for the container's state, and fails unless it runs. */
  async state(): Promise<void> {
    const request = v1.StateRequest.encode({ id: this.#id }).finish();
    const answer = await this.#client.call(SERVICE, "State", request, { timeoutMs: PATIENCE_MS });
    assertEquals(v1.StateResponse.decode(answer).status, Status.RUNNING);
  }

  /** Lets the connection end with the container. */
  expectEnd(): void {
    this.#isClosing = true;
  }

  /** How the container has ended. */
  get status(): Promise<number> {
    return within(`the answer of ${this.#id}'s Wait`, this.#wait);
  }

  close(): void {
    this.#isClosing = true;
    this.#client.close();
  }
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
      course.killed();
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
      console.log(`${course.kills} kills: ${count(course.answers)}; to an answer: ${summary(away.one)}`);
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
  const { course, machine, containerd, exits, endFile, lines } = scene;

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
  const execArguments = containerd.execArguments(ids[0]!, [], ["/bin/sh", "-c", numbered(endFile.inside, 40)]);
  const execId = execArguments[execArguments.indexOf("--exec-id") + 1]!;
  const exec = startNumbered(scene, execId, 40, execArguments);
  exits.expect(40, ids[0]!, execId);

  const called = [...waiters.slice(0, 3), printers[0]!];
  const callers = await Promise.all(called.map(({ id }) => Caller.open(scene, id)));
  scene.programs.push(...callers.map((each) => ({ kill: () => each.close() })));

  // What all of these have open once they have done what they will do.
  for (const id of ids) await runExec(scene, id, 0);
  const open = new Map([...holders, machine.host().pid].map((pid) => [pid, openFiles(pid)]));

  const random = new Seeded(SEED + 1);
  const started = performance.now();
  let number = 1;
  const repeat = (workers: number, work: (number: number) => Promise<void>) => {
    return Array.from({ length: workers }, () =>
      course.repeat(async () => {
        await work(number++);
        await pause(random.below(MAX_REST_MS));
      }));
  };
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
    ...typists.map((typist) => course.repeat(() => course.call("line typed", `to ${typist.id}`, () => typist.type()))),
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
  await Deno.writeTextFile(endFile.outside, "");
  for (const each of [exec, ...typists, ...printers, ...waiters]) {
    await course.call("end", `of ${each.id}`, () => each.end());
  }
  assertEquals(await Promise.all(callers.map(({ status }) => status)), called.map(({ status }) => status));
  const told = await exits.allTold();
  await containerd.expectNothingLeft();
  assertEquals(deaths(containerd.log(), []), []);
  course.throwFailures();

  console.log(`${course.kills} kills in ${seconds} s: ${count(course.answers)}`);
  console.log(`lines on each stream: ${count(lines)}`);
  console.log(`${told} exits told, ${exits.repeated} of them more than once`);
  console.log(`from a kill to an answer: ${summary(away.one)}; to each of ${callers.length}: ${summary(away.all)}`);
  assert(median(away.one) <= MAX_MEDIAN_MS, `the median is over ${MAX_MEDIAN_MS} ms`);
}

onlyHosted(`a host that is killed ${TAKEOVERS} times is followed by another each time, and nobody notices`, () => {
  console.log(`TAKEOVER_SEED=${SEED}`);
  return withMachine((machine) =>
    withContainerd(async (containerd) => {
      const programs: { kill(): unknown }[] = [];
      try {
        const { exits, program } = await collectExits(containerd);
        programs.push(program);
        const end = "/tmp/end";
        await storm({
          course: new Course(),
          machine,
          containerd,
          exits,
          endFile: { inside: end, outside: `${containerd.rootfs}${end}` },
          programs,
          lines: new Map(),
        });
      } finally {
        if (LOG !== undefined) await Deno.writeTextFile(LOG, containerd.log());
        for (const each of programs) await each.kill();
      }
    }, { prefix: machine.prefix, shimDebug: LOG !== undefined })
  );
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
