/** What goes on in a node while a test has hosts come and go, and is to notice nothing: containers, execs, and callers. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { containerd as api } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { type Result, run, type Running, start } from "./command.ts";
import { collectExits, type Exits } from "./exits.ts";
import { type Containerd, type ContainerdOptions, withContainerd } from "./harness.ts";
import type { Machine } from "./host.ts";
import { shimSocket } from "./leftovers.ts";
import { countNumbered, numbered } from "./numbered.ts";
import { isAlive } from "./proc.ts";
import { Seeded } from "./seeded.ts";
import { SERVICE, Status } from "./shim.ts";
import { Echo, type Ended, Program } from "./talk.ts";
import { PATIENCE_MS, pause, within } from "./until.ts";

import v1 = api.runtime.linux.shim.v1;

/** What containerd's log says when a shim has died that should not have. */
export const DEATH = /cleaning up after|failed to clean up|shim disconnected|cleanup warnings|shim dead|dead shim/;

/** The file that has all containers end that print numbered lines, as they see it. */
export const END = "/tmp/end";

/** The longest between two lines that are typed, in ms, and how much may be on its way then, in characters. */
const MAX_TYPING_MS = 60;
const MAX_TYPED = 300;
/** The longest line that is typed besides its number. */
const MAX_LINE = 60;

/** What goes on while hosts come and go, and how it has gone. */
export class Course {
  /** Whether what goes on is to come to its end. */
  over = false;
  /** When it is now, by what has hosts come and go. */
  now: () => string = () => "before anything has happened";
  /** How many calls of each kind have been answered. */
  readonly answers = new Map<string, number>();
  readonly #failures: Error[] = [];
  #nextAnswer = Promise.withResolvers<void>();

