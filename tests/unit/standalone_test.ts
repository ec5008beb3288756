import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { MINIMUM_GLIBC } from "../../lib/standalone/glibc.ts";
import { bundleModules, compileEntry, EVAL_FLAGS, selfCheck } from "../../lib/standalone/make.ts";
import { loaderOf, type Module, scriptOf } from "../../lib/standalone/modules.ts";
import { pack, type PackOptions } from "../../lib/standalone/pack.ts";

/** What the runtime is given, whatever the caller's environment has. */
const GIVEN = {
  DENO_DIR: `/${"x".repeat(4096)}`,
  DENO_LOG: "info,deno::cache::cache_db=off",
  DENO_NO_UPDATE_CHECK: "1",
  DENO_DISABLE_NODE_SHIM: "1",
  HOME: "/proc",
  GLIBC_TUNABLES: "glibc.malloc.arena_max=1",
  CONTAINERD_SHIM_NOFILE: softLimitOfOpenFiles(),
};

/** What is said where there is no glibc. */
const NEEDS_GLIBC = `it needs the GNU C library (glibc) ${MINIMUM_GLIBC} or later`;

/** The soft limit of open files that our children start with. */
function softLimitOfOpenFiles(): string {
  return /^Max open files\s+(\d+)/m.exec(Deno.readTextFileSync("/proc/self/limits"))![1]!;
}

/**
 * All but SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSTOP, SIGPROF, SIGSYS, 32 and 33, as /proc shows a
 * mask.
 */
const BLOCKED = 0xffff_fffe_3bfb_fa07n;

/** What the probe says of itself. */
interface Probe {
  args: string[];
  env: Record<string, string>;
  execPath: string;
  exe: string;
  comm: string;
  cmdline: string[];
  environ: string[];
  masks: string[];
}

const PROBE = `
// Files are read on threads of a pool: more of them, and later ones.
await Promise.all(Array.from({ length: 8 }, () => Deno.stat("/")));
const list = (name) =>
  Deno.readTextFileSync("/proc/self/" + name).split("\\0").slice(0, -1);
console.log(JSON.stringify({
  args: Deno.args,
  env: Deno.env.toObject(),
  execPath: Deno.execPath(),
  exe: Deno.readLinkSync("/proc/self/exe"),
  comm: Deno.readTextFileSync("/proc/self/comm").trim(),
  cmdline: list("cmdline"),
  environ: list("environ"),
  masks: [...Deno.readDirSync("/proc/self/task")].map(({ name }) =>
    /SigBlk:\\s*(.*)/.exec(Deno.readTextFileSync("/proc/self/task/" + name + "/status"))[1]
  ),
}));
Deno.exit(Number(Deno.env.get("EXIT_CODE") ?? 0));
`;

let directory: string;
let entry: string;
let product: string;

Deno.test.beforeAll(async () => {
  directory = await Deno.realPath(await Deno.makeTempDir());
  entry = `${directory}/entry.bin`;
  product = `${directory}/containerd-shim`;
  await compileEntry(entry);
  await packProgram(PROBE, product);
});

Deno.test.afterAll(async () => {
  await Deno.remove(directory, { recursive: true });
});

function packProgram(program: string, out: string): Promise<void> {
  const deno = Deno.execPath();
  return pack({ deno, entry, program, denoFlags: EVAL_FLAGS, out });
}

async function run(program: string, args: string[] = [], options: Deno.CommandOptions = {}) {
  const command = new Deno.Command(program, { args, ...options });
  const { code, signal, stdout, stderr } = await command.output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, signal, stdout: text(stdout), stderr: text(stderr) };
}

async function probe(args: string[] = [], options: Deno.CommandOptions = {}, program = product): Promise<Probe> {
  const { code, stdout, stderr } = await run(program, args, options);
  assertEquals(stderr, "");
  assertEquals(code, 0);
  return parse(stdout);
}

