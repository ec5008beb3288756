/** A containerd of a test's own, and what the tests do with it. */

import { type CgroupVersion, showCgroups2, thaw, withCgroups } from "./cgroups.ts";
import { must, type Result, run, type Running, start } from "./command.ts";
import { CONTAINERD, CONTAINERD_VERSION, CTR, type Form, newPlace, SHIM } from "./env.ts";
import { withEvidence } from "./evidence.ts";
import * as leftovers from "./leftovers.ts";
import { argumentsOf, isAlive, mountsBelow, processes } from "./proc.ts";
import { makeRootfs } from "./rootfs.ts";
import { makeSpec } from "./spec.ts";
import { PATIENCE_MS, until } from "./until.ts";

/** The runtime that starts our shim, in containerd's words. */
export const RUNTIME = "io.containerd.runtime.v1.linux";

/** What no test needs, and what takes time at start or wants modules of the kernel. */
const DISABLED_PLUGINS = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  ...["aufs", "btrfs", "devmapper", "zfs"].map((each) => `io.containerd.snapshotter.v1.${each}`),
];

/** What a containerd that has everything in one folder is told in its config.toml; `more` follows what it is told of v1. */
export function daemonConfig({ folder, address, shim, more = "" }: {
  readonly folder: string;
  readonly address: string;
  readonly shim: string;
  readonly more?: string;
}): string {
  return `version = 2
root = "${folder}/root"
state = "${folder}/state"
disabled_plugins = ${JSON.stringify(DISABLED_PLUGINS)}
[grpc]
address = "${address}"
[plugins."${RUNTIME}"]
shim = "${shim}"
${more}`;
}

/** Options of {@linkcode withContainerd}. */
export interface ContainerdOptions {
  /** The shim that it starts; {@linkcode SHIM} unless given. */
  readonly shim?: Form;
  /** Whether shims log to the daemon's stderr, and more. On unless given. */
  readonly shimDebug?: boolean;
  /** The OCI runtime that shims are told to use; runc unless given. */
  readonly runtime?: string;
  /** The version of cgroups that the daemon finds alone; as the machine has them, unless given. */
  readonly cgroups?: CgroupVersion;
  /** Whether the daemon's log has everything that it can tell. */
  readonly trace?: boolean;
  /** A folder in which it, and its shims, look for programs first. */
  readonly programs?: string;
  /** What is put before the daemon's command line, and runs it. */
  readonly prefix?: readonly string[];
}

/** Options of {@linkcode Containerd.runArguments}. */
export interface RunOptions {
  /** Flags of `ctr run` besides those that each container here has. */
  readonly flags?: readonly string[];
  /** An image, instead of a folder as the root filesystem. */
  readonly image?: string;
}

/**
 * Runs `test` with a containerd of its own, with its own folders, socket and namespace. When the test is over, nothing of
 * its containers may be left; and whatever is left, also by a test that failed, is removed.
 */
export async function withContainerd(
  test: (containerd: Containerd) => Promise<void>,
  options: ContainerdOptions = {},
): Promise<void> {
  const containerd = new Containerd(options);
  try {
    await makeRootfs(containerd.rootfs);
    await containerd.start();
    await test(containerd);
    await containerd.expectNothingLeft();
  } catch (error) {
    throw withEvidence(error, `The log of ${containerd.folder}'s containerd ends`, lastOf(containerd.log()));
  } finally {
    await containerd.remove();
  }
}

/** How much of a daemon's log a failed test shows, in lines. */
const LOG_SHOWN = 20;

/** What a failed test shows of a daemon's log. */
export function lastOf(log: string): string {
  return log.split("\n").filter((line) => !line.includes("loading plugin")).slice(-LOG_SHOWN).join("\n");
}

