/** An OCI runtime that does not do what it is to: what it is asked for fails with a sentence, and nothing else does. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Code, StatusError } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { assertEnds, assertSupervised, SENTENCE, withServed } from "./fault.ts";
import { modes } from "./modes.ts";
import { Seeded } from "./seeded.ts";
import { isAlive } from "./proc.ts";
import { assertStatus, type Shim, type ShimOptions, Status } from "./shim.ts";
import { LEAVING_MS } from "./leftovers.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "another process is the parent of the runtime, and of what it leaves, in each");

/**
 * A runtime that does what `fault` says instead of a command, as long as a file of that command's name is there, and is runc
 * otherwise. `$pidfile`, `$log` and `$bundle` are its arguments; `$command` is what it is asked for.
 */
const FAULTY = (fault: string) =>
  `#!/bin/sh
for each; do
  case $previous in
    --pid-file) pidfile=$each ;;
    --log) log=$each ;;
    --bundle) bundle=$each ;;
  esac
  case $each in create|start|exec|kill|delete|pause|resume|update|ps) [ "$command" ] || command=$each ;; esac
  previous=$each
done
[ -e "$(dirname "$0")/fault-$command" ] || exec runc "$@"
${fault}
`;

/** A runtime that may be at fault. */
class FaultyRuntime {
  readonly path: string;
  readonly #shim: Shim;

  private constructor(shim: Shim, path: string) {
    this.#shim = shim;
    this.path = path;
  }

  static async make(shim: Shim, fault: string): Promise<FaultyRuntime> {
    return new FaultyRuntime(shim, await shim.makeProgram("faulty-runtime", FAULTY(fault)));
  }

  /** Runs `test` while one of its commands is at fault. */
  async during(command: string, test: () => Promise<void>): Promise<void> {
    const file = `${this.#shim.folder}/fault-${command}`;
    await Deno.writeTextFile(file, "");
    try {
      await test();
    } finally {
      await Deno.remove(file);
    }
  }
}

/** Runs a test with a shim that has such a runtime. */
function withFaulty(
  fault: string,
  test: (shim: Shim, runtime: FaultyRuntime, more: { readonly runtime: string }) => Promise<void>,
  options: ShimOptions = {},
): Promise<void> {
  return withServed(options, async ({ shim }) => {
    const runtime = await FaultyRuntime.make(shim, fault);
    await test(shim, runtime, { runtime: runtime.path });
  });
}

/** Faults of a runtime that does nothing, and what is said of each. */
const FAULTS: readonly (readonly [name: string, fault: string, message: RegExp])[] = [
  ["crashes", "kill -SEGV $$", /ended with status 139/],
  ["is killed", "kill -KILL $$", /ended with status 137/],
  ["prints rubbish", "head -c 100000 /dev/urandom; head -c 1000 /dev/urandom >&2; exit 1", /./],
  ["fails and says nothing", "exit 1", /ended with status 1 and said nothing/],
  [
    "fails with a log that is cut off",
    `printf '{"level":"error","msg":"it has not' >>"$log"; exit 1`,
    /ended with status 1/,
  ],
  ["fails with a log of rubbish", `head -c 100000 /dev/urandom >>"$log"; exit 1`, /ended with status 1/],
  [
    "removes its log, and fails",
    `rm -f "$log"; echo the reason >&2; exit 1`,
    /the reason|ended with status 1 and said nothing/,
  ],
  [
    "says why, and is killed then",
    `echo '{"level":"error","msg":"what was wrong"}' >>"$log"; kill -KILL $$`,
    /what was wrong/,
  ],
];

/** What changes something about a container that runs, by the runtime's command. */
const CALLS: readonly (readonly [command: string, call: (shim: Shim) => Promise<unknown>])[] = [
  ["kill", (shim) => shim.kill(10)],
  ["pause", (shim) => shim.pause()],
  ["update", (shim) => shim.update({ cpu: { shares: 512 } })],
  ["ps", (shim) => shim.pids()],
];

