/**
 * Holders and their hosts, each test's on a machine of its own: a mount namespace, which no host of another's serves, with
 * a folder for hosts that is empty at first.
 */

import { assertEquals } from "@std/assert";
import { GROUP_VARIABLE, inModes, OUR_EXECUTABLE, SHIM } from "./env.ts";
import { LEAVING_MS, names } from "./leftovers.ts";
import { emptyFolder, HOSTS, shell } from "./own_hosts.ts";
import { argumentsOf, descriptorsOf, isAlive, isHolder, isHost, processes, processOf } from "./proc.ts";
import { type Shim, type ShimOptions, withShim } from "./shim.ts";
import { until, within } from "./until.ts";

export { emptyFolder, HOSTS, shell };

/** Registers a test of hosts, which there are in one mode only. */
export function onlyHosted(name: string, test: () => Promise<void>): void {
  if (SHIM.path === OUR_EXECUTABLE) inModes(["hosted"], "it is about hosts", name, test);
}

/** A command line's beginning that says how many containers a host may have. */
export function group(size: number | string): string[] {
  return ["env", `${GROUP_VARIABLE}=${size}`];
}

/** The most private memory that a holder may write to, in KiB. */
export const HOLDER_KIB = 32;

/** What turns hosts off. */
export const ALONE = group(1);

/** A host, as others see it. */
export interface Host {
  readonly pid: number;
  /** Of its socket, on its machine. */
  readonly path: string;
  /** How many containers it says that it has. */
  readonly size: number;
}

/** As far as hosts are concerned, a machine of a test's own. */
export class Machine {
  /** Its root folder, as this process sees it. */
  readonly root: string;
  /** Its folder for hosts, as this process sees it. */
  readonly folder: string;
  /** A command line's beginning that has the rest run there, in the folder where it is run. */
  readonly prefix: readonly [string, ...string[]];
  readonly #keeper: Deno.ChildProcess;

  private constructor(keeper: Deno.ChildProcess) {
    this.#keeper = keeper;
    this.root = `/proc/${keeper.pid}/root`;
    this.folder = `${this.root}${HOSTS}`;
    const enter = `exec nsenter --mount=/proc/${keeper.pid}/ns/mnt sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"`;
    this.prefix = ["sh", "-c", enter, "sh"];
  }

  /** @param setup what a shell runs there first */
  static async start(setup: string): Promise<Machine> {
    const keeper = new Deno.Command("unshare", {
      // It ends with this process, if not before.
      args: ["--mount", "sh", "-c", `${setup} && echo && exec cat`],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    const reader = keeper.stdout.getReader();
    const { done } = await within("the machine", reader.read());
    await reader.cancel();
    if (done) throw new Error(`The machine does not start: ${setup}`);
    return new Machine(keeper);
  }

  /** Its hosts, in the order of their sockets' names. */
  hosts(): Host[] {
    const device = deviceOf(this.folder);
    if (device === undefined) return [];
    return processes().map(({ pid }) => pid)
      // Also one in another mount namespace that has the same folder.
      .filter((pid) => isHost(pid) && deviceOf(`/proc/${pid}/root${HOSTS}`) === device)
      .map((pid) => {
        const path = argumentsOf(pid)[2] ?? "";
        return { pid, path, size: this.#sizeOf(path) };
      })
      .toSorted((a, b) => a.path < b.path ? -1 : 1);
  }

  /** Its only host. */
  host(): Host {
    const hosts = this.hosts();
    assertEquals(hosts.length, 1, `there are ${hosts.length} hosts`);
    return hosts[0]!;
  }

  /** How many containers its hosts have. */
  sizes(): number[] {
    return this.hosts().map(({ size }) => size);
  }

  #sizeOf(path: string): number {
    try {
      const bytes = Deno.readFileSync(`${this.#seen(path)}.lock`);
      return bytes.length < 4 ? 0 : new DataView(bytes.buffer).getUint32(0, true);
    } catch {
      return 0;
    }
  }

  /** Where this process sees a file of its folder for hosts. */
  #seen(path: string): string {
    return path.replace(HOSTS, this.folder);
  }

  /** A file of a host, whose name is that of its socket with this at its end. */
  fileOf({ path }: Pick<Host, "path">, ending = ""): string {
    return `${this.#seen(path)}${ending}`;
  }

  /** Tells its hosts to end, which have no containers, and fails unless nothing is left of them. */
  async endHosts(): Promise<void> {
    for (const { pid } of this.hosts()) Deno.kill(pid, "SIGTERM");
    await this.expectNoHosts(LEAVING_MS);
  }

  /** Fails unless there are no hosts, and nothing of them, in so many ms. */
  async expectNoHosts(patienceMs: number): Promise<void> {
    await until("all hosts have ended", () => this.hosts().length === 0, patienceMs);
    assertEquals(names(this.folder), [], "files of hosts are left");
  }

  /** Ends its hosts, whatever they do, and lets it go. */
  async remove(): Promise<void> {
    await until("its hosts have ended", () => {
      const hosts = this.hosts();
      for (const { pid } of hosts) Deno.kill(pid, "SIGKILL");
      return hosts.length === 0;
    });
    await this.#keeper.stdin.close();
    await this.#keeper.status;
  }
}

/** The number of the file system that a file is on. */
function deviceOf(path: string): number | undefined {
  try {
    return Deno.statSync(path).dev;
  } catch {
    return undefined;
  }
}

/**
 * Runs `test` with a machine of its own. When the test is over, its hosts are told to end, and must leave nothing; whatever
 * is left, also by a test that failed, is removed.
 */
export async function withMachine(
  test: (machine: Machine) => Promise<void>,
  setup: string = emptyFolder(),
): Promise<void> {
  const machine = await Machine.start(setup);
  try {
    await test(machine);
    await machine.endHosts();
  } finally {
    await machine.remove();
  }
}

/** A container that says something and ends with {@linkcode STATUS}. */
export const TALKING = ["sh", "-c", "echo hello; exit 3"];

/** How the container of {@linkcode TALKING} ends. */
export const STATUS = 3;

/** Runs a shim's container of {@linkcode TALKING} to its end. */
export async function assertRuns(shim: Shim): Promise<void> {
  const { stdout, stderr } = await shim.createWithFifos();
  await shim.startProcess();
  assertEquals([await stdout.text(), await stderr.text()], ["hello\n", ""]);
  assertEquals((await shim.wait()).status, STATUS);
  await shim.delete();
}

/** Has a container's shim run another process there, and fails unless all is well with it. */
export async function assertExecs(shim: Shim, id: string): Promise<void> {
  const { stdout } = await shim.execWithFifos(id, TALKING);
  assertEquals(await stdout.text(), "hello\n");
  assertEquals((await shim.wait(id)).status, STATUS);
  await shim.deleteProcess(id);
}

/** Ends a shim's container, which runs. */
export async function endContainer(shim: Shim): Promise<void> {
  await shim.kill(9);
  await shim.wait();
  await shim.delete();
}

/** Fails unless a shim is a holder, or is none. */
export function assertHolder(pid: number, expected = true): void {
  const what = `process ${pid} (${processOf(pid)?.comm})`;
  assertEquals(isHolder(pid), expected, expected ? `${what} is no holder` : `${what} is a holder`);
}

/** What a process has open, by kind: how many of each. */
export function openFiles(pid: number): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const each of [...descriptorsOf(pid).values()].toSorted()) {
    const kind = each.replace(/:\[\d+\]$/, "");
    // Deno's own come and go.
    if (kind !== "anon_inode:[timerfd]") counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return counts;
}

