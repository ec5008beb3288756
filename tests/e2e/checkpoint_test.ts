/** Checkpoints, by CRIU, and containers that are restored from them. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { containerd, google } from "../../lib/api/mod.js";
import { Code } from "../../lib/ttrpc/status.ts";
import { criuTest } from "./criu.ts";
import { IS_OURS, onlyOurs } from "./env.ts";
import { type Reader, Writer } from "./fifo.ts";
import { names } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive } from "./proc.ts";
import { assertStatus, type Shim, type ShimOptions, Status, withShim } from "./shim.ts";

import v1 = containerd.runtime.linux.shim.v1;
import runc = containerd.linux.runc;

modes(["hosted"], "checkpoints are the same code in each mode; checkpoint_ctr_test restores in each");

/** Counts the lines that it reads, from 0, and ends with status 3 at the end of its input. */
const COUNTER = ["sh", "-c", "n=0; echo $n; while read -r line; do n=$((n + 1)); echo $n; done; exit 3"];

/** A counter whose input and output the test has. */
class Counter implements Disposable {
  readonly pid: number;
  readonly output: Reader;
  #input: Writer | undefined;

  private constructor(pid: number, output: Reader, input: Writer) {
    this.pid = pid;
    this.output = output;
    this.#input = input;
  }

  /** Creates the container, anew or from a checkpoint, does something, and starts it. */
  static async start(
    shim: Shim,
    more: v1.ICreateTaskRequest = {},
    beforeStart: () => Promise<void> = () => Promise.resolve(),
  ): Promise<Counter> {
    const { stdin, stdout, stderr } = await shim.fifos();
    const outputs = more.terminal ? [stdout] : [stdout, stderr];
    const stdio = { stdin, stdout, ...(more.terminal ? {} : { stderr }) };
    // Which of the two opens output, Create or Start, is the shim's affair.
    const started = shim.create(stdio, more).then(beforeStart).then(() => shim.startProcess());
    const [pid, output] = await Promise.all([started, ...outputs.map((each) => shim.read(each))]);
    if (!more.checkpoint) assertEquals((await output!.line()).trim(), "0");
    return new Counter(pid, output!, await Writer.open(stdin));
  }

  /** Has it count, and gives what it says. */
  async next(): Promise<string> {
    await this.#input!.write("\n");
    // A terminal may echo the end of the line first.
    let text = "";
    while (text.trim() === "") text += await this.output.line();
    return text.trim();
  }

  /** Ends its input, sees it say nothing more, and end. */
  async end(shim: Shim): Promise<void> {
    this[Symbol.dispose]();
    await shim.closeStdin();
    assertEquals(await this.output.text(), "");
    assertEquals((await shim.wait()).status, 3);
  }

  /** Goes away, and leaves it to itself. */
  [Symbol.dispose](): void {
    this.#input?.[Symbol.dispose]();
    this.#input = undefined;
  }
}

/** Runs `test` with a shim that is told of this CRIU, and the path of a folder for images. */
function withCriu(
  criu: string,
  test: (shim: Shim, image: string) => Promise<void>,
  options: ShimOptions = {},
): Promise<void> {
  return withShim({ args: COUNTER, flags: ["-criu", criu], ...options }, (shim) => test(shim, `${shim.folder}/image`));
}

/** Makes a checkpoint of a container that has counted to 2, ends it, and runs `test` with a shim for another. */
function withCheckpoint(
  criu: string,
  test: (shim: Shim, image: string) => Promise<void>,
  { forAnother = {}, ...options }: ShimOptions & { readonly forAnother?: ShimOptions } = {},
): Promise<void> {
  return withCriu(criu, async (shim, image) => {
    {
      using counter = await Counter.start(shim, { terminal: options.terminal ?? false });
      assertEquals([await counter.next(), await counter.next()], ["1", "2"]);
      await shim.checkpoint(image, { exit: true });
      assertEquals((await shim.wait()).status, 137);
      await shim.delete();
    }
    await withCriu(criu, (another) => test(another, image), { ...options, ...forAnother });
  }, options);
}

async function kill(shim: Shim): Promise<void> {
  await shim.kill(9);
  await shim.wait();
  await shim.delete();
}

