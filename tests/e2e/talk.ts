/** Programs whose output is looked at as it comes, and what is typed to them and has to come back. */

import { within } from "./until.ts";

/** How a program has ended. */
export interface Ended {
  /** Its exit code, or 128 + the signal that ended it. */
  readonly code: number;
  readonly stderr: string;
}

/** A program that runs as long as it likes. */
export class Program {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  /** Resolves when it has ended and all its output has been taken; never rejects. */
  readonly ended: Promise<Ended>;

  /** @param onText is given its stdout, piece by piece */
  constructor(args: readonly string[], onText: (text: string) => void) {
    const [program, ...rest] = args as [string, ...string[]];
    this.#child = new Deno.Command(program, { args: rest, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.ended = this.#run(onText);
  }

  async #run(onText: (text: string) => void): Promise<Ended> {
    const stderr = new Response(this.#child.stderr).text();
    for await (const text of this.#child.stdout.pipeThrough(new TextDecoderStream())) onText(text);
    const { code } = await this.#child.status;
    await this.closeStdin();
    return { code, stderr: await stderr };
  }

  /** Gives it input. */
  async write(text: string): Promise<void> {
    await this.#writer.write(new TextEncoder().encode(text));
  }

  /** Ends its input, if that has not ended. */
  async closeStdin(): Promise<void> {
    await this.#writer.close().catch(() => {});
  }

  /** Ends it, if it has not ended, and waits for its end. */
  async kill(): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await this.ended;
  }
}

/** How much of what has come is shown beside what should have. */
const SHOWN = 80;

/** What is to come back, and what has. */
export class Echo {
  #expected = "";
  /** How many characters have come. */
  #count = 0;
  #problem: Error | undefined;
  #changed = Promise.withResolvers<void>();

  /** Says what has to come next, after what has been expected before. */
  expect(text: string): void {
    this.#expected += text;
  }

  /** Takes what comes. Returns, of which a terminal puts some, do not count. */
  take(text: string): void {
    const came = text.replaceAll("\r", "");
    if (this.#problem === undefined && !this.#expected.startsWith(came)) {
      const [shown, expected] = [came, this.#expected].map((each) => JSON.stringify(each.slice(0, SHOWN)));
      this.#problem = new Error(`after ${this.#count} characters comes ${shown}, not ${expected}`);
    }
    this.#expected = this.#expected.slice(came.length);
    this.#count += came.length;
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /**
   * Waits until no more than so many characters have still to come.
   *
   * @throws {Error} when something else has come, or nothing in time
   */
  async hasCome(but = 0): Promise<void> {
    while (this.#problem === undefined && this.#expected.length > but) {
      const next = JSON.stringify(this.#expected.slice(0, SHOWN));
      await within(`${next} to come, after ${this.#count} characters`, this.#changed.promise);
    }
    if (this.#problem) throw this.#problem;
  }
}