/** A containerd that only one test uses. */
export class Containerd {
  /** Everything of it is in here. */
  readonly folder: string;
  readonly namespace: string;
  /** Its socket. */
  readonly address: string;
  /** A root filesystem of busybox. */
  readonly rootfs: string;
  readonly #shim: Form;
  readonly #runtime: string;
  readonly #cgroups: CgroupVersion | undefined;
  readonly #shown = new AsyncDisposableStack();
  readonly #shimDebug: boolean;
  readonly #level: "trace" | "info";
  readonly #programs: string | undefined;
  readonly #before: readonly string[];
  readonly #ids: string[] = [];
  #execs = 0;
  #daemon: Deno.ChildProcess | undefined;

  constructor(options: ContainerdOptions = {}) {
    ({ folder: this.folder, namespace: this.namespace } = newPlace());
    this.address = `${this.folder}/c.sock`;
    this.rootfs = `${this.folder}/rootfs`;
    this.#shim = options.shim ?? SHIM;
    this.#runtime = options.runtime ?? "runc";
    this.#cgroups = options.cgroups;
    this.#shimDebug = options.shimDebug ?? true;
    this.#level = options.trace ? "trace" : "info";
    this.#programs = options.programs;
    this.#before = options.prefix ?? [];
  }

  /** Where containerd makes the bundles of its containers. */
  get bundles(): string {
    return `${this.folder}/state/${RUNTIME}/${this.namespace}`;
  }

  /** Where containerd makes the working directories of its shims. */
  get workdirs(): string {
    return `${this.folder}/root/${RUNTIME}/${this.namespace}`;
  }

