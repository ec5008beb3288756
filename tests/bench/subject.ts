/** A shim that is measured: started as containerd does it, with the clock running. */

import * as fds from "../../ffi/fd.ts";
import { ensureFifo } from "../../ffi/pipe.ts";
import { listen } from "../../lib/standalone/make.ts";
import { Client } from "../../lib/ttrpc/client.ts";
import { CONTAINERD } from "../e2e/env.ts";
import { isAlive } from "../e2e/proc.ts";
import { type Attached, Shim } from "../e2e/shim.ts";
import { makeSpec, type SpecOptions } from "../e2e/spec.ts";
import { pause, within } from "../e2e/until.ts";
import { ALONE, type Child, HOSTED, spawn } from "./children.ts";
import type { Daemon } from "./daemon.ts";
import { isInHost, onlyHost } from "./hosts.ts";
import { cpuTimeOf, type ThreadCounts } from "./usage.ts";

/** Mode of FIFOs, as containerd makes them. */
const FIFO_MODE = 0o700;

/** Where programs are. */
const PROGRAMS = { runc: "/usr/sbin/runc", true: "/bin/true" };

/** The paths of what a process has for stdio. */
export type Paths = Attached["fifos"];

/** What a shim is started from, and with. */
export interface SubjectOptions {
  /** Of the executable. */
  readonly path: string;
  /** The container's, which is everybody's. */
  readonly rootfs: string;
  /** Takes the shim's events. */
  readonly daemon: Daemon;
  /** Whether it is one that joins a host; others are by themselves. */
  readonly isHosted: boolean;
}

/** A shim of one round. Unlike a test's it is this process's own child, and containerd itself takes its events. */
export class Subject extends Shim {
  override readonly rootfs: string;
  /** The containerd that takes its events, and has none of its containers. */
  readonly daemon: Daemon;
  readonly #isHosted: boolean;
  #host: number | undefined;
  #child: Child | undefined;
  #client: Client | undefined;
  readonly #held: number[] = [];

  constructor({ path, rootfs, daemon, isHosted }: SubjectOptions) {
    super({ shim: { name: "shim", path }, events: "none" });
    this.rootfs = rootfs;
    this.daemon = daemon;
    this.#isHosted = isHosted;
  }

  /** With the daemon's address, and the program that publishes to it. */
  override get arguments(): string[] {
    const instead = new Map([[this.events.address, this.daemon.address], [this.events.command, CONTAINERD]]);
    return super.arguments.map((each) => instead.get(each) ?? each);
  }

  /** Where others find the shim, once it has been started. */
  get publicSocket(): string {
    return `${this.folder}/public.sock`;
  }

  /** Makes what containerd makes before it starts a shim. */
  async prepare(options: SpecOptions = {}): Promise<void> {
    for (const each of [this.bundle, this.workdir]) await Deno.mkdir(each);
    const spec = makeSpec(options, { cgroup: `/${this.namespace}/${this.id}`, rootfs: this.rootfs });
    await Deno.writeTextFile(`${this.bundle}/config.json`, JSON.stringify(spec));
  }

