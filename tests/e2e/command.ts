/** Running a command to its end. */

import { PATIENCE_MS } from "./until.ts";

/** How a command ended, and what it printed. */
export interface Result {
  /** Its exit code, or 128 + the signal that ended it. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Options of {@linkcode run} and {@linkcode start}. */
export interface CommandOptions {
  /** What it reads; nothing unless given. */
  readonly stdin?: string | Uint8Array;
  /** How long it may take, in ms, before it is killed. */
  readonly patienceMs?: number;
  readonly cwd?: string;
}

/** A command that runs. */
export interface Running {
  readonly pid: number;
  /** @throws {Error} when it has been killed because it took too long */
  readonly result: Promise<Result>;
  /** Gives it input; {@linkcode closeStdin} must follow. */
  write(bytes: Uint8Array): Promise<void>;
  closeStdin(): Promise<void>;
  /** What it has printed so far. */
  readonly stdoutSoFar: () => string;
  kill(signal: Deno.Signal): void;
}

/** Starts a command whose input the caller writes. */
export function start(args: readonly string[], options: CommandOptions = {}): Running {
  const [program, ...rest] = args as [string, ...string[]];
  const child = new Deno.Command(program, {
    args: rest,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  }).spawn();
  const writer = child.stdin.getWriter();
  const patienceMs = options.patienceMs ?? PATIENCE_MS;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, patienceMs);
  const stdout = new Collector(child.stdout);
  const stderr = new Collector(child.stderr);
  const result = async () => {
    const status = await child.status;
    clearTimeout(timer);
    const printed = { stdout: await stdout.all, stderr: await stderr.all };
    // Nobody may have closed it, if the command did not want it.
    await writer.close().catch(() => {});
    if (late) {
      const what = `'${args.join(" ")}' was killed after ${patienceMs} ms`;
      throw new Error(`${what}\nstdout: ${printed.stdout}\nstderr: ${printed.stderr}`);
    }
    return { code: status.code, ...printed };
  };
  return {
    pid: child.pid,
    result: result(),
    write: (bytes) => writer.write(bytes),
    closeStdin: () => writer.close(),
    stdoutSoFar: () => stdout.soFar,
    kill: (signal) => child.kill(signal),
  };
}

/**
 * Runs a command to its end.
 *
 * @throws {Error} when it took too long
 */
export async function run(args: readonly string[], options: CommandOptions = {}): Promise<Result> {
  const command = start(args, options);
  try {
    const { stdin = "" } = options;
    await command.write(typeof stdin === "string" ? new TextEncoder().encode(stdin) : stdin);
    await command.closeStdin();
  } catch {
    // It has ended without reading its input: what it printed says more.
  }
  return await command.result;
}

/**
 * Runs a command that must succeed, and gives what it printed on stdout.
 *
 * @throws {Error} with what it printed on stderr, when it fails
 */
export async function must(args: readonly string[], options: CommandOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await run(args, options);
  if (code !== 0) throw new Error(`'${args.join(" ")}' failed with ${code}: ${stderr || stdout}`);
  return stdout;
}

/** Collects a stream as text. */
class Collector {
  soFar = "";
  readonly all: Promise<string>;

  constructor(stream: ReadableStream<Uint8Array>) {
    this.all = this.#collect(stream);
  }

  async #collect(stream: ReadableStream<Uint8Array>): Promise<string> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) this.soFar += decoder.decode(chunk, { stream: true });
    return this.soFar += decoder.decode();
  }
}
