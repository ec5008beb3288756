/** What a container does, or has done to it, that its neighbours are not to feel. A new scenario is a new entry of {@linkcode SCENARIOS}. */

import * as fds from "../../../ffi/fd.ts";
import { ensureFifo } from "../../../ffi/pipe.ts";
import { Signal } from "../../../ffi/signals.ts";
import { containerd } from "../../../lib/api/mod.js";
import { forAll, numbers } from "../../e2e/at_a_time.ts";
import { makeImage } from "../../e2e/disk.ts";
import { isAlive } from "../../e2e/proc.ts";
import type { Stdio } from "../../e2e/shim.ts";
import type { SpecOptions } from "../../e2e/spec.ts";
import { GatedRuntime } from "../../e2e/takeover.ts";
import { until } from "../../e2e/until.ts";
import { killIfAlive, runToEnd } from "../children.ts";
import { Flood } from "../flood.ts";
import { disown, own } from "../owned.ts";
import { newId } from "../row.ts";
import { openBothEnds, type Subject } from "../subject.ts";
import { Disk } from "./disk.ts";

import v1 = containerd.runtime.linux.shim.v1;

/** How long a call may hang, in ms: longer than anything is measured. */
const HANGING_MS = 600_000;
/** How many processes are registered, and how many calls do that at a time. */
const EXECS = 2000;
const AT_A_TIME = 8;
/** How many processes the container may have that makes orphans: no more than this machine can bear. */
const PIDS = 1000;
/** How many terminals flood, and how many pipes. */
const FLOODS = 4;
/** What shows that a flood flows: more than its reader has read for its own start. */
const FLOW_BYTES = 1 << 20;

/** Something that goes on. */
export interface Trouble {
  /** @throws {Error} when it does not go on */
  check(): void;
  /** Ends it, and its container. */
  end(): Promise<void>;
}

/** Starts a shim beside the one that is measured, which has no container yet. */
export type StartShim = (options?: SpecOptions) => Promise<Subject>;

/** A kind of trouble. */
export interface Scenario {
  readonly name: string;
  /** Has it begin. */
  readonly begin: (start: StartShim) => Promise<Trouble>;
}

/** A call that is to have no answer as long as there is trouble. */
class Hanging<T> {
  readonly answer: Promise<T>;
  #isAnswered = false;

