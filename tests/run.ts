/**
 * Runs the tests, and sees to it that nothing of them is left, however they end.
 *
 *     deno run -A tests/run.ts [FILE | FOLDER | PATTERN]...
 *
 * A file or folder narrows down what is run, a pattern is looked for in the names of tests. The end-to-end tests run once in
 * each way that a shim of ours can live, or in the one that WAY names. Everything that a test starts is a
 * descendant of this process, because this is a subreaper; so what is still alive in the end can be found and ended.
 */

import * as process from "../ffi/process.ts";
import type { Way } from "./e2e/env.ts";
import { argumentsOf, descendants, isAlive, isHost, mountsBelow } from "./e2e/proc.ts";
import { cgroupsOf, hierarchies, names, paths, removeNamespace, RUNC_ROOT, runName } from "./e2e/leftovers.ts";

/** All of the ways in which our shim lives: see e2e/env.ts. */
const WAYS: readonly Way[] = ["alone", "hosted", "mixed"];
const IS_OURS = !Deno.env.get("SHIM");

const folder = Deno.makeTempDirSync({ prefix: "shim-" });
const prefix = runName(folder);
const report = `${folder}/report.xml`;

/** Children that somebody waits for; all others are orphans of the tests. */
const awaited = new Map<number, (status: number) => void>();

function reapAll(): void {
  for (let exit = process.reap(); exit; exit = process.reap()) awaited.get(exit.pid)?.(exit.status);
}

/** Runs a program with our stdout and stderr, and gives its status. */
function run(args: readonly string[], environment?: readonly string[]): { pid: number; status: Promise<number> } {
  const pid = process.spawn({ args, descriptors: [null, 1, 2], ...(environment ? { environment } : {}) });
  const { promise, resolve } = Promise.withResolvers<number>();
  awaited.set(pid, resolve);
  return { pid, status: promise };
}

/** How long a host may take that is told to end and has no containers, in ms. */
const HOST_END_MS = 5000;

/** Has the hosts end that wait for further containers, and says which have not. */
async function endHosts(): Promise<string[]> {
  const hosts = descendants(Deno.pid).filter(({ pid }) => isHost(pid)).map(({ pid }) => pid);
  for (const pid of hosts) Deno.kill(pid, "SIGTERM");
  const deadline = performance.now() + HOST_END_MS;
  while (hosts.some(isAlive) && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    reapAll();
  }
  return hosts.filter(isAlive).map((pid) => `host ${pid} with containers`);
}

/** Ends everything below this process, and says what there was. */
async function endDescendants(): Promise<string[]> {
  const ended = new Map<number, string>();
  for (;;) {
    // A process that is being killed may still start another, and what is orphaned becomes ours: look again.
    const living = descendants(Deno.pid).filter((each) => isAlive(each.pid));
    if (living.length === 0) return [...ended.values()];
    for (const { pid, comm } of living) {
      if (!ended.has(pid)) ended.set(pid, `process ${pid} (${comm}): ${argumentsOf(pid).join(" ")}`);
      try {
        Deno.kill(pid, "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
    reapAll();
  }
}

/** Removes what the run has left outside of processes, and says what there was. */
async function removeRest(): Promise<string[]> {
  const left: string[] = [];
  // Before the mounts: one of them may be what shows the cgroups.
  const namespaces = new Set([RUNC_ROOT, ...hierarchies()].flatMap(names).filter((each) => each.startsWith(prefix)));
  for (const namespace of namespaces) {
    left.push(...cgroupsOf(namespace).map((each) => `cgroup ${each}`));
    if (names(RUNC_ROOT).includes(namespace)) left.push(`runc state ${RUNC_ROOT}/${namespace}`);
    await removeNamespace(namespace);
  }
  for (const mount of mountsBelow(folder).reverse()) {
    left.push(`mount ${mount}`);
    await run(["umount", "-l", mount]).status;
  }
  for (const socket of shimSockets()) {
    if (!isThere(socket)) continue;
    left.push(`socket ${socket}`);
    Deno.removeSync(socket);
  }
  Deno.removeSync(folder, { recursive: true });
  return left;
}

/** The sockets that the daemons of this run have made for their shims: each bundle has a file with the address. */
function shimSockets(): string[] {
  const bundles = paths(folder).flatMap((each) => paths(`${each}/state/io.containerd.runtime.v1.linux`)).flatMap(paths);
  return bundles.map((each) => `${each}/address`).filter(isThere).map((each) =>
    Deno.readTextFileSync(each).replace("unix://", "")
  );
}

/** Counts the tests in the report that the test runner has written, if it has. */
function counts(): { passed: number; failed: number; skipped: number } | undefined {
  let xml: string;
  try {
    xml = Deno.readTextFileSync(report);
  } catch {
    return undefined;
  }
  const cases = xml.match(/<testcase [^>]*>/g)?.length ?? 0;
  const failed = xml.match(/<(failure|error)[ >]/g)?.length ?? 0;
  const skipped = xml.match(/<skipped/g)?.length ?? 0;
  return { passed: cases - failed - skipped, failed, skipped };
}

function isThere(path: string): boolean {
  try {
    return Deno.statSync(path) !== undefined;
  } catch {
    return false;
  }
}

process.becomeSubreaper();
Deno.addSignalListener("SIGCHLD", reapAll);

const here = decodeURIComponent(new URL(".", import.meta.url).pathname);
const files = Deno.args.filter(isThere);
const filter = Deno.args.filter((each) => !isThere(each));

/** Runs tests in one way of {@link Way}, or in none, and gives their status. */
async function test(way: Way | undefined, paths: readonly string[]): Promise<void> {
  if (interrupted) return;
  console.log(`\n=== ${way ?? "unit"} ===`);
  const environment = { ...Deno.env.toObject(), E2E_DIR: folder, E2E_ROOT_PID: `${Deno.pid}` };
  const tests = run(
    [
      Deno.execPath(),
      "test",
      "-A",
      `--junit-path=${report}`,
      ...filter.length > 0 ? [`--filter=/${filter.join("|")}/`] : [],
      ...paths,
    ],
    Object.entries({ ...environment, ...way ? { WAY: way } : {} }).map(([k, v]) => `${k}=${v}`),
  );
  running = tests.pid;
  const status = await tests.status;
  const result = counts();
  total.passed += result?.passed ?? 0;
  total.skipped += result?.skipped ?? 0;
  total.failed += result?.failed || (status === 0 ? 0 : 1);
}

const total = { passed: 0, failed: 0, skipped: 0 };
let running: number | undefined;
let interrupted = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.addSignalListener(signal, () => {
    interrupted = true;
    if (running !== undefined) Deno.kill(running, "SIGKILL");
  });
}

if (files.length === 0) await test(undefined, [`${here}unit`]);
const named = Deno.env.get("WAY") as Way | undefined;
for (const way of named ? [named] : IS_OURS ? WAYS : ["alone" as const]) {
  await test(way, files.length > 0 ? files : [`${here}e2e`]);
}
const left = await endHosts();
left.push(...await endDescendants());
left.push(...await removeRest());
if (left.length > 0) console.error(`\nThe tests have left this, which is removed now:\n${left.join("\n")}`);
if (interrupted) console.error("\nInterrupted.");
const failed = total.failed || (left.length > 0 || interrupted ? 1 : 0);
const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : "";
console.log(`\n${total.passed} passed, ${failed} failed${skipped}`);
Deno.exit(failed === 0 ? 0 : 1);
