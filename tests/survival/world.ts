/** What a container is observed in: a machine, a containerd on it that starts one of the shims, and what it is told. */

import { messageOf } from "../../lib/errors.ts";
import { type Running, start } from "../e2e/command.ts";
import { CTR } from "../e2e/env.ts";
import { Containerd, RUNTIME } from "../e2e/harness.ts";
import { emptyFolder, Machine } from "../e2e/host.ts";
import {
  cgroupsOf,
  containerCgroups,
  containerProcesses,
  LEAVING_MS,
  paths,
  removeNamespace,
} from "../e2e/leftovers.ts";
import { argumentsOf, isAlive, parseMountInfo, processes } from "../e2e/proc.ts";
import { makeImage, makeRootfs } from "../e2e/rootfs.ts";
import { until } from "../e2e/until.ts";
import type { Subject } from "./subjects.ts";

/** What all containers here are made of, so that the shims have something to mount. */
const IMAGE = "localhost/busybox:survival";
const SNAPSHOTTER = "overlayfs";

/** The name of containerd's folders for runtime v2. */
const V2_FOLDER = "io.containerd.runtime.v2.task";

/** How much of containerd's log is shown when something cannot be observed, in lines. */
const LOG_SHOWN = 20;

/** How long a command may go on that a scene starts: longer than any scene, in ms. */
const SCENE_MS = 180_000;

/** Set on the namespace again and again, until the news of it come: then events are followed. */
const PROBE_LABEL = "probe";

/** An exit that containerd has told its subscribers of. */
export interface Exit {
  /** The container's name for init, an exec's own for an exec. */
  readonly id: string;
  readonly container: string;
  readonly status: number;
}

/** A containerd on a machine of its own, and a shim's containers there. */
export class World {
  readonly subject: Subject;
  readonly machine: Machine;
  readonly containerd: Containerd;
  /** A folder that all containers may have, as /shared. */
  readonly shared: string;
  readonly #started = new Set<Running>();
  readonly #followers: Running[] = [];
  #probes = 0;
  /** How much containerd had logged when it was started again, and when its events were followed from then on. */
  #restarted = 0;
  #followed = 0;

  private constructor(subject: Subject, machine: Machine) {
    this.subject = subject;
    this.machine = machine;
    // Its log says what it is told of; that of the shims takes its own ways, which are not those of production.
    const options = { shim: subject.form, prefix: machine.prefix, trace: true, shimDebug: false };
    this.containerd = new Containerd(options);
    this.shared = `${this.containerd.folder}/shared`;
  }

  /** Runs `test` in a new world, of which nothing is left afterwards, whatever the shim has left. */
  static async with<T>(subject: Subject, test: (world: World) => Promise<T>): Promise<T> {
    const machine = await Machine.start(emptyFolder());
    try {
      const world = new World(subject, machine);
      try {
        await world.#start();
        return await test(world);
      } catch (error) {
        const log = world.containerd.log().split("\n").filter((line) => !line.includes("loading plugin"));
        console.error(`containerd's log ends:\n${log.slice(-LOG_SHOWN).join("\n")}`);
        throw error;
      } finally {
        await world.#remove();
      }
    } finally {
      await machine.remove();
    }
  }