for (const [name, fault, message] of FAULTS) {
  onlyOurs(
    "it says so in other words",
    `a runtime that ${name} fails Create, Start and each call with a sentence; the container and the next call work`,
    () =>
      withFaulty(fault, async (shim, runtime, more) => {
        const fails = async (call: Promise<unknown>) => {
          const error = await assertRejects(() => call, StatusError);
          assertEquals(error.code, Code.UNKNOWN);
          assertMatch(error.message, SENTENCE);
          assertMatch(error.message, message);
        };
        await runtime.during("create", () => fails(shim.create({}, more)));
        assertEquals(shim.leftovers(), []);
        const init = await shim.create({}, more);
        await runtime.during("start", () => fails(shim.startProcess()));
        assertEquals((await shim.state()).status, Status.CREATED);
        await shim.startProcess();
        for (const [command, call] of CALLS) {
          await runtime.during(command, () => fails(call(shim)));
          await call(shim);
          if (command === "pause") {
            await runtime.during("resume", () => fails(shim.resume()));
            assertEquals((await shim.state()).status, Status.PAUSED);
            await shim.resume();
          }
          assertEquals((await shim.state()).status, Status.RUNNING);
        }
        await shim.exec("other", ["true"]);
        await runtime.during("exec", () => fails(shim.startProcess("other")));
        assertEquals((await shim.wait("other")).status, 255);
        await shim.deleteProcess("other");
        await assertSupervised(shim, init);
        await shim.kill(9);
        assertEquals((await shim.wait()).status, 137);
        await runtime.during("delete", () => fails(shim.delete()));
        assertEquals((await shim.state()).status, Status.STOPPED);
        assertEquals((await shim.delete()).status, 137);
      }, { args: ["sh", "-c", "trap '' USR1; sleep 1000 & while :; do wait; done"] }),
  );
}

