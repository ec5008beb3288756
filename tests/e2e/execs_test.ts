/** Many execs in one container: each is told right, and the shim is afterwards what it was before. */

import { assert, assertEquals } from "@std/assert";
import { forAll, numbers } from "./at_a_time.ts";
import { type Form, inEachForm, onlyOursInEachForm, SHIM } from "./env.ts";
import { type Reader, Writer } from "./fifo.ts";
import { names } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { descriptorsOf } from "./proc.ts";
import { field } from "./host.ts";
import { seconds, type Shim, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "another process starts execs and holds their descriptors in each");

/** How many execs are run; fewer in a form that is not the one to be shipped. */
const MANY = 1000;
const FEWER = 400;

/** How many have run when the shim is looked at for the first time: what it makes only once is there by then. */
const FIRST = 200;

/** How many run at a time. */
const AT_A_TIME = 20;

/** How much more private memory a shim may have at the end than after the first execs: 5 KiB for each of the others. */
const MEMORY_GROWTH_KIB = 4000;

/** How many threads more: those of Deno's pool come and go. */
const THREAD_GROWTH = 2;

/** What a shim holds. */
interface Held {
  readonly descriptors: readonly string[];
  /** Names in its bundle and its working directory. */
  readonly files: readonly string[];
  readonly threads: number;
  readonly memoryKib: number;
}

function heldBy(shim: Shim): Held {
  return {
    // Without the number that each socket and each pipe has.
    descriptors: [...descriptorsOf(shim.pid).values()].map((each) => each.replace(/:\[\d+\]$/, "")).toSorted(),
    files: [...names(shim.bundle), ...names(shim.workdir)].toSorted(),
    threads: field(shim.pid, "status", "Threads"),
    memoryKib: field(shim.pid, "smaps_rollup", "Private_Dirty"),
  };
}

/** What it holds when it does nothing more: no timer waits for it to have been quiet for a while. */
function heldAtRest(shim: Shim): Promise<Held> {
  return until("the shim is at rest", () => {
    const held = heldBy(shim);
    return !held.descriptors.includes("anon_inode:[timerfd]") && held;
  });
}

/** How an exec ended, as Wait says it. */
interface Ended {
  readonly id: string;
  readonly pid: number;
  readonly status: number;
  readonly at: number;
}

/** Runs an exec that ends with its own number, and has every call that may tell of its end do so. */
async function runExec(shim: Shim, number: number): Promise<Ended> {
  const id = `e${number}`;
  const expected = number % 256;
  await shim.exec(id, ["sh", "-c", `exit ${expected}`]);
  const pid = await shim.startProcess(id);
  const { status, at } = await shim.wait(id);
  assertEquals(status, expected, `Wait of ${id}`);
  const state = await shim.state(id);
  const said = [state.pid, state.status, state.exitStatus, seconds(state.exitedAt)];
  assertEquals(said, [pid, Status.STOPPED, expected, at], `State of ${id}`);
  assertEquals(await shim.deleteProcess(id), { pid, status: expected, at }, `DeleteProcess of ${id}`);
  return { id, pid, status, at };
}

/** Runs the execs from one number to another, so many at a time, and waits until all their ends have been published. */
async function runExecs(shim: Shim, first: number, last: number): Promise<Ended[]> {
  const ended: Ended[] = [];
  await forAll(numbers(first, last), AT_A_TIME, async (number) => ended.push(await runExec(shim, number)));
  await until("all exits are published", () => shim.events.published().length >= last);
  return ended;
}

onlyOursInEachForm(
  "it loses the end of one now and then: its Wait is never answered",
  "many execs, twenty at a time, end with their own statuses, and the shim holds nothing of them",
  (form: Form) =>
    withShim({ shim: form }, async (shim) => {
      const init = await shim.run();
      const before = heldBy(shim);
      const ended = await runExecs(shim, 1, FIRST);
      const first = await heldAtRest(shim);
      const count = form === SHIM ? MANY : FEWER;
      ended.push(...await runExecs(shim, FIRST + 1, count));

      const published = shim.events.published().map(({ exit }) => ({
        id: exit.id,
        pid: exit.pid,
        status: exit.exitStatus,
        at: seconds(exit.exitedAt),
      }));
      const byId = (a: { readonly id: string }, b: { readonly id: string }) => a.id < b.id ? -1 : 1;
      assertEquals(published.toSorted(byId), ended.toSorted(byId));

      // The connection of the last event may be on its way out.
      await until("the descriptors are as many as before", () => {
        return heldBy(shim).descriptors.length === first.descriptors.length;
      }).catch(() => {});
      const last = await heldAtRest(shim);
      assertEquals(last.descriptors, first.descriptors);
      assertEquals(
        last.files.filter((each) => each !== "log.json"),
        before.files.filter((each) => each !== "log.json"),
      );
      assertEquals(shim.children().map(({ pid }) => pid), [init]);
      const growth = [last.threads - first.threads, last.memoryKib - first.memoryKib];
      assert(growth[0]! <= THREAD_GROWTH, `${first.threads} threads have become ${last.threads}`);
      assert(growth[1]! <= MEMORY_GROWTH_KIB, `${first.memoryKib} KiB of memory have become ${last.memoryKib}`);

      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    }),
);

/** An exec that the test writes to and reads from. */
interface Talking {
  readonly id: string;
  readonly status: number;
  readonly keyboard: string;
  readonly stdout: Reader;
  /** What is to be read there. */
  readonly expected: string;
  readonly stderr?: Reader;
}

/** How many lines each exec prints. */
const LINES = 10_000;

/** Starts an exec that waits for a line, prints lines that no other prints, and ends with its own number. */
async function startTalking(shim: Shim, number: number): Promise<Talking> {
  const id = `e${number}`;
  const [from, to] = [number * LINES, (number + 1) * LINES - 1];
  const args = [
    "sh",
    "-c",
    `read line; echo $line ${number}; seq ${from} ${to}; echo end ${number} >&2; exit ${number}`,
  ];
  const lines = [`typed ${number}`, ...Array.from({ length: LINES }, (_, i) => `${from + i}`)];
  if (number % 2 === 0) {
    const { fifos, stdout, stderr } = await shim.execWithFifos(id, args);
    return { id, status: number, keyboard: fifos.stdin, stdout, stderr, expected: `${lines.join("\n")}\n` };
  }
  const { stdin, stdout } = await shim.fifos(id);
  await shim.exec(id, args, { stdin, stdout, terminal: true });
  const [reader] = await Promise.all([shim.read(stdout), shim.startProcess(id)]);
  // What is typed is echoed; and both outputs are the terminal's.
  const expected = `${["typed", ...lines, `end ${number}`].join("\r\n")}\r\n`;
  return { id, status: number, keyboard: stdin, stdout: reader, expected };
}

inEachForm(
  "twenty execs at once, half of them with terminals, get their input, and all their output arrives",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      await shim.run();
      const execs = await Promise.all(Array.from({ length: AT_A_TIME }, (_, number) => startTalking(shim, number)));
      for (const { id } of execs) assertEquals((await shim.state(id)).status, Status.RUNNING, id);
      await Promise.all(execs.map(async ({ id, status, keyboard, stdout, stderr, expected }) => {
        using writer = await Writer.open(keyboard);
        await writer.write("typed\n");
        const [text, errors] = await Promise.all([stdout.text(), stderr?.text()]);
        assertEquals([text, errors], [expected, stderr && `end ${status}\n`], id);
        assertEquals((await shim.wait(id)).status, status, id);
        await shim.deleteProcess(id);
      }));
      await shim.kill(9);
      await shim.wait();
      await shim.delete();
    }),
);
