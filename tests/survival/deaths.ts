/**
 * A container's shim is killed at a random moment of the container's life, many times: what containerd makes of it, whether
 * the name can be used again, and what is left.
 */

import { messageOf } from "../../lib/errors.ts";
import { must, type Result, run, type Running } from "../e2e/command.ts";
import { containerProcesses, paths, RUNC_ROOT } from "../e2e/leftovers.ts";
import { isAlive } from "../e2e/proc.ts";
import { Seeded } from "../e2e/seeded.ts";
import { pause, until } from "../e2e/until.ts";
import type { Subject } from "./subjects.ts";
import { atMost, endCommand, World } from "./world.ts";

/** What is being done when the shim is killed. */
const MOMENTS = ["create", "running", "exec", "kill", "delete"] as const;
type Moment = typeof MOMENTS[number];

/** The longest from the beginning of that to the kill, in ms: a little longer than it takes, so that some kills are late. */
const LONGEST_MS: Readonly<Record<Moment, number>> = { create: 150, running: 50, exec: 120, kill: 60, delete: 80 };

/** Until then containerd has noticed, and a ctr that waited has ended, in ms: several times what any shim has needed. */
const NOTICE_MS = 10_000;

/** How the container ends that has the name next, and what it says. */
const AGAIN = { status: 3, text: "again\n" };

/** What all rounds have shown. */
export interface Deaths {
  readonly rounds: number;
  /** How many kills hit a shim that was still there, by moment. */
  readonly hits: ReadonlyMap<string, number>;
  /** From each kill until there has been another container of that name, in ms. */
  readonly usableMs: readonly number[];
  /** How often containerd has lost a task: see {@linkcode Round.isLost}. */
  readonly lost: number;
  /** How many folders of FIFOs ctr has left. */
  readonly fifos: number;
  /** What was wrong, a line for each round in which something was. */
  readonly problems: readonly string[];
  /** In how many rounds there was each kind of problem. */
  readonly kinds: ReadonlyMap<string, number>;
}

/** Kills shims, so many, at moments that come from a seed; `tell` is told what is seen. */
export async function observeDeaths(
  subject: Subject,
  { rounds, seed }: { readonly rounds: number; readonly seed: number },
  tell: (seen: string) => void,
): Promise<Deaths> {
  return await World.with(subject, async (world) => {
    const random = new Seeded(seed);
    const hits = new Map<string, number>();
    const kinds = new Map<string, number>();
    const problems: string[] = [];
    const usableMs: number[] = [];
    let [fifos, lost] = [0, 0];
    for (let number = 1; number <= rounds; number++) {
      const moment = random.pick(MOMENTS);
      const isAttached = random.below(2) === 0;
      const delayMs = random.below(LONGEST_MS[moment] * 10) / 10;
      const round = new Round(world, moment, isAttached, delayMs);
      await round.run();
      fifos += round.fifos;
      if (round.isLost) lost++;
      if (round.hit) hits.set(moment, (hits.get(moment) ?? 0) + 1);
      if (round.hit) usableMs.push(round.usableMs);
      const what = `${number}: ${round.isLost ? "lost by containerd, " : ""}${
        isAttached ? "attached" : "detached"
      }, ${moment}, ${delayMs} ms, ${round.hit ? `again after ${round.usableMs.toFixed(0)} ms` : "too late"}`;
      tell(`${what}${[...round.problems].map(([kind, detail]) => `\n    ${kind}: ${detail}`).join("")}`);
      for (const kind of round.problems.keys()) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      if (round.problems.size > 0) {
        problems.push(`${what}: ${[...round.problems].map((each) => each.join(": ")).join("; ")}`);
      }
    }
    return { rounds, hits, usableMs, lost, fifos, problems, kinds };
  });
}

class Round {
  /** Whether the shim was there to be killed. */
  hit = false;
  usableMs = 0;
  /**
   * Whether containerd has the task and does not know: it has been told of its shim's death after the answer to Create and
   * before it had taken down that there is such a task. No shim can do anything about that.
   */
  isLost = false;
  /** How many folders of FIFOs ctr has left. */
  fifos = 0;
  /** What was wrong: kinds, and details. */
  readonly problems = new Map<string, string>();
  readonly #world: World;
  readonly #moment: Moment;
  readonly #isAttached: boolean;
  readonly #delayMs: number;
  readonly #id: string;
  /** What waits for something that the shim was to do. */
  readonly #waiting: Running[] = [];

  constructor(world: World, moment: Moment, isAttached: boolean, delayMs: number) {
    this.#world = world;
    this.#moment = moment;
    this.#isAttached = isAttached;
    this.#delayMs = delayMs;
    this.#id = world.containerd.newId();
  }

  async run(): Promise<void> {
    const shim = await this.#begin();
    await pause(this.#delayMs);
    this.hit = isAlive(shim);
    if (this.hit) Deno.kill(shim, "SIGKILL");
    const killedAt = performance.now();
    await this.#answers();
    await this.#givesName();
    this.usableMs = performance.now() - killedAt;
    await this.#leavesNothing();
  }

  /** Whoever waits is told. */
  async #answers(): Promise<void> {
    for (const each of this.#waiting) {
      if (await atMost(each.result, NOTICE_MS) !== undefined) continue;
      this.problems.set("a ctr hangs", `for more than ${NOTICE_MS} ms`);
      endCommand(each);
    }
  }

