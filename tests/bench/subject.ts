/** A shim that is measured: started as containerd does it, with the clock running. */

import * as fds from "../../ffi/fd.ts";
import { ensureFifo } from "../../ffi/pipe.ts";
import { Client } from "../../lib/ttrpc/client.ts";
import { isAlive } from "../e2e/proc.ts";
import { type Attached, Shim } from "../e2e/shim.ts";
import { makeSpec } from "../e2e/spec.ts";
import { pause, within } from "../e2e/until.ts";
import { type Child, spawn } from "./children.ts";

/** Mode of FIFOs, as containerd makes them. */
const FIFO_MODE = 0o700;
/** What /proc/PID/stat counts in: sysconf(_SC_CLK_TCK), the same on every Linux that Deno runs on. */
const TICKS_PER_SECOND = 100;
const KIB_PER_MIB = 1024;

/** What a container's process has for stdio: the paths, and descriptors of this process that are both ends of each. */
export interface HeldStdio {
  readonly paths: Attached["fifos"];
  /** Of stdin, stdout and stderr. */
  readonly descriptors: readonly number[];
}

/** A shim of one round. Unlike a test's it is this process's own child, and its container's rootfs is all rounds'. */
export class Subject extends Shim {
  override readonly rootfs: string;
  #child: Child | undefined;
  #client: Client | undefined;
  readonly #held: number[] = [];

  /** @param path of the executable */
  constructor(path: string, rootfs: string) {
    // Each publishes in its own way: ours to the ttrpc service, Go's with the command.
    super({ shim: { name: "shim", path }, events: "both" });
    this.rootfs = rootfs;
  }

  /** Makes what containerd makes before it starts a shim. */
  async prepare(): Promise<void> {
    for (const each of [this.bundle, this.workdir]) await Deno.mkdir(each);
    const spec = makeSpec({}, { cgroup: `/${this.namespace}/${this.id}`, rootfs: this.rootfs });
    await Deno.writeTextFile(`${this.bundle}/config.json`, JSON.stringify(spec));
    await this.events.start();
  }

  /**
   * Starts the shim. The socket listens, and a request waits in it, before the shim is there.
   *
   * @returns ms from just before posix_spawn(3) to the reply
   */
  async startTimed(): Promise<number> {
    const listener = listen(this.socketPath);
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
      });
    } finally {
      // The shim's own is the last, so that the connection breaks if the shim ends.
      listener.close();
    }
    await reply;
    return performance.now() - start;
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

  override get status(): Promise<number> {
    return within("the shim's end", this.#child!.status);
  }

  override async end(signal: Deno.Signal): Promise<number> {
    Deno.kill(this.pid, signal);
    return await this.status;
  }

  /** FIFOs, of which nobody holds an end. */
  override fifos(process: string = this.id): Promise<Attached["fifos"]> {
    const [stdin, stdout, stderr] = [0, 1, 2].map((number) => {
      const path = `${this.folder}/${process}-${number}`;
      ensureFifo(path, FIFO_MODE);
      return path;
    }) as [string, string, string];
    return Promise.resolve({ stdin, stdout, stderr });
  }

  /** FIFOs that are held open here, so that whoever opens one waits for nobody. */
  async heldFifos(process?: string): Promise<HeldStdio> {
    const paths = await this.fifos(process);
    const descriptors = [paths.stdin, paths.stdout, paths.stderr].map((path) => this.hold(path));
    return { paths, descriptors };
  }

  /** Opens both ends of a FIFO, until the round is over. */
  hold(path: string): number {
    const fd = fds.open(path, fds.O.RDWR | fds.O.NONBLOCK);
    this.#held.push(fd);
    return fd;
  }

  /** What no other process shares and cannot be dropped, in MiB. */
  privateDirty(): number {
    const rollup = Deno.readTextFileSync(`/proc/${this.pid}/smaps_rollup`);
    return Number(/^Private_Dirty:\s*(\d+) kB$/m.exec(rollup)![1]) / KIB_PER_MIB;
  }

  /** CPU time that the shim has used, without its children's, in s. */
  cpuTime(): number {
    const stat = Deno.readTextFileSync(`/proc/${this.pid}/stat`);
    // proc(5): utime and stime are fields 14 and 15; what follows the name's parenthesis is field 3.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
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

/** A listening socket, and its descriptor, which is the listener's. */
function listen(path: string): { readonly fd: number; close(): void } {
  const before = new Set(sockets());
  const listener = Deno.listen({ transport: "unix", path });
  const fd = sockets().find((each) => !before.has(each));
  if (fd === undefined) throw new Error("The listener has no descriptor");
  return { fd, close: () => listener.close() };
}

function sockets(): number[] {
  return [...Deno.readDirSync("/proc/self/fd")].map(({ name }) => Number(name))
    .filter((fd) => fds.describe(fd)?.startsWith("socket:"));
}
