/** Somebody is killed while a container runs, and it is seen what has become of what. */

import { must, type Result, type Running } from "../e2e/command.ts";
import { Writer } from "../e2e/fifo.ts";
import { argumentsOf, descendants, descriptorsOf, isAlive, processOf } from "../e2e/proc.ts";
import { until } from "../e2e/until.ts";
import type { Subject } from "./subjects.ts";
import { KILLED, STATUS, TALKER, Talker } from "./talker.ts";
import { atMost, endCommand, World } from "./world.ts";

/** Who is killed. */
export type Victim = "containerd" | "host" | "shim" | "exec" | "create" | "init";

/** All of them, in the order of their rows. */
export const VICTIMS: ReadonlyMap<Victim, string> = new Map([
  ["containerd", "containerd"],
  ["host", "the host"],
  ["shim", "the holder, or the shim"],
  ["exec", "`runc`, in the middle of an exec"],
  ["create", "`runc`, in the middle of a create"],
  ["init", "the container's init"],
]);

/** How an exec ends that nobody kills. */
const EXEC_STATUS = 7;
/** What has not happened in so many ms counts as what never will: several times what any shim has been seen to need. */
const NEVER_MS = 10_000;
/** The same for the end of what a runc has left that was killed. */
const STRAY_MS = 4_000;

/** When runc is killed: in the middle of what it does, and at its end. */
const MOMENTS = ["early", "late"] as const;
type Moment = typeof MOMENTS[number];

/** What runc is to start that is killed then; it says that it runs. */
const STRAY = ["/bin/sh", "-c", ">/shared/stray; exec sleep 77777"];

/** What containerd logs when it has found a shim dead and ends the container. */
const CLEANING = /cleaning up after (shim dead|shim disconnected|dead shim)/;

/** What is lost when somebody is killed: nothing if it is empty; undefined if there is no such process. */
export type Losses = readonly string[] | undefined;

/** Kills a victim of a shim's, in a world of its own, and tells what is lost; `tell` is told what is seen. */
export async function observe(subject: Subject, victim: Victim, tell: (seen: string) => void): Promise<Losses> {
  if (victim === "host" && !subject.hasHosts) return undefined;
  return await World.with(subject, (world) => new Scene(world, victim, tell).run());
}

/** A process that has been started in the container by a `ctr task exec` that waits for it. */
interface Exec {
  readonly id: string;
  readonly ctr: Running;
}

class Scene {
  readonly #world: World;
  readonly #victim: Victim;
  readonly #tell: (seen: string) => void;
  readonly #losses = new Set<string>();

  constructor(world: World, victim: Victim, tell: (seen: string) => void) {
    this.#world = world;
    this.#victim = victim;
    this.#tell = tell;
  }

