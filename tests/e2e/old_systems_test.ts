/** Systems that are older than those that the executable is made on. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Builds, upgrade } from "./builds.ts";
import { must } from "./command.ts";
import { type Form, inModes, OUR_EXECUTABLE, REPOSITORY, WAY } from "./env.ts";
import { assertHolder, emptyFolder, type Machine, onlyHosted, shell, withMachine } from "./host.ts";
import { names, RUNC_ROOT } from "./leftovers.ts";
import { descriptorsOf, isAlive } from "./proc.ts";
import { type Shim, type ShimOptions, Status, withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { until } from "./until.ts";
import { assertServes, REPEATING } from "./whole.ts";

/** Registers a test for a shim by itself and for one in a host: what they call differs. */
function inBoth(name: string, test: () => Promise<void>): void {
  inModes(["alone", "hosted"], "they start their children in different ways", name, test, { isOnlyOurs: true });
}

/** Where Debian 11's C library is, and how long it may take to come there, in ms. */
const BULLSEYE = `${REPOSITORY}/build/bullseye`;
const INSTALL_MS = 120_000;
/** What our executable names as its interpreter, and where {@linkcode BULLSEYE} is mounted. */
const INTERPRETER = "/lib64/ld-linux-x86-64.so.2";
const OLD_INTERPRETER = "/mnt/ld-linux-x86-64.so.2";

/** Makes a copy of our executable that has Debian 11's C library, where that is mounted. */
async function withOldLibrary(folder: string): Promise<Form> {
  const path = `${folder}/containerd-shim`;
  await Deno.copyFile(OUR_EXECUTABLE, path);
  using file = await Deno.open(path, { read: true, write: true });
  const bytes = new Uint8Array(4096);
  await file.read(bytes);
  const at = new TextDecoder("latin1").decode(bytes).indexOf(`${INTERPRETER}\0`);
  assert(at > 0, `there is no ${INTERPRETER} at the beginning of ${OUR_EXECUTABLE}`);
  await file.seek(at, Deno.SeekMode.Start);
  await file.write(new TextEncoder().encode(OLD_INTERPRETER.padEnd(INTERPRETER.length, "\0")));
  return { name: "glibc 2.31", path };
}

/** Why there is none, on a machine that does not reach Debian's packages; undefined where there is one. */
const hasNone = await must(["sh", `${REPOSITORY}/tests/bullseye.sh`, BULLSEYE], { patienceMs: INSTALL_MS })
  .then(() => undefined, (error: Error) => error.message.trim().split("\n").at(-1));

const OLD_LIBRARY = "with glibc 2.31, which Debian 11 and Ubuntu 20.04 have, a shim does all that it does";

if (hasNone === undefined) inBoth(OLD_LIBRARY, serveWithOldLibrary);
else Deno.test({ name: `${OLD_LIBRARY} [${hasNone}]`, ignore: true, fn: serveWithOldLibrary });

