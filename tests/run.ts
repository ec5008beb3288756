/**
 * Runs the tests, and sees to it that nothing of them is left, however they end.
 *
 *     deno run -A tests/run.ts [--quick | --beside] [FILE | FOLDER | PATTERN]...
 *
 * A file or folder narrows down what is run, a pattern is looked for in the names of tests. Without a file, formatting, lint,
 * types and the documentation's examples are looked at too. The end-to-end tests run in each mode that they state (see
 * e2e/modes.ts), or in the one that WAY names if they state that; with --quick, those that quick.ts chooses. Some files run at
 * the same time as the others, by another process of this program (--beside). In the end stands what has failed, why, and how
 * to run just that again. Everything that a test starts is a descendant of this process, because this is a subreaper; so what
 * is still alive in the end can be found and ended.
 */

import * as fd from "../ffi/fd.ts";
import * as process from "../ffi/process.ts";
import type { Way } from "./e2e/env.ts";
import { cgroupsOf, hierarchies, names, paths, removeNamespace, RUNC_ROOT, runName } from "./e2e/leftovers.ts";
import { emptyFolder, shell } from "./e2e/own_hosts.ts";
import { argumentsOf, descendants, isAlive, isHost, mountsBelow } from "./e2e/proc.ts";
import { CHOICES } from "./quick.ts";
import { describe, type Failure, failures, longest, readReport, uncaughtErrors } from "./report.ts";
import { statedModes } from "./stated.ts";

/** All of the ways in which our shim lives: see e2e/env.ts. */
const WAYS: readonly Way[] = ["alone", "hosted", "mixed"];

/**
 * Files that run at the same time as the others: their tests mostly wait for a deadline of the shim's, or for a reader that is
 * late, and use hardly any CPU meanwhile; or they are long, and measure no times. None of those that see how fast something
 * is, or how much memory it takes, may be here.
 */
const BESIDE: readonly string[] = [
  // Mostly waiting.
  "deadline_test.ts",
  "fault_events_test.ts",
  "fault_runtime_test.ts",
  "fault_stdio_test.ts",
  "fault_system_test.ts",
  "logger_test.ts",
  "watchdog_test.ts",
  // Long.
  "cgroup2_test.ts",
  "checkpoint_ctr_test.ts",
  "checkpoint_test.ts",
  "crun_test.ts",
  "install_test.ts",
  "many_test.ts",
  "package_test.ts",
  "survival_test.ts",
  "takeover_record_test.ts",
  "takeover_test.ts",
  "upgrade_test.ts",
];

const IS_OURS = !Deno.env.get("SHIM");

/** What a run has come to. */
interface Result {
  readonly passed: number;
  readonly skipped: number;
  readonly failed: readonly Failure[];
}

/** Names the file for the result of a run beside another. */
const RESULT = "E2E_RESULT";

const folder = Deno.makeTempDirSync({ prefix: "shim-" });
const prefix = runName(folder);
const report = `${folder}/report.xml`;
const printed = `${folder}/printed.log`;

/** Children that somebody waits for; all others are orphans of the tests. */
const awaited = new Map<number, (status: number) => void>();

function reapAll(): void {
  for (let exit = process.reap(); exit; exit = process.reap()) awaited.get(exit.pid)?.(exit.status);
}