  async #start(): Promise<void> {
    const { containerd } = this;
    await makeRootfs(containerd.rootfs);
    await Deno.mkdir(this.shared);
    await Deno.mkdir(`${containerd.folder}/image`);
    const archive = await makeImage(containerd.rootfs, `${containerd.folder}/image`, IMAGE);
    await containerd.start();
    await containerd.must("namespaces", "create", containerd.namespace);
    await containerd.must("images", "import", "--snapshotter", SNAPSHOTTER, archive);
    await this.#follow();
  }

  async #remove(): Promise<void> {
    // First: it would start shims of v2 to clean up.
    await this.containerd.stop("SIGKILL");
    for (const each of this.#started) endCommand(each);
    await until("the shims of v2 have ended", () => {
      const left = this.#v2Shims().filter(isAlive);
      for (const pid of left) Deno.kill(pid, "SIGKILL");
      return left.length === 0;
    });
    await this.containerd.remove();
    // What was in them may still have been on its way out.
    await until("its cgroups are gone", async () => {
      await removeNamespace(this.containerd.namespace);
      return cgroupsOf(this.containerd.namespace).length === 0;
    });
  }

  /** Starts containerd again. */
  async restart(): Promise<void> {
    this.#restarted = this.containerd.log().length;
    await this.containerd.start();
    await this.#follow();
    this.#followed = this.containerd.log().length;
  }

  /** Begins to take containerd's events. */
  async #follow(): Promise<void> {
    const { containerd } = this;
    const names = ["--address", containerd.address, "--namespace", containerd.namespace];
    const follower = this.start([CTR, ...names, "events"]);
    this.#followers.push(follower);
    await until("events are followed", async () => {
      await containerd.must("namespaces", "label", containerd.namespace, `${PROBE_LABEL}=${++this.#probes}`);
      return follower.stdoutSoFar().includes(" /namespaces/update ");
    });
  }

  /** Starts a command that may go on as long as the scene does. */
  start(args: readonly string[]): Running {
    const running = start(args, { patienceMs: SCENE_MS });
    this.#started.add(running);
    const ended = () => this.#started.delete(running);
    running.result.then(ended, ended);
    return running;
  }

  /** The events of a topic that containerd has told of, each a line. */
  #events(topic: string): string[] {
    const lines = this.#followers.flatMap((each) => each.stdoutSoFar().split("\n").slice(0, -1));
    return lines.filter((line) => line.includes(` ${topic} `));
  }

  /** Whether containerd has told that an exec has been started. */
  hasStarted(exec: string): boolean {
    return this.#events("/tasks/exec-started").some((line) => line.includes(`"exec_id":"${exec}"`));
  }

  /** All exits that containerd has told of. */
  exits(): Exit[] {
    return this.#events("/tasks/exit").map((line) => {
      const { id, container_id, exit_status = 0 } = JSON.parse(line.slice(line.indexOf("{")));
      return { id, container: container_id, status: exit_status };
    });
  }

  /** How many exits containerd has been told of after its second start, when nobody followed its events as yet. */
  missedExits(): number {
    const log = this.containerd.log().slice(this.#restarted, this.#followed);
    // Forwarded by ttrpc, published by the command.
    const told = new RegExp(`"event (forwarded|published)" ns=${this.containerd.namespace} topic=/tasks/exit `, "g");
    return log.match(told)?.length ?? 0;
  }

  /** Options of `ctr run`, for {@linkcode Containerd.runArguments} and its like. */
  options(...flags: string[]): { readonly image: string; readonly flags: readonly string[] } {
    const mount = `type=bind,src=${this.shared},dst=/shared,options=rbind:rw`;
    // Of two runtimes ctr takes the second.
    const own = ["--runtime", this.subject.runtime, "--snapshotter", SNAPSHOTTER, "--mount", mount];
    return { image: IMAGE, flags: [...own, ...flags] };
  }

  /** What containerd knows as the shim of a container. */
  shimOf(id: string): number {
    if (!this.#isV2) return this.containerd.shimOf(id);
    const found = this.#v2Shims().filter((pid) => {
      const args = argumentsOf(pid);
      // Others are commands that start a shim, or clean up after one.
      return args[args.indexOf("-id") + 1] === id && !["start", "delete"].includes(args.at(-1)!);
    });
    if (found.length !== 1) throw new Error(`${id} has ${found.length} shims: ${found}`);
    return found[0]!;
  }

  get #isV2(): boolean {
    return this.subject.runtime !== RUNTIME;
  }

  #v2Shims(): number[] {
    return processes().map(({ pid }) => pid).filter((pid) => {
      const args = argumentsOf(pid);
      return /\/containerd-shim-runc-v2$/.test(args[0] ?? "") &&
        args[args.indexOf("-address") + 1] === this.containerd.address;
    });
  }

  /** The processes in a container's cgroups. */
  processesOf(id: string): number[] {
    const cgroups = containerCgroups(this.containerd.namespace).filter((each) => each.endsWith(`/${id}`));
    return [...new Set(cgroups.flatMap(pidsIn))].filter(isAlive);
  }

  /** What is left of containers that are all gone, once that is no longer changing; containerd must run. */
  async leftovers(): Promise<string[]> {
    let left: string[] = [];
    try {
      await until("nothing is left", async () => (left = await this.#left()).length === 0, LEAVING_MS);
    } catch (error) {
      if (left.length === 0) throw error;
    }
    return left;
  }

  async #left(): Promise<string[]> {
    const { folder, namespace, pid } = this.containerd;
    const mounts = parseMountInfo(await Deno.readTextFile(`/proc/${pid}/mountinfo`)).map(({ path }) => path);
    const ofV2 = [`${folder}/state/${V2_FOLDER}/${namespace}`, `${folder}/root/${V2_FOLDER}/${namespace}`];
    return [
      ...await this.containerd.leftovers(),
      ...this.#v2Shims().map((pid) => `shim ${pid}: ${argumentsOf(pid).join(" ")}`),
      ...ofV2.flatMap(paths).map((each) => `bundle ${each}`),
      ...mounts.filter((each) => each.startsWith(`${folder}/`)).map((each) => `mount ${each}`),
      ...containerProcesses(namespace).map((pid) => `process ${pid}: ${argumentsOf(pid).join(" ")}`),
    ];
  }
}

function pidsIn(cgroup: string): number[] {
  try {
    return Deno.readTextFileSync(`${cgroup}/cgroup.procs`).split("\n").filter(Boolean).map(Number);
  } catch {
    return []; // gone
  }
}

/** Ends a command, if it has not ended. */
export function endCommand(running: Running): void {
  try {
    running.kill("SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

/** What a promise gives; undefined when it has given nothing in so many ms, or nothing good. */
export async function atMost<T>(promise: Promise<T>, patienceMs: number): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => late.resolve(undefined), patienceMs);
  try {
    return await Promise.race([promise, late.promise]);
  } catch (error) {
    console.error(messageOf(error));
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}
