/**
 * Everything at once, for long: containers come and go, run execs, flood their outputs, are typed to, paused, changed,
 * killed and looked at, by containerd and through the sockets of their shims, and hosts are killed.
 *
 * Hosts are killed from a fifth to a half of the time: before and after that, one and the same has everything, so that
 * what it does not let go of shows.
 */

import { assert, assertEquals } from "@std/assert";
import { must, run } from "../e2e/command.ts";
import { collectExits, type Exits } from "../e2e/exits.ts";
import { type Containerd, withContainerd } from "../e2e/harness.ts";
import { assertOpenFiles, type Machine, openFiles, untilEnded, withMachine } from "../e2e/host.ts";
import { isAlive } from "../e2e/proc.ts";
import { DEATH } from "../e2e/storm.ts";
import { pause, until } from "../e2e/until.ts";
import { Course } from "./course.ts";
import { Lasting } from "./lasting.ts";
import { type Growth, growths, type Sample, take } from "./samples.ts";

/** Options of {@linkcode soak}. */
export interface SoakOptions {
  readonly seconds: number;
  readonly seed: number;
  /** Told now and then what has happened so far. */
  readonly tell?: (what: string) => void;
}

/** What has happened. */
export interface Soak {
  readonly samples: readonly Sample[];
  readonly growths: readonly Growth[];
  /** How often each kind of work has been done. */
  readonly counts: ReadonlyMap<string, number>;
  readonly kills: number;
  /** How many exits containerd has told of, each with the right status. */
  readonly exits: number;
}

/** How many containers live as long as all of it. */
const LASTING = 6;
/** How many numbered lines a flood has, on each output: some 8 MB. */
const FLOOD_LINES = 1_000_000;
/** When hosts are killed, as parts of the time, and how often. */
const KILLS_FROM = 0.2;
const KILLS_TO = 0.5;
const MOST_KILLS = 30;
/** Between one State and the next, in ms. */
const STATE_INTERVAL_MS = 30;
const SAMPLE_INTERVAL_MS = 1000;
/** How often it is said what has happened, in samples. */
const TOLD_EVERY = 60;

/** Runs all of it. @throws {Error} when anything has gone wrong; growth is told, and the caller's to judge */
export async function soak(options: SoakOptions): Promise<Soak> {
  let result: Soak | undefined;
  await withMachine((machine) =>
    withContainerd(async (containerd) => {
      const { exits, program } = await collectExits(containerd);
      try {
        result = await new Scene(options, machine, containerd, exits).run();
      } finally {
        await program.kill();
      }
    }, { prefix: machine.prefix, shimDebug: false })
  );
  return result!;
}

class Scene {
  readonly #options: SoakOptions;
  readonly #machine: Machine;
  readonly #containerd: Containerd;
  readonly #exits: Exits;
  readonly #samples: Sample[] = [];
  #latencies: number[] = [];
  #kills = 0;
  #killed: number | undefined;

  constructor(options: SoakOptions, machine: Machine, containerd: Containerd, exits: Exits) {
    this.#options = options;
    this.#machine = machine;
    this.#containerd = containerd;
    this.#exits = exits;
  }