  /** Does something that must succeed; an error says when that was. */
  async call<T>(kind: string, what: string, call: () => Promise<T>): Promise<T> {
    const begun = this.now();
    try {
      const value = await call();
      this.answers.set(kind, (this.answers.get(kind) ?? 0) + 1);
      this.#nextAnswer.resolve();
      this.#nextAnswer = Promise.withResolvers();
      return value;
    } catch (cause) {
      throw new Error(`${kind} ${what}, begun ${begun}, failed ${this.now()}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Resolves when the next call has been answered, or none will be. */
  async nextAnswer(): Promise<void> {
    if (!this.over) await within("the next answer", this.#nextAnswer.promise);
  }

  /** Ends it all. */
  end(): void {
    this.over = true;
    this.#nextAnswer.resolve();
  }

  fail(error: unknown): void {
    if (this.#failures.length === 0) console.error(`Failed ${this.now()}: ${(error as Error).message}`);
    this.#failures.push(error as Error);
    this.end();
  }

  /** Has so many do something until all is over, or something has failed. */
  repeat(workers: number, work: () => Promise<void>): Promise<void>[] {
    return Array.from({ length: workers }, async () => {
      try {
        while (!this.over) await work();
      } catch (error) {
        this.fail(error);
      }
    });
  }

  /** @throws {Error} with everything that has failed */
  throwFailures(): void {
    if (this.#failures.length === 0) return;
    throw new Error(this.#failures.map(({ message }) => message).join("\n"));
  }
}

/** A container, or an exec, that lives as long as the test. */
export interface Lasting {
  readonly id: string;
  readonly status: number;
  /** Does something with it once; nothing unless given. */
  use?(): Promise<void>;
  /** Has it end, waits for that, and fails unless all is well with it. */
  end(): Promise<void>;
}

/** A test's parts, as they need each other. */
export interface Scene {
  readonly course: Course;
  readonly machine: Machine;
  readonly containerd: Containerd;
  readonly exits: Exits;
  /** How long anything may take that goes on for as long as the test, in ms. */
  readonly wholeTestMs: number;
  /** What the lengths of lines come from, and the pauses between them. */
  readonly seed: number;
  /** What is to be ended in any case. */
  readonly programs: { kill(): unknown }[];
  /** How many lines have been printed, by what has printed them. */
  readonly lines: Map<string, number>;
}

/** Runs `test` with a containerd whose exits are collected; what it starts is ended however it ends. */
export function withScene(
  { machine, ...settings }: Pick<Scene, "machine" | "wholeTestMs" | "seed">,
  options: ContainerdOptions,
  test: (scene: Scene) => Promise<void>,
): Promise<void> {
  return withContainerd(async (containerd) => {
    const programs: { kill(): unknown }[] = [];
    try {
      const { exits, program } = await collectExits(containerd);
      programs.push(program);
      await test({ ...settings, course: new Course(), machine, containerd, exits, programs, lines: new Map() });
    } finally {
      for (const each of programs) await each.kill();
    }
  }, { prefix: machine.prefix, ...options });
}

/** Fails unless a command has ended with this status, and has nothing to complain about. */
function assertEnded({ code, stderr }: Ended | Result, status: number): void {
  assertEquals({ code, stderr }, { code: status, stderr: "" });
}

/** Starts a command with its output in two files, to be read when it has ended: numbered lines, in each as many. */
export function startNumbered(scene: Scene, id: string, status: number, command: readonly string[]): Lasting {
  const { containerd, lines, programs, wholeTestMs } = scene;
  const files = ["stdout", "stderr"].map((each) => `${containerd.folder}/${id}-${each}`);
  const shell = ["sh", "-c", 'exec >"$0" 2>"$1" </dev/null; shift; exec "$@"', ...files];
  const running: Running = start([...shell, ...command], { patienceMs: wholeTestMs });
  running.result.catch(() => {});
  programs.push({ kill: () => isAlive(running.pid) && running.kill("SIGKILL") });
  return {
    id,
    status,
    async end() {
      assertEnded(await within(`the end of ${id}`, running.result), status);
      const counts = await Promise.all(files.map(countNumbered));
      assertEquals(counts[0], counts[1], `lines of ${id} on both streams`);
      assert(counts[0]! > 0, `${id} has printed nothing`);
      lines.set(id, counts[0]!);
    },
  };
}

/** A container with ctr in the foreground that prints numbered lines. */
export function runNumbered(scene: Scene, script: typeof numbered, status: number): Lasting {
  const id = scene.containerd.newId();
  const command = ["/bin/sh", "-c", script(END, status)];
  return startNumbered(scene, id, status, scene.containerd.runArguments(id, command, { flags: ["--rm"] }));
}

/** A container that nobody is attached to, and whose output is a file: the shim writes to it. */
export async function runLogging({ containerd, exits, lines }: Scene, status: number): Promise<Lasting> {
  const id = containerd.newId();
  const file = `${containerd.folder}/${id}-log`;
  // There is one file for both streams.
  const script = `(${numbered(END, status)}) 2>/dev/null`;
  await containerd.runDetached(id, ["/bin/sh", "-c", script], { io: ["--log-uri", `file://${file}`] });
  return {
    id,
    status,
    async end() {
      await exits.told(id);
      await deleteStopped(containerd, id, status);
      const count = await countNumbered(file);
      assert(count > 0, `${id} has printed nothing`);
      lines.set(id, count);
    },
  };
}

/** Deletes a container that has ended, and fails unless it did so with this status. */
export async function deleteStopped(containerd: Containerd, id: string, status: number): Promise<void> {
  const { code, stderr } = await containerd.ctr("task", "delete", id);
  assertEquals(code, 0, stderr);
  assertMatch(stderr, new RegExp(`exit code ${status}"$`, "m"));
  await containerd.must("container", "delete", id);
}

/** Somebody who types to a container, which answers. */
export class Typist implements Lasting {
  readonly id: string;
  readonly status: number;
  readonly #random: Seeded;
  readonly #program: Program;
  readonly #echo = new Echo();
  readonly #reply: (line: string) => string;
  readonly #maximum: number;
  readonly #last: string;
  #typed = 0;

  /**
   * @param command runs the container, which says `ready`
   * @param reply what comes back for each line that is typed
   * @param maximum how much may have to come back before the next line is typed, in characters
   * @param last what is typed to have it end, before its input does
   */
  constructor(scene: Scene, { id, status, command, reply, maximum, last }: {
    readonly id: string;
    readonly status: number;
    readonly command: readonly string[];
    readonly reply: (line: string) => string;
    readonly maximum: number;
    readonly last: string;
  }) {
    this.id = id;
    this.status = status;
    this.#random = new Seeded(scene.seed + status);
    this.#reply = reply;
    this.#maximum = maximum;
    this.#last = last;
    this.#echo.expect("ready\n");
    this.#program = new Program(command, (text) => this.#echo.take(text));
    scene.programs.push(this.#program);
  }

  /** Types another line, and waits until not too much has to come back. */
  async use(): Promise<void> {
    const line = `${++this.#typed} ${"typing ".repeat(MAX_LINE).slice(0, this.#random.below(MAX_LINE))}.\n`;
    await pause(this.#random.below(MAX_TYPING_MS));
    await this.ready();
    this.#echo.expect(this.#reply(line));
    await this.#program.write(line);
    await this.#echo.hasCome(this.#maximum);
  }

  /** Waits until the container says that it listens. */
  async ready(): Promise<void> {
    if (this.#typed === 0) await this.#echo.hasCome();
  }

  async end(): Promise<void> {
    await this.#echo.hasCome();
    if (this.#last.endsWith("\n")) this.#echo.expect(this.#last);
    if (this.#last !== "") await this.#program.write(this.#last);
    else await this.#program.closeStdin();
    assertEnded(await within(`the end of ${this.id}`, this.#program.ended), this.status);
    await this.#echo.hasCome();
  }
}

/** Somebody at a terminal, which script(1) makes, or at a pipe. */
export function startTyping(scene: Scene, kind: "terminal" | "echoing terminal" | "pipe", status: number): Typist {
  const id = scene.containerd.newId();
  const scripts = {
    "terminal": "stty -echo; echo ready; cat",
    "echoing terminal": 'echo ready; while read -r line && [ "$line" != end ]; do echo "got $line"; done',
    "pipe": "echo ready; cat",
  };
  const flags = kind === "pipe" ? ["--rm"] : ["--rm", "--tty"];
  const shell = ["/bin/sh", "-c", `${scripts[kind]}; exit ${status}`];
  const ctr = scene.containerd.runArguments(id, shell, { flags });
  const quoted = ctr.map((each) => `'${each}'`).join(" ");
  return new Typist(scene, {
    id,
    status,
    command: kind === "pipe" ? ctr : ["script", "-qfec", `exec ${quoted}`, "/dev/null"],
    // A terminal shows what is typed when it is, which is in the middle of what is printed, if that has not yet come.
    ...kind === "echoing terminal"
      ? { reply: (line: string) => `${line}got ${line}`, maximum: 0 }
      : { reply: (line: string) => line, maximum: MAX_TYPED },
    last: { "terminal": "\x04", "echoing terminal": "end\n", "pipe": "" }[kind],
  });
}

/** Runs an exec in a container, which says something or nothing, and ends with its number. */
export async function runExec({ course, containerd, exits }: Scene, id: string, number: number): Promise<void> {
  const status = number % 256;
  const talks = number % 3 > 0;
  const says = talks ? `echo line ${number}; echo error ${number} >&2; ` : "";
  const args = containerd.execArguments(id, [], ["/bin/sh", "-c", `${says}exit ${status}`]);
  const execId = args[args.indexOf("--exec-id") + 1]!;
  await course.call("exec", `${execId} in ${id}`, async () => {
    const expected = talks ? { stdout: `line ${number}\n`, stderr: `error ${number}\n` } : { stdout: "", stderr: "" };
    assertEquals(await run(args), { code: status, ...expected });
  });
  exits.expect(status, id, execId);
}

/** Runs a container to its end. */
export async function runShort({ course, containerd, exits }: Scene, number: number): Promise<void> {
  const id = containerd.newId();
  const status = number % 256;
  const script = `echo out ${number}; echo err ${number} >&2; exit ${status}`;
  await course.call("container", id, async () => {
    const result = await containerd.run(["/bin/sh", "-c", script], { id });
    assertEquals(result, { code: status, stdout: `out ${number}\n`, stderr: `err ${number}\n` });
  });
  exits.expect(status, id);
}

/** A connection to a container's shim that is never to break, with a Wait that is answered at the end. */
export class Caller {
  readonly #id: string;
  readonly #client: Client;
  readonly #wait: Promise<number>;
  #isClosing = false;

  private constructor(course: Course, id: string, client: Client) {
    this.#id = id;
    this.#client = client;
    client.closed.then(() => {
      if (!this.#isClosing) course.fail(new Error(`the connection to ${id}'s shim broke ${course.now()}`));
    });
    this.#wait = this.#startWait();
    this.#wait.catch((error) => {
      if (!this.#isClosing) course.fail(new Error(`Wait of ${id} failed ${course.now()}: ${error.message}`));
    });
  }

  /** Connects; it is closed at the end of the scene. */
  static async open({ course, containerd, programs }: Scene, id: string): Promise<Caller> {
    const path = await shimSocket(containerd.address, containerd.namespace, id);
    const caller = new Caller(course, id, new Client(await Deno.connect({ transport: "unix", path })));
    programs.push({ kill: () => caller.#close() });
    return caller;
  }

  async #startWait(): Promise<number> {
    const answer = await this.#client.call(SERVICE, "Wait", v1.WaitRequest.encode({ id: this.#id }).finish());
    return v1.WaitResponse.decode(answer).exitStatus;
  }

  /** Asks for the container's state, and fails unless it runs. */
  async state(): Promise<void> {
    const request = v1.StateRequest.encode({ id: this.#id }).finish();
    const answer = await this.#client.call(SERVICE, "State", request, { timeoutMs: PATIENCE_MS });
    assertEquals(v1.StateResponse.decode(answer).status, Status.RUNNING);
  }

  /** Lets the connection end with the container. */
  expectEnd(): void {
    this.#isClosing = true;
  }

  /** How the container has ended. */
  get status(): Promise<number> {
    return within(`the answer of ${this.#id}'s Wait`, this.#wait);
  }

  #close(): void {
    this.#isClosing = true;
    this.#client.close();
  }
}
