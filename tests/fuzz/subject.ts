/** A shim with a container that runs, what is well with it, and what it must not lose, gain or leave. */

import { assert, assertEquals } from "@std/assert";
import { must } from "../e2e/command.ts";
import { IS_OURS } from "../e2e/env.ts";
import { assertOpenFiles, emptyFolder, field, type Machine, openFiles, withMachine } from "../e2e/host.ts";
import { zombies } from "../e2e/leftovers.ts";
import { numbered } from "../e2e/numbered.ts";
import { Printed } from "../e2e/printing.ts";
import { descriptorsOf, isAlive, isHolder } from "../e2e/proc.ts";
import { askPid, type Shim, Status, withShim } from "../e2e/shim.ts";
import { pause, until } from "../e2e/until.ts";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { FIFOS, LOG_FILE, PLACE } from "./requests.ts";

/** Runs `use` with a shim whose container prints for as long as nobody ends it. */
export function withSubject(use: (subject: Subject) => Promise<void>): Promise<void> {
  const setup = `${emptyFolder()} && mount -t tmpfs none ${PLACE} && mkfifo ${FIFOS.join(" ")} && touch ${LOG_FILE}`;
  const options = { args: ["sh", "-c", numbered("/tmp/end", 0)] };
  return withMachine(
    (machine) =>
      withShim({ ...options, prefix: machine.prefix }, async (shim) => {
        await use(await Subject.start(shim, machine));
      }),
    setup,
  );
}

/** How many KiB of memory a run may leave behind: 1 MB. */
const GROWTH_KIB = 1024;

/** How long what is left behind may take to go: what has been called may be under way, and memory is given back later. */
const SETTLING_MS = 20_000;

/** How long memory may be waited for that is given back when nothing is done any more, in ms. */
const QUIET_MS = 1500;

/** Names of files that containerd has in a bundle, and what there may be in it besides, which comes and goes. */
const OF_CONTAINERD = ["address", "shim.pid"];
const COMING_AND_GOING = ["log.json"];

/** What a shim uses at a time. */
export interface Usage {
  /** Private memory that has been written to, and files in memory, of all its processes, in KiB. */
  readonly memory: number;
  /** What each of its processes has open. */
  readonly files: ReadonlyMap<number, Readonly<Record<string, number>>>;
  /** Files where it may make some, and in folders where it may not. */
  readonly names: readonly string[];
}

/** What the files in memory take that a process has open, in KiB. */
function memoryFiles(pid: number): number {
  return [...descriptorsOf(pid)].filter(([_, file]) => file.startsWith("/memfd:"))
    .map(([fd]) => (Deno.statSync(`/proc/${pid}/fd/${fd}`).blocks ?? 0) / 2)
    .reduce((sum, each) => sum + each, 0);
}

/** The shim that cases are sent to. */
export class Subject {
  readonly shim: Shim;
  readonly #machine: Machine;
  readonly #init: number;
  readonly #printed: Printed;
  /** Its processes: the one that containerd knows, and its host. */
  readonly #pids: readonly number[];
  #checks = 0;
  /** How many execs cases have left, which have been deleted. */
  execsLeft = 0;

  private constructor(shim: Shim, machine: Machine, init: number, printed: Printed) {
    this.shim = shim;
    this.#machine = machine;
    this.#init = init;
    this.#printed = printed;
    this.#pids = [shim.pid, ...IS_OURS && isHolder(shim.pid) ? [machine.host().pid] : []];
  }

  static async start(shim: Shim, machine: Machine): Promise<Subject> {
    for (const each of OF_CONTAINERD) await Deno.writeTextFile(`${shim.bundle}/${each}`, each);
    const { stdout, stderr } = await shim.fifos();
    const [pid, ...readers] = await Promise.all([
      shim.create({ stdout, stderr }),
      shim.read(stdout),
      shim.read(stderr),
    ]);
    await shim.startProcess();
    return new Subject(shim, machine, pid, new Printed(...readers));
  }

  /** Whether all its processes are there. */
  get isAlive(): boolean {
    return this.#pids.every(isAlive);
  }

  /** How its processes are called. */
  get description(): string {
    return this.#pids.length > 1 ? "a holder and its host" : "a shim by itself";
  }

