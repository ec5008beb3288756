/**
 * Much of everything: output, execs, containers. Nothing of it is lost, and it is in order.
 *
 * How much comes from the environment: LOAD_MB of numbered lines (2048 for the README's figures), LOAD_EXECS (5000),
 * LOAD_CONTAINERS (200). What it is without them is what every run has time for.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { containerd as api } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { forAll, numbers } from "./at_a_time.ts";
import { must, run } from "./command.ts";
import { onlyOurs } from "./env.ts";
import { collectExits, type Exits } from "./exits.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { shimSocket } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { countNumbered } from "./numbered.ts";
import { SERVICE, type Shim, withShim } from "./shim.ts";
import { PATIENCE_MS, until } from "./until.ts";

import v1 = api.runtime.linux.shim.v1;

modes(["hosted", "alone"], "other processes carry the load in each");

/** How much there is of something: what the environment says, or what suits every run. */
function sizeOf(variable: string, otherwise: number): number {
  const size = Number(Deno.env.get(variable) ?? otherwise);
  if (!Number.isInteger(size) || size < 1) throw new Error(`${variable} is to be a number`);
  return size;
}

const MEGABYTES = sizeOf("LOAD_MB", 64);
const EXECS = sizeOf("LOAD_EXECS", 200);
const CONTAINERS = sizeOf("LOAD_CONTAINERS", 12);

/** How many execs run at a time, and how many containers are started at a time. */
const EXECS_AT_A_TIME = 20;
const STARTS_AT_A_TIME = 4;

/** How many numbered lines have at least so many bytes together. */
function linesOf(bytes: number): number {
  let lines = 0;
  for (let digits = 1, left = bytes; left > 0; digits++) {
    const count = Math.min(9 * 10 ** (digits - 1), Math.ceil(left / (digits + 1)));
    lines += count;
    left -= count * (digits + 1);
  }
  return lines;
}

/** Runs an exec to its end, which says its number, and ends with it. */
async function runTalking(shim: Shim, number: number): Promise<void> {
  const id = `e${number}`;
  const { stdout, stderr } = await shim.execWithFifos(id, ["sh", "-c", `echo ${number}; exit ${number % 256}`]);
  assertEquals([await stdout.text(), await stderr.text()], [`${number}\n`, ""], id);
  assertEquals((await shim.wait(id)).status, number % 256, id);
  await shim.deleteProcess(id);
  stdout.close();
  stderr.close();
}

Deno.test(`${MEGABYTES} MB of numbered lines on stdout and stderr all arrive, in order, while execs come and go`, () => {
  const lines = linesOf(MEGABYTES * 1e6 / 2);
  return withShim({}, async (shim) => {
    // Faster than what is in the container can count, and than this program can compare.
    const file = `${shim.rootfs}/tmp/lines`;
    await must(["sh", "-c", `seq 1 ${lines} >'${file}'`]);
    await shim.run();
    const fifos = await shim.fifos("printer");
    const begun = performance.now();
    const compared = [fifos.stdout, fifos.stderr].map((each) =>
      must(["cmp", each, file], { patienceMs: PATIENCE_MS + MEGABYTES * 100 })
    );
    const print = ["sh", "-c", "cat /tmp/lines & cat /tmp/lines >&2; wait; exit 5"];
    await shim.exec("printer", print, fifos);
    await shim.startProcess("printer");
    let over = false;
    const ended = Promise.all(compared).finally(() => over = true);
    let execs = 0;
    const comeAndGo = async () => {
      do await runTalking(shim, ++execs); while (!over);
    };
    await Promise.all([ended, comeAndGo(), comeAndGo()]);
    const seconds = (performance.now() - begun) / 1000;
    assertEquals((await shim.wait("printer")).status, 5);
    await shim.deleteProcess("printer");
    await shim.endContainer();
    console.log(
      `${lines} lines on each stream, ${(MEGABYTES / seconds).toFixed(0)} MB/s, and ${execs} execs, in ${
        seconds.toFixed(1)
      } s`,
    );
  });
});

/** Runs an exec through the socket of a container's shim, as containerd does, and fails unless all that is told is right. */
async function runCounted(client: Client, container: string, number: number, exits: Exits): Promise<void> {
  const id = `e${number}`;
  const status = number % 256;
  const options = { timeoutMs: PATIENCE_MS };
  const process = { args: ["sh", "-c", `exit ${status}`], cwd: "/", env: ["PATH=/bin"], user: { uid: 0, gid: 0 } };
  const spec = { type_url: "process", value: new TextEncoder().encode(JSON.stringify(process)) };
  await client.call(SERVICE, "Exec", v1.ExecProcessRequest.encode({ id, spec }).finish(), options);
  const started = await client.call(SERVICE, "Start", v1.StartRequest.encode({ id }).finish(), options);
  const { pid } = v1.StartResponse.decode(started);
  const waited = await client.call(SERVICE, "Wait", v1.WaitRequest.encode({ id }).finish(), options);
  assertEquals(v1.WaitResponse.decode(waited).exitStatus, status, id);
  const deleted = await client.call(SERVICE, "DeleteProcess", v1.DeleteProcessRequest.encode({ id }).finish(), options);
  const { pid: deletedPid, exitStatus } = v1.DeleteResponse.decode(deleted);
  assertEquals([deletedPid, exitStatus], [pid, status], id);
  exits.expect(status, container, id);
}

