/** Docker with our shim: what its users do all day. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { forAll, numbers } from "./at_a_time.ts";
import { whileBusy } from "./busy.ts";
import { start } from "./command.ts";
import { type Docker, dockerTest, endDocker } from "./docker.ts";
import { modes } from "./modes.ts";
import { processOf } from "./proc.ts";
import { PATIENCE_MS, until } from "./until.ts";

modes(["hosted", "alone"], "what Docker calls and hears is the same when some shims are hosted and some are alone");

/** How many containers run to their ends, and how many of them at a time. */
const SHORT = 50;
const SHORT_BUSY = 12;
const AT_A_TIME = 4;
/** How many execs run to their ends. */
const EXECS = 12;

/** How long a container may take, from start to end, on a machine whose CPUs are busy, in ms. */
const BUSY_MS = 2 * PATIENCE_MS;

/** A script that does nothing until it is told to end. */
const IDLE = ["sleep", "100000"];

Deno.test.afterAll(endDocker);

dockerTest("docker run prints a container's output and exits with its status", async (docker) => {
  const result = await docker.run(["sh", "-c", "echo out; echo err >&2; exit 7"]);
  assertEquals(result, { code: 7, stdout: "out\n", stderr: "err\n" });
});

dockerTest("docker run exits with 127, and tells runc's message, when there is no such command", async (docker) => {
  const { code, stdout, stderr } = await docker.run(["no-such-command"]);
  assertEquals([code, stdout], [127, ""]);
  assertMatch(stderr, /exec: "no-such-command": executable file not found in \$PATH/);
});

dockerTest("docker run -i gives a container its input to the end", async (docker) => {
  const stdin = numbers(1, 20_000).join("\n");
  assertEquals(await docker.run(["cat"], { flags: ["-i"], stdin }), { code: 0, stdout: stdin, stderr: "" });
});

