/**
 * Two builds take over from each other again and again, while eight containers live that print, are typed to, run execs, and
 * others start and end; and nobody notices.
 *
 * UPGRADES says how often, UPGRADE_SEED repeats the moments of another run.
 */

import { assert, assertEquals } from "@std/assert";
import { containerd as api } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { Builds, upgrade } from "./builds.ts";
import { type Result, run, type Running, start } from "./command.ts";
import type { Form } from "./env.ts";
import { collectExits, type Exits } from "./exits.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { assertOpenFiles, type Host, type Machine, onlyHosted, openFiles, withMachine } from "./host.ts";
import { shimSocket } from "./leftovers.ts";
import { bursting, countNumbered, numbered } from "./numbered.ts";
import { isAlive } from "./proc.ts";
import { Seeded } from "./seeded.ts";
import { SERVICE } from "./shim.ts";
import { Echo, type Ended, Program } from "./talk.ts";
import { PATIENCE_MS, pause, until, within } from "./until.ts";

import v1 = api.runtime.linux.shim.v1;

/** How often a build takes over from the other. */
const UPGRADES = Number(Deno.env.get("UPGRADES") ?? 6);
/** What the moments come from. */
const SEED = Number(Deno.env.get("UPGRADE_SEED") ?? Date.now() % 2 ** 32);
/** How many calls are answered between two upgrades, at most, and how much later than that one begins, in ms. */
const MAX_ANSWERS = 6;
const MAX_DELAY_MS = 200;
/** How many do the same at a time: execs, and containers from start to end. */
const EXEC_WORKERS = 2;
const RUN_WORKERS = 2;
/** How much may be on its way of what is typed, in characters. */
const MAX_TYPED = 300;
/** How long anything may take that goes on for as long as the test, in ms. */
const WHOLE_TEST_MS = 120_000 + UPGRADES * 10_000;

/** What containerd, or a shim, logs of the death of a shim or of a host. */
const DEATH = /cleaning up after|failed to clean up|shim disconnected|cleanup warnings|shim dead|has died/;

/** Two builds, and a file that containerd starts shims from, which is one or the other. */
class Switch implements Form {
  readonly name = "switch";
  readonly path: string;
  readonly #builds: readonly [string, string];
  #current = 0;

  private constructor(builds: readonly [string, string], path: string) {
    this.#builds = builds;
    this.path = path;
  }

  static async make(builds: Builds): Promise<Switch> {
    const both = [await builds.make({ isOurs: true }), await builds.make()] as const;
    const path = both[0].replace(/containerd-shim$/, "switch-containerd-shim");
    await Deno.link(both[0], path);
    return new Switch(both, path);
  }

  /** Has it be the other build from now on. */
  async turn(): Promise<void> {
    this.#current = 1 - this.#current;
    await Deno.link(this.#builds[this.#current]!, `${this.path}.new`);
    await Deno.rename(`${this.path}.new`, this.path);
  }

  /** Whether a host is of the build that it is. */
  isCurrent({ pid }: Host): boolean {
    return Deno.statSync(`/proc/${pid}/exe`).ino === Deno.statSync(this.path).ino;
  }
}

/** What goes on while builds take over, and how it has gone. */
class Course {
  /** Whether what goes on is to come to its end. */
  over = false;
  /** How many calls have been answered. */
  answers = 0;
  /** What is being done. */
  moment = "before the first upgrade";
  readonly #failures: Error[] = [];
  #nextAnswer = Promise.withResolvers<void>();