onlyOurs(
  "it takes it for no process",
  "a runtime that prints rubbish and succeeds fails ListPids, which says so",
  () =>
    withFaulty("head -c 1000 /dev/urandom; exit 0", async (shim, runtime, more) => {
      const init = await shim.run({}, more);
      await runtime.during("ps", () =>
        assertStatus(shim.pids(), Code.UNKNOWN, /^OCI runtime ps failed: ps of container c printed no JSON/));
      for (const [printed, what] of [['{"no": "list"}', "an object"], ['["1", -1, 1.5, {}]', "no pids"]]) {
        await Deno.writeTextFile(`${shim.folder}/faulty-runtime`, FAULTY(`echo '${printed}'`));
        await runtime.during("ps", async () => {
          const error = await assertRejects(
            () =>
              shim.pids(),
            StatusError,
            undefined,
            what,
          );
          assertMatch(error.message, /^OCI runtime ps failed: ps of container c printed/);
        });
      }
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

/** Ways of a runtime to say nothing of the process that it has made. */
const NO_PIDS: readonly (readonly [string, string])[] = [
  ["leaves no pid file", 'runc "$@"; rm -f "$pidfile"; exit 0'],
  ["leaves an empty pid file", 'runc "$@"; : >"$pidfile"; exit 0'],
  ["leaves a pid file of rubbish", 'runc "$@"; head -c 1000 /dev/urandom >"$pidfile"; exit 0'],
];

for (const [name, fault] of NO_PIDS) {
  onlyOurs(
    "it leaves the container, or its process",
    `a runtime that ${name} fails Create, and an exec; neither leaves a process, and the next ones work`,
    () =>
      withFaulty(fault, async (shim, runtime, more) => {
        await runtime.during("create", async () => {
          const error = await assertRejects(() => shim.create({}, more), StatusError);
          assertMatch(error.message, /init\.pid/);
        });
        await until("nothing is left of it", () => shim.leftovers().length === 0, LEAVING_MS);
        const init = await shim.run({}, more);
        await shim.exec("other", ["sleep", "1000"]);
        await runtime.during("exec", async () => {
          const error = await assertRejects(() => shim.startProcess("other"), StatusError);
          assertMatch(error.message, /other\.pid/);
        });
        assertEquals((await shim.wait("other")).status, 255);
        await shim.deleteProcess("other");
        await until("its process is gone", () => shim.containerProcesses().join() === `${init}`, LEAVING_MS);
        await assertSupervised(shim, init);
        await assertEnds(shim, init);
      }),
  );
}

onlyOurs(
  "it says so in another way",
  "a pid file of another container is not this one's",
  () =>
    withFaulty("exit 0", async (shim, runtime, more) => {
      await Deno.writeTextFile(`${shim.bundle}/init.pid`, `${Deno.pid}`);
      await runtime.during("create", async () => {
        await assertRejects(() => shim.create({}, more), StatusError);
      });
      const init = await shim.run({}, more);
      assert(init !== Deno.pid);
      await assertEnds(shim, init);
    }),
);

/**
 * Is runc, and kills it when something can be seen of what it does, or when a time has passed; then it is killed itself, as
 * a runtime is. What is to be seen is a condition of perl.
 */
const KILLING = (condition: string, delayMs: number) =>
  `#!/usr/bin/perl
use Time::HiRes qw(time);
my ($command) = grep { /^(create|exec|start|kill|delete)$/ } @ARGV;
my ($root, $pidfile, $bundle);
for (0 .. $#ARGV) {
  $root = $ARGV[$_ + 1] if $ARGV[$_] eq "--root";
  $pidfile = $ARGV[$_ + 1] if $ARGV[$_] eq "--pid-file";
}
my $id = $ARGV[-1];
my ($folder) = $0 =~ m{(.*)/};
exec "runc", @ARGV unless -e "$folder/fault-$command";
my $start = time;
my $pid = fork;
exec "runc", @ARGV unless $pid;
sub child_named { my $name = shift; grep { open(my $f, "<", $_) && <$f> =~ /\\Q$name\\E/ } map { "/proc/$_/comm" }
  map { split } map { open(my $f, "<", $_) ? <$f> : () } glob "/proc/$pid/task/*/children" }
1 until ${condition} or kill(0, $pid) == 0 or waitpid($pid, 1) == $pid;
select undef, undef, undef, ${delayMs / 1000};
kill 9, $pid;
waitpid $pid, 0;
kill 9, $$;
`;

/** What can be seen of `runc create`, in order. */
const CREATE_STEPS: readonly (readonly [string, string])[] = [
  ["has been started", "1"],
  ["has made the folder of its state", '-e "$root/$id"'],
  ["has made a cgroup", 'glob "/sys/fs/cgroup/*/NAMESPACE/c"'],
  ["has started the first process", 'glob "/proc/$pid/task/*/children" && child_named("runc")'],
  ["has written down its state", '-e "$root/$id/state.json"'],
  ["begins to write down the pid", "-e ($pidfile =~ s{([^/]+)$}{.$1}r) or -e $pidfile"],
  ["has written down the pid", "-e $pidfile"],
];

/** How many times at some moment or other, and how long `runc create` takes as a rule, in ms. */
const RANDOM_KILLS = 12;
const CREATE_MS = 40;

/** Fails unless a runtime that is killed in the middle of a create leaves nothing, and the next create works. */
async function assertKilledInCreate(shim: Shim, condition: string, delayMs: number, what: string): Promise<void> {
  const path = `${shim.folder}/killing-runtime`;
  await Deno.writeTextFile(path, KILLING(condition.replace("NAMESPACE", shim.namespace), delayMs), { mode: 0o755 });
  const fault = `${shim.folder}/fault-create`;
  await Deno.writeTextFile(fault, "");
  const error = await assertRejects(() => shim.create({}, { runtime: path }), StatusError);
  assertMatch(error.message, /^OCI runtime create failed: /, what);
  await Deno.remove(fault);
  await until(`nothing is left of a runtime that ${what}`, () => {
    const left = shim.leftovers();
    if (left.length > 0) throw new Error(left.join("\n"));
    return true;
  }, LEAVING_MS);
  const init = await shim.run({}, { runtime: path });
  assertEquals((await shim.state()).status, Status.RUNNING);
  await shim.kill(9);
  assertEquals((await shim.wait()).status, 137);
  assertEquals((await shim.delete()).pid, init);
}

for (const [what, condition] of CREATE_STEPS) {
  onlyOurs(
    "it leaves a cgroup, the runtime's state, or a process",
    `a runtime that is killed when it ${what} fails Create, leaves nothing, and the next one works`,
    () => withServed({}, ({ shim }) => assertKilledInCreate(shim, condition, 0, what)),
  );
}

onlyOurs(
  "it leaves a cgroup, the runtime's state, or a process",
  "a runtime that is killed at any moment of a create leaves nothing, and the next one works",
  () =>
    withServed({}, async ({ shim }) => {
      const seeded = new Seeded(8);
      for (let i = 0; i < RANDOM_KILLS; i++) {
        const delayMs = seeded.below(CREATE_MS * 1000) / 1000;
        await assertKilledInCreate(shim, "1", delayMs, `was killed after ${delayMs.toFixed(3)} ms`);
      }
    }),
);

onlyOurs(
  "it leaves the process",
  "a runtime that is killed at any moment of an exec leaves no process, and the next one works",
  () =>
    withServed({}, async ({ shim }) => {
      const seeded = new Seeded(9);
      const path = await shim.makeProgram("killing-runtime", "");
      const fault = `${shim.folder}/fault-exec`;
      const set = (delayMs: number) => Deno.writeTextFile(path, KILLING("1", delayMs));
      await set(0);
      const init = await shim.run({}, { runtime: path });
      for (let i = 0; i < RANDOM_KILLS; i++) {
        const delayMs = seeded.below(CREATE_MS * 1000) / 1000;
        await set(delayMs);
        await Deno.writeTextFile(fault, "");
        const id = `other-${i}`;
        await shim.exec(id, ["sleep", "1000"]);
        const error = await assertRejects(() => shim.startProcess(id), StatusError);
        assertMatch(error.message, /^OCI runtime exec failed: /);
        await Deno.remove(fault);
        assertEquals((await shim.wait(id)).status, 255);
        await shim.deleteProcess(id);
        await until(
          `its process is gone, after ${delayMs.toFixed(3)} ms`,
          () => shim.containerProcesses().join() === `${init}`,
          LEAVING_MS,
        );
        assertEquals((await shim.state()).status, Status.RUNNING);
      }
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

/** Commands of a runtime that may hang, and the call that waits for each. */
const HANGING: readonly (readonly [string, (shim: Shim) => Promise<unknown>])[] = [
  ["kill", (shim) => shim.kill(10)],
  ["pause", (shim) => shim.pause()],
  ["exec", (shim) => shim.exec("other", ["true"]).then(() => shim.startProcess("other"))],
  ["update", (shim) => shim.update({ cpu: { shares: 512 } })],
  ["ps", (shim) => shim.pids()],
];

for (const [command, call] of HANGING) {
  onlyOurs(
    "its State waits for it",
    `while the runtime hangs in ${command}, State, Wait and ShimInfo are answered, and an exit is told`,
    () =>
      withFaulty('echo $$ >"$(dirname "$0")/hanging"; exec sleep 1000', async (shim, runtime, more) => {
        const init = await shim.run({}, more);
        await runtime.during(command, async () => {
          const hanging = call(shim).then(() => undefined, (error: unknown) => error);
          const pid = await until("the runtime hangs", async () => {
            const pid = Number(await Deno.readTextFile(`${shim.folder}/hanging`));
            return pid > 0 && pid;
          });
          assertEquals(await shim.shimPid(), shim.pid);
          assertEquals((await shim.state()).pid, init);
          const waiting = shim.wait();
          Deno.kill(init, "SIGKILL");
          assertEquals((await waiting).status, 137);
          assertEquals((await shim.events.exit(shim.id)).exit.exitStatus, 137);
          assertEquals((await shim.state()).status, Status.STOPPED);
          Deno.kill(pid, "SIGKILL");
          const error = await hanging;
          // Of a container that has ended, it is known without the runtime that no process is left.
          if (command === "ps" && error === undefined) return;
          assert(error instanceof StatusError, `${error}`);
          assertMatch((error as StatusError).message, SENTENCE);
        });
        assertEquals((await shim.delete()).status, 137);
      }),
  );
}

onlyOurs(
  "it waits for it",
  "while the runtime hangs in create, ShimInfo is answered and another Create refused; when it ends, the next one works",
  () =>
    withFaulty('echo $$ >"$(dirname "$0")/hanging"; exec sleep 1000', async (shim, runtime, more) => {
      await runtime.during("create", async () => {
        const hanging = assertRejects(() => shim.create({}, more), StatusError);
        const pid = await until("the runtime hangs", async () => {
          const pid = Number(await Deno.readTextFile(`${shim.folder}/hanging`));
          return pid > 0 && pid;
        });
        assertEquals(await shim.shimPid(), shim.pid);
        await assertStatus(shim.state(), Code.NOT_FOUND, /c does not exist/);
        await assertStatus(shim.create({}, more), Code.ALREADY_EXISTS, /./);
        Deno.kill(pid, "SIGKILL");
        assertMatch((await hanging).message, /^OCI runtime create failed: .*ended with status 137/);
      });
      const init = await shim.run({}, more);
      await assertSupervised(shim, init);
      await assertEnds(shim, init);
    }),
);

/** Commands that may hang when a shim is told to end, and what must be gone then. */
const HANGING_AT_THE_END = ["create", "kill"];

for (const command of HANGING_AT_THE_END) {
  onlyOurs(
    "it does not end its container",
    `a shim that is told to end while the runtime hangs in ${command} does so, and nothing is left`,
    () =>
      withFaulty('echo $$ >"$(dirname "$0")/hanging"; exec sleep 1000', async (shim, runtime, more) => {
        if (command !== "create") await shim.run({}, more);
        await runtime.during(command, async () => {
          if (command === "create") shim.create({}, more).catch(() => {});
          else shim.kill(10).catch(() => {});
          const pid = await until("the runtime hangs", async () => {
            const pid = Number(await Deno.readTextFile(`${shim.folder}/hanging`));
            return pid > 0 && pid;
          });
          shim.signal("SIGTERM");
          // It is given ten seconds for what it is about.
          await until("the runtime is ended", () => !isAlive(pid));
        });
        assertEquals(await shim.status, 0);
      }, { endsItself: true }),
  );
}