criuTest(
  "a checkpoint leaves a container running, and the shim's folder as it was",
  (criu) =>
    withCriu(criu, async (shim, image) => {
      using counter = await Counter.start(shim);
      assertEquals(await counter.next(), "1");
      const before = names(shim.workdir);
      await shim.checkpoint(image);
      assert(names(image).includes("inventory.img"), `${names(image)}`);
      assertEquals(names(shim.workdir), before);
      assertEquals([(await shim.state()).status, isAlive(counter.pid)], [Status.RUNNING, true]);
      assertEquals(await counter.next(), "2");
      await kill(shim);
    }),
);

criuTest("a checkpoint that ends a container reports its exit", (criu) =>
  withCriu(criu, async (shim, image) => {
    using counter = await Counter.start(shim);
    const [{ status }] = await Promise.all([shim.wait(), shim.checkpoint(image, { exit: true })]);
    assertEquals(status, 137);
    const { exit } = await shim.events.exit(shim.id);
    assertEquals([exit.pid, exit.exitStatus], [counter.pid, 137]);
    assertEquals((await shim.state()).status, Status.STOPPED);
    const deleted = await shim.delete();
    assertEquals([deleted.pid, deleted.status], [counter.pid, 137]);
  }));

criuTest("a paused container is still paused after a checkpoint", (criu) =>
  withCriu(criu, async (shim, image) => {
    using counter = await Counter.start(shim);
    assertEquals(await counter.next(), "1");
    await shim.pause();
    await shim.checkpoint(image);
    assertEquals((await shim.state()).status, Status.PAUSED);
    await shim.resume();
    assertEquals(await counter.next(), "2");
    await kill(shim);
  }));

criuTest(
  "a paused container ends with a checkpoint that is to end it",
  (criu) =>
    withCriu(criu, async (shim, image) => {
      using _counter = await Counter.start(shim);
      await shim.pause();
      await shim.checkpoint(image, { exit: true });
      assertEquals((await shim.wait()).status, 137);
      await shim.delete();
    }),
);

criuTest(
  "a container that is restored goes on where it was, and tells how it ends",
  (criu) =>
    withCheckpoint(criu, async (shim, image) => {
      using counter = await Counter.start(shim, { checkpoint: image });
      assertEquals(names(shim.workdir).filter((name) => name.startsWith("criu")), []);
      assertEquals([await counter.next(), await counter.next()], ["3", "4"]);
      const { status, pid } = await shim.state();
      assertEquals([status, pid], [Status.RUNNING, counter.pid]);
      assertEquals([...await shim.pids()], [[counter.pid, shim.id]]);
      counter[Symbol.dispose]();
      await shim.closeStdin();
      assertEquals(await counter.output.text(), "");
      assertEquals((await shim.wait()).status, 3);
      assertEquals((await shim.delete()).pid, counter.pid);
      const exits = shim.events.published().map(({ exit }) => [exit.pid, exit.exitStatus]);
      assertEquals(exits.at(-1), [counter.pid, 3]);
    }),
);

criuTest(
  "a container with a terminal is restored with another, of another size",
  (criu) =>
    withCheckpoint(criu, async (shim, image) => {
      const resize = () => shim.resize(91, 19);
      using counter = await Counter.start(shim, { checkpoint: image, terminal: true }, resize);
      assertEquals([await counter.next(), await counter.next()], ["3", "4"]);
      await shim.exec("size", ["sh", "-c", "stty -F /proc/1/fd/0 size >/tmp/size"]);
      await shim.startProcess("size");
      assertEquals((await shim.wait("size")).status, 0);
      await shim.deleteProcess("size");
      assertEquals(await Deno.readTextFile(`${shim.rootfs}/tmp/size`), "19 91\n");
      await kill(shim);
      assertEquals(await counter.output.text(), "");
    }, { terminal: true, args: ["sh", "-c", `stty -echo; ${COUNTER[2]}`] }),
);