  /** Fails unless a client that behaves well finds, on a new connection, all as it should be. */
  async expectWell(): Promise<void> {
    const { shim } = this;
    shim.disconnect();
    assertEquals(await shim.shimPid(), shim.pid);
    assert(this.isAlive, "a process of the shim's has ended");
    const { status, pid, exitStatus } = await shim.state();
    assertEquals({ status, pid, exitStatus }, { status: Status.RUNNING, pid: this.#init, exitStatus: 0 });
    await this.#printed.goesOn();
    const number = ++this.#checks;
    const [id, code] = [`well-behaved-${number}`, number % 200];
    await shim.exec(id, ["sh", "-c", `exit ${code}`]);
    const execPid = await shim.startProcess(id);
    const exit = await shim.wait(id);
    assertEquals(exit.status, code);
    assertEquals(await shim.deleteProcess(id), { pid: execPid, ...exit });
    shim.disconnect();
  }

  /** Deletes those of some execs that there are, which cases have made. */
  async deleteExecs(ids: Iterable<string>): Promise<void> {
    const { shim } = this;
    shim.disconnect();
    for (const id of ids) {
      try {
        await this.#deleteExec(id);
        this.execsLeft++;
      } catch (error) {
        if (!(error instanceof StatusError && error.code === Code.NOT_FOUND)) throw error;
      }
    }
    shim.disconnect();
  }

  /** @throws {StatusError} NOT_FOUND when there is none */
  async #deleteExec(id: string): Promise<void> {
    const { shim } = this;
    try {
      await shim.deleteProcess(id);
    } catch (error) {
      if (!(error instanceof StatusError && error.code === Code.FAILED_PRECONDITION)) throw error;
      await shim.kill(9, { id }).catch((error) => {
        // It has just ended, or what has been asked for by then is still to be started.
        if (!(error instanceof StatusError)) throw error;
      });
      await until(`exec ${id} can be deleted`, () => shim.deleteProcess(id));
    }
  }

  /** What it uses now. */
  usage(): Usage {
    return {
      memory: this.#memory(),
      files: new Map(this.#pids.map((pid) => [pid, openFiles(pid)])),
      names: this.#names(),
    };
  }

  #memory(): number {
    // Not Private_Dirty: an executable that has just been made is that too, until it has been written to the disk.
    return this.#pids.reduce((sum, pid) => sum + field(pid, "smaps_rollup", "Anonymous") + memoryFiles(pid), 0);
  }

  #names(): string[] {
    const { shim } = this;
    const { folder, root } = this.#machine;
    const folders = [shim.bundle, shim.workdir, shim.folder, folder, root, `${root}${PLACE}`];
    return folders.flatMap((folder) =>
      [...Deno.readDirSync(folder)].map(({ name }) => `${folder}/${name}`).filter((path) =>
        !COMING_AND_GOING.some((each) => path === `${shim.bundle}/${each}`)
      )
    ).toSorted();
  }

  /**
   * Has memory be given back as after any work. Twice: V8's table of strings has its size mended when the next string is put
   * into it, and the large one is freed by the collection after that.
   */
  async rest(): Promise<void> {
    for (let i = 0; i < 2; i++) {
      {
        using client = await this.shim.connect();
        await askPid(client);
      }
      await pause(QUIET_MS);
    }
  }

  /**
   * Fails unless it uses no more than it did, and has left nothing.
   *
   * @param isLong whether memory has had time to be used as much as it ever is
   */
  async expectNoMoreThan(before: Usage, isLong: boolean): Promise<void> {
    for (const [pid, files] of before.files) await assertOpenFiles(pid, files);
    await until("nothing is left", () => {
      assertEquals(this.#names(), before.names);
      assertEquals(zombies(), []);
      return true;
    }, SETTLING_MS);
    for (const each of OF_CONTAINERD) {
      assertEquals(await Deno.readTextFile(`${this.shim.bundle}/${each}`), each, `what containerd has in ${each}`);
    }
    assertEquals(new Set((await this.shim.pids()).values()), new Set([this.shim.id, undefined]), "ids of processes");
    if (!isLong) return;
    let memory = NaN;
    const isGivenBack = async () => {
      await this.rest();
      memory = this.#memory();
      return memory <= before.memory + GROWTH_KIB;
    };
    await until("memory is given back", isGivenBack, SETTLING_MS).catch((cause) => {
      throw new Error(`private memory has grown from ${before.memory} KiB to ${memory} KiB`, { cause });
    });
  }

  /** Has the container end by itself. */
  async end(): Promise<number> {
    await must(["touch", `${this.shim.rootfs}/tmp/end`]);
    const lines = await this.#printed.ended();
    assertEquals((await this.shim.wait()).status, 0);
    await this.shim.delete();
    return lines;
  }
}
