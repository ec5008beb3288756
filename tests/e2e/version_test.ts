/** What the program says of itself, to whoever asks it in whatever circumstances. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { COMMANDS } from "../../lib/commands.ts";
import { must, run } from "./command.ts";
import { OUR_EXECUTABLE } from "./env.ts";
import { names } from "./leftovers.ts";
import { HOSTS, onlyHosted, withMachine } from "./host.ts";
import { modes } from "./modes.ts";

modes(["hosted"], "what the program says of itself does not depend on the mode");

/** Runs a command line of a shell, in which `$0` is the executable, on some machine. */
function shell(line: string, prefix: readonly string[] = []) {
  return run([...prefix, "sh", "-c", line, OUR_EXECUTABLE]);
}

/** Has a socket that listens as descriptor 3, and becomes the rest of the command line. */
const LISTENING = `
  use Socket;
  $^F = 3;
  socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or die $!;
  bind($socket, pack("S", AF_UNIX)) && listen($socket, 1) or die $!;
  fileno($socket) == 3 or die fileno($socket);
  exec @ARGV;
`;

onlyHosted("-version, --version and -v say the version, the commit, and what it is made of, on stdout", async () => {
  for (const flag of ["-version", "--version", "-v"]) {
    const { code, stdout, stderr } = await run([OUR_EXECUTABLE, flag]);
    assertEquals([code, stderr], [0, ""]);
    const items = Object.fromEntries(stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/)));
    assertEquals(items["containerd-shim"], config.version);
    assertMatch(items.commit, /^(unknown|[0-9a-f]{40}(-dirty)?)$/);
    assertMatch(items.build, /^[0-9a-f]{16}$/);
    assertEquals([items.Deno, items.V8], [Deno.version.deno, Deno.version.v8]);
    assertStringIncludes(await must(["getconf", "GNU_LIBC_VERSION"]), `glibc ${items.glibc}\n`);
    assertMatch(items.maker, /^(deno compile|a copy of Deno)$/);
  }
});

onlyHosted(
  "what an administrator asks for is said without a host, also where a socket listens as descriptor 3",
  () =>
    withMachine(async (machine) => {
      const ask = (...args: string[]) => run([...machine.prefix, "perl", "-e", LISTENING, OUR_EXECUTABLE, ...args]);
      const version = await ask("-version");
      assertEquals([version.code, version.stderr], [0, ""]);
      assertMatch(version.stdout, /^containerd-shim /);
      const help = await ask("-h");
      assertEquals([help.code, help.stdout], [0, ""]);
      assertMatch(help.stderr, /^Usage of containerd-shim:$/m);
      const unknown = await ask("-nosuch");
      assertEquals([unknown.code, unknown.stdout], [2, ""]);
      assertMatch(unknown.stderr, /^flag provided but not defined: -nosuch\nUsage of /);
      const upgrade = await ask("upgrade", "--dry-run");
      assertEquals(upgrade.code, 0);
      await machine.endHosts();
      assertEquals(names(`${machine.root}${HOSTS}`), []);
    }),
);

// An upgrade looks at hosts: not at those of others, of which one may just end.
onlyHosted("with standard streams that are closed, it does the same", () =>
  withMachine(async ({ prefix }) => {
    const expected = { "-version": 0, "-h": 0, "-nosuch": 2, "upgrade --dry-run": 0, "upgrade -nosuch": 2 };
    for (const [args, status] of Object.entries(expected)) {
      for (const closed of ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]) {
        assertEquals((await shell(`"$0" ${args} ${closed}`, prefix)).code, status, `${args} ${closed}`);
      }
    }
  }));

onlyHosted("where what it says cannot be written, it fails", async () => {
  const { code, stderr } = await shell(`"$0" -version >/dev/full`);
  assertEquals([code, stderr], [1, "containerd-shim: No space left on device (os error 28)\n"]);
});

onlyHosted("-h lists every command, and each command explains its flags when asked", async () => {
  const { stderr } = await run([OUR_EXECUTABLE, "-h"]);
  for (const { name, summary, flags } of COMMANDS) {
    assertMatch(stderr, new RegExp(`^  ${name} +\\S`, "m"));
    assertStringIncludes(stderr, summary);
    const help = await run([OUR_EXECUTABLE, name, "-h"]);
    assertEquals(help.code, 0);
    for (const flag of flags) assertStringIncludes(help.stdout + help.stderr, `  -${flag.name}`);
  }
});

onlyHosted(
  "a command that there is not is a wrong command line: it says so and how it is called, and exits with 2",
  async () => {
    const { code, stdout, stderr } = await run([OUR_EXECUTABLE, "upgrde"]);
    assertEquals([code, stdout], [2, ""]);
    assertMatch(stderr, /^no such command: upgrde\nUsage of containerd-shim:$/m);
  },
);

onlyHosted("on a terminal it says the same, and nothing of what it is made of", () =>
  withMachine(async (machine) => {
    // What a user has for Deno is none of its business.
    const line = `DENO_LOG=debug '${OUR_EXECUTABLE}'`;
    for (const args of ["-version", "-h", "-nosuch", "nosuch", "upgrade --dry-run", "upgrade -h", "inspect -h"]) {
      const shown = await run([...machine.prefix, "script", "-qec", `${line} ${args}`, "/dev/null"]);
      const { code, stdout, stderr } = await run([...machine.prefix, "sh", "-c", `${line} ${args}`]);
      assertEquals([shown.code, shown.stdout.replaceAll("\r\n", "\n")], [code, stdout + stderr], args);
    }
    // What it shows of others' shims changes.
    const shown = await run([...machine.prefix, "script", "-qec", `${line} inspect`, "/dev/null"]);
    assert(!/cache/i.test(shown.stdout), shown.stdout);
  }));

onlyHosted("where there is no /dev/null, nor /proc, -version says the same, and writes nothing", async () => {
  const mounts = "mount -t tmpfs none /dev && mount -t tmpfs none /proc && mount -t tmpfs none /tmp && cd /tmp";
  const { code, stdout, stderr } = await run(
    [
      "unshare",
      "--mount",
      "sh",
      "-c",
      `${mounts} && "$0" -version && "$0" -h && find /dev /proc /tmp >&2`,
      OUR_EXECUTABLE,
    ],
  );
  assertEquals([code, stdout], [0, (await run([OUR_EXECUTABLE, "-version"])).stdout]);
  assertEquals(stderr, `${(await run([OUR_EXECUTABLE, "-h"])).stderr}/dev\n/proc\n/tmp\n`);
});