/** Runs a program, which writes to our stdout and stderr or to `output`, and gives its status. */
function run(
  args: readonly string[],
  { environment, output }: { environment?: readonly string[]; output?: number } = {},
): { pid: number; status: Promise<number> } {
  const descriptors = [null, output ?? 1, output ?? 2];
  const pid = process.spawn({ args, descriptors, ...(environment ? { environment } : {}) });
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
const isQuick = Deno.args.includes("--quick");
/** Whether this is the process that runs files beside another. */
const isBeside = Deno.args.includes("--beside");
const named = Deno.args.filter((each) => !each.startsWith("--"));
const files = named.filter(isThere);
const patterns = named.filter((each) => !isThere(each));

const total = { passed: 0, skipped: 0 };
const failed: Failure[] = [];

/** Deno, as one can type it. */
const deno = Deno.execPath().replace(`${Deno.cwd()}/`, "");
const shim = Deno.env.get("SHIM") ? `SHIM=${Deno.env.get("SHIM")} ` : "";

let areTypesChecked = false;

/** Formatting, lint, types and documentation; its output is shown if it fails. */
async function checkSources(): Promise<void> {
  if (interrupted) return;
  console.log("\n=== sources ===");
  const path = `${folder}/check.log`;
  const output = fd.open(path, fd.O.WRONLY | fd.O.CREAT, 0o600);
  const checking = run([Deno.execPath(), "task", "check"], { output });
  fd.close(output);
  running = checking.pid;
  if (await checking.status === 0) {
    areTypesChecked = true;
    console.log("ok");
    return;
  }
  const why = Deno.readTextFileSync(path);
  console.error(why);
  failed.push({
    what: "formatting, lint, types or documentation",
    where: "deno.json",
    why,
    again: `${deno} task check`,
  });
}

/** How long a file takes that is told to be long, in s. */
const LONG_S = 10;

/** What is run by one `deno test`. */
interface Part {
  readonly way?: Way;
  readonly paths: readonly string[];
  /** What the names of the tests match; all, unless given. */
  readonly pattern?: string | undefined;
  /** Patterns each of which must be some test's. */
  readonly names?: readonly string[];
  /** Whether it is the examples in comments that are run. */
  readonly isDocumentation?: boolean;
}

async function test({ way, paths, pattern, names = [], isDocumentation = false }: Part): Promise<void> {
  if (interrupted || paths.length === 0) return;
  const kind = way ?? (isDocumentation ? "examples" : "unit");
  console.log(`\n=== ${kind} ===`);
  const environment = {
    ...Deno.env.toObject(),
    E2E_DIR: folder,
    E2E_ROOT_PID: `${Deno.pid}`,
    ...beside ? { E2E_BESIDE_PID: `${beside.pid}` } : {},
    ...way ? { WAY: way } : {},
  };
  // Not by a pipe: whatever a test has left would keep that open.
  const output = fd.open(printed, fd.O.WRONLY | fd.O.CREAT | fd.O.APPEND, 0o600);
  const tests = run([
    ...[Deno.execPath(), "test", "-A", `--junit-path=${report}`],
    // An example is given all that its module exports, and does not use all: an error, to the types of this project.
    ...isDocumentation ? ["--doc"] : [],
    ...isDocumentation || isBeside || areTypesChecked ? ["--no-check"] : [],
    ...pattern ? [`--filter=/${pattern}/`] : [],
    ...paths,
  ], { environment: Object.entries(environment).map(([k, v]) => `${k}=${v}`), output });
  fd.close(output);
  running = tests.pid;
  const showing = run(["tail", "-n", "+1", "-s", "0.1", "-f", `--pid=${tests.pid}`, printed]);
  const status = await tests.status;
  await showing.status;
  const text = Deno.readTextFileSync(printed);
  const cases = isThere(report) ? readReport(Deno.readTextFileSync(report), text) : [];
  if (isThere(report)) Deno.removeSync(report);
  const command = isDocumentation
    ? `${deno} test -A --doc --no-check`
    : way
    ? `WAY=${way} ${shim}${deno} task test`
    : `${deno} test -A`;
  const wrong = failures(
    cases,
    way,
    (file, pattern) => `${command} ${file}${isDocumentation ? "" : way ? ` '${pattern}'` : ` --filter '/${pattern}/'`}`,
  );
  const again = `${command} ${paths.map((each) => each.replace(here, "tests/")).join(" ")}`;
  const where = { where: kind, again };
  const uncaught = uncaughtErrors(text);
  Deno.removeSync(printed);
  wrong.unshift(...uncaught.map((why) => ({ what: "a file of tests was given up", why, ...where })));
  if (status !== 0 && wrong.length === 0) {
    wrong.push({ what: "tests could not be run", why: `deno test has ended with ${status}: see its output`, ...where });
  }
  for (const name of names) {
    if (cases.some((each) => new RegExp(name).test(each.name))) continue;
    wrong.push({ what: `there is no test: ${name}`, why: "quick.ts has chosen it", ...where });
  }
  // Those that were not asked for are called skipped too.
  const isAsked = (name: string) => pattern === undefined || new RegExp(pattern).test(name);
  total.skipped += cases.filter(({ isSkipped, name }) => isSkipped && isAsked(name)).length;
  total.passed += cases.filter(({ isSkipped, failure }) => !isSkipped && failure === undefined).length;
  failed.push(...wrong);
  const long = longest(cases, LONG_S);
  if (files.length === 0 && long !== "") console.log(`These files have taken longest:\n${long}`);
}

/** The end-to-end tests. */
const all = names(`${here}e2e`).filter((each) => each.endsWith("_test.ts")).sort();

/** The path of one of these. */
const path = (file: string) => `${here}e2e/${file}`;

/** Those that are asked for: by a path, or all. */
function asked(those: readonly string[]): string[] {
  const real = (path: string) => `${Deno.realPathSync(path)}/`;
  const isBelow = (file: string, folder: string) => real(path(file)).startsWith(real(folder));
  return all.filter((file) => those.some((each) => isBelow(file, each)));
}

/** The files that are asked for, and state a mode: those that run beside the others, or the others. */
function filesOf(way: Way, areBeside: boolean): string[] {
  const those = asked(files.length > 0 ? files : [here]).filter((file) => BESIDE.includes(file) === areBeside);
  return those.filter((file) => !IS_OURS || statedModes(Deno.readTextFileSync(path(file))).has(way));
}

/** All that --quick has run in one way: whole files, and of others what has been chosen. */
function quick(way: Way): Part[] {
  const chosen = all.filter((file) => (CHOICES[file]?.ways ?? ["hosted"]).includes(way));
  const parts = chosen.filter((file) => CHOICES[file]?.names);
  const patterns = parts.flatMap((file) => CHOICES[file]!.names!).map((each) => `^${literal(each)}`);
  return [
    { way, paths: chosen.filter((file) => !parts.includes(file)).map(path) },
    { way, paths: parts.map(path), pattern: patterns.join("|"), names: patterns },
  ];
}

/** A text as a regular expression. */
function literal(text: string): string {
  return text.replace(/[^A-Za-z0-9 ]/g, "\\$&");
}

/** Has another process of this program run the files that run beside the others; it says what they have come to. */
function startBeside(): { pid: number; result: () => Promise<Result> } {
  const [path, results] = [`${folder}/beside.log`, `${folder}/beside.json`];
  const output = fd.open(path, fd.O.WRONLY | fd.O.CREAT, 0o600);
  const environment = Object.entries({ ...Deno.env.toObject(), [RESULT]: results });
  // A host belongs to those whose process has started it: with hosts of their own, they can be ended when these are through.
  const own = ["unshare", "--mount", ...shell(emptyFolder())];
  const { pid, status } = run(
    [...own, Deno.execPath(), "run", "-A", import.meta.filename!, "--beside", ...named],
    { environment: environment.map(([k, v]) => `${k}=${v}`), output },
  );
  fd.close(output);
  const result = async (): Promise<Result> => {
    await status;
    console.log(`\n=== beside the others ===\n${Deno.readTextFileSync(path)}`);
    if (isThere(results)) return JSON.parse(Deno.readTextFileSync(results));
    const failure = {
      what: "what runs beside the others could not be run",
      where: "tests/run.ts",
      why: "see its output",
    };
    return { passed: 0, skipped: 0, failed: [{ ...failure, again: `${deno} task test` }] };
  };
  return { pid, result };
}

let beside: ReturnType<typeof startBeside> | undefined;
let running: number | undefined;
let interrupted = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.addSignalListener(signal, () => {
    interrupted = true;
    if (running !== undefined && isAlive(running)) Deno.kill(running, "SIGKILL");
    // It has something to remove.
    if (beside !== undefined && isAlive(beside.pid)) Deno.kill(beside.pid, "SIGTERM");
  });
}

