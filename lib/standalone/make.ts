/**
 * Makes the executable: `deno run -A lib/standalone/make.ts`, from the
 * repository's own Deno. The program uses nothing of this folder but entry.c,
 * which runs before it.
 *
 * There are two makers. `deno compile` is the documented one and needs Deno's
 * runtime-only executable, denort, which it downloads unless DENORT_BIN names
 * it. Where there is none, the program is put into a copy of Deno itself. Both
 * products get the entry code, and the first that passes the check is taken.
 */
import { parseArgs } from "@std/cli/parse-args";
import { describe } from "../../ffi/fd.ts";
import { kill, reap, spawn } from "../../ffi/process.ts";
import { LAST_SIGNAL, Signal, signalName } from "../../ffi/signals.ts";
import { privateAddress } from "../../ffi/socket.ts";
import { containerd } from "../api/mod.js";
import { SIGNALS } from "../signals.ts";
import { Client } from "../ttrpc/client.ts";
import { commitOf } from "./commit.ts";
import { checkLibrary } from "./glibc.ts";
import { loaderOf, type Module, renamed, scriptOf } from "./modules.ts";
import { pack } from "./pack.ts";

const HERE = `${import.meta.dirname}/`;
const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);

/**
 * Nothing of V8's is done on its workers: less memory, and a start that is a millisecond or two shorter. There are workers
 * all the same, because the flag is written as V8 reads it and Deno does not: with `--single-threaded` Deno would have none,
 * but would also never run what V8 puts off, and keep it for ever: 0.7 KiB of each time that memory is given back.
 *
 * Positions in the source noted when it is compiled: V8 would do that at the first error, by compiling the function that it
 * passed through again, which may be the whole bundle (10 ms).
 *
 * A small heap for new objects: left to itself V8 lets it grow to tens of MB before it collects what has outlived it. When
 * everything is collected, and pages go back to the kernel, is for ffi/memory.ts to say, so there is no reducer of V8's own,
 * with timers of its own; what has been compiled stays, so that no call has to wait for it a second time.
 */
export const V8_FLAGS: string = "--v8-flags=" + [
  "--single_threaded",
  "--no-enable-lazy-source-positions",
  "--max-semi-space-size=1",
  "--expose-gc",
  "--no-memory-reducer",
  "--no-flush-bytecode",
].join(",");

/** How the program is run: nothing is looked for around it, nor fetched. */
export const EVAL_FLAGS: readonly string[] = ["--ext=js", "--no-config", "--no-lock", "--cached-only", V8_FLAGS];

/** The module that main.ts becomes. */
const MAIN_MODULE = "main.js";

const ANSWER_TIMEOUT_MS = 10_000;
const END_TIMEOUT_MS = 10_000;
const REAP_INTERVAL_MS = 2;

/**
 * Compiles entry.c into the flat file that {@linkcode pack} takes. The
 * compiler is `gcc`, or what CC names; objcopy is needed too.
 *
 * @throws {Error} with what the compiler says
 */
export async function compileEntry(out: string): Promise<void> {
  const elf = `${out}.elf`;
  await run([
    Deno.env.get("CC") ?? "gcc",
    ...["-std=gnu11", "-Wall", "-Wextra", "-Werror"],
    // Each holder has its pages; the last three make it smaller than -Oz alone does.
    ...["-Oz", "-mno-sse", "-fno-inline-functions-called-once", "-fno-move-loop-invariants"],
    "-fno-cse-follow-jumps",
    // There is no libc, so no function of it may be called, in whatever guise.
    ...["-ffreestanding", "-nostdlib", "-fno-tree-loop-distribute-patterns"],
    ...["-fno-stack-protector", "-fcf-protection=none"],
    "-fno-asynchronous-unwind-tables",
    ...["-fPIE", "-static-pie", "-Wl,--build-id=none"],
    ...[`-Wl,-T,${HERE}entry.ld`, `${HERE}entry.c`, "-o", elf],
  ]);
  await run(["objcopy", "-O", "binary", "-j", ".blob", elf, out]);
}

/**
 * Starts an executable as containerd starts a shim, with the listening socket
 * as descriptor 3, and checks that it answers ShimInfo with its own pid and
 * that every one of its threads blocks the signals; then ends it.
 *
 * Reaps whatever children this process has.
 *
 * @throws {Error} with what is wrong with it
 */
