/** The exits that containerd tells of, and those that it should. */

import { CTR } from "./env.ts";
import type { Containerd } from "./harness.ts";
import { Program } from "./talk.ts";
import { PATIENCE_MS, until } from "./until.ts";

/** The exits of processes, each with the status that it is told with: as often as it is. */
export class Exits {
  readonly #told = new Map<string, number[]>();
  readonly #expected = new Map<string, number>();
  readonly #started = new Set<string>();
  /** Processes whose exit has been told before their start. */
  readonly beforeStart: string[] = [];
  /** Containers whose exit has been told before that of one of their execs. */
  readonly beforeExecs: string[] = [];
  /** The line that has begun. */
  #rest = "";
  #lines = 0;

  /** How many events have been told, of whatever kind. */
  get events(): number {
    return this.#lines;
  }

  /** How many exits have been told more than once. */
  get repeated(): number {
    return [...this.#told.values()].filter(({ length }) => length > 1).length;
  }

  /** Takes what `ctr events` prints next. */
  take(text: string): void {
    const lines = `${this.#rest}${text}`.split("\n");
    this.#rest = lines.pop()!;
    this.#lines += lines.length;
    for (const line of lines) {
      const topic = / (\/tasks\/(?:start|exec-started|exit)) /.exec(line)?.[1];
      if (topic === undefined) continue;
      const { container_id, exec_id = container_id, id, exit_status = 0 } = JSON.parse(line.slice(line.indexOf("{")));
      if (topic !== "/tasks/exit") {
        this.#started.add(nameOf(container_id, exec_id));
        continue;
      }
      const name = nameOf(container_id, id);
      if (!this.#started.has(name)) this.beforeStart.push(name);
      if (id !== container_id && this.#told.has(container_id)) this.beforeExecs.push(container_id);
      this.#told.set(name, [...this.#told.get(name) ?? [], exit_status]);
    }
  }

  /** Says how a process has ended, or will. */
  expect(status: number, container: string, process = container): void {
    this.#expected.set(nameOf(container, process), status);
  }

  /** Waits until the exit of a process has been told. */
  async told(container: string, process = container): Promise<void> {
    const name = nameOf(container, process);
    await until(`the exit of ${name} is told`, () => this.#told.has(name));
  }

  /** What is wrong with what has been told so far. */
  problems(): string[] {
    const problems: string[] = [];
    for (const [name, status] of this.#expected) {
      const told = this.#told.get(name);
      if (!told) problems.push(`nothing tells of the exit of ${name} with ${status}`);
      else if (told.some((each) => each !== status)) problems.push(`${name} ended with ${status}; told is ${told}`);
    }
    return problems;
  }

  /**
   * Waits until each exit has been told.
   *
   * @returns how many these are
   * @throws {Error} when some are not, or with another status
   */
  async allTold(): Promise<number> {
    await until("all exits are told", () => this.problems().length === 0, PATIENCE_MS).catch(() => {
      throw new Error(this.problems().join("\n"));
    });
    return this.#expected.size;
  }
}

function nameOf(container: string, process: string): string {
  return container === process ? container : `${process} in ${container}`;
}

/** Starts to collect a containerd's events: all that come from now on, when this has resolved. */
export async function collectExits(containerd: Containerd): Promise<{ exits: Exits; program: Program }> {
  const exits = new Exits();
  const { address, namespace } = containerd;
  const program = new Program([CTR, "--address", address, "--namespace", namespace, "events"], (text) => {
    exits.take(text);
  });
  await containerd.must("namespaces", "create", namespace);
  let labels = 0;
  await until("events are told", async () => {
    // It does not say when it has begun to listen.
    await containerd.must("namespaces", "label", namespace, `looked=${++labels}`);
    return exits.events > 0;
  });
  return { exits, program };
}