  /**
   * Starts the shim. The socket listens, and a request waits in it, before the shim is there.
   *
   * @returns ms from just before posix_spawn(3) to the reply
   * @throws {Error} when it is to be in a host and is not
   */
  async startTimed(): Promise<number> {
    const listener = listen(this.socketPath);
    // Closing the listener takes the first name away.
    Deno.linkSync(this.socketPath, this.publicSocket);
    this.#client = new Client(await Deno.connect({ transport: "unix", path: this.socketPath }));
    const reply = this.shimPid();
    reply.catch(() => {}); // if the spawn fails, that is what is told
    await pause(1); // until the request has been written
    const output = fds.open(`${this.folder}/output`, fds.O.WRONLY | fds.O.CREAT | fds.O.APPEND, 0o600);
    this.#held.push(output);
    const start = performance.now();
    try {
      this.#child = spawn({
        args: this.arguments,
        cwd: this.bundle,
        descriptors: [null, output, output, listener.fd],
        newProcessGroup: true,
        variables: this.#isHosted ? HOSTED : ALONE,
      });
    } finally {
      // The shim's own is the last, so that the connection breaks if the shim ends.
      listener[Symbol.dispose]();
    }
    await reply;
    const ms = performance.now() - start;
    if (this.#isHosted && !isInHost(this.pid)) throw new Error("the shim has found no host in time, and is by itself");
    return ms;
  }

  /** The connection that there is from the beginning. */
  override connect(): Promise<Client> {
    if (!this.#client) throw new Error("The shim has not been started");
    return Promise.resolve(this.#client);
  }

  override get pid(): number {
    if (!this.#child) throw new Error("The shim has not been started");
    return this.#child.pid;
  }

  /** The process that answers the calls: the shim, or the host that it is in, which must be the only one. */
  get server(): number {
    return this.#isHosted ? this.#host ??= onlyHost() : this.pid;
  }

  /** CPU time that it has used, and its host for all containers, in s. */
  cpuTime(): ThreadCounts {
    return this.#isHosted ? new Map([...cpuTimeOf(this.pid), ...cpuTimeOf(this.server)]) : cpuTimeOf(this.pid);
  }

  override get status(): Promise<number> {
    return within("the shim's end", this.#child!.status);
  }

  override async end(signal: Deno.Signal): Promise<number> {
    Deno.kill(this.pid, signal);
    return await this.status;
  }

  /** FIFOs, of which nobody holds an end. */
  override fifos(process: string = this.id): Promise<Paths> {
    const [stdin, stdout, stderr] = [0, 1, 2].map((number) => {
      const path = `${this.folder}/${process}-${number}`;
      ensureFifo(path, FIFO_MODE);
      return path;
    }) as [string, string, string];
    return Promise.resolve({ stdin, stdout, stderr });
  }

  /** Starts a container that does nothing. Its stdio is held open here, so that whoever opens it waits for nobody. */
  async runIdle(runtime = "runc"): Promise<void> {
    await this.create(await this.heldFifos(), { runtime });
    await this.startProcess();
  }

  /** A path that is one program's name now, and may be another's later: the container's runtime, for one that is given it. */
  runtime(program: "runc" | "true"): string {
    const path = `${this.folder}/runtime`;
    Deno.symlinkSync(PROGRAMS[program], `${path}.new`);
    Deno.renameSync(`${path}.new`, path);
    return path;
  }

  /** FIFOs for the container, of which this process has both ends as long as the container is there. */
  async heldFifos(): Promise<Paths> {
    const paths = await this.fifos();
    for (const path of [paths.stdin, paths.stdout, paths.stderr]) this.#held.push(openBothEnds(path));
    return paths;
  }

  /** Runs a process of the container, or does something like it, while this process has both ends of its stdio. */
  async withHeldFifos<T>(process: string, action: (paths: Paths) => Promise<T>): Promise<T> {
    const paths = await this.fifos(process);
    const held = [paths.stdin, paths.stdout, paths.stderr].map(openBothEnds);
    try {
      return await action(paths);
    } finally {
      held.forEach(fds.close);
    }
  }

  /** Runs a process of the container to its end, as a client does that wants to know how it ended. */
  async execToEnd(process: string, args: readonly string[], paths: Paths): Promise<void> {
    await this.exec(process, args, paths);
    await this.startProcess(process);
    const { status } = await this.wait(process);
    if (status !== 0) throw new Error(`${args.join(" ")} ended with ${status}`);
    await this.deleteProcess(process);
  }

  override async remove(): Promise<void> {
    if (this.#child && isAlive(this.pid)) {
      await this.endContainer().catch(() => {});
      if (isAlive(this.pid)) await this.end("SIGKILL");
    }
    for (const fd of this.#held.splice(0)) fds.close(fd);
    await super.remove();
  }
}

/** Opens a FIFO for reading and writing, which waits for nobody; the caller owns the descriptor. */
export function openBothEnds(path: string): number {
  return fds.open(path, fds.O.RDWR | fds.O.NONBLOCK);
}