export async function selfCheck(executable: string): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "containerd-shim-" });
  let pid: number | undefined;
  try {
    const path = privateAddress();
    let conn: Deno.Conn;
    {
      // Ours goes as soon as the product has it, so that the connection breaks if that ends.
      using listener = listen(path);
      pid = spawn({
        args: [
          executable,
          ...["-namespace", "self-check", "-workdir", directory],
          ...["-address", `${directory}/containerd.sock`],
        ],
        cwd: directory,
        descriptors: [null, null, 2, listener.fd],
        // By itself: a host would be there for a while, of a product that is not there yet.
        environment: Object.entries({ ...Deno.env.toObject(), CONTAINERD_SHIM_GROUP: "1" }).map((each) =>
          each.join("=")
        ),
      });
      conn = await Deno.connect({ transport: "unix", path });
    }
    using client = new Client(conn);
    const { ShimInfoResponse } = containerd.runtime.linux.shim.v1;
    const { shimPid } = ShimInfoResponse.decode(
      await client.call(
        "containerd.runtime.linux.shim.v1.Shim",
        "ShimInfo",
        new Uint8Array(),
        { timeoutMs: ANSWER_TIMEOUT_MS },
      ),
    );
    if (shimPid !== pid) {
      throw new Error(`ShimInfo says pid ${shimPid}, but it is ${pid}`);
    }
    checkBlocked(pid);
    const ended = pid;
    pid = undefined;
    const status = await end(ended);
    if (status !== 0) {
      throw new Error(`it ended with status ${status} when asked to by SIGTERM`);
    }
  } catch (error) {
    throw new Error(`${executable} does not work: ${(error as Error).message}`, { cause: error });
  } finally {
    if (pid !== undefined) await end(pid);
    await Deno.remove(directory, { recursive: true });
  }
}

/** A listener on a Unix socket, and its descriptor, which is the listener's. */
export function listen(path: string): { readonly fd: number } & Disposable {
  const before = new Set(openSockets());
  const listener = Deno.listen({ transport: "unix", path });
  const fd = openSockets().find((each) => !before.has(each));
  if (fd === undefined) throw new Error("the listener has no descriptor");
  return { fd, [Symbol.dispose]: () => listener.close() };
}

function openSockets(): number[] {
  return [...Deno.readDirSync("/proc/self/fd")]
    .map(({ name }) => Number(name))
    .filter((fd) => describe(fd)?.startsWith("socket:"));
}

function checkBlocked(pid: number): void {
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    const status = Deno.readTextFileSync(`/proc/${pid}/task/${name}/status`);
    const mask = BigInt(`0x${/^SigBlk:\s*([0-9a-f]+)$/m.exec(status)![1]}`);
    for (let signal = 1; signal <= LAST_SIGNAL; signal++) {
      const blocked = (mask >> BigInt(signal - 1) & 1n) === 1n;
      if (blocked === SIGNALS.includes(signal)) continue;
      if (!blocked) throw new Error(`its thread ${name} does not block ${signalName(signal)}`);
      // The C library has a thread that is only beginning block everything; the first one began with the entry.
      if (Number(name) === pid) throw new Error(`it blocks ${signalName(signal)}`);
    }
  }
}

/** Ends a child of ours, by SIGTERM, or by SIGKILL if that takes too long, and gives its status. */
async function end(pid: number): Promise<number> {
  let deadline = performance.now() + END_TIMEOUT_MS;
  kill(pid, Signal.SIGTERM);
  for (;;) {
    const exit = reap();
    if (exit?.pid === pid) return exit.status;
    if (performance.now() > deadline) {
      deadline = Infinity;
      kill(pid, Signal.SIGKILL);
    }
    await new Promise((resolve) => setTimeout(resolve, REAP_INTERVAL_MS));
  }
}

/** Runs a program of the build to its end. */
async function run(
  [program, ...args]: readonly [string, ...string[]],
  options: { timeoutMs?: number } = {},
): Promise<void> {
  const start = performance.now();
  const { success, code, signal, stderr } = await new Deno.Command(program, {
    args,
    env: { NO_COLOR: "1", RUST_BACKTRACE: "0" },
    stdin: "null",
    ...options.timeoutMs === undefined ? {} : { signal: AbortSignal.timeout(options.timeoutMs) },
  }).output();
  if (success) return;
  const how = signal === null ? `exit code ${code}` : signal;
  const late = performance.now() - start >= (options.timeoutMs ?? Infinity) ? ` after ${options.timeoutMs} ms` : "";
  const said = new TextDecoder().decode(stderr).trim().replace(/\s+/g, " ");
  throw new Error(`${program} ${args[0]} failed (${how}${late}): ${said}`);
}

/** What a {@linkcode Maker} works with: paths. */
interface Parts {
  readonly deno: string;
  readonly bundle: string;
  /** The same program in several modules. */
  readonly modules: readonly Module[];
  readonly entry: string;
  /** How long `deno compile` may take, download included. */
  readonly compileTimeoutMs: number;
}

interface Maker {
  readonly name: string;
  /** What the command line calls it. */
  readonly word: string;
  make(parts: Parts, out: string): Promise<void>;
}

