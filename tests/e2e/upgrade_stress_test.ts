/**
 * Two builds take over from each other again and again, while eight containers live that print, are typed to, run execs, and
 * others start and end; and nobody notices.
 *
 * UPGRADES says how often, UPGRADE_SEED repeats the moments of another run.
 */

import { assertEquals } from "@std/assert";
import { Builds, upgrade } from "./builds.ts";
import type { Form } from "./env.ts";
import { assertOpenFiles, type Host, onlyHosted, openFiles, withMachine } from "./host.ts";
import { modes } from "./modes.ts";
import { bursting, numbered } from "./numbered.ts";
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
  type Scene as Storm,
  startTyping,
  withScene,
} from "./storm.ts";
import { pause, until } from "./until.ts";

modes(["hosted"], "it is about hosts that take over");

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
/** How long anything may take that goes on for as long as the test, in ms. */
const WHOLE_TEST_MS = 120_000 + UPGRADES * 10_000;

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

/** The test's parts. */
interface Scene extends Storm {
  readonly shim: Switch;
}

/** A container that does nothing itself, with a Wait on a connection that is not to break. */
async function runQuiet(scene: Scene): Promise<Lasting> {
  const { containerd, exits } = scene;
  const id = containerd.newId();
  const status = 137;
  await containerd.runDetached(id, ["/bin/sleep", "100000"]);
  const caller = await Caller.open(scene, id);
  return {
    id,
    status,
    use: () => caller.state(),
    async end() {
      caller.expectEnd();
      await containerd.must("task", "kill", "--signal", "KILL", id);
      assertEquals(await caller.status, status);
      await exits.told(id);
      await deleteStopped(containerd, id, status);
    },
  };
}

/** Replaces containerd's executable by the other build, and has that take over; gives what it says. */
async function turn({ machine, shim, course }: Scene, number: number): Promise<string> {
  await shim.turn();
  course.now = () => `in upgrade ${number}`;
  const { code, said } = await upgrade(machine, shim.path);
  course.now = () => `after upgrade ${number}`;
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
  const typists = [startTyping(scene, "terminal", 20), startTyping(scene, "pipe", 21)];
  for (const each of typists) await each.ready();
  const lasting: Lasting[] = [
    await runQuiet(scene),
    await runQuiet(scene),
    ...typists,
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
    for (const each of lasting) {
      await each.use?.();
      await runExec(scene, each.id, number++);
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
      for (let left = 1 + random.below(MAX_ANSWERS); left > 0; left--) await course.nextAnswer();
      await pause(random.below(MAX_DELAY_MS + 1));
      const begun = performance.now();
      const said = await turn(scene, i);
      console.log(`upgrade ${i}, ${(performance.now() - begun).toFixed()} ms: ${said.trim().replaceAll("\n", "; ")}`);
    }
  };
  await Promise.all([
    takeOver().catch((error) => course.fail(error)).finally(() => course.end()),
    ...course.repeat(EXEC_WORKERS, () => runExec(scene, random.pick(ids), number++)),
    ...course.repeat(RUN_WORKERS, () => runShort(scene, number++)),
    ...lasting.filter((each) => each.use !== undefined).flatMap((each) =>
      course.repeat(1, async () => {
        await course.call("use", `of ${each.id}`, () => each.use!());
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
  for (const each of lasting) await course.call("end", `of ${each.id}`, () => each.end());
  const told = await exits.allTold();
  await containerd.expectNothingLeft();
  const isDeath = (line: string) => DEATH.test(line) || line.includes("has died");
  assertEquals(containerd.log().split("\n").filter(isDeath), []);
  course.throwFailures();
  const answered = [...course.answers.values()].reduce((sum, count) => sum + count, 0);
  console.log(`${answered} calls answered, ${told} exits told, ${exits.repeated} of them more than once`);
}

onlyHosted(`two builds that take over from each other ${UPGRADES} times are noticed by nobody`, () => {
  console.log(`UPGRADE_SEED=${SEED}`);
  return withMachine(async (machine) => {
    await using builds = new Builds();
    const shim = await Switch.make(builds);
    const settings = { machine, wholeTestMs: WHOLE_TEST_MS, seed: SEED };
    await withScene(settings, { shim }, (scene) => storm({ ...scene, shim }));
    await machine.endHosts();
  });
});