criuTest(
  "nothing runs of a container created from a checkpoint until it is started",
  (criu) =>
    withCheckpoint(criu, async (shim, image) => {
      assertEquals(await shim.create({}, { checkpoint: image }), 0);
      const { status, pid } = await shim.state();
      assertEquals([status, pid], [Status.CREATED, 0]);
      assertEquals(shim.containerProcesses(), []);
      const code = IS_OURS ? Code.FAILED_PRECONDITION : Code.UNKNOWN;
      await assertStatus(
        shim.exec("other", ["true"]),
        code,
        /^cannot exec (a container that waits|in a created state)/,
      );
      await assertStatus(shim.checkpoint(image), code, /^cannot checkpoint a /);
      await assertStatus(shim.pause(), code, /^cannot pause /);
      await assertStatus(shim.kill(9), Code.NOT_FOUND, "no such container");
      const deleted = await shim.delete();
      assertEquals([deleted.pid, deleted.status], [0, 0]);
      assertEquals(names(image).includes("inventory.img"), true);
    }),
);

Deno.test("SIGTERM ends a shim whose container is yet to be restored at once", () =>
  withShim({ endsItself: true }, async (shim) => {
    await shim.create({}, { checkpoint: shim.folder });
    const begun = performance.now();
    const status = await shim.end("SIGTERM");
    if (IS_OURS) assertEquals(status, 0);
    const took = performance.now() - begun;
    assert(took < 5000, `it took ${took} ms`);
  }));

criuTest(
  "CloseIO before Start ends the input of a container that is restored",
  (criu) =>
    withCheckpoint(criu, async (shim, image) => {
      const fifos = await shim.fifos();
      await shim.create(fifos, { checkpoint: image });
      await shim.closeStdin();
      const outputs = [fifos.stdout, fifos.stderr].map((each) => shim.read(each));
      const [, output] = await Promise.all([shim.startProcess(), ...outputs]);
      assertEquals(await output!.text(), "");
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    }),
  { notWithAnother: "it forgets it" },
);

criuTest("a checkpoint that fails keeps CRIU's log, names it, and the container runs on", async (criu) => {
  // A connection that is open is refused unless the options allow it.
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  await withCriu(criu, async (shim, image) => {
    const init = await shim.run();
    using _connection = await listener.accept();
    const log = `${shim.bundle}/criu-dump.log`;
    const message = new RegExp(`${IS_OURS ? "^OCI runtime checkpoint failed: " : ""}criu failed: .* path= ${log}$`);
    await assertStatus(shim.checkpoint(image, { exit: true }), Code.UNKNOWN, message);
    const text = await Deno.readTextFile(log);
    assert(/Error .*Dumping FAILED/.test(text), text);
    assertEquals(names(shim.workdir).filter((name) => name.startsWith("criu")), []);
    assertEquals([(await shim.state()).status, isAlive(init)], [Status.RUNNING, true]);
    await kill(shim);
  }, { args: ["sh", "-c", `sleep 1000 | nc 127.0.0.1 ${listener.addr.port}`] });
});

Deno.test("a checkpoint without a CRIU fails, and the container runs on", () =>
  withShim({ flags: ["-criu", "/nowhere/criu"] }, async (shim) => {
    const init = await shim.run();
    await assertStatus(shim.checkpoint(`${shim.folder}/image`), Code.UNKNOWN, /./);
    assertEquals([(await shim.state()).status, isAlive(init)], [Status.RUNNING, true]);
    await kill(shim);
  }));

Deno.test("a checkpoint to where no folder can be made fails, and the container runs on", () =>
  withShim({}, async (shim) => {
    const init = await shim.run();
    await assertStatus(shim.checkpoint(`${shim.bundle}/config.json/image`), Code.UNKNOWN, /./);
    assertEquals([(await shim.state()).status, isAlive(init)], [Status.RUNNING, true]);
    await kill(shim);
  }));

Deno.test("a checkpoint of a container that does not run is refused", () =>
  withShim({}, async (shim) => {
    const code = IS_OURS ? Code.FAILED_PRECONDITION : Code.UNKNOWN;
    await assertStatus(shim.checkpoint("/nowhere"), Code.FAILED_PRECONDITION, "container must be created");
    await shim.create();
    await assertStatus(shim.checkpoint("/nowhere"), code, /^cannot checkpoint a (created container|task in created)/);
    await shim.startProcess();
    await shim.kill(9);
    await shim.wait();
    await assertStatus(shim.checkpoint("/nowhere"), code, /^cannot checkpoint a stopped container$/);
    await shim.delete();
  }));

