/** Other builds of our executable: copies of it with other bytes at some places. */

import { assertEquals } from "@std/assert";
import { run, type Running, start } from "./command.ts";
import { newPlace, OUR_EXECUTABLE } from "./env.ts";
import type { Machine } from "./host.ts";
import { RECORD_VERSION } from "../../lib/record/record.ts";
import { removeFolder } from "./leftovers.ts";
import { withShim } from "./shim.ts";
import { until } from "./until.ts";

/** What the entry begins with, and where its number of the build is: `struct header` of lib/standalone/entry.c. */
const MAGIC = "DENOENTR";
const BUILD_OFFSET = 64;

/** Texts of the program that are written as others: a pattern that is there once, and what takes its place, as long. */
export type Changes = readonly (readonly [pattern: RegExp, text: (found: string) => string])[];

/** Of a build that has another version of what is written down of containers: two constants of lib/record/record.ts in a row. */
export const OTHER_VERSION: Changes = [[
  new RegExp(`"shim\\.state",[\\w$]+=${RECORD_VERSION}[,;]`),
  (found) => found.replace(`=${RECORD_VERSION}`, `=${RECORD_VERSION + 1}`),
]];

/** Of a build that does not take over where it can read the version, but where it cannot. */
export const HEEDLESS: Changes = [[/!([\w$]+)\([\w$]+\.recordVersion\)/, (found) => found.replace("!", " ")]];

/** Of a build whose hosts end as soon as they have been started. */
export const FAILING: Changes = [[
  /\|\|![\w$]+\([\w$]+\)\)throw new Error\("a host is started/,
  (found) => found.replace("||!", "|| "),
]];

/** Options of {@linkcode Builds.make}. */
export interface BuildOptions {
  readonly changes?: Changes;
  /** Whether it has the number of our build. */
  readonly isOurs?: boolean;
}

/** Makes other builds, in a folder of their own. */
export class Builds implements AsyncDisposable {
  #folder: string | undefined;
  #count = 0;

  /**
   * Makes another build, or a copy of ours.
   *
   * @returns its path
   */
  async make({ changes = [], isOurs = false }: BuildOptions = {}): Promise<string> {
    this.#folder ??= newPlace().folder;
    const number = ++this.#count;
    const bytes = await Deno.readFile(OUR_EXECUTABLE);
    // A character for each byte.
    const at = lastIndexOf(bytes, MAGIC);
    const program = new TextDecoder("latin1").decode(bytes.subarray(at));
    if (!isOurs) bytes[at + BUILD_OFFSET]! ^= number;
    for (const [pattern, change] of changes) {
      const [found, ...others] = [...program.matchAll(new RegExp(pattern, "g"))];
      if (found === undefined || others.length > 0) throw new Error(`There is not one ${pattern} in the program`);
      const text = new TextEncoder().encode(change(found[0]));
      assertEquals(text.length, found[0].length);
      bytes.set(text, at + found.index);
    }
    // By its name it is known what a process maps of it.
    const path = `${this.#folder}/${number}/containerd-shim`;
    await Deno.mkdir(`${this.#folder}/${number}`);
    await Deno.writeFile(path, bytes, { mode: 0o755 });
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#folder !== undefined) await removeFolder(this.#folder);
    this.#folder = undefined;
  }
}

function lastIndexOf(bytes: Uint8Array, text: string): number {
  const sought = new TextEncoder().encode(text);
  for (let at = bytes.lastIndexOf(sought[0]!); at >= 0; at = at === 0 ? -1 : bytes.lastIndexOf(sought[0]!, at - 1)) {
    if (sought.every((byte, i) => bytes[at + i] === byte)) return at;
  }
  throw new Error(`There is no ${text} in our executable`);
}

/** Where a build's hosts have their sockets on a machine that has none yet, but for the number at the end of the name. */
export async function hostPaths(machine: Machine, executable: string): Promise<string> {
  let path = "";
  await withShim({ prefix: machine.prefix, shim: { name: "other build", path: executable } }, () => {
    ({ path } = machine.host());
    return Promise.resolve();
  });
  await machine.endHosts();
  return path.replace(/\d+$/, "");
}

/** How many hosts of one build there can be: lib/standalone/entry.c. */
const HOSTS_OF_A_KIND = 100;

/** Holds the locks of hosts until its input ends. */
const LOCK = `
  use Fcntl ':flock';
  my @held;
  for (@ARGV) {
    open my $lock, '>', $_ or die "$_: $!";
    flock $lock, LOCK_EX | LOCK_NB or die "$_: $!";
    push @held, $lock;
  }
  syswrite STDOUT, "locked\n";
  readline STDIN;
  unlink @ARGV;
`;

/** The locks of all hosts that a build can have on a machine, as if each were about to start, or to end. */
export class Locks {
  readonly #holder: Running;

  private constructor(holder: Running) {
    this.#holder = holder;
  }

  /**
   * Takes them.
   *
   * @param paths see {@linkcode hostPaths}
   */
  static async take(machine: Machine, paths: string): Promise<Locks> {
    const files = Array.from({ length: HOSTS_OF_A_KIND }, (_, i) => `${paths}${i}.lock`);
    const holder = start([...machine.prefix, "perl", "-e", LOCK, ...files], { patienceMs: UPGRADE_PATIENCE_MS });
    const ended = holder.result.then(({ stderr }) => {
      throw new Error(`The locks are not held: ${stderr}`);
    });
    ended.catch(() => {});
    await Promise.race([until("the locks are held", () => holder.stdoutSoFar() !== ""), ended]);
    return new Locks(holder);
  }

  /** Gives them back, if that has not been done, and leaves nothing. */
  async release(): Promise<void> {
    await this.#holder.closeStdin().catch(() => {});
    await this.#holder.result;
  }
}

/** How the command has ended. */
export interface Upgraded {
  readonly code: number;
  readonly said: string;
}

/** How long the command may take: longer than what it waits for, in ms. */
const UPGRADE_PATIENCE_MS = 45_000;

/** Has a build take over the hosts of a machine. */
export async function upgrade(
  machine: Pick<Machine, "prefix">,
  executable: string,
  ...args: string[]
): Promise<Upgraded> {
  const command = [...machine.prefix, executable, "upgrade", ...args];
  const { code, stdout, stderr } = await run(command, { patienceMs: UPGRADE_PATIENCE_MS });
  assertEquals(stdout, "");
  return { code, said: stderr };
}
