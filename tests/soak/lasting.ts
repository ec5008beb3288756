/** A container that lives as long as a soak, and what is done with it through the socket of its shim, as containerd does. */

import { assertEquals } from "@std/assert";
import { containerd as api } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { must } from "../e2e/command.ts";
import type { Exits } from "../e2e/exits.ts";
import { Reader, Writer } from "../e2e/fifo.ts";
import type { Containerd } from "../e2e/harness.ts";
import { shimSocket } from "../e2e/leftovers.ts";
import { SERVICE, Status } from "../e2e/shim.ts";
import { PATIENCE_MS } from "../e2e/until.ts";

import v1 = api.runtime.linux.shim.v1;

/** How an exec ends that is killed. */
const KILLED = 128 + 9;
/** How a terminal's shell ends, and how many lines are typed to it. */
const TERMINAL_STATUS = 5;
const TYPED = 5;

/** What an exec is attached to. */
interface Stdio {
  readonly stdin?: string;
  readonly stdout?: string;
  readonly stderr?: string;
  readonly terminal?: boolean;
}

/** The container, over one connection that is never to break. */
export class Lasting {
  readonly id: string;
  /** Its shim, as containerd knows it. */
  readonly shim: number;
  readonly #folder: string;
  readonly #client: Client;
  readonly #exits: Exits;
  #execs = 0;
  /** Answered when it has ended. */
  readonly #wait: Promise<number>;

  private constructor(containerd: Containerd, id: string, client: Client, exits: Exits) {
    this.id = id;
    this.shim = containerd.shimOf(id);
    this.#folder = containerd.folder;
    this.#client = client;
    this.#exits = exits;
    this.#wait = this.#status(id, {});
    this.#wait.catch(() => {});
  }

  /** Starts one that does nothing itself. */
  static async start(containerd: Containerd, exits: Exits): Promise<Lasting> {
    const id = containerd.newId();
    await containerd.runDetached(id, ["/bin/sleep", "1000000"]);
    const path = await shimSocket(containerd.address, containerd.namespace, id);
    const client = new Client(await Deno.connect({ transport: "unix", path }));
    exits.expect(KILLED, id);
    return new Lasting(containerd, id, client, exits);
  }

  async #call(
    method: string,
    request: { finish(): Uint8Array },
    options: { timeoutMs?: number } = { timeoutMs: PATIENCE_MS },
  ): Promise<Uint8Array> {
    return await this.#client.call(SERVICE, method, request.finish(), options);
  }

  async #status(id: string, options?: { timeoutMs?: number }): Promise<number> {
    return v1.WaitResponse.decode(await this.#call("Wait", v1.WaitRequest.encode({ id }), options)).exitStatus;
  }

  /** Asks for its state, which must be that it runs; gives how long the answer has taken, in ms. */
  async state(): Promise<number> {
    const begun = performance.now();
    const answer = await this.#call("State", v1.StateRequest.encode({ id: this.id }));
    const ms = performance.now() - begun;
    assertEquals(v1.StateResponse.decode(answer).status, Status.RUNNING, this.id);
    return ms;
  }

  /** Changes what it may use. */
  async update(shares: number): Promise<void> {
    const value = new TextEncoder().encode(JSON.stringify({ cpu: { shares } }));
    await this.#call("Update", v1.UpdateTaskRequest.encode({ resources: { type_url: "resources", value } }));
  }

  async #exec(args: readonly string[], stdio: Stdio = {}): Promise<string> {
    const id = `x${++this.#execs}`;
    const { terminal = false } = stdio;
    const process = { terminal, args, cwd: "/", env: ["PATH=/bin"], user: { uid: 0, gid: 0 } };
    const spec = { type_url: "process", value: new TextEncoder().encode(JSON.stringify(process)) };
    await this.#call("Exec", v1.ExecProcessRequest.encode({ id, spec, ...stdio }));
    return id;
  }

  async #start(id: string): Promise<void> {
    await this.#call("Start", v1.StartRequest.encode({ id }));
  }

  /** Waits for the end of an exec, and removes it. */
  async #end(id: string, status: number): Promise<void> {
    assertEquals(await this.#status(id), status, `${id} in ${this.id}`);
    await this.#call("DeleteProcess", v1.DeleteProcessRequest.encode({ id }));
    this.#exits.expect(status, this.id, id);
  }

  /** Has a process added, and killed. */
  async execKilled(): Promise<void> {
    const id = await this.#exec(["sleep", "1000"]);
    await this.#start(id);
    await this.#call("Kill", v1.KillRequest.encode({ id, signal: 9 }));
    await this.#end(id, KILLED);
  }

  /** Has a file of the container's copied to both outputs of a process, as fast as it goes: all must arrive. */
  async execFlood(file: string, inside: string): Promise<void> {
    const [stdout, stderr] = await this.#fifos("1", "2") as [string, string];
    try {
      const compared = [stdout, stderr].map((each) => must(["cmp", each, file], { patienceMs: 3 * PATIENCE_MS }));
      const id = await this.#exec(["sh", "-c", `cat ${inside} & cat ${inside} >&2; wait; exit 6`], { stdout, stderr });
      await Promise.all([this.#start(id), ...compared]);
      await this.#end(id, 6);
    } finally {
      for (const each of [stdout, stderr]) await Deno.remove(each);
    }
  }

  /** Types some lines to a process with a terminal, which answers each. */
  async execTerminal(): Promise<void> {
    const script =
      `stty -echo; echo ready; while read -r line && [ "$line" != end ]; do echo "got $line"; done; exit ${TERMINAL_STATUS}`;
    const [stdin, stdout] = await this.#fifos("0", "1") as [string, string];
    try {
      const id = await this.#exec(["sh", "-c", script], { stdin, stdout, terminal: true });
      const [output] = await Promise.all([Reader.open(stdout), this.#start(id)]);
      using screen = output;
      await this.#call("ResizePty", v1.ResizePtyRequest.encode({ id, width: 100, height: 30 }));
      using keyboard = await Writer.open(stdin);
      assertEquals(await screen.line(), "ready\r\n");
      for (let number = 1; number <= TYPED; number++) {
        await keyboard.write(`line ${number}\n`);
        assertEquals(await screen.line(), `got line ${number}\r\n`);
      }
      await keyboard.write("end\n");
      assertEquals(await screen.text(), "");
      await this.#end(id, TERMINAL_STATUS);
    } finally {
      for (const each of [stdin, stdout]) await Deno.remove(each);
    }
  }

  async #fifos(...names: readonly string[]): Promise<string[]> {
    const paths = names.map((name) => `${this.#folder}/${this.id}-x${this.#execs + 1}-${crypto.randomUUID()}-${name}`);
    await must(["mkfifo", ...paths]);
    return paths;
  }

  /** Fails unless whoever has waited for its end since the beginning is told. */
  async assertKilled(): Promise<void> {
    assertEquals(await this.#wait, KILLED, `Wait of ${this.id}`);
    this.#client.close();
  }

  close(): void {
    this.#client.close();
  }
}