async function serveWithOldLibrary(): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const shim = await withOldLibrary(folder);
    await withMachine(async (machine) => {
      assertMatch(await must([...machine.prefix, shim.path, "-version"]), /^glibc +2\.31$/m);
      await withShim({ ...REPEATING, prefix: machine.prefix, shim }, async (each) => {
        assertHolder(each.pid, WAY === "hosted");
        const served = WAY === "hosted" ? machine.host().pid : each.pid;
        assertMatch(await Deno.readTextFile(`/proc/${served}/maps`), /libc-2\.31\.so$/m);
        await assertServes(each);
      });
    }, `${emptyFolder()} && mount --bind '${BULLSEYE}/lib' /mnt`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** errno(3) */
const ENOSYS = 38, EPERM = 1;
/** pidfd_send_signal(2), the first system call of Linux 5.1, and clone3(2): on every architecture. */
const FIRST_DENIED = 424, CLONE3 = 435;

/**
 * A command line's beginning that has the rest, and all that it starts, refused each system call that Linux 5.1 and later
 * have brought: seccomp(2).
 *
 * glibc has clone(2) for clone3(2) only if that is not known.
 */
function withoutNewCalls(error: number): string[] {
  const script = `
    my ($LOAD, $JUMP_IF_AT_LEAST, $JUMP_IF_EQUAL, $RETURN) = (0x20, 0x35, 0x15, 0x06); # bpf_common.h
    my ($ALLOW, $ERRNO) = (0x7fff0000, 0x00050000); # seccomp.h
    my ($PR_SET_SECCOMP, $SECCOMP_MODE_FILTER) = (22, 2);
    my @filter = (
      [$LOAD, 0, 0, 0], # nr of struct seccomp_data
      [$JUMP_IF_AT_LEAST, 1, 0, ${FIRST_DENIED}],
      [$RETURN, 0, 0, $ALLOW],
      [$JUMP_IF_EQUAL, 1, 0, ${CLONE3}],
      [$RETURN, 0, 0, $ERRNO | ${error}],
      [$RETURN, 0, 0, $ERRNO | ${ENOSYS}],
    );
    my $instructions = join "", map { pack "SCCL", @$_ } @filter;
    my $program = pack "S x6 P", scalar @filter, $instructions;
    syscall ${Deno.build.arch === "x86_64" ? 157 : 167}, $PR_SET_SECCOMP, $SECCOMP_MODE_FILTER, $program
      and die "seccomp: $!";
    exec @ARGV`;
  return ["perl", "-e", script];
}

/** Runs `test` with a shim on a machine that refuses it what is new. */
function withOldKernel(
  error: number,
  options: ShimOptions,
  test: (shim: Shim, machine: Machine) => Promise<void>,
): Promise<void> {
  return withMachine((machine) =>
    withShim(
      { ...options, prefix: [...machine.prefix, ...withoutNewCalls(error), ...options.prefix ?? []] },
      (shim) => {
        assertHolder(shim.pid, WAY === "hosted");
        return test(shim, machine);
      },
    )
  );
}

inBoth("where the kernel has no system call since Linux 5.1, a shim does all that it does", () => serveWithout(ENOSYS));
// Only what tells the two errors apart is another: that there are no pidfds, which is all the same for a shim by itself.
onlyHosted(
  "where a filter refuses all system calls since Linux 5.1, a shim does all that it does",
  () => serveWithout(EPERM),
);

/** Has a shim do all that it does, with hosts that die and move to another build. */
function serveWithout(error: number): Promise<void> {
  return withOldKernel(error, REPEATING, async (shim, machine) => {
    await using builds = new Builds();
    await assertServes(shim, {
      meanwhile: async () => {
        if (WAY === "alone") return;
        await replaceHost(machine);
        await assertUpgrades(machine, await builds.make(), error);
      },
    });
  });
}

/** Has another build take over from a machine's only host. */
async function assertUpgrades(machine: Machine, executable: string, error: number): Promise<void> {
  const before = machine.host();
  const prefix = [...machine.prefix, ...withoutNewCalls(error)] as const;
  const { code, said } = await upgrade({ prefix }, executable);
  assertEquals(code, 0, said);
  await until("the last host has ended", () => machine.hosts().every(({ pid }) => pid !== before.pid));
  assertEquals(machine.sizes(), [1]);
}

onlyHosted(
  "where the kernel has no system call since Linux 5.1, SIGTERM ends a container and its shim",
  () =>
    withOldKernel(ENOSYS, { endsItself: true }, async (shim) => {
      const pid = await shim.run();
      assertEquals((await shim.state()).status, Status.RUNNING);
      assertEquals(await shim.end("SIGTERM"), 0);
      await until("the container has ended", () => !isAlive(pid));
    }),
);

/** Has the rest of a command line inherit a file that is nobody's there, as descriptor 9. */
const INHERITED = "/etc/os-release";
const WITH_INHERITED = shell(`exec 9<${INHERITED}`);

inBoth(
  "where the kernel has no system call since Linux 5.1, nothing is inherited but what is meant to be",
  () =>
    withOldKernel(ENOSYS, { prefix: WITH_INHERITED }, async (shim, machine) => {
      const script = '#!/bin/sh\nls -l /proc/self/fd >>"$(dirname "$0")/descriptors"; exec runc "$@"\n';
      await shim.run({}, { runtime: await shim.makeProgram("runtime", script) });
      const descriptors = await Deno.readTextFile(`${shim.folder}/descriptors`);
      assert(descriptors.includes("/dev/null"), descriptors);
      const file = await Deno.realPath(INHERITED);
      assert(!descriptors.includes(file), descriptors);
      if (WAY === "alone") return;
      // The holder has closed it for good, and the host has never had it.
      for (const pid of [shim.pid, machine.host().pid]) {
        const open = [...descriptorsOf(pid).values()];
        assert(!open.includes(file), `${open}`);
      }
    }),
);

onlyHosted(
  "where the kernel has no system call since Linux 5.1, what is being created when its holder dies is removed",
  () =>
    withOldKernel(ENOSYS, { endsItself: true }, async (shim) => {
      const script = `#!/bin/sh
case " $* " in *" create "*) runc "$@"; touch '${shim.folder}/created'; read -r line <'${shim.folder}/go';; esac
exec runc "$@"
`;
      await must(["mkfifo", `${shim.folder}/go`]);
      const creating = shim.create({}, { runtime: await shim.makeProgram("runtime", script) });
      creating.catch(() => {});
      await until("the container is there", () => Deno.statSync(`${shim.folder}/created`).isFile);
      assertEquals(names(`${RUNC_ROOT}/${shim.namespace}`), [shim.id]);
      shim.signal("SIGKILL");
      await shim.status;
      await Deno.writeTextFile(`${shim.folder}/go`, "\n");
      await until("the container is gone", () => names(`${RUNC_ROOT}/${shim.namespace}`).length === 0);
    }),
);