onlyOurs(
  "it loses the end of one now and then: its Wait is never answered",
  `${EXECS} execs end each with its own status, and containerd tells of each once`,
  () =>
    withContainerd(async (containerd) => {
      const { exits, program } = await collectExits(containerd);
      try {
        const id = containerd.newId();
        await containerd.runDetached(id, ["/bin/sleep", "100000"]);
        const path = await shimSocket(containerd.address, containerd.namespace, id);
        const client = new Client(await Deno.connect({ transport: "unix", path }));
        const begun = performance.now();
        try {
          await forAll(numbers(1, EXECS), EXECS_AT_A_TIME, (number) => runCounted(client, id, number, exits));
        } finally {
          client.close();
        }
        const seconds = (performance.now() - begun) / 1000;
        assertEquals(await exits.allTold(), EXECS);
        assertEquals(exits.repeated, 0, "exits that have been told more than once");
        console.log(`${EXECS} execs, and as many exits told, in ${seconds.toFixed(1)} s`);
        await containerd.end(id);
      } finally {
        await program.kill();
      }
    }),
);

/** A shell's script that prints a numbered line each second until there is the file `end`, then how many these were. */
function counting(end: string, status: number): string {
  return `i=0; while ! [ -e '${end}' ]; do echo $((i += 1)); sleep 1; done; echo end $i; exit ${status}`;
}

/** Deletes a container that has ended with this status. */
async function deleteEnded(containerd: Containerd, id: string, status: number): Promise<void> {
  const { code, stderr } = await containerd.ctr("task", "delete", id);
  assertEquals(code, 0, stderr);
  if (status !== 0) assertMatch(stderr, new RegExp(`exit code ${status}"$`, "m"));
  await containerd.must("container", "delete", id);
}

modes(["hosted", "mixed"], "shims of both kinds share a containerd");

Deno.test(`${CONTAINERS} containers at once print, run an exec each, and end with their own statuses`, () =>
  withContainerd(async (containerd) => {
    const { exits, program } = await collectExits(containerd);
    try {
      const names = Array.from({ length: CONTAINERS }, () => containerd.newId());
      const logOf = (id: string) => `${containerd.folder}/${id}-log`;
      const begun = performance.now();
      await forAll(numbers(1, CONTAINERS), STARTS_AT_A_TIME, async (number) => {
        const id = names[number - 1]!;
        const command = ["/bin/sh", "-c", counting("/tmp/end", number % 256)];
        await containerd.runDetached(id, command, { io: ["--log-uri", `file://${logOf(id)}`] });
        exits.expect(number % 256, id);
      });
      const started = (performance.now() - begun) / 1000;
      const listed = (await containerd.must("task", "ls")).split("\n").filter((line) => / RUNNING$/.test(line.trim()));
      assertEquals(listed.length, CONTAINERS, "tasks that run");
      assertEquals(containerd.shims().length, CONTAINERS, "shims");

      await forAll(numbers(1, CONTAINERS), STARTS_AT_A_TIME, async (number) => {
        const id = names[number - 1]!;
        const args = containerd.execArguments(id, [], ["/bin/sh", "-c", `echo ${number}; exit ${(number + 1) % 256}`]);
        exits.expect((number + 1) % 256, id, args[args.indexOf("--exec-id") + 1]!);
        const { code, stdout } = await run(args);
        assertEquals([code, stdout], [(number + 1) % 256, `${number}\n`], id);
      });

      await Deno.writeTextFile(`${containerd.rootfs}/tmp/end`, "");
      await until("all have ended", () => exits.problems().length === 0, PATIENCE_MS + CONTAINERS * 100);
      assertEquals(await exits.allTold(), 2 * CONTAINERS);
      await forAll(numbers(1, CONTAINERS), STARTS_AT_A_TIME, async (number) => {
        const id = names[number - 1]!;
        await deleteEnded(containerd, id, number % 256);
        assert(await countNumbered(logOf(id)) > 0, `${id} has printed nothing`);
      });
      console.log(`${CONTAINERS} containers have been started in ${started.toFixed(1)} s`);
    } finally {
      await program.kill();
    }
  }));