/** The sockets that Deno makes for itself half a second after its start. */
const DENO_SOCKETS = 2;

/** Fails unless a process has soon no more open than this, of any kind. */
export async function assertOpenFiles(pid: number, expected: Record<string, number>): Promise<void> {
  const allowed = (kind: string) => (expected[kind] ?? 0) + (kind === "socket" ? DENO_SOCKETS : 0);
  const isNoMore = () => Object.entries(openFiles(pid)).every(([kind, count]) => count <= allowed(kind));
  try {
    await until("no more is open", isNoMore, LEAVING_MS);
  } catch {
    assertEquals(openFiles(pid), expected);
  }
}

/** A field of a file of /proc/PID, in KiB where it is memory. */
export function field(pid: number, file: string, name: string): number {
  const text = Deno.readTextFileSync(`/proc/${pid}/${file}`);
  return Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(text)?.[1]);
}

/** Waits until a process has ended. */
export async function untilEnded(pid: number): Promise<void> {
  await until(`process ${pid} has ended`, () => !isAlive(pid));
}

/** Kills a machine's only host, and waits until it is gone. */
export async function killHost(machine: Machine): Promise<Host> {
  const host = machine.host();
  Deno.kill(host.pid, "SIGKILL");
  await untilEnded(host.pid);
  return host;
}

/** Runs `test` with several shims of its own, which are started one after the other. */
export async function withShims(
  options: readonly ShimOptions[],
  test: (shims: Shim[]) => Promise<void>,
): Promise<void> {
  const [first, ...others] = options;
  if (first === undefined) return await test([]);
  await withShim(first, (shim) => withShims(others, (shims) => test([shim, ...shims])));
}

/** Runs a test with shims that have hosts, on a machine of its own. */
export function withHostedShims(
  options: readonly ShimOptions[],
  test: (shims: Shim[], machine: Machine) => Promise<void>,
): Promise<void> {
  return withMachine((machine) =>
    withShims(options.map((each) => ({ prefix: machine.prefix, ...each })), async (shims) => {
      for (const { pid } of shims) assertHolder(pid);
      await test(shims, machine);
    })
  );
}

/** The same with one. */
export function withHosted(options: ShimOptions, test: (shim: Shim, machine: Machine) => Promise<void>): Promise<void> {
  return withHostedShims([options], ([shim], machine) => test(shim!, machine));
}

/** Where a machine's first host has its socket, which is known when there was one. */
export async function firstPath(machine: Machine): Promise<string> {
  let path = "";
  await withShim({ prefix: machine.prefix }, () => {
    ({ path } = machine.host());
    return Promise.resolve();
  });
  await machine.endHosts();
  return path;
}