/** What a probe has said, less those of our variables that are of this process alone. */
function parse(said: string): Probe {
  const { env, ...rest } = JSON.parse(said);
  const { CONTAINERD_SHIM_ENTERED: entered, CONTAINERD_SHIM_TEXTS: texts, CONTAINERD_SHIM_BUILD: build, ...others } =
    env;
  assertMatch(build ?? "", /^\d+$/);
  for (const each of [entered, texts]) assertMatch(each, /^[1-9]\d*$/);
  return { env: others, ...rest };
}

/** At least these: pthread_create(3) blocks all signals in a thread that is just beginning. */
function assertBlocked(masks: string[]): void {
  for (const mask of masks) assertEquals(BigInt(`0x${mask}`) & BLOCKED, BLOCKED);
}

/** Seven, if the two pointers are relocated. */
const SEVEN = `
static int seven(void) { return 7; }
static int (*const call)(void) = seven;
static int (*const *volatile through)(void) = &call;
int main(void) { return (*through)(); }
`;

async function compileC(out: string, ...flags: string[]): Promise<void> {
  const source = `${out}.c`;
  await Deno.writeTextFile(source, SEVEN);
  const { code, stderr } = await run("gcc", [...flags, source, "-o", out]);
  assertEquals(code, 0, stderr);
}

for (
  const args of [
    [],
    ["-x"],
    ["--"],
    ["--", "--"],
    ["--help"],
    ["-V"],
    ["--version", "--", "-h"],
    ["-namespace", "k8s.io", "-debug"],
    [""],
    ["", "", "x", ""],
    ["-", "eval", "--v8-flags=--help"],
    ["ä € 🚢", "two words", "a\nb", "'\"\\$`"],
  ]
) {
  Deno.test(`The program gets the arguments ${JSON.stringify(args)}`, async () => {
    const said = await probe(args);
    assertEquals(said.args, args);
    assertEquals(said.cmdline, [product, ...args]);
  });
}

Deno.test("The program gets 5000 arguments", async () => {
  const args = Array.from({ length: 5000 }, (_, i) => `argument ${i}`);
  const said = await probe(args);
  assertEquals(said.args, args);
  assertEquals(said.cmdline, [product, ...args]);
});

Deno.test("No variable of the caller's configures the runtime", async () => {
  // Deno reads .npmrc of the home directory at start and fails on this one.
  await Deno.writeTextFile(`${directory}/.npmrc`, "registry=::: no URL\n");
  const kept = { PATH: "/nowhere", EMPTY: "", DENOX: "1", COMPLETED: "2" };
  const dropped = {
    DENO_DIR: directory,
    DENO_LOG: "debug",
    DENO_V8_FLAGS: "--no-such-flag",
    NODE_OPTIONS: "--require /nowhere.js",
    V8_X: "1",
    OTEL_DENO: "true",
    OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1",
    COMPLETE: "bash",
    GLIBC_TUNABLES: "glibc.malloc.arena_max=8",
    HOME: directory,
  };
  const env = { ...kept, ...dropped };
  const said = await probe([], { clearEnv: true, env });
  assertEquals(said.env, { ...GIVEN, ...kept });
  // What the caller gave is still to be found, for children to inherit.
  const given = Object.entries(env).map(([name, value]) => `${name}=${value}`);
  assertEquals(said.environ.toSorted(), given.toSorted());
});

Deno.test("The working directory's files do not configure the runtime", async () => {
  const cwd = `${directory}/bundle`;
  await Deno.mkdir(`${cwd}/node_modules`, { recursive: true });
  for (const name of ["deno.json", "package.json", ".npmrc", ".env"]) {
    await Deno.writeTextFile(`${cwd}/${name}`, "}{ not valid");
  }
  assertEquals((await probe(["x"], { cwd })).args, ["x"]);
});