onlyOurs(
  "it dies of options of another type",
  "a Checkpoint without a path, or with other options, is refused",
  () =>
    withShim({}, async (shim) => {
      const init = await shim.run();
      const checkpoint = (path: string, type_url: string, value: number[]) => {
        const request = { path, options: { type_url, value: new Uint8Array(value) } };
        const payload = v1.CheckpointTaskRequest.encode(request).finish();
        return shim.call("Checkpoint", payload, google.protobuf.Empty);
      };
      const path = `${shim.folder}/image`;
      const type = "containerd.linux.runc.CheckpointOptions";
      const other = "containerd.linux.runc.CreateOptions";
      await assertStatus(checkpoint("", type, []), Code.INVALID_ARGUMENT, "no path for the checkpoint");
      await assertStatus(checkpoint(path, other, []), Code.INVALID_ARGUMENT, /^the options are not .* but .*Create/);
      await assertStatus(checkpoint(path, type, [0x0f, 0xff]), Code.INVALID_ARGUMENT, /cannot be decoded/);
      assert(isAlive(init));
      await kill(shim);
    }),
);

criuTest(
  "a restore that fails says why, and the container can be deleted",
  (criu) =>
    withCriu(criu, async (shim, image) => {
      await Deno.mkdir(image);
      const { stdin, stdout } = await shim.fifos();
      await shim.create({ stdin, stdout }, { checkpoint: image });
      await assertStatus(shim.startProcess(), Code.UNKNOWN, /^OCI runtime restore failed: ./);
      const { status, pid } = await shim.state();
      assertEquals([status, pid], [Status.CREATED, 0]);
      await shim.delete();
    }),
);

criuTest(
  "a container whose terminal's output cannot be opened is not restored",
  (criu) =>
    withCheckpoint(criu, async (shim, image) => {
      const { stdin } = await shim.fifos();
      await shim.create({ stdin, stdout: `${shim.folder}/nowhere`, terminal: true }, { checkpoint: image });
      await assertStatus(shim.startProcess(), Code.UNKNOWN, /nowhere/);
      const { status, pid } = await shim.state();
      assertEquals([status, pid, shim.containerProcesses()], [Status.CREATED, 0, []]);
      await shim.delete();
    }, { terminal: true }),
  { notWithAnother: "it leaves it running" },
);

criuTest(
  "a restore that fails keeps CRIU's log, names it, and can be tried again",
  (criu) =>
    withCheckpoint(criu, async (shim, image) => {
      const core = names(image).find((name) => /^core-\d+\.img$/.test(name))!;
      await Deno.rename(`${image}/${core}`, `${image}/elsewhere`);
      const { stdin, stdout } = await shim.fifos();
      await shim.create({ stdin, stdout }, { checkpoint: image });
      const log = `${shim.bundle}/criu-restore.log`;
      const message = new RegExp(`^OCI runtime restore failed: criu failed: .* path= ${log}$`);
      await assertStatus(shim.startProcess(), Code.UNKNOWN, message);
      const text = await Deno.readTextFile(log);
      assert(text.includes(`No ${core} image`), text);
      assertEquals(names(shim.workdir).filter((name) => name.startsWith("criu")), []);

      await Deno.rename(`${image}/elsewhere`, `${image}/${core}`);
      const [output] = await Promise.all([shim.read(stdout), shim.startProcess()]);
      using input = await Writer.open(stdin);
      await input.write("\n");
      assertEquals(await output.line(), "3\n");
      await kill(shim);
    }),
  { notWithAnother: "it leaves the log where it was, and cannot try again" },
);

/** Makes a `criu` in the shim's folder that keeps what it is called with, and is this CRIU then. */
async function makeRecordingCriu(shim: Shim, criu: string): Promise<void> {
  const script = `#!/bin/sh\necho "$@" >>'${shim.folder}/record'\nexec '${criu}' "$@"\n`;
  await shim.makeProgram("criu", script);
}

/** Fails unless that has been asked to do something. */
async function assertRecorded(shim: Shim): Promise<void> {
  assertMatch(await Deno.readTextFile(`${shim.folder}/record`), /^(swrk \d+\n)+$/);
}