  /** Has the container be where it is to be, begins with what is to be killed, and gives the shim. */
  async #begin(): Promise<number> {
    const { containerd } = this.#world;
    const id = this.#id;
    const flags = this.#isAttached ? [] : ["--detach", "--null-io"];
    const options = this.#world.options(...flags);
    this.#start(containerd.runArguments(id, ["/bin/sleep", "1000"], options));
    // The kernel may know the process before its command line is that of a shim.
    const shim = await until("there is a shim", () => this.#world.shimOf(id));
    if (this.#moment === "create") return shim;
    await containerd.running(id);
    switch (this.#moment) {
      case "exec":
        this.#start(containerd.execArguments(id, [], ["/bin/sh", "-c", "echo hello; exit 7"]));
        break;
      case "kill":
        this.#start(this.#ctr("task", "kill", "--signal", "9", id));
        break;
      case "delete":
        await containerd.must("task", "kill", "--signal", "9", id);
        // Of one that it is attached to, ctr deletes the task by itself.
        if (this.#isAttached) break;
        await until("it has stopped", async () => (await containerd.task(id))?.status === "STOPPED");
        this.#start(this.#ctr("task", "delete", id));
    }
    return shim;
  }

  #start(args: readonly string[]): void {
    const running = this.#world.start(args);
    running.result.catch(() => {});
    this.#waiting.push(running);
  }

  #ctr(...args: string[]): string[] {
    const { address, namespace } = this.#world.containerd;
    return ["ctr", "--address", address, "--namespace", namespace, ...args];
  }

  /** containerd has noticed, and cleaned up: with the task and the container removed, there can be another of that name. */
  async #givesName(): Promise<void> {
    let failure: [string, string] = ["", ""];
    const isUsable = async (): Promise<boolean> => {
      for (const kind of ["task rm --force", "container rm"]) {
        const { code, stderr } = await this.#try(() => this.#world.containerd.ctr(...kind.split(" "), this.#id));
        if (code !== 0 && !/not found/.test(stderr)) {
          failure = [`${kind} fails`, stderr.trim()];
          return false;
        }
      }
      const { code, stdout, stderr } = await this.#runAgain();
      if (code === AGAIN.status && stdout === AGAIN.text) return true;
      failure = ["the name cannot be used again", `${code}: ${(stderr || stdout).trim()}`];
      return false;
    };
    try {
      await until("the name can be used again", isUsable, NOTICE_MS);
    } catch {
      if (/task \S+: already exists$/.test(failure[1]) && await this.#world.containerd.task(this.#id) === undefined) {
        this.isLost = true;
      } else this.problems.set(...failure);
    }
  }

  #runAgain(): Promise<Result> {
    const command = ["/bin/sh", "-c", `echo -n '${AGAIN.text}'; exit ${AGAIN.status}`];
    const options = { ...this.#world.options(), id: this.#id };
    return this.#try(() => this.#world.containerd.run(command, options));
  }

  async #try(command: () => Promise<Result>): Promise<Result> {
    try {
      return await command();
    } catch (error) {
      return { code: -1, stdout: "", stderr: messageOf(error) };
    }
  }

  /** Looks for what is left, and removes that, so that the next round has a world like this. */
  async #leavesNothing(): Promise<void> {
    const { containerd } = this.#world;
    // ctr makes them, and removes them when it has deleted the task or process: not, when that has gone by itself.
    for (const each of [containerd.fifos, `${containerd.folder}/exec-fifo`].flatMap(paths)) {
      this.fifos++;
      await Deno.remove(each, { recursive: true });
    }
    const left = await this.#world.leftovers();
    if (left.length === 0) return;
    const kinds = new Set(left.map((each) => /^(\S+( state)?)/.exec(each)![1]!));
    for (const kind of kinds) {
      this.problems.set(`left: ${kind}`, left.filter((each) => each.startsWith(kind)).join(", "));
    }
    const pids = [...this.#world.containerd.shims(), ...containerProcesses(containerd.namespace)];
    for (const pid of pids) if (isAlive(pid)) Deno.kill(pid, "SIGKILL");
    await until("all processes have ended", () => !pids.some(isAlive));
    for (const state of paths(`${RUNC_ROOT}/${containerd.namespace}`)) {
      await must([
        "runc",
        "--root",
        `${RUNC_ROOT}/${containerd.namespace}`,
        "delete",
        "--force",
        state.replace(/.*\//, ""),
      ]);
    }
    for (const each of left) {
      const path = /^(mount|socket|bundle|cgroup|working directory) (\S+)/.exec(each)?.[2];
      if (path === undefined) continue;
      // One below another goes with that.
      if (each.startsWith("mount")) await run([...this.#world.machine.prefix, "umount", "-l", path]);
      else await Deno.remove(path, { recursive: !each.startsWith("cgroup") }).catch(() => {});
    }
  }
}

/** What has been seen, in a few lines. */
export function describeDeaths({ rounds, hits, usableMs, lost, fifos, problems, kinds }: Deaths): string {
  const sorted = usableMs.toSorted((a, b) => a - b);
  const ms = (part: number) => (sorted[Math.floor(part * (sorted.length - 1))] ?? 0).toFixed(0);
  const list = (counts: ReadonlyMap<string, number>) =>
    [...counts].map(([name, count]) => `${name} ${count}`).join(", ");
  return [
    `${rounds} rounds, in ${problems.length} something was wrong${kinds.size > 0 ? `: ${list(kinds)}` : ""}`,
    `killed while it was there: ${list(hits)}`,
    `from the kill to the end of another container of that name: median ${ms(0.5)} ms, worst ${ms(1)} ms`,
    `containerd has lost a task ${lost} times, ctr has left its FIFOs ${fifos} times`,
  ].join("\n");
}
