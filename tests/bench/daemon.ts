/** A containerd of the bench's own: it takes the shims' events, and runs containers through `ctr`. */

import { ensureFifo } from "../../ffi/pipe.ts";
import { CONTAINERD, CTR, newPlace } from "../e2e/env.ts";
import { daemonConfig, RUNTIME } from "../e2e/harness.ts";
import * as leftovers from "../e2e/leftovers.ts";
import { until, within } from "../e2e/until.ts";
import { type Child, killIfAlive, runToEnd, spawn } from "./children.ts";

const FIFO_MODE = 0o600;
/** Set on the daemon's namespace again and again, until the news of it come: then they are followed. */
const PROBE_LABEL = "probe";

/** containerd's runtime v1, and the v2 runtime that a container of runc has had by default since. */
export const RUNTIMES = { v1: RUNTIME, v2: "io.containerd.runc.v2" } as const;

/** A containerd, and a `ctr events` that follows what it is told. */
export class Daemon {
  readonly folder: string;
  readonly namespace: string;
  /** Its socket. */
  readonly address: string;
  readonly #shim: string;
  readonly #rootfs: string;
  readonly #variables: Readonly<Record<string, string>>;
  #daemon: Child | undefined;
  readonly #ids: string[] = [];
  /** Whoever waits for an event, by namespace and process. */
  readonly #awaited = new Map<string, () => void>();
  #isFollowed = false;

  /**
   * @param shim the executable that runtime v1 starts
   * @param variables of its environment, and so of the shims'
   */
  constructor(shim: string, rootfs: string, variables: Readonly<Record<string, string>>) {
    ({ folder: this.folder, namespace: this.namespace } = newPlace());
    this.address = `${this.folder}/c.sock`;
    this.#shim = shim;
    this.#rootfs = rootfs;
    this.#variables = variables;
  }

  /** Starts the daemon, and follows its events. */
  async start(): Promise<void> {
    const config = `${this.folder}/config.toml`;
    await Deno.writeTextFile(config, daemonConfig({ folder: this.folder, address: this.address, shim: this.#shim }));
    const command = `exec '${CONTAINERD}' -c '${config}' >'${this.folder}/log' 2>&1`;
    const daemon = this.#daemon = spawn({
      args: ["sh", "-c", command],
      descriptors: [null, null, 2],
      variables: this.#variables,
    });
    let ended = false;
    daemon.status.then(() => ended = true);
    await until("containerd takes connections", async () => {
      if (ended) throw new Error(`containerd has ended: ${await Deno.readTextFile(`${this.folder}/log`)}`);
      // It serves this socket last.
      (await Deno.connect({ transport: "unix", path: this.address })).close();
      return true;
    });
    await this.#follow();
  }

  #arguments(args: readonly string[]): string[] {
    return [CTR, "--address", this.address, "--namespace", this.namespace, ...args];
  }

  async #follow(): Promise<void> {
    const fifo = `${this.folder}/events`;
    ensureFifo(fifo, FIFO_MODE);
    const args = this.#arguments(["events"]);
    spawn({ args: ["sh", "-c", `exec "$@" >'${fifo}' 2>'${fifo}-log'`, "sh", ...args], descriptors: [null, null, 2] });
    this.#read(await Deno.open(fifo)).catch((error) => console.error("The events cannot be followed:", error));
    await runToEnd(this.#arguments(["namespaces", "create", this.namespace]));
    let probes = 0;
    await until("events are followed", async () => {
      await runToEnd(this.#arguments(["namespaces", "label", this.namespace, `${PROBE_LABEL}=${++probes}`]));
      return this.#isFollowed;
    });
  }

  /** Takes each line as soon as it is there. */
  async #read(file: Deno.FsFile): Promise<void> {
    using _ = file;
    const buffer = new Uint8Array(64 * 1024);
    const decoder = new TextDecoder();
    let text = "";
    for (let count = await file.read(buffer); count !== null; count = await file.read(buffer)) {
      text += decoder.decode(buffer.subarray(0, count), { stream: true });
      const lines = text.split("\n");
      text = lines.pop()!;
      for (const line of lines) this.#take(line);
    }
  }

  #take(line: string): void {
    this.#isFollowed ||= line.includes(PROBE_LABEL);
    // The time, the namespace, the topic, and the event as JSON.
    const [, namespace, id] = /(\S+) \/tasks\/exit \{.*"id":"([^"]*)"/.exec(line) ?? [];
    this.#awaited.get(`${namespace}/${id}`)?.();
  }

  /** Waits until the exit of a process has come; to be called before it can. */
  exit(namespace: string, id: string): Promise<void> {
    const key = `${namespace}/${id}`;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#awaited.set(key, resolve);
    return within(`the exit of ${id}`, promise).finally(() => this.#awaited.delete(key));
  }

  /** Runs a container of `/bin/true` to its end, with `ctr run --rm`. */
  async run(runtime: string): Promise<void> {
    const id = `r${this.#ids.length}`;
    this.#ids.push(id);
    const flags = ["--rm", "--runtime", runtime, "--fifo-dir", `${this.folder}/fifo`, "--rootfs", this.#rootfs];
    await runToEnd(this.#arguments(["run", ...flags, id, "/bin/true"]));
  }

  /** Ends the daemon, which has no container any more, or whose containers have been killed. */
  async remove(): Promise<void> {
    if (this.#daemon) {
      killIfAlive(this.#daemon.pid);
      await this.#daemon.status;
    }
    await leftovers.removeNamespace(this.namespace);
    for (const id of this.#ids) {
      const socket = await leftovers.shimSocket(this.address, this.namespace, id);
      await Deno.remove(socket).catch(() => {}); // it has gone with its shim
    }
    await leftovers.removeFolder(this.folder);
  }
}