  constructor(readonly what: string, answer: Promise<T>) {
    this.answer = answer.finally(() => this.#isAnswered = true);
    this.answer.catch(() => {}); // until it is awaited
  }

  check(): void {
    if (this.#isAnswered) throw new Error(`${this.what} has been answered, so nothing hangs`);
  }

  /** Start of a process that has been registered. */
  static start(subject: Subject, id: string): Hanging<unknown> {
    const request = v1.StartRequest.encode({ id }).finish();
    return new Hanging("Start", subject.call("Start", request, v1.StartResponse, HANGING_MS));
  }
}

/** Both outputs: with one alone the Go shim dies. */
function logTo(path: string): Stdio {
  return { stdout: `file://${path}`, stderr: `file://${path}` };
}

/** Registers a process, and has it started. */
async function startHanging(subject: Subject, args: readonly string[], stdio: Stdio = {}): Promise<Hanging<unknown>> {
  const id = newId();
  await subject.exec(id, args, stdio);
  return Hanging.start(subject, id);
}

/** A process's log is a FIFO that nobody opens to read: open(2) of it waits. */
async function logWithoutReader(start: StartShim): Promise<Trouble> {
  const subject = await start();
  await subject.runIdle();
  const path = `${subject.folder}/log`;
  ensureFifo(path, 0o600);
  const starting = await startHanging(subject, ["true"], logTo(path));
  return {
    check: () => starting.check(),
    end: async () => {
      const reader = openBothEnds(path);
      await starting.answer;
      fds.close(reader);
      await disown(subject);
    },
  };
}

/** One process writes to a log whose file system is frozen, and another's log is to be made there: write(2) and mkdir(2) wait. */
async function frozenLog(start: StartShim): Promise<Trouble> {
  const disk = own(await Disk.make(32));
  const subject = await start();
  await subject.runIdle();
  const [id, path] = [newId(), `${disk.path}/log`];
  await subject.exec(id, ["sh", "-c", "while :; do echo line; done"], logTo(path));
  const writer = await subject.startProcess(id);
  await until("it is written to", () => Deno.statSync(path).size > 0);
  await disk.freeze();
  const starting = await startHanging(subject, ["true"], logTo(`${disk.path}/folder/log`));
  return {
    check: () => starting.check(),
    end: async () => {
      killIfAlive(writer);
      await disk.thaw();
      await starting.answer;
      await disown(subject);
      await disown(disk);
    },
  };
}

/** A container is deleted whose root filesystem is on a disk that does not answer: umount(2) waits. */
async function slowUnmount(start: StartShim): Promise<Trouble> {
  const disk = own(await Disk.make(64));
  const subject = await start({ mountedRoot: true });
  const source = `${disk.path}/image`;
  await runToEnd(["sh", "-c", makeImage(source, { from: subject.rootfs, mebibytes: 32 })]);
  const rootfs = [{ type: "ext4", source, options: ["loop"] }];
  await subject.create(await subject.heldFifos(), { runtime: "runc", rootfs });
  await subject.startProcess();
  await disk.freeze();
  await subject.kill(Signal.SIGKILL);
  await subject.wait();
  const deleting = new Hanging(
    "Delete",
    subject.call("Delete", new Uint8Array(), v1.DeleteResponse, HANGING_MS),
  );
  return {
    check: () => deleting.check(),
    end: async () => {
      await disk.thaw();
      await deleting.answer;
      await disown(subject);
      await disown(disk);
    },
  };
}

/** Processes are registered until there are many, and from then on each new one takes the place of the oldest. */
async function manyExecs(start: StartShim): Promise<Trouble> {
  const subject = await start();
  await subject.runIdle();
  const ids: string[] = [];
  const register = async () => {
    const id = newId();
    await subject.exec(id, ["true"]);
    ids.push(id);
  };
  await forAll(numbers(1, EXECS), AT_A_TIME, register);
  let isOver = false;
  let failure: unknown;
  const turnOver = async () => {
    while (!isOver) {
      await subject.deleteProcess(ids.shift()!);
      await register();
    }
  };
  const turning = turnOver().catch((error) => failure = error);
  return {
    check: () => {
      if (failure !== undefined) throw failure;
    },
    end: async () => {
      isOver = true;
      await turning;
      await disown(subject);
    },
  };
}

/** Leaves one process after another to whoever reaps orphans. That it cannot, because there are too many, does not end it. */
const LEAVE_ORPHANS = "while :; do command eval '(:&)'; done 2>/dev/null";

/** A container in the host's pid namespace has children whose parents have ended: its shim is to reap them, subreaper that it is. */
async function orphans(start: StartShim): Promise<Trouble> {
  const subject = await start({ namespaces: ["ipc", "uts", "mount"] });
  await subject.runIdle();
  await subject.update({ pids: { limit: PIDS } });
  const id = newId();
  await subject.exec(id, ["sh", "-c", LEAVE_ORPHANS]);
  const pid = await subject.startProcess(id);
  return {
    check: () => {
      if (!isAlive(pid)) throw new Error("what leaves orphans has ended");
    },
    end: async () => {
      killIfAlive(pid);
      await disown(subject);
    },
  };
}

/** Processes write to terminals and pipes, each as fast as it is read. */
async function floods(start: StartShim): Promise<Trouble> {
  const subject = await start();
  await subject.runIdle();
  const all = [true, false].flatMap((terminal) => numbers(1, FLOODS).map(() => new Flood(subject, { terminal })));
  for (const each of all) await each.prepare();
  for (const each of all) each.begin();
  await until("all that write are read", () => all.every((each) => each.arrived() > FLOW_BYTES));
  let arrived = all.map((each) => each.arrived());
  return {
    check: () => {
      const before = arrived;
      arrived = all.map((each) => each.arrived());
      if (arrived.some((bytes, i) => bytes <= before[i]!)) throw new Error("a flood does not flow");
    },
    end: async () => {
      for (const each of all) each.end();
      await disown(subject);
    },
  };
}

/** The OCI runtime does not end. */
async function hangingRuntime(start: StartShim): Promise<Trouble> {
  const subject = await start();
  const runtime = await GatedRuntime.make(subject);
  await subject.runIdle(runtime.path);
  await runtime.close("before", "exec");
  const starting = await startHanging(subject, ["true"]);
  await runtime.reached();
  return {
    check: () => starting.check(),
    end: async () => {
      await runtime.open();
      await starting.answer;
      await disown(subject);
    },
  };
}

/** Each by itself. What could have a host wait comes last, for another container could not join it then. */
export const SCENARIOS: readonly Scenario[] = [
  { name: "its log is a FIFO without a reader", begin: logWithoutReader },
  { name: "its log's file system is frozen", begin: frozenLog },
  { name: `${EXECS} execs are registered, and come and go`, begin: manyExecs },
  { name: `it leaves orphans without end, ${PIDS} at most`, begin: orphans },
  { name: `${FLOODS} terminals and ${FLOODS} pipes flood`, begin: floods },
  { name: "its runtime hangs", begin: hangingRuntime },
  { name: "its root filesystem cannot be unmounted yet", begin: slowUnmount },
];

/** All of them, each a container. */
export const ALL: Scenario = {
  name: "all of that at once",
  begin: async (start) => {
    const begun: Trouble[] = [];
    for (const { begin } of SCENARIOS) begun.push(await begin(start));
    return {
      check: () => begun.forEach((each) => each.check()),
      end: async () => {
        // Where a host waits for the last of them, it answers no call that the others' ends take.
        for (const each of begun.toReversed()) await each.end();
      },
    };
  },
};
