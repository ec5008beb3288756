/** Commands that outlive the process which has started them: nothing is started twice, and each outcome is one call's. */

import { assertEquals, assertRejects } from "@std/assert";
import { Errno, SystemError } from "../../ffi/libc.ts";
import type { Exit, RunOptions } from "../../lib/reaper.ts";
import { type CommandOptions, Commands, type Runner } from "../../lib/record/commands.ts";
import type { CommandRecord } from "../../lib/record/record.ts";

/** Starts nothing: the test says what has become of each. */
class FakeRunner implements Runner {
  /** What has been asked for, in this order. */
  readonly asked: string[] = [];
  /** Pids that somebody goes on with. */
  readonly goneOn: number[] = [];
  #serial = 0;
  readonly #running = new Map<string, { options: RunOptions; done: PromiseWithResolvers<Exit> }>();
  readonly #inherited = new Map<number, { onExit: (exit: Exit) => void; done: PromiseWithResolvers<Exit> }>();

  constructor(serial = 0) {
    this.#serial = serial;
  }

  run(options: RunOptions): Promise<Exit> {
    const name = options.args.join(" ");
    this.asked.push(name);
    const done = Promise.withResolvers<Exit>();
    this.#running.set(name, { options, done });
    options.numbered?.(++this.#serial);
    return done.promise;
  }

  runOn(pid: number, onExit: (exit: Exit) => void): Promise<Exit> {
    this.goneOn.push(pid);
    const done = Promise.withResolvers<Exit>();
    this.#inherited.set(pid, { onExit, done });
    return done.promise;
  }

  started(name: string, pid: number): void {
    this.#running.get(name)!.options.started?.(pid);
  }

  failed(name: string, error: Error): void {
    this.#running.get(name)!.done.reject(error);
  }

  ended(name: string, status: number): void {
    const { options, done } = this.#running.get(name)!;
    const exit = { pid: 0, status, at: new Date() };
    options.onExit?.(exit);
    done.resolve(exit);
  }

  inheritedEnded(pid: number, status: number): void {
    const { onExit, done } = this.#inherited.get(pid)!;
    const exit = { pid, status, at: new Date() };
    onExit(exit);
    done.resolve(exit);
  }

  inheritedLost(pid: number, error: Error): void {
    this.#inherited.get(pid)!.done.reject(error);
  }
}

/** What is asked for: the program has the same name as the command. */
function command(key: string, scope = "", logged = 0): CommandOptions {
  return { key, scope, logged, args: [key], descriptors: [] };
}

function record(key: string, more: Partial<CommandRecord> = {}): CommandRecord {
  return { key, scope: "", serial: 0, pid: 0, logged: 0, status: undefined, ...more };
}

/** A last start that was none. */
const NONE = { serial: 0, pid: 0, error: 0 };

/** Lets what is settled get to those who wait for it. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

Deno.test("a command is known from before it is started until it is settled", async () => {
  const runner = new FakeRunner(7);
  const commands = new Commands(runner);
  const outcome = commands.run(command("create", "", 100));
  assertEquals(commands.records, [record("create", { serial: 8, logged: 100 })]);
  runner.started("create", 4711);
  assertEquals(commands.records, [record("create", { serial: 8, pid: 4711, logged: 100 })]);
  commands.settle("");
  assertEquals(commands.records.length, 1, "what runs has been settled");
  runner.ended("create", 3);
  const ended = [record("create", { serial: 8, pid: 4711, logged: 100, status: 3 })];
  assertEquals(commands.records, ended);
  assertEquals(await outcome, { status: 3, logged: 100 });
  assertEquals(commands.records, ended);
  commands.settle("other");
  assertEquals(commands.records, ended);
  commands.settle("");
  assertEquals(commands.records, []);
});

Deno.test("a command that cannot be started is forgotten, and says why", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  const outcome = commands.run(command("create"));
  runner.failed("create", new Error("no such program"));
  await assertRejects(() => outcome, Error, "no such program");
  assertEquals(commands.records, []);
});

Deno.test("what is settled of one process is not so of another", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  const outcomes = ["", "/b/e1.pid", "/b/e2.pid"].map((scope, i) => commands.run(command(`c${i}`, scope)));
  for (let i = 0; i < 3; i++) runner.ended(`c${i}`, 0);
  await Promise.all(outcomes);
  commands.settle("/b/e1.pid");
  assertEquals(commands.records.map(({ scope }) => scope), ["", "/b/e2.pid"]);
});

Deno.test("what is noted is known until it is settled", () => {
  const commands = new Commands(new FakeRunner());
  commands.note("signal 15", "/b/e1.pid");
  assertEquals(commands.records, [record("signal 15", { scope: "/b/e1.pid" })]);
  // It is this process that does it.
  assertEquals([commands.hasBegun("signal 15", "/b/e1.pid"), commands.hasBegunFor("/b/e1.pid")], [false, false]);
  commands.settle("");
  assertEquals(commands.records.length, 1);
  commands.settle("/b/e1.pid");
  assertEquals(commands.records, []);
});

Deno.test("what is noted by another process is known to have been begun", () => {
  const commands = new Commands(new FakeRunner());
  commands.inherit([record("signal 15", { scope: "/b/e1.pid" })], NONE);
  assertEquals(commands.hasBegun("signal 15", "/b/e1.pid"), true);
  assertEquals(commands.hasBegun("signal 9", "/b/e1.pid"), false);
  assertEquals(commands.hasBegun("signal 15", "/b/e2.pid"), false);
  assertEquals([commands.hasBegunFor("/b/e1.pid"), commands.hasBegunFor("")], [true, false]);
  commands.disinherit();
  assertEquals(commands.hasBegunFor("/b/e1.pid"), false);
});

Deno.test("a command that another process was about to have started is started", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  // The last that the parent knows of is the one before.
  commands.inherit([record("start", { serial: 8 })], { serial: 7, pid: 4711, error: 0 });
  assertEquals(commands.records, []);
  assertEquals([commands.hasBegun("start", ""), runner.goneOn], [false, []]);
  const outcome = commands.run(command("start"));
  assertEquals(runner.asked, ["start"]);
  runner.ended("start", 0);
  assertEquals((await outcome).status, 0);
});

Deno.test("a command that another process has had started is waited for, and not started", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  // That process has not learned its pid.
  commands.inherit([record("start", { serial: 8, logged: 50 })], { serial: 8, pid: 4711, error: 0 });
  assertEquals(commands.hasBegun("start", ""), true);
  assertEquals(runner.goneOn, [4711]);
  assertEquals(commands.records, [record("start", { serial: 8, pid: 4711, logged: 50 })]);
  const outcome = commands.run(command("start", "", 999));
  // It is this process's now.
  assertEquals(commands.hasBegun("start", ""), false);
  await turn();
  runner.inheritedEnded(4711, 3);
  // Its log begins where it did.
  assertEquals(await outcome, { status: 3, logged: 50 });
  assertEquals(runner.asked, []);
  assertEquals(commands.records, [record("start", { serial: 8, pid: 4711, logged: 50, status: 3 })]);
  commands.settle("");
  assertEquals(commands.records, []);
});

Deno.test("a command that has ended before anybody asks for it is known by its end", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([record("start", { serial: 8, pid: 4711 })], { serial: 8, pid: 4711, error: 0 });
  runner.inheritedEnded(4711, 3);
  assertEquals(commands.records, [record("start", { serial: 8, pid: 4711, status: 3 })]);
  // Nobody has asked for it: it is still to be found.
  commands.settle("");
  assertEquals(await commands.run(command("start")), { status: 3, logged: 0 });
  assertEquals(runner.asked, []);
});

Deno.test("a command whose end another process has been told of is not waited for", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([record("start", { serial: 7, pid: 4711, status: 3, logged: 50 })], {
    serial: 9,
    pid: 5000,
    error: 0,
  });
  assertEquals(runner.goneOn, []);
  assertEquals(await commands.run(command("start")), { status: 3, logged: 50 });
  assertEquals(runner.asked, []);
});

Deno.test("a command that another process could not have started is not tried again for the same call", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([record("start", { serial: 8 })], { serial: 8, pid: 0, error: Errno.ENOENT });
  const error = await assertRejects(() => commands.run(command("start")), SystemError);
  assertEquals(error.errno, Errno.ENOENT);
  assertEquals([runner.asked, runner.goneOn], [[], []]);
  commands.settle("");
  assertEquals(commands.records, []);
  const outcome = commands.run(command("start"));
  runner.ended("start", 0);
  assertEquals((await outcome).status, 0);
});

Deno.test("of several commands, each is found by what it is and whose process it is for", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([
    record("exec", { scope: "/b/e1.pid", serial: 5, pid: 101 }),
    record("exec", { scope: "/b/e2.pid", serial: 6, pid: 102 }),
    record("kill", { serial: 7, pid: 103, status: 1 }),
    record("exec", { scope: "/b/e3.pid", serial: 9 }),
  ], { serial: 8, pid: 104, error: 0 });
  assertEquals(runner.goneOn, [101, 102]);
  const [second, third, kill] = [
    commands.run(command("exec", "/b/e2.pid")),
    commands.run(command("exec", "/b/e3.pid")),
    commands.run(command("kill")),
  ];
  runner.inheritedEnded(102, 2);
  runner.inheritedEnded(101, 1);
  runner.ended("exec", 3);
  assertEquals((await Promise.all([second, third, kill])).map(({ status }) => status), [2, 3, 1]);
  assertEquals(runner.asked, ["exec"]);
  assertEquals(commands.hasBegunFor("/b/e1.pid"), true);
});

Deno.test("the same command twice is each call's own", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([record("kill", { serial: 5, pid: 101 }), record("kill", { serial: 6, pid: 102 })], {
    serial: 6,
    pid: 102,
    error: 0,
  });
  const outcomes = [commands.run(command("kill")), commands.run(command("kill")), commands.run(command("kill"))];
  assertEquals(runner.asked, ["kill"]);
  runner.inheritedEnded(102, 2);
  runner.inheritedEnded(101, 1);
  runner.ended("kill", 3);
  assertEquals((await Promise.all(outcomes)).map(({ status }) => status), [1, 2, 3]);
});

Deno.test("what nobody has asked for is forgotten in the end, and what is waited for is not", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([record("start", { serial: 5, pid: 101 }), record("kill", { serial: 6, pid: 102 })], {
    serial: 6,
    pid: 102,
    error: 0,
  });
  const outcome = commands.run(command("start"));
  commands.disinherit();
  assertEquals(commands.records.map(({ key }) => key), ["start"]);
  assertEquals(commands.hasBegunFor(""), false);
  runner.inheritedEnded(101, 0);
  runner.inheritedEnded(102, 0);
  assertEquals((await outcome).status, 0);
  const next = commands.run(command("kill"));
  assertEquals(runner.asked, ["kill"]);
  runner.ended("kill", 0);
  await next;
});

Deno.test("whoever waits for a command of another process is told when nobody will learn of its end", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  commands.inherit([record("start", { serial: 5, pid: 101 }), record("kill", { serial: 6, pid: 102 })], {
    serial: 6,
    pid: 102,
    error: 0,
  });
  const outcome = commands.run(command("start"));
  // Of the other, nobody hears.
  for (const pid of [101, 102]) runner.inheritedLost(pid, new Error("the container's shim has ended"));
  await assertRejects(() => outcome, Error, "the container's shim has ended");
});

Deno.test("what is inherited is inherited once more by the next, as it was", () => {
  const last = { serial: 9, pid: 104, error: 0 };
  const records = [
    record("create", { serial: 5, pid: 101, status: 0, logged: 10 }),
    record("start", { serial: 9, pid: 104, logged: 20 }),
    record("signal 15", { scope: "/b/e1.pid" }),
  ];
  const commands = [0, 1, 2].reduce((before) => {
    const next = new Commands(new FakeRunner());
    next.inherit(before, last);
    return next.records;
  }, records);
  assertEquals(commands, records);
});

Deno.test("a command of which nobody knows whether it has been started has an end all the same", async () => {
  const runner = new FakeRunner();
  const commands = new Commands(runner);
  // Its pid could not be written down before the next was started: the disk was full, say.
  commands.inherit([record("create", { serial: 7 })], { serial: 8, pid: 4711, error: 0 });
  const error = await assertRejects(() => commands.run(command("create")), Error);
  assertEquals(error instanceof TypeError, false, `${error}`);
  assertEquals(runner.asked, []);
});