dockerTest("docker run -it gives a container a terminal of the user's size, and what is typed", async (docker) => {
  const name = docker.newName();
  const script =
    `tty; until [ "$(stty size 2>/dev/null)" = "30 100" ]; do usleep 10000; done; echo ready; read line; ` +
    `echo got $line; exit 5`;
  const command = docker.runArguments(name, ["sh", "-c", script], ["--rm", "-it"]);
  const quoted = command.map((each) => `'${each.replaceAll("'", `'\\''`)}'`).join(" ");
  // script(1) has a terminal for it.
  const user = start(["script", "-qec", `stty cols 100 rows 30; exec ${quoted}`, "/dev/null"]);
  await until("the container is ready", () => /^ready\r$/m.test(user.stdoutSoFar())).catch(async (error) => {
    user.kill("SIGKILL");
    throw new Error(`${error.message}; it has printed ${JSON.stringify((await user.result).stdout)}`);
  });
  await user.write(new TextEncoder().encode("typed\r"));
  const { code, stdout } = await user.result;
  assertEquals(code, 5, stdout);
  assertMatch(stdout, /\/dev\/(console|pts\/0)\r\nready\r\n(typed\r\n)?got typed\r\n$/);
});

dockerTest("docker exec prints a process's output, gives it input, and exits with its status", async (docker) => {
  const name = await docker.runDetached(IDLE);
  const result = await docker.exec(name, ["sh", "-c", "echo out; echo err >&2; exit 9"]);
  assertEquals(result, { code: 9, stdout: "out\n", stderr: "err\n" });
  const echo = await docker.exec(name, ["cat"], { flags: ["-i"], stdin: "line\n" });
  assertEquals(echo, { code: 0, stdout: "line\n", stderr: "" });
  const terminal = await docker.exec(name, ["sh", "-c", "tty; exit 3"], { flags: ["-t"] });
  assertEquals(terminal, { code: 3, stdout: "/dev/pts/0\r\n", stderr: "" });
  await docker.removeContainer(name);
});

dockerTest("docker exec -d goes on without its client, and dockerd hears of its end", async (docker) => {
  const name = await docker.runDetached(IDLE);
  const execs = async () => (await docker.must("inspect", "--format", "{{.ExecIDs}}", name)).trim();
  await docker.must("exec", "-d", name, "sh", "-c", "mkfifo /tmp/end; read line </tmp/end; echo $line >/tmp/got");
  assertMatch(await execs(), /^\[[0-9a-f]{64}\]$/);
  const end = "until [ -p /tmp/end ]; do usleep 10000; done; echo all >/tmp/end";
  assertEquals((await docker.exec(name, ["sh", "-c", end])).code, 0);
  await until("dockerd has heard of the exec's end", async () => await execs() === "[]");
  assertEquals((await docker.exec(name, ["cat", "/tmp/got"])).stdout, "all\n");
  await docker.removeContainer(name);
});

dockerTest(
  `${EXECS} execs that end at once, ${AT_A_TIME} at a time, each exit with their own status`,
  async (docker) => {
    const name = await docker.runDetached(IDLE);
    await forAll(numbers(1, EXECS), AT_A_TIME, async (number) => {
      const result = await docker.exec(name, ["sh", "-c", `exit ${number}`]);
      assertEquals(result, { code: number, stdout: "", stderr: "" });
    });
    await docker.removeContainer(name);
  },
);

dockerTest("docker logs has what a container has printed, and --follow ends with the container", async (docker) => {
  const script = "echo first; echo second >&2; mkfifo /tmp/end; read line </tmp/end; echo $line; exit 4";
  const name = await docker.runDetached(["sh", "-c", script]);
  const following = docker.startDocker("logs", "--follow", name);
  await until("the first line has come", () => following.stdoutSoFar() === "first\n");
  const end = "until [ -p /tmp/end ]; do usleep 10000; done; echo last >/tmp/end";
  assertEquals((await docker.exec(name, ["sh", "-c", end])).code, 0);
  const all = { code: 0, stdout: "first\nlast\n", stderr: "second\n" };
  assertEquals(await following.result, all);
  assertEquals(await docker.exited(name), 4);
  assertEquals(await docker.docker(["logs", name]), all);
  await docker.removeContainer(name);
});

dockerTest("docker stop ends a container by SIGTERM, and by SIGKILL one that does not go", async (docker) => {
  const polite = await docker.runDetached(trapping("TERM", "exit 6"));
  const rude = await docker.runDetached(trapping("TERM", "echo no"));
  for (const name of [polite, rude]) await untilReady(docker, name);
  await docker.must("stop", "--time", "1", polite, rude);
  assertEquals([await docker.exited(polite), await docker.exited(rude)], [6, 137]);
  assertEquals((await docker.docker(["logs", rude])).stdout, "ready\nno\n");
  for (const name of [polite, rude]) await docker.removeContainer(name);
});

dockerTest("docker kill sends the signal that it is told to, and docker wait tells the status", async (docker) => {
  const name = await docker.runDetached(trapping("USR1", "echo told"));
  await untilReady(docker, name);
  const waiting = docker.startDocker("wait", name);
  await docker.must("kill", "--signal", "USR1", name);
  await untilLogs(docker, name, "ready\ntold\n");
  assert((await docker.state(name)).Running);
  await docker.must("kill", name);
  assertEquals(await waiting.result, { code: 0, stdout: "137\n", stderr: "" });
  await docker.removeContainer(name);
});

dockerTest("--restart on-failure:2 starts a container that fails two times more", async (docker) => {
  const name = await docker.runDetached(["sh", "-c", "echo again; exit 3"], ["--restart", "on-failure:2"]);
  await until("it has been started again twice", async () => await docker.restarts(name) === 2);
  assertEquals(await docker.exited(name), 3);
  assertEquals((await docker.docker(["logs", name])).stdout, "again\nagain\nagain\n");
  await docker.removeContainer(name);
});

dockerTest("--restart always starts a container again when it ends, and not when it is stopped", async (docker) => {
  const name = await docker.runDetached(trapping("TERM", "exit 0"), ["--restart", "always"]);
  for (const times of [1, 2]) {
    await untilLogs(docker, name, "ready\n".repeat(times));
    Deno.kill((await docker.state(name)).Pid, times === 1 ? "SIGTERM" : "SIGKILL");
    await until("it has been started again", async () => await docker.restarts(name) === times);
  }
  await untilLogs(docker, name, "ready\n".repeat(3));
  await docker.must("stop", name);
  const { Running, Restarting, ExitCode } = await docker.state(name);
  assertEquals([Running, Restarting, ExitCode, await docker.restarts(name)], [false, false, 0, 2]);
  // It starts when it is told to.
  await docker.must("start", name);
  await untilLogs(docker, name, "ready\n".repeat(4));
  await docker.removeContainer(name);
});

dockerTest("docker inspect, top, pause, update and rm -f see a container as it is", async (docker) => {
  const name = await docker.runDetached(IDLE);
  const { Running, Pid } = await docker.state(name);
  assertEquals([Running, processOf(Pid)?.comm], [true, "sleep"]);
  assertEquals((await docker.must("top", name, "-eo", "pid,comm")).trim().split(/\s+/), [
    "PID",
    "COMMAND",
    `${Pid}`,
    "sleep",
  ]);
  await docker.must("pause", name);
  assert((await docker.state(name)).Paused);
  await docker.must("unpause", name);
  assertEquals((await docker.state(name)).Status, "running");
  await docker.must("update", "--pids-limit", "77", name);
  const limit = await docker.exec(name, ["cat", "/sys/fs/cgroup/pids/pids.max"]);
  assertEquals(limit.stdout, "77\n");
  await docker.removeContainer(name);
  assertEquals(processOf(Pid), undefined);
});

/** Runs a container whose output and status are told by its number. */
async function runNumbered(docker: Docker, number: number, patienceMs: number): Promise<void> {
  const result = await docker.run(["sh", "-c", `echo ${number}; exit ${number}`], { patienceMs });
  assertEquals(result, { code: number, stdout: `${number}\n`, stderr: "" });
}

dockerTest(
  `${SHORT} short containers, ${AT_A_TIME} at a time, all end, each with its own status`,
  (docker) => forAll(numbers(1, SHORT), AT_A_TIME, (number) => runNumbered(docker, number, PATIENCE_MS)),
);

dockerTest(
  `${SHORT_BUSY} short containers all end while all CPUs are busy`,
  (docker) =>
    whileBusy(() => forAll(numbers(1, SHORT_BUSY), AT_A_TIME, (number) => runNumbered(docker, number, BUSY_MS))),
);

/** A script that does something for each such signal, and is ready when it has said so. */
function trapping(signal: string, action: string): string[] {
  return ["sh", "-c", `trap '${action}' ${signal}; echo ready; while :; do sleep 0.02; done`];
}

async function untilReady(docker: Docker, name: string): Promise<void> {
  await untilLogs(docker, name, "ready\n");
}

/** Waits until a container has printed this, and nothing else. */
async function untilLogs(docker: Docker, name: string, expected: string): Promise<void> {
  await until(
    `${name} has printed ${JSON.stringify(expected)}`,
    async () => (await docker.docker(["logs", name])).stdout === expected,
  );
}