  #lose(what: string): void {
    this.#losses.add(what);
  }

  async run(): Promise<readonly string[]> {
    const { containerd } = this.#world;
    const bystander = containerd.newId("bystander");
    await containerd.runDetached(bystander, ["/bin/sleep", "1000"], this.#world.options());
    // A client of containerd's does not outlive it.
    const talker = await Talker.start(this.#world, this.#victim === "containerd" ? "fifo" : "ctr");
    const exec = await this.#exec(talker.id);

    await this.#kill(talker);

    const state = await talker.goesOn();
    this.#tell(`the container ${state}`);
    if (state === "has ended") await this.#assertEnd(talker, exec);
    else await this.#assertLife(talker, exec, state === "talks");
    await this.#end(talker.id, bystander);
    return [...this.#losses];
  }

  /** Starts a process that ends when it is told to. */
  async #exec(id: string): Promise<Exec> {
    const script = `>/shared/ready; until [ -e /shared/go ]; do sleep 0.02; done; echo bye; exit ${EXEC_STATUS}`;
    const exec = this.#startExec(id, ["/bin/sh", "-c", script]);
    await until("the exec runs", () => hasFile(`${this.#world.shared}/ready`));
    // It may run before runc has ended and the shim has answered.
    await until("the exec is known to run", () => this.#world.hasStarted(exec.id));
    return exec;
  }

  #startExec(id: string, command: readonly string[]): Exec {
    const args = this.#world.containerd.execArguments(id, [], command);
    return { id: args[args.indexOf("--exec-id") + 1]!, ctr: this.#world.start(args) };
  }

  /** Has the exec end that was there before the kill. */
  async #release(): Promise<void> {
    await Deno.writeTextFile(`${this.#world.shared}/go`, "");
  }

  #kill(talker: Talker): Promise<void> {
    switch (this.#victim) {
      case "containerd":
        return this.#killContainerd(talker);
      case "host":
        return this.#killProcess(this.#world.machine.host().pid);
      case "shim":
        return this.#killProcess(this.#world.shimOf(talker.id));
      case "exec":
        return this.#killExec(talker);
      case "create":
        return this.#killCreate();
      case "init":
        return this.#killProcess(talker.init);
    }
  }

  async #killProcess(pid: number): Promise<void> {
    this.#tell(`SIGKILL to ${pid} (${processOf(pid)?.comm})`);
    Deno.kill(pid, "SIGKILL");
    await until("the victim has ended", () => !isAlive(pid));
  }

  /**
   * Kills containerd, has the exec end meanwhile, and starts containerd again. That its clients' calls are cut off is so
   * with any shim; one of them is that of the ctr that waits for the exec.
   */
  async #killContainerd(talker: Talker): Promise<void> {
    const { containerd } = this.#world;
    const running = this.#world.processesOf(talker.id).find((pid) =>
      argumentsOf(pid).some((each) => each.includes("bye"))
    );
    this.#tell(`SIGKILL to ${containerd.pid} (containerd)`);
    await containerd.stop("SIGKILL");
    this.#tell(`without containerd, the container ${await talker.goesOn()}`);
    await this.#release();
    await until("the exec has ended", () => !isAlive(running!));
    await this.#world.restart();
  }

  /** Kills `runc exec`: while it waits for its process, and when that runs and nobody knows. */
  async #killExec(talker: Talker): Promise<void> {
    const passwd = `/proc/${talker.init}/root/etc/passwd`;
    const shim = this.#world.shimOf(talker.id);
    const strays = () => this.#world.processesOf(talker.id).filter(isStray);
    for (const moment of MOMENTS) {
      await makeFifo(passwd);
      const { ctr } = this.#startExec(talker.id, STRAY);
      await this.#killRuntime(() => this.#runtime(shim, "exec"), passwd, moment, () => hasFile(this.#stray));
      await this.#assertFails(ctr, "exec");
      await this.#assertNoStray("exec", strays);
      for (const pid of strays()) Deno.kill(pid, "SIGKILL");
      for (const each of [passwd, this.#stray]) await Deno.remove(each).catch(() => {});
    }
  }

  /** Kills `runc create` of other containers: while it waits for its init, and when that waits for `runc start`. */
  async #killCreate(): Promise<void> {
    const { containerd, shared } = this.#world;
    const passwd = `${shared}/passwd`;
    const options = this.#world.options("--mount", `type=bind,src=${passwd},dst=/etc/passwd,options=rbind`);
    for (const moment of MOMENTS) {
      await makeFifo(passwd);
      const id = containerd.newId(`created-${moment}`);
      const ctr = this.#world.start(containerd.runArguments(id, STRAY, options));
      const isWaiting = () => this.#world.processesOf(id).some(hasClosedPipe);
      await this.#killRuntime(() => this.#runtime(this.#world.shimOf(id), "create"), passwd, moment, isWaiting);
      await this.#assertFails(ctr, "container");
      await this.#assertNoStray("container", () => this.#world.processesOf(id));
      if (await containerd.task(id)) this.#lose("that container's task stays");
      await containerd.must("container", "delete", id);

      const again = await containerd.run(["/bin/sh", "-c", "echo again; exit 3"], { ...this.#world.options(), id });
      this.#tell(`the same container again: ${again.code}, ${JSON.stringify(again.stdout || again.stderr)}`);
      if (again.code !== 3 || again.stdout !== "again\n") this.#lose("its name: it cannot be created again");
      // Whatever has failed before.
      await containerd.ctr("container", "delete", id);
    }
  }

  /** What is run where runc does not survive. */
  get #stray(): string {
    return `${this.#world.shared}/stray`;
  }

  /** The runc that a shim runs. */
  #runtime(shim: number, command: string): number {
    const found = descendants(shim).filter(({ comm, pid }) => comm === "runc" && argumentsOf(pid).includes(command));
    if (found.length !== 1) throw new Error(`There are ${found.length} runc ${command} below ${shim}`);
    return found[0]!.pid;
  }

  /**
   * Kills a runc whose process has to look up its user in a FIFO: there, or later, before it notices that it went on.
   */
  async #killRuntime(find: () => number, passwd: string, moment: Moment, isLater: () => boolean): Promise<void> {
    {
      // That opens when it is read.
      using _held = await Writer.open(passwd);
      const pid = find();
      if (moment === "early") return await this.#killProcess(pid);
      Deno.kill(pid, "SIGSTOP");
      await until("runc has stopped", () => processOf(pid)?.state === "T");
    }
    await until("its process has gone on", isLater);
    await this.#killProcess(find());
  }

  /** That what runc was killed for has failed is told, and no loss besides. */
  async #assertFails(ctr: Running, what: string): Promise<void> {
    const result = await atMost(ctr.result, NEVER_MS);
    this.#tell(`ctr ended with ${result?.code}: ${result?.stderr.trimEnd()}`);
    if (result === undefined) this.#lose(`that ${what}: nobody is told`);
    else if (result.code === 0) this.#lose(`that ${what}: it counts as a success`);
    else this.#lose(`that ${what}`);
    if (result === undefined) endCommand(ctr);
  }

  /** What runc was to start does not run without it. */
  async #assertNoStray(what: string, strays: () => number[]): Promise<void> {
    try {
      await until("no stray is left", () => strays().length === 0, STRAY_MS);
      this.#tell("no process is left");
    } catch {
      this.#tell(`left: ${strays().map((pid) => `${pid} (${argumentsOf(pid).join(" ")})`)}`);
      this.#lose(`that ${what}'s process stays`);
    }
  }

  /** Looks at a container that has ended. */
  async #assertEnd(talker: Talker, exec: Exec): Promise<void> {
    const { containerd } = this.#world;
    const log = containerd.log();
    this.#lose("the container" + (CLEANING.test(log) ? ": killed by containerd" : ""));
    this.#tell(CLEANING.exec(log)?.[0] ?? "containerd has not cleaned up");
    await this.#assertStatus(talker, KILLED);
    await this.#assertExec(exec, KILLED, "");
    if (this.#victim === "init") await this.#assertOutput(talker);
    await this.#assertEvents([[talker.id, talker.id, KILLED], [talker.id, exec.id, KILLED]]);
  }

  /** Looks at a container that goes on. */
  async #assertLife(talker: Talker, exec: Exec, talks: boolean): Promise<void> {
    const { containerd } = this.#world;
    if (this.#victim !== "containerd") await this.#release();
    const task = await containerd.task(talker.id);
    this.#tell(`containerd says ${JSON.stringify(task)}`);
    if (task?.pid !== talker.init || task?.status !== "RUNNING") this.#lose("what containerd knows of the container");
    await this.#assertEvents([[talker.id, exec.id, EXEC_STATUS]]);
    await this.#assertExec(exec, EXEC_STATUS, "bye\n");
    await this.#assertAnswers(talker.id, "further execs");

    const killed = await containerd.ctr("task", "kill", "--signal", "TERM", talker.id);
    this.#tell(`ctr task kill: ${killed.code} ${killed.stderr.trimEnd()}`);
    if (killed.code !== 0) {
      this.#lose("ctr task kill");
      if (isAlive(talker.init)) Deno.kill(talker.init, "SIGTERM");
    }
    await until("the container has ended", () => !isAlive(talker.init), NEVER_MS);
    await this.#assertStatus(talker, STATUS);
    if (talks) await this.#assertOutput(talker);
    else this.#lose("its output from then on");
    await this.#assertEvents([[talker.id, talker.id, STATUS]]);
  }

  async #assertOutput(talker: Talker): Promise<void> {
    const flaw = await talker.flaw(NEVER_MS);
    this.#tell(flaw ?? `all of ${talker.lines().length} lines have been read, in order`);
    if (flaw !== undefined) this.#lose(`some of its output`);
  }

  /** Whether a process can be run in a container. */
  async #assertAnswers(id: string, otherwise: string): Promise<void> {
    const { ctr } = this.#startExec(id, ["/bin/sh", "-c", "echo hello; exit 4"]);
    const result = await atMost(ctr.result, NEVER_MS);
    this.#tell(`an exec in ${id}: ${result?.code}, ${JSON.stringify(result?.stdout)} ${result?.stderr.trimEnd()}`);
    if (result?.code !== 4 || result.stdout !== "hello\n") this.#lose(otherwise);
  }

  /** How the exec has ended, as ctr has it: one that is waiting or, when that cannot be, one that asks. */
  async #assertExec(exec: Exec, right: number, output: string): Promise<void> {
    const asks = ["task", "delete", "--exec-id", exec.id, TALKER];
    const result = this.#victim === "containerd"
      ? await this.#world.containerd.ctr(...asks)
      : await atMost(exec.ctr.result, NEVER_MS);
    this.#assertResult("the exec's exit status", result, right);
    const isRead = this.#victim !== "containerd" && right !== KILLED;
    if (isRead && result?.stdout !== output) this.#lose("the exec's output");
  }

  /** How the container has ended, as ctr has it. */
  async #assertStatus(talker: Talker, right: number): Promise<void> {
    if (talker.waiting) return this.#assertResult("its exit status", await atMost(talker.waiting, NEVER_MS), right);
    const { containerd } = this.#world;
    await until("it has stopped", async () => (await containerd.task(TALKER))?.status === "STOPPED", NEVER_MS);
    const deleted = await containerd.ctr("task", "delete", TALKER);
    // It says that it has seen a status that is not 0.
    const code = Number(/exit code (\d+)/.exec(deleted.stderr)?.[1]);
    this.#assertResult("its exit status", { ...deleted, code, stderr: "" }, right);
  }

  #assertResult(what: string, result: Result | undefined, right: number): void {
    this.#tell(`${what}, by ctr: ${result?.code} ${result?.stderr.trimEnd()}`);
    if (result === undefined) this.#lose(`${what} (ctr waits for ever)`);
    else if (result.stderr.startsWith("ctr: ")) this.#lose(`${what} (ctr fails)`);
    else if (result.code !== right) this.#lose(`${what} (${result.code})`);
  }

  /** Whether containerd has told of exits: by container, process and status. */
  async #assertEvents(expected: readonly (readonly [string, string, number])[]): Promise<void> {
    for (const [container, id, status] of expected) {
      const what = container === id ? "its exit event" : "the exec's exit event";
      const find = () => this.#world.exits().filter((each) => each.container === container && each.id === id);
      // Only the exec ends while containerd is away.
      const missed = () => container === id ? 0 : this.#world.missedExits();
      await until("the exit is told", () => find().length > 0 || missed() > 0, NEVER_MS).catch(() => {});
      const found = find();
      this.#tell(`exit events of ${id}: ${JSON.stringify(found.map((each) => each.status))}`);
      if (found.length === 0) {
        this.#tell(`exit events that came too early to be followed: ${missed()}`);
        if (missed() === 0) this.#lose(what);
      } else if (found[0]!.status !== status) this.#lose(`${what}'s status (${found[0]!.status})`);
      else if (found.length > 1) this.#lose(`${what}: it comes ${found.length} times`);
    }
  }

  /** Ends what is there, and looks for what is left. */
  async #end(talker: string, bystander: string): Promise<void> {
    const { containerd } = this.#world;
    await until("its task is gone", async () => await containerd.task(talker) === undefined, NEVER_MS)
      .catch(() => this.#lose("ctr task delete"));
    const deleted = await containerd.ctr("container", "delete", talker);
    if (deleted.code !== 0) this.#lose("ctr container delete");

    if ((await containerd.task(bystander))?.status === "RUNNING") {
      await this.#assertAnswers(bystander, "execs in other containers");
      await containerd.end(bystander);
    } else {
      this.#lose("other containers");
      await containerd.ctr("container", "delete", bystander);
    }
    // Of a container that nobody waited for ctr leaves its FIFOs.
    await Deno.remove(containerd.fifos, { recursive: true }).catch(() => {});

    const left = await this.#world.leftovers();
    for (const each of left) this.#tell(`left: ${each}`);
    const kinds = [...new Set(left.map((each) => /^(\S+( state)?)/.exec(each)![1]))];
    if (kinds.length > 0) this.#lose(`left behind: ${kinds.join(", ")}`);
  }
}

/** Whether a process of a container is what {@linkcode STRAY} is, or is to be. */
function isStray(pid: number): boolean {
  const args = argumentsOf(pid);
  return args.includes("init") || args.some((each) => /stray|77777/.test(each));
}

/** Whether a `runc init` has told the runc that has started it that it is ready, by closing its end of their pipe. */
function hasClosedPipe(pid: number): boolean {
  const [, number] = /(?:^|\0)_LIBCONTAINER_INITPIPE=(\d+)/.exec(Deno.readTextFileSync(`/proc/${pid}/environ`)) ?? [];
  return number !== undefined && !descriptorsOf(pid).has(Number(number));
}

async function makeFifo(path: string): Promise<void> {
  await Deno.remove(path).catch(() => {});
  await must(["mkfifo", path]);
}

function hasFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}
