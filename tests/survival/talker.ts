/** A container that writes numbered lines all the time, and who reads them. */

import { must, type Result } from "../e2e/command.ts";
import { paths } from "../e2e/leftovers.ts";
import { isAlive } from "../e2e/proc.ts";
import { until, within } from "../e2e/until.ts";
import type { World } from "./world.ts";

/** Its name. */
export const TALKER = "talker";

/** How it ends when it is told to. */
export const STATUS = 5;
/** How it ends when it is killed. */
export const KILLED = 137;

/**
 * Writes numbers, and each into a file when it is written, from when it is told to until it is told to end. A pipe that
 * nobody reads does not end it, so that it is seen who does.
 */
const SCRIPT = `trap '' PIPE
trap 'echo $i >>/shared/written; exit ${STATUS}' TERM
until [ -e /shared/talk ]; do sleep 0.01; done
i=0
while :; do
  echo $((i += 1)) && echo $i >>/shared/written
  sleep 0.01
done
`;

/** How many lines show that it goes on: more than may lie in a pipe, or with a shim, from before. */
const SHOWN = 30;
/** How long it may be silent before it counts as silenced, in ms: far longer than any shim has been seen to take. */
const SILENCE_MS = 10_000;

/** Where the lines go: to a `ctr run` that waits for the container too, or to this process, as containerd is to die. */
export type Listener = "ctr" | "fifo";

/** The container. */
export class Talker {
  readonly id: string;
  /** Its first process. */
  readonly init: number;
  /** The end of the `ctr run` that waits for it; undefined if there is none. */
  readonly waiting: Promise<Result> | undefined;
  readonly #world: World;
  readonly #said: () => string;

  private constructor(
    world: World,
    id: string,
    init: number,
    { said, waiting }: { said: () => string; waiting?: Promise<Result> },
  ) {
    this.#world = world;
    this.id = id;
    this.init = init;
    this.#said = said;
    this.waiting = waiting;
  }

  /** Starts it, and waits until it talks. */
  static async start(world: World, listener: Listener): Promise<Talker> {
    const { containerd } = world;
    const id = containerd.newId(TALKER);
    const listening = listener === "ctr" ? listenByCtr(world, id) : await listenHere(world, id);
    const talker = new Talker(world, id, await containerd.running(id), listening);
    await Deno.writeTextFile(`${world.shared}/talk`, "");
    if (await talker.goesOn() !== "talks") throw new Error(`The container says nothing: ${talker.#said()}`);
    return talker;
  }

  /** The lines that have been read. */
  lines(): string[] {
    return this.#said().split("\n").slice(0, -1);
  }

  /** What becomes of it: it says more, has ended, or does neither in a time in which it would have done much. */
  async goesOn(): Promise<"talks" | "is silent" | "has ended"> {
    const enough = this.lines().length + SHOWN;
    const condition = () => !isAlive(this.init) ? "has ended" : this.lines().length >= enough && "talks";
    return await until("it talks or ends", condition, SILENCE_MS).catch(() => "is silent" as const);
  }

  /** What is wrong with the lines of a container that has ended; undefined if nothing is. */
  async flaw(patienceMs: number): Promise<string | undefined> {
    const written = Number((await Deno.readTextFile(`${this.#world.shared}/written`)).trimEnd().split("\n").at(-1));
    await until("all lines are there", () => this.lines().length >= written, patienceMs).catch(() => {});
    return flawOf(this.lines(), written);
  }
}

/** What is wrong with lines of which at least so many have been written; undefined if nothing is. */
export function flawOf(lines: readonly string[], written: number): string | undefined {
  const bad = lines.findIndex((each, i) => each !== `${i + 1}`);
  if (bad >= 0) return `after line ${bad} comes ${JSON.stringify(lines[bad])}`;
  if (lines.length < written) return `${written - lines.length} of ${written} lines are missing`;
  // It may have been killed before it wrote down what it had written.
  return lines.length > written + 1 ? `there are ${lines.length} lines instead of ${written}` : undefined;
}

function listenByCtr(world: World, id: string) {
  const running = world.start(world.containerd.runArguments(id, ["/bin/sh", "-c", SCRIPT], world.options()));
  return { said: running.stdoutSoFar, waiting: running.result };
}

async function listenHere(world: World, id: string) {
  const { containerd } = world;
  await must(containerd.runArguments(id, ["/bin/sh", "-c", SCRIPT], world.options("--detach")));
  // ctr makes a folder for each container, and leaves it when it detaches.
  const fifo = paths(containerd.fifos).flatMap(paths).find((each) => each.endsWith(`/${id}-stdout`))!;
  let said = "";
  const file = await within("a writer", Deno.open(fifo));
  const read = async () => {
    const decoder = new TextDecoder();
    // To its first end, as ctr does, and whoever else reads a container's output.
    for await (const chunk of file.readable) said += decoder.decode(chunk, { stream: true });
  };
  read().catch((error) => console.error("The output cannot be read:", error));
  return { said: () => said };
}
