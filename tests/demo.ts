/**
 * Shows what the shim is for: a real container, started by a real containerd, under it.
 *
 *     deno run -A tests/demo.ts
 *
 * Everything is made in a temporary folder and is gone at the end. What it runs is installed by tests/setup.sh.
 */

import { must } from "./e2e/command.ts";
import { CONTAINERD, REPOSITORY, SHIM } from "./e2e/env.ts";
import { Containerd } from "./e2e/harness.ts";
import { descendants } from "./e2e/proc.ts";
import { makeRootfs } from "./e2e/rootfs.ts";
import { pause, until } from "./e2e/until.ts";

/** What the container runs: it prints, waits for a line of input, and ends with a status that is not 0. */
const SCRIPT = `echo "Hello from process $$ of a container. These are all the processes that I see:"
ps
echo "I am on stderr." >&2
read line
echo "I was told: $line"
exit 7
`;
const STATUS = 7;

const colors = Deno.stdout.isTerminal() && !Deno.noColor;

function heading(text: string): void {
  console.log(colors ? `\n\x1b[1m== ${text}\x1b[0m` : `\n== ${text}`);
}

/** Prints text that is not this program's own. */
function quote(text: string): void {
  for (const line of text.trimEnd().split("\n")) console.log(`   ${line}`);
}

/** `ps` of a process and everything below it. */
async function ps(pid: number): Promise<string> {
  const pids = new Set([pid, ...descendants(pid).map((each) => each.pid)]);
  const [titles, ...lines] = (await must(["/bin/busybox", "ps", "-o", "pid,ppid,comm,args"])).trimEnd().split("\n");
  return [titles, ...lines.filter((line) => pids.has(Number(line.trim().split(/\s+/)[0])))].join("\n");
}

async function demonstrate(containerd: Containerd): Promise<void> {
  heading("A containerd of its own");
  await makeRootfs(containerd.rootfs);
  await containerd.start();
  quote((await must([CONTAINERD, "--version"])).trim());
  quote(`Its root, state and socket are in ${containerd.folder}`);
  quote(`Its v1 runtime starts ${SHIM.path}`);

  heading("A container");
  await Deno.writeTextFile(`${containerd.rootfs}/demo.sh`, SCRIPT);
  quote("Its /demo.sh:");
  quote(SCRIPT.replace(/^/gm, "  "));
  const id = containerd.newId("demo");
  const command = ["/bin/sh", "/demo.sh"];
  quote(`\n$ ${containerd.runArguments(id, command, { flags: ["--rm"] }).join(" ")}`);
  const running = containerd.startRun(id, command, { flags: ["--rm"] });
  await until("the container has spoken", () => running.stdoutSoFar().endsWith("\n"));

  heading("While it waits for input: containerd, the shim, the container");
  quote(await ps(containerd.pid));

  heading("It is given a line of input, and ends");
  await running.write(new TextEncoder().encode("that is all\n"));
  await running.closeStdin();
  const { code, stdout, stderr } = await running.result;
  quote(`On stdout:\n${stdout}On stderr:\n${stderr}Exit status: ${code}`);
  if (code !== STATUS) throw new Error(`The exit status was to be ${STATUS}`);

  heading("What is left of it");
  await containerd.expectNothingLeft();
  quote("no shim, no bundle, no mount, no FIFO, no socket, no cgroup, no zombie");
}

/** The exit code of a program that ^C has ended, as shells have it: 128 + SIGINT. */
const INTERRUPTED = 130;

/** How long a demonstration that was interrupted may take to notice, in ms. */
const NOTICE_MS = 2000;

// setup.sh may have installed a containerd that was not there when make asked.
const obstacle = await must(["sh", `${REPOSITORY}/tests/needs.sh`, "the demonstration"]);
if (obstacle !== "") {
  console.error(obstacle.trimEnd());
  Deno.exit(1);
}

const interrupted = Promise.withResolvers<typeof INTERRUPTED>();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.addSignalListener(signal, () => interrupted.resolve(INTERRUPTED));
}
const containerd = new Containerd();
const demonstration = demonstrate(containerd).then(() => 0, async (error) => {
  // ^C reaches all that runs in the foreground, which may fail a little before it is known why.
  if (await Promise.race([interrupted.promise, pause(100)]) === undefined) {
    console.error(containerd.log());
    console.error(error);
  }
  return 1;
});
const code = await Promise.race([demonstration, interrupted.promise]);
if (code === INTERRUPTED) {
  console.error("\nInterrupted.");
  // Without a daemon it fails; what it has made until then is removed below.
  await containerd.stop("SIGKILL");
  await Promise.race([demonstration, pause(NOTICE_MS)]);
}
// Again, when something that was on its way out has made a file meanwhile.
await until("all of it is removed", () => containerd.remove().then(() => true));
// And not by an error: what this program has for its end is done then.
Deno.exit(code);