const startedAt = performance.now();
const pattern = patterns.length > 0 ? patterns.join("|") : undefined;
if (files.length === 0 && !isBeside) {
  if (pattern === undefined) await checkSources();
  await test({ paths: [`${here}unit`], pattern });
  await test({ paths: [`${here}../ffi`, `${here}../lib`], isDocumentation: true, pattern });
}
await test({ paths: isBeside ? [] : files.filter((each) => asked([each]).length === 0), pattern });
const only = Deno.env.get("WAY") as Way | undefined;
const ways = only ? [only] : IS_OURS ? WAYS : ["alone" as const];
const hasFiles = (areBeside: boolean) => ways.some((way) => filesOf(way, areBeside).length > 0);
/** Where nothing else is asked for, this process runs what else another would. */
const areBeside = isBeside || !hasFiles(false);
if (!isQuick && !areBeside && !interrupted && hasFiles(true)) beside = startBeside();
for (const way of ways) {
  const parts = isQuick ? quick(way) : [{ way, paths: filesOf(way, areBeside).map(path), pattern }];
  for (const part of parts) await test(part);
}
if (beside !== undefined) {
  const { passed, skipped, failed: others } = await beside.result();
  total.passed += passed;
  total.skipped += skipped;
  failed.push(...others);
}
const left = await endHosts();
left.push(...await endDescendants());
left.push(...await removeRest());
if (left.length > 0) {
  const why = `It is removed now:\n${left.join("\n")}`;
  failed.push({
    what: "the tests have left something",
    where: "after all",
    why,
    again: "the tests, in smaller groups",
  });
}
const results = Deno.env.get(RESULT);
if (isBeside && results !== undefined) {
  Deno.writeTextFileSync(results, JSON.stringify({ ...total, failed } satisfies Result));
  Deno.exit();
}
if (failed.length > 0) console.error(`\n=== what has failed ===\n\n${describe(failed)}`);
if (interrupted) console.error("\nInterrupted.");
const time = Math.round((performance.now() - startedAt) / 1000);
const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : "";
console.log(
  `\n${total.passed} passed, ${failed.length} failed${skipped} (${Math.floor(time / 60)} min ${time % 60} s)`,
);
Deno.exit(failed.length === 0 && !interrupted ? 0 : 1);