  /** Something that must succeed. What it does when it does not, says when that was. */
  async call<T>(what: string, call: () => Promise<T>): Promise<T> {
    const begun = this.moment;
    try {
      const value = await call();
      this.answers++;
      this.#nextAnswer.resolve();
      this.#nextAnswer = Promise.withResolvers();
      return value;
    } catch (cause) {
      throw new Error(`${what}, begun ${begun}, failed ${this.moment}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Resolves when so many calls have been answered from now on, or none will be. */
  async nextAnswers(count: number): Promise<void> {
    for (let i = 0; i < count && !this.over; i++) await within("the next answer", this.#nextAnswer.promise);
  }

  end(): void {
    this.over = true;
    this.#nextAnswer.resolve();
  }

  fail(error: unknown): void {
    if (this.#failures.length === 0) console.error(`Failed ${this.moment}: ${(error as Error).message}`);
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

/** The test's parts, as they need each other. */
interface Scene {
  readonly course: Course;
  readonly machine: Machine;
  readonly containerd: Containerd;
  readonly shim: Switch;
  readonly exits: Exits;
  /** What is to be ended in any case. */
  readonly programs: { kill(): unknown }[];
}

/** The file that has all containers end that print numbered lines, as they see it. */
const END = "/tmp/end";

/** A container that lives as long as the test. */
interface Lasting {
  readonly id: string;
  readonly status: number;
  /** Does something with it once; nothing unless given. */
  readonly use?: () => Promise<void>;
  /** Has it end, waits for that, and fails unless all is well with it. */
  end(): Promise<void>;
}

/** Fails unless a command has ended with this status, and has nothing to complain about. */
function assertEnded({ code, stderr }: Ended | Result, status: number): void {
  assertEquals({ code, stderr }, { code: status, stderr: "" });
}

/** A container with ctr in the foreground, whose output goes to files, to be read when it has ended: numbered lines. */
function runNumbered({ containerd, programs }: Scene, script: typeof numbered, status: number): Lasting {
  const id = containerd.newId();
  const files = ["stdout", "stderr"].map((each) => `${containerd.folder}/${id}-${each}`);
  const ctr = containerd.runArguments(id, ["/bin/sh", "-c", script(END, status)], { flags: ["--rm"] });
  const shell = ["sh", "-c", 'exec >"$0" 2>"$1" </dev/null; shift; exec "$@"', ...files];
  const running: Running = start([...shell, ...ctr], { patienceMs: WHOLE_TEST_MS });
  running.result.catch(() => {});
  programs.push({ kill: () => isAlive(running.pid) && running.kill("SIGKILL") });
  return {
    id,
    status,
    async end() {
      assertEnded(await within(`the end of ${id}`, running.result), status);
      const [stdout, stderr] = await Promise.all(files.map(countNumbered));
      assertEquals(stdout, stderr, `lines of ${id} on both streams`);
      assert(stdout! > 0, `${id} has printed nothing`);
    },
  };
}

/** A container that nobody is attached to, and whose output is a file: the shim writes to it. */
async function runLogging({ containerd, exits }: Scene, status: number): Promise<Lasting> {
  const id = containerd.newId();
  const file = `${containerd.folder}/${id}-log`;
  // There is one file for both streams.
  const script = `(${numbered(END, status)}) 2>/dev/null`;
  await containerd.runDetached(id, ["/bin/sh", "-c", script], { io: ["--log-uri", `file://${file}`] });
  return {
    id,
    status,
    async end() {
      await exits.told(id);
      await deleteStopped(containerd, id);
      assert(await countNumbered(file) > 0, `${id} has printed nothing`);
    },
  };
}

/** A container that does nothing itself, with a Wait on a connection that is not to break. */
async function runQuiet({ containerd, exits, course, programs }: Scene): Promise<Lasting> {
  const id = containerd.newId();
  const status = 137;
  await containerd.runDetached(id, ["/bin/sleep", "100000"]);
  const path = await shimSocket(containerd.address, containerd.namespace, id);
  const client = new Client(await Deno.connect({ transport: "unix", path }));
  programs.push({ kill: () => client.close() });
  let isEnding = false;
  client.closed.then(() =>
    !isEnding && course.fail(new Error(`the connection to ${id}'s shim broke ${course.moment}`))
  );
  const waited = client.call(SERVICE, "Wait", v1.WaitRequest.encode({ id }).finish());
  waited.catch(() => {});
  return {
    id,
    status,
    async use() {
      const request = v1.StateRequest.encode({ id }).finish();
      await client.call(SERVICE, "State", request, { timeoutMs: PATIENCE_MS });
    },
    async end() {
      await containerd.must("task", "kill", "--signal", "KILL", id);
      const answer = await within(`the answer of ${id}'s Wait`, waited);
      assertEquals(v1.WaitResponse.decode(answer).exitStatus, status);
      isEnding = true;
      await exits.told(id);
      await deleteStopped(containerd, id);
    },
  };
}

/** Deletes a container that has ended. */
async function deleteStopped(containerd: Containerd, id: string): Promise<void> {
  await containerd.ctr("task", "delete", id);
  await containerd.must("container", "delete", id);
}

/** A container that gives back what somebody types, at a terminal, which script(1) makes, or at a pipe. */
async function runTyped({ containerd, programs }: Scene, kind: "terminal" | "pipe", status: number): Promise<Lasting> {
  const id = containerd.newId();
  const isTerminal = kind === "terminal";
  const script = `${isTerminal ? "stty -echo; " : ""}echo ready; cat; exit ${status}`;
  const flags = isTerminal ? ["--rm", "--tty"] : ["--rm"];
  const ctr = containerd.runArguments(id, ["/bin/sh", "-c", script], { flags });
  const quoted = ctr.map((each) => `'${each}'`).join(" ");
  const echo = new Echo();
  echo.expect("ready\n");
  const command = isTerminal ? ["script", "-qfec", `exec ${quoted}`, "/dev/null"] : ctr;
  const program = new Program(command, (text) => echo.take(text));
  programs.push(program);
  await echo.hasCome();
  let typed = 0;
  return {
    id,
    status,
    async use() {
      const line = `line ${++typed} for ${id}\n`;
      echo.expect(line);
      await program.write(line);
      await echo.hasCome(MAX_TYPED);
    },
    async end() {
      await echo.hasCome();
      if (isTerminal) await program.write("\x04");
      else await program.closeStdin();
      assertEnded(await within(`the end of ${id}`, program.ended), status);
      await echo.hasCome();
    },
  };
}

/** Runs an exec in a container, which says something or nothing, and ends with its number. */
async function runExec({ course, containerd, exits }: Scene, id: string, number: number): Promise<void> {
  const status = number % 256;
  const talks = number % 3 > 0;
  const says = talks ? `echo line ${number}; echo error ${number} >&2; ` : "";
  const args = containerd.execArguments(id, [], ["/bin/sh", "-c", `${says}exit ${status}`]);
  const execId = args[args.indexOf("--exec-id") + 1]!;
  await course.call(`exec ${execId} in ${id}`, async () => {
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
  await course.call(`container ${id}`, async () => {
    const result = await containerd.run(["/bin/sh", "-c", script], { id });
    assertEquals(result, { code: status, stdout: `out ${number}\n`, stderr: `err ${number}\n` });
  });
  exits.expect(status, id);
}

/** Replaces containerd's executable by the other build, and has that take over; gives what it says. */
async function turn({ machine, shim, course }: Scene, number: number): Promise<string> {
  await shim.turn();
  course.moment = `in upgrade ${number}`;
  const { code, said } = await upgrade(machine, shim.path);
  course.moment = `after upgrade ${number}`;
  assertEquals(code, 0, `upgrade ${number} says:\n${said}`);
  // A container that was just being started by the build before may end there.
  await until("all containers are in the new build's hosts", () => {
    return machine.hosts().every((host) => host.size === 0 || shim.isCurrent(host));
  });
  return said;
}

/** Runs all containers, has builds take over, and ends the containers. */
async function storm(scene: Scene): Promise<void> {
  const { course, machine, containerd, exits } = scene;
  const lasting = [
    await runQuiet(scene),
    await runQuiet(scene),
    await runTyped(scene, "terminal", 20),
    await runTyped(scene, "pipe", 21),
    runNumbered(scene, numbered, 30),
    runNumbered(scene, numbered, 31),
    runNumbered(scene, bursting, 32),
    await runLogging(scene, 33),
  ];
  const ids = lasting.map(({ id }) => id);
  const inits = new Map<string, number>();
  for (const id of ids) inits.set(id, await containerd.running(id));
  const holders = ids.map((id) => containerd.shimOf(id));
  for (const { id, status } of lasting) exits.expect(status, id);

  let number = 1;
  const useAll = async () => {
    for (const { id, use } of lasting) {
      await use?.();
      await runExec(scene, id, number++);
    }
  };
  // What all of these have open once they have gone, and come back.
  for (const i of [-1, 0]) {
    await turn(scene, i);
    await useAll();
  }
  const before = machine.host();
  const open = openFiles(before.pid);
  const held = holders.map(openFiles);

  const random = new Seeded(SEED);
  const takeOver = async () => {
    for (let i = 1; i <= UPGRADES && !course.over; i++) {
      await course.nextAnswers(1 + random.below(MAX_ANSWERS));
      await pause(random.below(MAX_DELAY_MS + 1));
      const begun = performance.now();
      const said = await turn(scene, i);
      console.log(`upgrade ${i}, ${(performance.now() - begun).toFixed()} ms: ${said.trim().replaceAll("\n", "; ")}`);
    }
  };
  const repeat = (workers: number, work: () => Promise<void>) =>
    Array.from({ length: workers }, () => course.repeat(work));
  await Promise.all([
    takeOver().catch((error) => course.fail(error)).finally(() => course.end()),
    ...repeat(EXEC_WORKERS, () => runExec(scene, random.pick(ids), number++)),
    ...repeat(RUN_WORKERS, () => runShort(scene, number++)),
    ...lasting.flatMap(({ id, use }) =>
      use === undefined ? [] : repeat(1, async () => {
        await course.call(`use of ${id}`, use);
        await pause(random.below(MAX_DELAY_MS));
      })
    ),
  ]);
  course.throwFailures();

  // Nobody has noticed anything.
  await useAll();
  for (const id of ids) assertEquals(await containerd.task(id), { pid: inits.get(id)!, status: "RUNNING" }, id);
  assertEquals(ids.map((id) => containerd.shimOf(id)), holders);
  await until("there is one host", () => machine.hosts().filter(({ size }) => size > 0).length === 1);
  for (const [i, pid] of holders.entries()) await assertOpenFiles(pid, held[i]!);
  if (UPGRADES % 2 === 0) await assertOpenFiles(machine.hosts().find(({ size }) => size > 0)!.pid, open);

  await Deno.writeTextFile(`${containerd.rootfs}${END}`, "");
  for (const each of lasting) await course.call(`end of ${each.id}`, () => each.end());
  const told = await exits.allTold();
  await containerd.expectNothingLeft();
  assertEquals(containerd.log().split("\n").filter((line) => DEATH.test(line)), []);
  course.throwFailures();
  console.log(`${course.answers} calls answered, ${told} exits told, ${exits.repeated} of them more than once`);
}

onlyHosted(`two builds that take over from each other ${UPGRADES} times are noticed by nobody`, () => {
  console.log(`UPGRADE_SEED=${SEED}`);
  return withMachine(async (machine) => {
    await using builds = new Builds();
    const shim = await Switch.make(builds);
    await withContainerd(async (containerd) => {
      const programs: { kill(): unknown }[] = [];
      try {
        const { exits, program } = await collectExits(containerd);
        programs.push(program);
        await storm({ course: new Course(), machine, containerd, shim, exits, programs });
      } finally {
        for (const each of programs) await each.kill();
      }
    }, { prefix: machine.prefix, shim });
    await machine.endHosts();
  });
});