  async run(): Promise<Soak> {
    const { seconds, seed } = this.#options;
    const containerd = this.#containerd;
    const lines = `${containerd.rootfs}/tmp/lines`;
    await must(["sh", "-c", `seq 1 ${FLOOD_LINES} >'${lines}'`]);
    const lasting: Lasting[] = [];
    try {
      for (let i = 0; i < LASTING; i++) lasting.push(await Lasting.start(containerd, this.#exits));
      // What they have open once they have done what they will do.
      for (const each of lasting) await each.execFlood(lines, "/tmp/lines");
      const holders = lasting.map(({ shim }) => shim);
      const open = new Map(holders.map((pid) => [pid, openFiles(pid)]));
      const hostOpen = openFiles(this.#machine.host().pid);

      const course = new Course(seed, seconds);
      const pick = () => course.random.pick(lasting);
      await Promise.all([
        course.repeat("container", (number) => this.#runShort(number)),
        course.repeat("container, step by step", (number) => this.#runSteps(number)),
        course.repeat("exec", (number) => this.#runExec(pick().id, number)),
        course.repeat("flood", () => pick().execFlood(lines, "/tmp/lines"), 4000),
        course.repeat("terminal", () => pick().execTerminal()),
        course.repeat("kill", () => pick().execKilled()),
        course.repeat("update", () => pick().update(100 + course.random.below(900))),
        course.repeat("metrics", () => this.#lookAt(pick().id), 3000),
        course.repeat("State", async () => void this.#latencies.push(await pick().state()), STATE_INTERVAL_MS),
        course.repeat("sample", () => this.#sample(course, holders), 1),
        this.#killHosts(course),
      ]);
      course.throwFailures();

      // Nobody has noticed anything.
      assertEquals(lasting.map(({ id }) => containerd.shimOf(id)), holders);
      for (const [pid, files] of open) await assertOpenFiles(pid, files);
      await assertOpenFiles(this.#machine.host().pid, hostOpen);
      assertEquals(containerd.log().split("\n").filter((line) => DEATH.test(line)), [], "shims that have died");
      for (const { id } of lasting) await containerd.must("task", "kill", "--signal", "9", id);
      for (const each of lasting) await each.assertKilled();
      const told = await this.#exits.allTold();
      for (const { id } of lasting) await containerd.must("task", "delete", id);
      for (const { id } of lasting) await containerd.must("container", "delete", id);
      const samples = this.#samples;
      return {
        samples,
        growths: growths(samples, seconds),
        counts: course.counts,
        kills: this.#kills,
        exits: told,
      };
    } finally {
      for (const each of lasting) each.close();
    }
  }

  /** Runs a container to its end, with its output and its status. */
  async #runShort(number: number): Promise<void> {
    const id = this.#containerd.newId();
    const status = number % 256;
    const script = `echo out ${number}; echo err ${number} >&2; exit ${status}`;
    const result = await this.#containerd.run(["/bin/sh", "-c", script], { id });
    assertEquals(result, { code: status, stdout: `out ${number}\n`, stderr: `err ${number}\n` }, id);
    this.#exits.expect(status, id);
  }

  /** Runs a container step by step, which is paused, and is killed, every other time while it is paused. */
  async #runSteps(number: number): Promise<void> {
    const containerd = this.#containerd;
    const id = containerd.newId();
    await containerd.runDetached(id, ["/bin/sleep", "1000"]);
    await containerd.must("task", "pause", id);
    assertEquals((await containerd.task(id))?.status, "PAUSED", id);
    if (number % 2 === 0) {
      await containerd.must("task", "resume", id);
      assertEquals((await containerd.task(id))?.status, "RUNNING", id);
    }
    this.#exits.expect(137, id);
    await containerd.must("task", "kill", "--signal", "9", id);
    await this.#exits.told(id);
    await containerd.must("task", "delete", id);
    await containerd.must("container", "delete", id);
  }

  /** Runs an exec by ctr. */
  async #runExec(id: string, number: number): Promise<void> {
    const status = number % 256;
    const args = this.#containerd.execArguments(id, [], ["/bin/sh", "-c", `echo ${number}; exit ${status}`]);
    assertEquals(await run(args), { code: status, stdout: `${number}\n`, stderr: "" });
    this.#exits.expect(status, id, args[args.indexOf("--exec-id") + 1]!);
  }

  /** Has ctr look at a container. */
  async #lookAt(id: string): Promise<void> {
    const pid = (await this.#containerd.task(id))?.pid;
    assert(
      (await this.#containerd.must("task", "ps", id)).includes(`${pid} `),
      `${pid} is not among the pids of ${id}`,
    );
    assert((await this.#containerd.must("task", "metrics", id)).includes("memory"), `no metrics of ${id}`);
  }

  /** Looks at everything once a second. */
  async #sample(course: Course, holders: readonly number[]): Promise<void> {
    const next = this.#samples.length + 1;
    await pause(Math.max(0, next * SAMPLE_INTERVAL_MS - course.seconds * 1000));
    const latencies = this.#latencies.splice(0);
    const hosts = this.#machine.hosts().filter(({ pid }) => pid !== this.#killed && isAlive(pid));
    if (hosts.length === 0) return;
    const sample = take(hosts, holders, { at: course.seconds, kills: this.#kills, latencies });
    if (sample === undefined) return;
    this.#samples.push(sample);
    if (this.#samples.length % TOLD_EVERY === 0) {
      this.#options.tell?.(`${course.seconds.toFixed(0)} s: ${JSON.stringify(sample)}`);
    }
  }

  /** Kills hosts while it is time for that. */
  async #killHosts(course: Course): Promise<void> {
    const { seconds } = this.#options;
    const between = (KILLS_TO - KILLS_FROM) * seconds / Math.min(MOST_KILLS, Math.ceil(seconds / 10));
    await pause(KILLS_FROM * seconds * 1000);
    await course.repeat("kill of the host", async () => {
      if (course.passed > KILLS_TO) return await pause(SAMPLE_INTERVAL_MS);
      const host = await until("there is one host", () => {
        const hosts = this.#machine.hosts().filter(({ pid }) => pid !== this.#killed);
        return hosts.length === 1 && hosts[0];
      });
      this.#killed = host.pid;
      Deno.kill(host.pid, "SIGKILL");
      this.#kills++;
      course.note(`kill ${this.#kills} of the host`);
      await untilEnded(host.pid);
      await pause((0.5 + course.random.below(1000) / 1000) * between * 1000);
    }, 1);
    course.counts.set("kill of the host", this.#kills);
  }
}