Deno.test("The process is the product's, by path and by name", async () => {
  const said = await probe();
  assertEquals(said.execPath, product);
  assertEquals(said.exe, product);
  assertEquals(said.comm, "containerd-shim");
});

Deno.test("Every thread blocks the signals that the shim takes over", async () => {
  const { masks } = await probe();
  assert(masks.length > 1);
  assertBlocked(masks);
});

Deno.test("The exit code is the program's", async () => {
  const { code } = await run(product, [], { env: { EXIT_CODE: "42" } });
  assertEquals(code, 42);
});

Deno.test("What V8 puts off is done, in Deno's loop", async () => {
  // Callbacks of this kind are such tasks.
  const program = `
    const { promise, resolve } = Promise.withResolvers();
    const registry = new FinalizationRegistry(resolve);
    (() => registry.register({}, "collected"))();
    await new Promise((resolve) => setTimeout(resolve));
    gc({ type: "major", execution: "sync", flavor: "last-resort" });
    // It does not keep Deno from ending.
    const patience = setTimeout(() => console.log("not done"), 10_000);
    console.log(await promise);
    clearTimeout(patience);
  `;
  const out = `${directory}/tasks`;
  await packProgram(program, out);
  const { stdout, stderr } = await run(out);
  assertEquals([stdout, stderr], ["collected\n", ""]);
});

/** Packs modules as the maker does. */
async function packModules(modules: readonly Module[], out: string): Promise<void> {
  const scripts = modules.map((each) => ({ name: each.name, text: scriptOf(each) }));
  const texts = scripts.map(({ text }) => text);
  await pack({
    deno: Deno.execPath(),
    entry,
    program: loaderOf(scripts, "main.js"),
    texts,
    denoFlags: EVAL_FLAGS,
    out,
  });
}

Deno.test("Modules are evaluated when they are first imported, once, and see each other's exports", async () => {
  const out = `${directory}/modules`;
  await packModules([
    { name: "late-1.js", text: 'import{a}from"./chunk-X.js";console.log("late",a);export{a as default};\n' },
    { name: "chunk-X.js", text: 'console.log("chunk é");var n=1,f=()=>n+1;export{n as a,f};' },
    {
      name: "main.js",
      text: 'import"./chunk-X.js";import{a as q,f}from"./chunk-X.js";console.log("main",q,f());' +
        "for(let i=0;i<2;i++)console.log((await1=>await1)(i));" +
        'import("./late-1.js").then(async m=>console.log(m.default,m===await import("./late-1.js")));\n',
    },
  ], out);
  const { code, stdout, stderr } = await run(out);
  assertEquals([code, stderr], [0, ""]);
  assertEquals(stdout, "chunk é\nmain 1 2\n0\n1\nlate 1\n1 true\n");
});

Deno.test("A module that is not written as the bundler writes them is refused", () => {
  for (
    const text of ["export const a=1;", 'a();import b from"b";', "import.meta.url", "import(x)", "export*from'./x.js'"]
  ) {
    assertThrows(() => scriptOf({ name: "x.js", text }), Error, "Cannot make a script of x.js: it has ");
  }
});

Deno.test("An error of the program names its module", async () => {
  const out = `${directory}/error`;
  await packModules([{ name: "main.js", text: '\n  throw new Error("it\'s `${1}\\\\ é");\n' }], out);
  const { code, stderr } = await run(out, [], { env: { NO_COLOR: "1" } });
  assertEquals(code, 1);
  assert(stderr.includes("it's `${1}\\ é"), stderr);
  assert(/containerd-shim\/main\.js, <anonymous>:2:9/.test(stderr), stderr);
});

// Deno takes other commands from these names.
for (const name of ["node", "containerdx"]) {
  Deno.test(`The product works when it is called ${name}`, async () => {
    const copy = `${directory}/${name}`;
    await Deno.copyFile(product, copy);
    const said = await probe(["a"], {}, copy);
    assertEquals(said.args, ["a"]);
    assertEquals(said.comm, name);
    await Deno.remove(copy);
  });
}