  get #logFile(): string {
    return `${this.folder}/log`;
  }

  /** All that it, and with shimDebug also its shims, have logged. */
  log(): string {
    try {
      return Deno.readTextFileSync(this.#logFile);
    } catch {
      return "";
    }
  }

  /** The daemon's process. */
  get pid(): number {
    if (!this.#daemon) throw new Error("containerd has not been started");
    return this.#daemon.pid;
  }

  /** What the daemon's command line begins with. */
  async #prefix(): Promise<string[]> {
    if (!this.#cgroups) return [];
    if (this.#cgroups === 1) return withCgroups(1);
    this.#shown.use(await showCgroups2(`${this.folder}-cgroups`));
    // Its v1 runtime takes no container on a machine where no hierarchy of version 1 is mounted anywhere; which one it
    // is, and where, does not matter to it.
    const anywhere = `${this.folder}/cgroup1`;
    await Deno.mkdir(anywhere, { recursive: true });
    return withCgroups(2, [`mount -t cgroup -o none,name=systemd none '${anywhere}'`]);
  }

  /** Starts the daemon, again if it has ended, and waits until it answers. */
  async start(): Promise<void> {
    const config = `${this.folder}/config.toml`;
    await Deno.writeTextFile(
      config,
      daemonConfig({
        folder: this.folder,
        address: this.address,
        shim: this.#shim.path,
        more: `runtime = "${this.#runtime}"
shim_debug = ${this.#shimDebug}
[debug]
level = "${this.#level}"
`,
      }),
    );
    const command = ["sh", "-c", `exec '${CONTAINERD}' -c '${config}' >>'${this.#logFile}' 2>&1`];
    const [program, ...args] = [...this.#before, ...await this.#prefix(), ...command] as [string, ...string[]];
    const daemon = new Deno.Command(program, {
      args,
      stdin: "null",
      env: {
        // Where it unpacks checkpoints, and leaves them.
        XDG_RUNTIME_DIR: this.folder,
        ...(this.#programs === undefined ? {} : { PATH: `${this.#programs}:${Deno.env.get("PATH")}` }),
      },
    }).spawn();
    this.#daemon = daemon;
    let ended = false;
    daemon.status.then(() => ended = true);
    await until("containerd takes connections", async () => {
      if (ended) throw new Error(`containerd has ended: ${this.log()}`);
      // It serves this socket last.
      (await Deno.connect({ transport: "unix", path: this.address })).close();
      return true;
    });
    const versions = [...(await this.must("version")).matchAll(/^\s*Version:\s*(\S+)$/gm)].map(([, version]) =>
      version!
    );
    if (versions.length !== 2 || !versions.every((each) => each.startsWith(CONTAINERD_VERSION))) {
      throw new Error(`ctr and containerd are of versions ${versions.join(" and ")}, not of ${CONTAINERD_VERSION}`);
    }
  }

  /** Ends the daemon, and waits for its end. Its shims live on. */
  async stop(signal: Deno.Signal): Promise<void> {
    const daemon = this.#daemon;
    if (!daemon) return;
    try {
      daemon.kill(signal);
    } catch {
      // It has ended by itself.
    }
    await daemon.status;
    this.#daemon = undefined;
  }

  #arguments(args: readonly string[]): string[] {
    return [CTR, "--address", this.address, "--namespace", this.namespace, ...args];
  }

  /** Runs ctr. */
  ctr(...args: string[]): Promise<Result> {
    return run(this.#arguments(args));
  }

  /** Starts ctr, which goes on until it is ended. */
  startCtr(...args: string[]): Running {
    return start(this.#arguments(args));
  }

  /** Runs ctr, which must succeed, and gives what it printed. */
  must(...args: string[]): Promise<string> {
    return must(this.#arguments(args));
  }

  /** A name for a container that no other has. */
  newId(name = `c${this.#ids.length + 1}`): string {
    this.#ids.push(name);
    return name;
  }

  /** `ctr run` of a container. */
  runArguments(id: string, command: readonly string[], options: RunOptions = {}): string[] {
    const flags = ["--runtime", RUNTIME, "--fifo-dir", this.fifos, ...options.flags ?? []];
    if (this.#cgroups) {
      if (options.image !== undefined) throw new Error("ctr takes no image together with a specification");
      return this.#arguments(["run", ...flags, "--config", this.#makeConfig(id, command), id]);
    }
    const root = options.image === undefined ? ["--rootfs", this.rootfs] : [options.image];
    return this.#arguments(["run", ...flags, ...root, id, ...command]);
  }

  /**
   * A container's specification instead of ctr's own. That names resources, for which version 2 has no controllers as
   * long as version 1 has them; and, from ctr 1.7, a version of the OCI specification that crun 1.8 does not know.
   */
  #makeConfig(id: string, args: readonly string[]): string {
    const path = `${this.folder}/${id}.json`;
    const spec = makeSpec({ args }, { cgroup: `/${this.namespace}/${id}`, rootfs: this.rootfs });
    Deno.writeTextFileSync(path, JSON.stringify(spec));
    return path;
  }

  /** Where `ctr run` makes its FIFOs. */
  get fifos(): string {
    return `${this.folder}/fifo`;
  }

  /** Runs a container to its end, with `ctr run --rm`. */
  run(
    command: readonly string[],
    options: RunOptions & { readonly stdin?: string; readonly id?: string } = {},
  ): Promise<Result> {
    const flags = ["--rm", ...options.flags ?? []];
    const args = this.runArguments(options.id ?? this.newId(), command, { ...options, flags });
    return run(args, { stdin: options.stdin ?? "" });
  }

  /** Starts a container with `ctr run`, whose input the caller writes. */
  startRun(
    id: string,
    command: readonly string[],
    options: RunOptions & { readonly patienceMs?: number } = {},
  ): Running {
    return start(this.runArguments(id, command, options), { patienceMs: options.patienceMs ?? PATIENCE_MS });
  }

  /** Starts a container that stays when ctr has ended; without any streams, unless flags for them are given. */
  async runDetached(
    id: string,
    command: readonly string[],
    options: RunOptions & { readonly io?: readonly string[] } = {},
  ): Promise<void> {
    const flags = ["--detach", ...options.io ?? ["--null-io"], ...options.flags ?? []];
    await must(this.runArguments(id, command, { ...options, flags }));
  }

  /**
   * Runs another process in a container, with `ctr task exec`, which must succeed. When it detaches, ctr leaves its FIFOs:
   * they are not where those of `ctr run` are.
   */
  exec(id: string, flags: readonly string[], command: readonly string[]): Promise<string> {
    return must(this.execArguments(id, flags, command));
  }

  /** `ctr task exec` in a container. */
  execArguments(id: string, flags: readonly string[], command: readonly string[]): string[] {
    const names = ["--exec-id", `e${++this.#execs}`, "--fifo-dir", `${this.folder}/exec-fifo`];
    return this.#arguments(["task", "exec", ...names, ...flags, id, ...command]);
  }

  /** What `ctr task ls` says of a container; undefined when it is not listed. */
  async task(id: string): Promise<{ readonly pid: number; readonly status: string } | undefined> {
    for (const line of (await this.must("task", "ls")).split("\n")) {
      const [task, pid, status] = line.split(/\s+/);
      if (task === id) return { pid: Number(pid), status: status! };
    }
    return undefined;
  }

  /** Waits until a container runs, and gives its first process. */
  async running(id: string): Promise<number> {
    return await until(`${id} runs`, async () => {
      const task = await this.task(id);
      return task?.status === "RUNNING" && task.pid;
    });
  }

  /** Kills a container's task, waits until it has stopped, and deletes it and the container. */
  async end(id: string): Promise<void> {
    await this.must("task", "kill", "--signal", "9", id);
    await until(`${id} has stopped`, async () => (await this.task(id))?.status === "STOPPED");
    await this.must("task", "delete", id);
    await this.must("container", "delete", id);
  }

  /** The shims that it has started, by what is in their command lines. */
  shims(): number[] {
    return processes().map((each) => each.pid).filter((pid) => {
      const args = argumentsOf(pid);
      return args[args.indexOf("-address") + 1] === this.address && args.includes("-workdir");
    });
  }

  /** The shim of a container. */
  shimOf(id: string): number {
    const found = this.shims().filter((pid) => argumentsOf(pid).includes(`${this.workdirs}/${id}`));
    if (found.length !== 1) throw new Error(`${id} has ${found.length} shims: ${found}`);
    return found[0]!;
  }

  /** What containers have left behind. */
  async leftovers(): Promise<string[]> {
    const sockets = [];
    for (const id of this.#ids) {
      const socket = await leftovers.shimSocket(this.address, this.namespace, id);
      if (await exists(socket)) sockets.push(`socket ${socket} of ${id}`);
    }
    const { folder } = this;
    return [
      ...this.shims().map((pid) => `shim ${pid}: ${argumentsOf(pid).join(" ")}`),
      ...leftovers.paths(this.bundles).map((each) => `bundle ${each} (${leftovers.names(each).join(", ")})`),
      ...leftovers.paths(this.workdirs).map((each) => `working directory ${each}`),
      ...leftovers.paths(this.fifos).map((each) => `FIFOs ${each}`),
      ...[...mountsBelow(`${folder}/state`), ...mountsBelow(`${folder}/root`)].map((each) => `mount ${each}`),
      ...sockets,
      ...leftovers.namespaceLeftovers(this.namespace),
    ];
  }

  /**
   * Fails when containers have left something. What is about to go, such as a shim that has been told to end, may do so.
   */
  async expectNothingLeft(): Promise<void> {
    await leftovers.expectNone(() => this.leftovers());
  }

  /** Ends all that belongs to this containerd, and removes all that it has made. */
  async remove(): Promise<void> {
    await this.stop("SIGKILL");
    // Shims first: each would tell of its container's end and clean up, which is no longer wanted.
    for (const pid of this.shims()) Deno.kill(pid, "SIGKILL");
    await until("all containers have ended", () => {
      const left = [...this.shims(), ...leftovers.containerProcesses(this.namespace)].filter(isAlive);
      for (const pid of left) Deno.kill(pid, "SIGKILL");
      thaw(this.namespace);
      return left.length === 0;
    });
    await leftovers.removeNamespace(this.namespace);
    for (const id of this.#ids) {
      const socket = await leftovers.shimSocket(this.address, this.namespace, id);
      await Deno.remove(socket).catch(() => {});
    }
    await this.#shown.disposeAsync();
    await leftovers.removeFolder(this.folder);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch {
    return false;
  }
}