const MAKERS: readonly Maker[] = [
  {
    name: "deno compile",
    word: "compile",
    async make({ deno, bundle, entry, compileTimeoutMs }, out) {
      const compiled = `${out}.compiled`;
      // Without a code cache: it would be a file in /tmp, for anyone to write.
      const flags = ["--no-check", "--no-config", "--no-lock"];
      flags.push("--no-code-cache", V8_FLAGS, "--allow-all", "--quiet");
      await run([deno, "compile", ...flags, "--output", compiled, bundle], {
        timeoutMs: compileTimeoutMs,
      });
      // Only now: denort may come in an archive, and the product looks for its
      // program through the program headers, which the entry code hands on.
      await pack({ deno: compiled, entry, out });
    },
  },
  {
    name: "a copy of Deno",
    word: "copy",
    async make({ deno, modules, entry }, out) {
      const scripts = modules.map(({ name, text }) => ({ name, text: scriptOf({ name, text }) }));
      const program = loaderOf(scripts, MAIN_MODULE);
      await pack({ deno, entry, program, texts: scripts.map(({ text }) => text), denoFlags: EVAL_FLAGS, out });
    },
  },
];

/**
 * The name of the first maker whose product passes the check and is `out`.
 *
 * @param only the word of the one that is to be tried
 */
async function makeExecutable(parts: Parts, out: string, only?: string): Promise<string> {
  const makers = MAKERS.filter(({ word }) => only === undefined || word === only);
  // Beside the product, so that it can be renamed.
  const directory = `${out}.${crypto.randomUUID()}`;
  await Deno.mkdir(directory, { recursive: true });
  try {
    for (const { name, make } of makers) {
      const made = `${directory}/containerd-shim`;
      try {
        await make(parts, made);
        await selfCheck(made);
        await Deno.rename(made, out);
        return name;
      } catch (error) {
        console.error(`not made by ${name}: ${(error as Error).message}`);
      }
    }
    throw new Error(`Cannot make ${out}: none of its makers could`);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** The command line. */
interface Flags {
  /** The Deno to bundle with and to copy; the one that runs this. */
  readonly deno: string;
  readonly main: string;
  readonly bundle: string;
  readonly out: string;
  /** In seconds. */
  readonly "compile-timeout": string;
  /** `compile` or `copy`: the only maker that is tried. */
  readonly maker?: string;
}

async function main(): Promise<void> {
  const flags: Flags = parseArgs(Deno.args, {
    unknown(argument: string) {
      throw new Error(`Cannot make with ${argument}: there is no such flag`);
    },
    string: ["deno", "main", "bundle", "out", "compile-timeout", "maker"],
    default: {
      deno: Deno.execPath(),
      main: `${ROOT}main.ts`,
      bundle: `${ROOT}build/containerd-shim.js`,
      out: `${ROOT}bin/containerd-shim`,
      "compile-timeout": "10",
    },
  });
  const { deno, bundle, out } = flags;
  await checkLibrary(deno);
  const entry = `${ROOT}build/entry.bin`;
  await Deno.mkdir(`${ROOT}build`, { recursive: true });
  const config = `${ROOT}deno.json`;
  const commit = (await commitOf(ROOT))?.name ?? "unknown";
  // Which commit it is of is what lib/version.ts says.
  const withCommit = (text: string) => text.replace("@COMMIT@", commit);
  await run([deno, "bundle", ...BUNDLING, "--config", config, "--format", "iife", "--output", bundle, flags.main]);
  await Deno.writeTextFile(bundle, withCommit(await Deno.readTextFile(bundle)));
  const bundled = await bundleModules({ deno, config, main: flags.main, folder: `${ROOT}build/modules` });
  const modules = bundled.map(({ name, text }) => ({ name, text: withCommit(text) }));
  await compileEntry(entry);
  const compileTimeoutMs = Number(flags["compile-timeout"]) * 1000;
  const parts = { deno, bundle, modules, entry, compileTimeoutMs };
  const maker = await makeExecutable(parts, out, flags.maker);
  const { size } = await Deno.stat(out);
  console.log(`${out}: ${(size / 1e6).toFixed(1)} MB, made by ${maker}`);
}

/** Flags of `deno bundle`. protobufjs would take `long` if it were there, and works without. */
const BUNDLING = ["--quiet", "--minify", "--platform", "browser", "--external", "long"];

/** Options of {@linkcode bundleModules}: paths. */
export interface BundleOptions {
  /** The Deno that bundles. */
  readonly deno: string;
  /** deno.json. */
  readonly config: string;
  /** The main module. */
  readonly main: string;
  /** Where the bundler puts them; it is removed before. */
  readonly folder: string;
}

/** Bundles a program in modules that are loaded when they are wanted, the main one first: {@linkcode renamed}. */
export async function bundleModules({ deno, config, main, folder }: BundleOptions): Promise<Module[]> {
  await removeIfThere(folder);
  const splitting = ["--format", "esm", "--code-splitting", "--outdir", folder];
  await run([deno, "bundle", ...BUNDLING, "--config", config, ...splitting, main]);
  const modules: Module[] = [];
  for await (const { name } of Deno.readDir(folder)) {
    modules.push({ name, text: await Deno.readTextFile(`${folder}/${name}`) });
  }
  return renamed(modules, MAIN_MODULE);
}

async function removeIfThere(path: string): Promise<void> {
  try {
    await Deno.remove(path, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error((error as Error).message);
    Deno.exit(1);
  }
}