for (const flag of ["-criu", "-criu-path"]) {
  const options = { flags: [flag, "FOLDER/criu"] };
  criuTest(
    `${flag} says which CRIU makes checkpoints, and which restores them`,
    (criu) =>
      withCriu(criu, async (shim, image) => {
        await makeRecordingCriu(shim, criu);
        {
          using _counter = await Counter.start(shim);
          await shim.checkpoint(image, { exit: true });
          await assertRecorded(shim);
          await shim.wait();
          await shim.delete();
        }
        await withCriu(criu, async (another) => {
          await makeRecordingCriu(another, criu);
          using counter = await Counter.start(another, { checkpoint: image });
          await assertRecorded(another);
          assertEquals(await counter.next(), "1");
          await kill(another);
        }, options);
      }, options),
    flag === "-criu" ? {} : { notWithAnother: "it does not know what containerd passes" },
  );
}

criuTest(
  "State, Wait and ShimInfo are answered while a checkpoint is made",
  (criu) =>
    withCriu(criu, async (shim, image) => {
      const [go] = Object.values(await shim.fifos("go"));
      // The runtime runs it more than once: it is the first that is slow.
      const script = `#!/bin/sh
[ -e '${shim.folder}/begun' ] || { : >'${shim.folder}/begun'; read -r line <'${go}'; }
exec '${criu}' "$@"
`;
      await shim.makeProgram("criu", script);
      using counter = await Counter.start(shim);
      const ending = Promise.all([shim.wait(), shim.checkpoint(image, { exit: true })]);
      // It is awaited below; when something else fails first, that is what counts.
      ending.catch(() => {});
      {
        // It is read when CRIU has been started, and not before.
        using writer = await Writer.open(go!);
        assertEquals((await shim.state()).status, Status.RUNNING);
        assertEquals(await shim.shimPid(), shim.pid);
        assertEquals(await counter.next(), "1");
        await writer.write("go\n");
      }
      assertEquals((await ending)[0].status, 137);
      await shim.delete();
    }, { flags: ["-criu", "FOLDER/criu"] }),
  { notWithAnother: "its State waits" },
);

/** Keeps what it has been started with, an argument a line, and is runc then. */
const RECORDING_RUNTIME = `#!/bin/sh
printf '%s\\n' "$@" "" >>"$(dirname "$0")/record"
exec runc "$@"
`;

criuTest(
  "all options of a checkpoint, and of the creation from one, are CRIU's",
  (criu) =>
    withCriu(criu, async (shim, image) => {
      const runtime = await shim.makeProgram("recording-runc", RECORDING_RUNTIME);
      const work = `${shim.folder}/criu-work`;
      const options = {
        openTcp: true,
        externalUnixSockets: true,
        fileLocks: true,
        emptyNamespaces: ["network"],
        cgroupsMode: "full",
      };
      const value = runc.CreateOptions.encode({ ...options, noPivotRoot: true, criuWorkPath: work }).finish();
      let bundle = "";
      const more = { runtime, options: { type_url: "containerd.linux.runc.CreateOptions", value } };
      {
        using counter = await Counter.start(shim, { runtime });
        assertEquals(await counter.next(), "1");
        await shim.checkpoint(image, { ...options, terminal: true, workPath: work, exit: true });
        await shim.wait();
        await shim.delete();
      }
      await withCriu(criu, async (another) => {
        using counter = await Counter.start(another, { ...more, checkpoint: image });
        assertEquals(await counter.next(), "2");
        bundle = another.bundle;
        await kill(another);
      });

      const runs = (await Deno.readTextFile(`${shim.folder}/record`)).trim().split("\n\n");
      const flags = (command: string) => {
        const run = runs.map((each) => each.split("\n")).find((args) => args.includes(command))!;
        return run.slice(run.indexOf(command) + 1);
      };
      const first = ["--image-path", image, "--work-path", work, "--tcp-established", "--ext-unix-sk"];
      const last = ["--file-locks", "--manage-cgroups-mode", "full", "--empty-ns", "network"];
      // CRIU gives a shell's terminal back only where there is one.
      assertEquals(flags("checkpoint"), [...first, "--shell-job", ...last, shim.id]);
      const own = ["--detach", "--bundle", bundle, "--pid-file", `${bundle}/init.pid`, "--no-pivot", shim.id];
      assertEquals(flags("restore"), [...first, ...last, ...own]);
      // A folder that was named is the caller's.
      assertEquals(names(work).filter((name) => name.endsWith(".log")).sort(), ["dump.log", "restore.log"]);
    }),
  { notWithAnother: "it passes on fewer" },
);
