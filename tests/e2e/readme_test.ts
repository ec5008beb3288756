/** What README, the manual page and the Makefile tell a new user works as it is written, or says why not. */

import { assertEquals, assertMatch } from "@std/assert";
import { run } from "./command.ts";
import { CONTAINERD, CTR, inModes, newPlace, OUR_EXECUTABLE, REPOSITORY } from "./env.ts";
import { RUNTIME } from "./harness.ts";
import { emptyFolder, onlyHosted, shell, withMachine } from "./host.ts";
import { removeFolder } from "./leftovers.ts";
import { isHolder, processes } from "./proc.ts";
import { makeRootfs } from "./rootfs.ts";
import { until } from "./until.ts";

/** The lines around one with a table of config.toml, as far as they are an example. */
function exampleOf(page: string, isPart: (line: string) => boolean): string {
  const lines = page.split("\n");
  const table = lines.findIndex((line) => line.includes("[plugins."));
  const start = lines.findLastIndex((line, i) => i < table && !isPart(line)) + 1;
  const end = lines.findIndex((line, i) => i > table && !isPart(line));
  return `${lines.slice(start, end).join("\n")}\n`;
}

/** The examples, as who copies them has them. */
const EXAMPLES: readonly (readonly [where: string, text: () => string])[] = [
  ["README.md", () => {
    const page = Deno.readTextFileSync(`${REPOSITORY}/README.md`);
    return exampleOf(page, (line) => line === "" || line.startsWith("    ")).replace(/^ {4}/gm, "");
  }],
  ["the manual page", () => {
    const page = Deno.readTextFileSync(`${REPOSITORY}/bin/containerd-shim.8`);
    return exampleOf(page, (line) => !line.startsWith(".")).replaceAll("\\-", "-");
  }],
];

/** Where a containerd that is told nothing else has its things, and where it writes besides. */
const FOLDERS = ["/run", "/var/lib/containerd", "/opt", "/etc/containerd", "/usr/local/bin"];

for (const [where, text] of EXAMPLES) {
  onlyHosted(
    `a containerd whose config.toml is the example of ${where} starts this shim`,
    async () => {
      const { folder } = newPlace();
      try {
        await makeRootfs(`${folder}/rootfs`);
        await Deno.writeTextFile(`${folder}/config.toml`, text());
        const setup = [
          ...FOLDERS.map((each) => `mkdir -p ${each} && mount -t tmpfs none ${each}`),
          emptyFolder(),
          `cp ${folder}/config.toml /etc/containerd/config.toml`,
          `cp ${OUR_EXECUTABLE} /usr/local/bin/containerd-shim`,
        ];
        await withMachine(async (machine) => {
          const [program, ...args] = [...machine.prefix, ...shell(`exec >${folder}/log 2>&1`), CONTAINERD];
          await using stack = new AsyncDisposableStack();
          // In a PATH with the folder of the shim it would be found without any configuration.
          const env = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" };
          const daemon = new Deno.Command(program!, { args, stdin: "null", env }).spawn();
          stack.defer(async () => {
            daemon.kill("SIGTERM");
            await daemon.status;
          });
          const path = `${machine.root}/run/containerd/containerd.sock`;
          await until("containerd takes connections", async () => {
            (await Deno.connect({ transport: "unix", path })).close();
            return true;
          });
          const command = `${CTR} run -d --null-io --runtime ${RUNTIME} --rootfs ${folder}/rootfs c /bin/sleep 1000`;
          const ctr = (line: string) => run([...machine.prefix, "sh", "-c", line]);
          stack.defer(async () => {
            await ctr(`${CTR} task kill -s 9 c; until ${CTR} task rm c; do sleep 0.05; done; ${CTR} container rm c`);
          });
          const { code, stderr } = await ctr(command);
          assertEquals(code, 0, stderr);
          const mountsOf = (pid: number) => {
            try {
              return Deno.readLinkSync(`/proc/${pid}/ns/mnt`);
            } catch {
              return undefined;
            }
          };
          const here = mountsOf(daemon.pid);
          const holders = processes().filter(({ pid }) => mountsOf(pid) === here && isHolder(pid));
          assertEquals(holders.length, 1, Deno.readTextFileSync(`${folder}/log`));
        }, setup.join(" && "));
      } finally {
        await removeFolder(folder);
      }
    },
  );
}

const ONE_WAY = "it is about the Makefile";

/** What make prints, which is run with its command line and a PATH that begins with the folder. */
async function make(target: string, folder: string, before: readonly string[] = []): Promise<string> {
  const { code, stdout, stderr } = await run([
    ...["env", `PATH=${folder}:${Deno.env.get("PATH")}`, ...before],
    ...["make", "-C", REPOSITORY, "--no-print-directory", target],
  ]);
  assertEquals([code, stdout], [2, ""]);
  return stderr;
}

/** Another user, who can read the repository wherever it is. */
const NOBODY = [
  "setpriv",
  "--reuid=65534",
  "--clear-groups",
  "--inh-caps=+dac_read_search",
  "--ambient-caps=+dac_read_search",
];

inModes(["hosted"], ONE_WAY, "make demo and the like say in their only line that they need root", async () => {
  for (const target of ["demo", "check", "test", "bench"]) {
    const line = await make(target, "/", NOBODY);
    assertMatch(line, new RegExp(`^[^\n]*make ${target} needs root: [^\n]*\n$`));
  }
}, { isOnlyOurs: true });

inModes(
  ["hosted"],
  ONE_WAY,
  "where containerd is 2.x, make demo and the like say in their only line that it has no runtime v1",
  async () => {
    const { folder } = newPlace();
    try {
      for (const name of ["github.com/containerd/containerd/v2 2.1.9", "containerd.io v2.1.9"]) {
        const script = `#!/bin/sh\n[ "$*" = --version ] && echo containerd ${name} 0123abc\n`;
        await Deno.writeTextFile(`${folder}/containerd`, script, { mode: 0o755 });
        for (const target of ["demo", "check"]) {
          const line = await make(target, folder);
          assertMatch(
            line,
            /^[^\n]* needs containerd 1\.2 to 1\.7, and this is 2\.1\.9: [^\n]* no runtime v1[^\n]*\n$/,
          );
        }
        const demo = await run([
          ...["env", `PATH=${folder}:${Deno.env.get("PATH")}`],
          ...[Deno.execPath(), "run", "-A", `${REPOSITORY}/tests/demo.ts`],
        ]);
        assertEquals([demo.code, demo.stdout], [1, ""]);
        assertMatch(demo.stderr, /^the demonstration needs containerd 1\.2 to 1\.7, and this is 2\.1\.9: [^\n]*\n$/);
      }
    } finally {
      await removeFolder(folder);
    }
  },
  { isOnlyOurs: true },
);