Deno.test({
  name: "A copy without environment or home writes no file",
  ignore: !await installed("strace"),
  async fn() {
    const elsewhere = `${directory}/elsewhere`;
    await Deno.mkdir(elsewhere);
    const copy = `${elsewhere}/shim`;
    await Deno.copyFile(product, copy);
    await Deno.chmod(elsewhere, 0o555);
    const log = `${directory}/strace`;
    const calls = "trace=open,openat,creat,mkdir,mkdirat,rename,renameat," +
      "renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,connect";
    const { code, stderr, stdout } = await run(
      "strace",
      ["-f", "-qq", "-o", log, "-e", calls, "-E", `HOME=${elsewhere}`, copy],
      { cwd: elsewhere, clearEnv: true },
    );
    assertEquals(stderr, "");
    assertEquals(code, 0);
    assertEquals(parse(stdout).env, GIVEN);
    const changing = (await Deno.readTextFile(log)).split("\n").filter((line) =>
      line !== "" && !line.includes('"/xxx') &&
      !/ \+\+\+ | --- |<\.\.\. .* resumed>/.test(line) &&
      (!/ open(at)?\(/.test(line) || /O_CREAT|O_WRONLY|O_RDWR/.test(line))
    );
    assertEquals(changing, []);
    assertEquals([...Deno.readDirSync(elsewhere)].map((each) => each.name), [
      "shim",
    ]);
    await Deno.chmod(elsewhere, 0o755);
  },
});

async function installed(program: string): Promise<boolean> {
  try {
    return (await run(program, ["-V"])).code === 0;
  } catch {
    return false;
  }
}

Deno.test("What deno compile makes gets the signals and the environment", async () => {
  const source = `${directory}/compiled.js`;
  const compiled = `${directory}/compiled`;
  await Deno.writeTextFile(source, "console.log('compiled');\n");
  // Deno in the place of denort: it has the program in it too, but runs as
  // Deno does.
  const { code, stderr } = await run(Deno.execPath(), [
    ...["compile", "--no-check", "--no-config", "--no-lock", "--quiet"],
    ...["--output", compiled, source],
  ], { env: { DENORT_BIN: Deno.execPath() } });
  assertEquals(code, 0, stderr);
  const out = `${directory}/compiled-packed`;
  await pack({ deno: compiled, entry, out });
  const args = ["eval", ...EVAL_FLAGS, PROBE, "--", "-a", "--", ""];
  const env = { DENO_LOG: "debug", KEPT: "1" };
  const said = await probe(args, { clearEnv: true, env }, out);
  assertEquals(said.args, ["-a", "--", ""]);
  assertEquals(said.cmdline, [out, ...args]);
  assertEquals(said.env, { ...GIVEN, KEPT: "1" });
  assertBlocked(said.masks);
  // Its program is found through this note's program header.
  const headers = await run("readelf", ["-lW", out]);
  assertEquals(headers.stdout.match(/^ +NOTE /gm)?.length, 1);
});

Deno.test("An executable that ends without an answer fails the check", async () => {
  await assertRejects(() => selfCheck(product), Error, `${product} does not work: Cannot call `);
});

Deno.test("A missing program interpreter is said, with exit code 127", async () => {
  const program = `${directory}/orphan`;
  const interpreter = `${directory}/no-ld.so`;
  await compileC(program, `-Wl,--dynamic-linker=${interpreter}`);
  await pack({ deno: program, entry, out: program });
  const { code, stderr, stdout } = await run(program);
  assertEquals(stderr, `containerd-shim: cannot start: cannot open ${interpreter} (errno 2); ${NEEDS_GLIBC}\n`);
  assertEquals(stdout, "");
  assertEquals(code, 127);
});

Deno.test("A program interpreter that is not glibc's is said, with exit code 127, and not run", async () => {
  const program = `${directory}/foreign`;
  const interpreter = `${directory}/foreign-ld.so`;
  const source = `${directory}/foreign.c`;
  await Deno.writeTextFile(source, "void _start(void) { __builtin_trap(); }");
  assertEquals((await run("gcc", ["-static-pie", "-nostdlib", "-o", interpreter, source])).code, 0);
  await compileC(program, `-Wl,--dynamic-linker=${interpreter}`);
  await pack({ deno: program, entry, out: program });
  const { code, stderr, stdout } = await run(program);
  const why = `another library's loader: ${interpreter} (errno 8)`;
  assertEquals(stderr, `containerd-shim: cannot start: ${why}; ${NEEDS_GLIBC}\n`);
  assertEquals([code, stdout], [127, ""]);
});

Deno.test("Any dynamic executable can be packed, but only once", async () => {
  const program = `${directory}/seven`;
  await compileC(program);
  await pack({ deno: program, entry, out: program });
  assertEquals((await run(program)).code, 7);
  await assertRejects(
    () => pack({ deno: program, entry, out: program }),
    Error,
    `Cannot pack ${program}: its ELF type is 2, not that of a position-independent executable`,
  );
});

Deno.test("What is packed needs no relative relocation at start, and shares with others what that would have changed", async () => {
  const { stdout } = await run("readelf", ["-hdW", product]);
  assertMatch(stdout, /Type: +EXEC/);
  assertMatch(stdout, /\(RELACOUNT\) +0$/m);
  const child = new Deno.Command("sleep", { args: ["0"] }); // so that the product is not the first to run
  await child.output();
  const writable = `const maps=Deno.readTextFileSync("/proc/self/smaps").split(/^(?=[0-9a-f]+-)/m);
    const own=maps.filter(m=>/^\\S+ rw-p .*relocated$/m.test(m));
    console.log(JSON.stringify(own.map(m=>Number(/Private_Dirty: +(\\d+)/.exec(m)[1])+"/"+/Size: +(\\d+)/.exec(m)[1])));`;
  const out = `${directory}/relocated`;
  await packProgram(writable, out);
  await run("sync");
  const said: string[] = JSON.parse((await run(out)).stdout);
  const [dirty, size] = said.map((each) => each.split("/").map(Number)).reduce(([a, b], [c, d]) => [a! + c!, b! + d!]);
  assert(dirty! < size! / 4, `${said} KiB`);
});

Deno.test("A packed executable cannot be stripped of its entry", async () => {
  const { code, stderr } = await run("strip", [product]);
  assertEquals(code, 1);
  assert(stderr.includes("has no sections"), stderr);
  assertEquals((await probe(["x"])).args, ["x"]);
});

Deno.test("ldd says of a packed executable that it has no libraries to tell of, and does not crash", async () => {
  const { code, stdout, stderr } = await run("ldd", [product]);
  assertEquals([code, stdout, stderr], [1, "", "\tnot a dynamic executable\n"]);
});

Deno.test("What is no dynamic x86-64 executable is refused, and nothing is left", async () => {
  const workspace = `${directory}/refused`;
  await Deno.mkdir(workspace);
  const write = async (name: string, bytes: Uint8Array) => {
    await Deno.writeFile(`${workspace}/${name}`, bytes);
    return `${workspace}/${name}`;
  };
  const dynamic = `${workspace}/dynamic`;
  const fixed = `${workspace}/fixed`;
  const isStatic = `${workspace}/static`;
  await compileC(dynamic);
  await compileC(fixed, "-no-pie");
  await compileC(isStatic, "-static-pie", "-nostartfiles", "-Wl,-e,main");
  const elf = await Deno.readFile(dynamic);
  const changed = (at: number, ...bytes: number[]) => {
    const copy = elf.slice();
    copy.set(bytes, at);
    return copy;
  };
  const cases: [path: string, why: string][] = [
    [
      await write("text", new TextEncoder().encode("#!/bin/sh\n".repeat(9))),
      "it is not an ELF file",
    ],
    [await write("empty", new Uint8Array()), "it is not an ELF file"],
    [
      await write("class32", changed(4, 1)),
      "it is not a 64-bit little-endian ELF file (class 1, data encoding 1)",
    ],
    [
      await write("arm64", changed(18, 183)),
      "it is for machine 183, not for x86-64 (62)",
    ],
    [
      await write("short", elf.slice(0, 100)),
      "it ends within its program headers",
    ],
    [fixed, "its ELF type is 2, not that of a position-independent"],
    [isStatic, "it has no PT_INTERP program header"],
  ];
  const before = [...Deno.readDirSync(workspace)].length;
  for (const [deno, why] of cases) {
    const out = `${workspace}/out`;
    await assertRejects(() => pack({ deno, entry, out }), Error, `Cannot pack ${deno}: ${why}`);
  }
  await assertRejects(
    () => packProgram("a\0b", `${workspace}/out`),
    Error,
    "Cannot pack a text of 3 characters: number 1 is NUL, which would end it",
  );
  await assertRejects(
    () => pack({ deno: dynamic, entry: dynamic, out: `${workspace}/out` }),
    Error,
    `Cannot use ${dynamic} as entry code: it begins with`,
  );
  assertEquals([...Deno.readDirSync(workspace)].length, before);
});

Deno.test("The same program bundled in another folder is the same, down to the names of its modules", async () => {
  const root = decodeURIComponent(new URL("../..", import.meta.url).pathname);
  const elsewhere = `${directory}/a folder of another name`;
  await Deno.mkdir(elsewhere);
  const copied = ["main.ts", "deno.json", "deno.lock", "lib", "ffi"].map((each) => `${root}${each}`);
  assertEquals((await run("cp", ["-r", ...copied, elsewhere])).code, 0);
  const bundled = (folder: string, out: string) =>
    bundleModules({ deno: Deno.execPath(), config: `${folder}/deno.json`, main: `${folder}/main.ts`, folder: out });
  const modules = await bundled(root.replace(/\/$/, ""), `${directory}/modules`);
  assertEquals(await bundled(elsewhere, `${elsewhere}/modules`), modules);
  assertEquals(modules[0]!.name, "main.js");
  assert(modules.some(({ name }) => name === "shim.js"), modules.map(({ name }) => name).join());
});

Deno.test("Whatever is other in what is run makes another build, and nothing else does", async () => {
  const program = `${directory}/seven`;
  await compileC(program);
  const [otherProgram, otherEntry] = [`${directory}/seven-2`, `${directory}/entry-2.bin`];
  await Deno.writeFile(otherProgram, new Uint8Array([...await Deno.readFile(program), 0]), { mode: 0o755 });
  await Deno.writeFile(otherEntry, new Uint8Array([...await Deno.readFile(entry), 0]));
  const out = `${directory}/built`;
  const same = { deno: program, entry, program: "1", texts: ["2"], denoFlags: ["--quiet"], out };
  const buildOf = async (options: PackOptions) => {
    await pack(options);
    const bytes = await Deno.readFile(options.out);
    const at = new TextDecoder("latin1").decode(bytes).lastIndexOf("DENOENTR");
    return new DataView(bytes.buffer).getBigUint64(at + 64, true);
  };
  const build = await buildOf(same);
  assertEquals(await buildOf({ ...same, out: `${directory}/built-2` }), build);
  const builds = [build];
  for (
    const other of [
      { deno: otherProgram },
      { entry: otherEntry },
      { program: "3" },
      { texts: ["2", "4"] },
      { denoFlags: ["--no-config"] },
    ]
  ) builds.push(await buildOf({ ...same, ...other }));
  assertEquals(new Set(builds).size, builds.length);
});
