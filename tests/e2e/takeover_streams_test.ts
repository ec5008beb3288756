/** Streams, when a host dies: nothing of them is lost, or doubled, or ended. */

import { assert, assertEquals } from "@std/assert";
import { Reader, Writer } from "./fifo.ts";
import { assertExecs, endContainer, type Machine, onlyHosted, withHosted } from "./host.ts";
import { modes } from "./modes.ts";
import { descriptorsOf, isAlive } from "./proc.ts";
import { type Shim, Status } from "./shim.ts";
import { GatedRuntime, later, replaceHost, withoutHost } from "./takeover.ts";
import { createWithTerminal } from "./terminal.ts";
import { pause, until } from "./until.ts";

modes(["hosted"], "it is about hosts that take over");

/** How many hosts a test kills where more than one are to be. */
const HOSTS = 3;

/** The numbers up to one, each on a line. */
function lines(count: number): string {
  return Array.from({ length: count }, (_, i) => `${i + 1}\n`).join("");
}

/** More lines than all pipes on their way hold. */
const MANY = 500_000;

/** How many hosts are killed while something is on its way, at most, and how long each is there, in ms. */
const MOST_KILLS = 8;
const LIFE_MS = 20;

/** Kills hosts one after the other, until told not to. */
async function killHosts(machine: Machine, isOver: () => boolean): Promise<number> {
  let kills = 0;
  for (; !isOver() && kills < MOST_KILLS; kills++) {
    await replaceHost(machine);
    await pause(LIFE_MS);
  }
  return kills;
}

onlyHosted(
  "output that is read all the time while hosts die comes whole, and in order",
  () =>
    withHosted({ args: ["sh", "-c", `seq ${MANY}; exit 3`] }, async (shim, machine) => {
      const { stdout, stderr } = await shim.createWithFifos();
      let isOver = false;
      await shim.startProcess();
      const killed = killHosts(machine, () => isOver);
      const text = await stdout.text();
      isOver = true;
      assert(await killed > 0, "no host has been killed");
      assert(text === lines(MANY), `${text.length} characters have come that are not those that were printed`);
      assertEquals(await stderr.text(), "");
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    }),
);

onlyHosted(
  "output that has no reader when the host dies waits for the next",
  () =>
    withHosted({ args: ["sh", "-c", `echo ready; read go; seq ${MANY}; exit 3`] }, async (shim, machine) => {
      const { fifos, stdout } = await shim.createWithFifos();
      await shim.startProcess();
      assertEquals(await stdout.line(), "ready\n");
      stdout.close();
      await replaceHost(machine);
      {
        using stdin = await Writer.open(fifos.stdin);
        await stdin.write("go\n");
      }
      await untilStalled(shim);
      for (let i = 0; i < HOSTS; i++) {
        await replaceHost(machine);
        assertEquals((await shim.state()).status, Status.RUNNING);
      }
      {
        using reader = await Reader.open(fifos.stdout);
        let text = decode(await reader.read());
        await replaceHost(machine);
        for (let bytes = await reader.read(); bytes; bytes = await reader.read()) text += decode(bytes);
        assert(text === lines(MANY), `${text.length} characters have come that are not those that were printed`);
      }
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    }),
);

/** Waits until the processes of a container have written what there is room for, and no more. */
async function untilStalled(shim: Shim): Promise<void> {
  const written = () =>
    shim.containerProcesses().reduce((sum, pid) => {
      return sum + Number(/^wchar: (\d+)$/m.exec(Deno.readTextFileSync(`/proc/${pid}/io`))![1]);
    }, 0);
  await until("it is kept waiting", async () => {
    const before = written();
    await pause(STALLED_MS);
    return before > PIPE_SIZE && written() === before;
  });
}

/** How much a pipe holds at least, in bytes, and how long whoever writes to one does nothing when it is full, in ms. */
const PIPE_SIZE = 65_536;
const STALLED_MS = 50;

function decode(bytes: Uint8Array | undefined): string {
  return new TextDecoder().decode(bytes);
}

onlyHosted(
  "what a container has printed when it ends while there is no host is read afterwards",
  () =>
    withHosted(
      { args: ["sh", "-c", "echo ready; until [ -e /go ]; do sleep 0.01; done; echo last; echo error >&2; exit 3"] },
      async (shim, machine) => {
        const { stdout, stderr } = await shim.createWithFifos();
        const init = await shim.startProcess();
        assertEquals(await stdout.line(), "ready\n");
        await withoutHost(machine, [shim], async () => {
          await Deno.writeTextFile(`${shim.rootfs}/go`, "");
          await until("it has ended", () => !isAlive(init));
        });
        assertEquals([await stdout.text(), await stderr.text()], ["last\n", "error\n"]);
        assertEquals((await shim.wait()).status, 3);
        await shim.delete();
      },
    ),
);

onlyHosted(
  "input comes before a host dies, while there is none, and after",
  () =>
    withHosted({ args: ["cat"] }, async (shim, machine) => {
      const { fifos, stdout } = await shim.createWithFifos();
      await shim.startProcess();
      {
        using stdin = await Writer.open(fifos.stdin);
        await stdin.write("before\n");
        assertEquals(await stdout.line(), "before\n");
        await withoutHost(machine, [shim], () => stdin.write("without\n"));
        assertEquals(await stdout.line(), "without\n");
        await stdin.write("after\n");
        assertEquals(await stdout.line(), "after\n");
      }
      // A client that has gone does not end it, nor does a host.
      await replaceHost(machine);
      {
        using stdin = await withoutHost(machine, [shim], async () => {
          // The FIFO has a reader and a writer all the time: the holder has them.
          const stdin = await Writer.open(fifos.stdin);
          await stdin.write("another\n");
          return stdin;
        });
        assertEquals(await stdout.line(), "another\n");
        await shim.closeStdin();
        await replaceHost(machine);
        await stdin.write("last\n");
        assertEquals(await stdout.line(), "last\n");
        assertEquals((await shim.state()).status, Status.RUNNING);
      }
      assertEquals(await stdout.read(), undefined);
      assertEquals((await shim.wait()).status, 0);
      await shim.delete();
    }),
);

onlyHosted(
  "input that is closed by a host and its client ends, also while there is none",
  () =>
    withHosted({ args: ["sh", "-c", "cat; exit 3"] }, async (shim, machine) => {
      const { fifos, stdout } = await shim.createWithFifos();
      await shim.startProcess();
      const stdin = await Writer.open(fifos.stdin);
      await stdin.write("first\n");
      assertEquals(await stdout.line(), "first\n");
      await shim.closeStdin();
      await withoutHost(machine, [shim], async () => {
        await stdin.write("last\n");
        stdin[Symbol.dispose]();
      });
      assertEquals(await stdout.text(), "last\n");
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
    }),
);

onlyHosted(
  "input that is closed before its process is started, is so in the next host",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run();
      const fifos = await shim.fifos("e");
      await shim.exec("e", ["sh", "-c", "cat; exit 5"], fifos);
      await shim.closeStdin("e");
      await replaceHost(machine);
      const outputs = [fifos.stdout, fifos.stderr].map((each) => shim.read(each));
      await Promise.all([shim.startProcess("e"), ...outputs]);
      assertEquals((await shim.wait("e")).status, 5);
      await shim.deleteProcess("e");
      await endContainer(shim);
    }),
);

onlyHosted(
  "a megabyte of input comes whole while hosts die",
  () =>
    withHosted({ args: ["md5sum"] }, async (shim, machine) => {
      const { fifos, stdout } = await shim.createWithFifos();
      await shim.startProcess();
      let isOver = false;
      const killed = killHosts(machine, () => isOver);
      {
        using stdin = await Writer.open(fifos.stdin);
        for (let i = 0; i < 64; i++) {
          await stdin.write("0123456789abcdef".repeat(1 << 10));
          await pause(2);
        }
      }
      isOver = true;
      assert(await killed > 0, "no host has been killed");
      await shim.closeStdin();
      assertEquals(await stdout.text(), "14d785daab3823736c981ca82a750c98  -\n");
      assertEquals((await shim.wait()).status, 0);
      await shim.delete();
    }),
);

onlyHosted(
  "input of a container that waits for its start is there for it, when its host dies before",
  () =>
    withHosted({ args: ["cat"] }, async (shim, machine) => {
      const { fifos, stdout } = await shim.createWithFifos();
      await replaceHost(machine);
      const writing = later(Writer.open(fifos.stdin));
      await shim.startProcess();
      using stdin = await writing;
      await stdin.write("hello\n");
      assertEquals(await stdout.line(), "hello\n");
      await endContainer(shim);
    }),
);

/** Fails unless this is what comes next. */
async function assertSays(output: Reader, expected: string): Promise<void> {
  let text = "";
  while (text.length < expected.length) text += await output.line();
  assertEquals(text, expected);
}

onlyHosted("a terminal goes on: its size, what is typed, what is printed, and its end", () =>
  withHosted({
    terminal: true,
    args: ["sh", "-c", "stty -echo; echo ready; while read line; do stty size; echo got $line; done; exit 5"],
  }, async (shim, machine) => {
    const { stdin, output } = await createWithTerminal(shim);
    await shim.resize(100, 30);
    await shim.startProcess();
    using keyboard = await Writer.open(stdin);
    const type = async (line: string, size: string) => {
      await keyboard.write(`${line}\n`);
      await assertSays(output, `${size}\r\ngot ${line}\r\n`);
    };
    await assertSays(output, "ready\r\n");
    await type("before", "30 100");
    for (let i = 1; i <= HOSTS; i++) {
      await replaceHost(machine);
      await type(`after ${i}`, i === 1 ? "30 100" : `${20 + i - 1} ${80 + i - 1}`);
      await shim.resize(80 + i, 20 + i);
    }
    await withoutHost(machine, [shim], () => keyboard.write("without\n"));
    await assertSays(output, "23 83\r\ngot without\r\n");
    await keyboard.write("\x04");
    assertEquals(await output.text(), "");
    assertEquals((await shim.wait()).status, 5);
    await shim.delete();
  }));

onlyHosted(
  "everything that is printed on a terminal while hosts die arrives",
  () =>
    withHosted({ terminal: true, args: ["sh", "-c", "seq 1 100000"] }, async (shim, machine) => {
      const { output } = await createWithTerminal(shim);
      await shim.startProcess();
      let isOver = false;
      const killed = killHosts(machine, () => isOver);
      const text = await output.text();
      isOver = true;
      assert(await killed > 0, "no host has been killed");
      assert(text === lines(100_000).replaceAll("\n", "\r\n"), `${text.length} characters have come, and not all`);
      assertEquals((await shim.wait()).status, 0);
      await shim.delete();
    }),
);

onlyHosted(
  "a terminal's process that has ended while there is no host has said all of it",
  () =>
    withHosted(
      {
        terminal: true,
        args: ["sh", "-c", "stty -echo; echo ready; until [ -e /go ]; do sleep 0.01; done; seq 1 500; exit 5"],
      },
      async (shim, machine) => {
        const { output } = await createWithTerminal(shim);
        const init = await shim.startProcess();
        assertEquals(await output.line(), "ready\r\n");
        await withoutHost(machine, [shim], async () => {
          await Deno.writeTextFile(`${shim.rootfs}/go`, "");
          await until("it has ended", () => !isAlive(init));
        });
        assertEquals(await output.text(), lines(500).replaceAll("\n", "\r\n"));
        assertEquals((await shim.wait()).status, 5);
        await shim.delete();
      },
    ),
);

/** A logger that writes down all that it is given, and ends with its input. */
const LOGGER = `#!/bin/sh
cat <&3 >"$(dirname "$0")/out" 5>&- &
cat <&4 >"$(dirname "$0")/err" 5>&- &
echo $$ >"$(dirname "$0")/logger-pid"
exec 3<&- 4<&- 5>&-
wait
echo ended >"$(dirname "$0")/ended"
`;

onlyHosted(
  "a logger goes on with what is printed, and Delete in another host waits for its end",
  () =>
    withHosted(
      { args: ["sh", "-c", "echo before; read go </tmp/go; echo after; echo error >&2; exit 3"] },
      async (shim, machine) => {
        const uri = `binary://${await shim.makeProgram("logger", LOGGER)}`;
        await Deno.mkdir(`${shim.rootfs}/tmp`, { recursive: true });
        const { code } = await new Deno.Command("mkfifo", { args: [`${shim.rootfs}/tmp/go`] }).output();
        assertEquals(code, 0);
        await shim.run({ stdout: uri, stderr: uri });
        const read = (name: string) => Deno.readTextFile(`${shim.folder}/${name}`).catch(() => "");
        await until("the first line is logged", async () => await read("out") === "before\n");
        const logger = Number(await read("logger-pid"));
        for (let i = 0; i < HOSTS; i++) await replaceHost(machine);
        assert(isAlive(logger), "the logger has ended");
        await Deno.writeTextFile(`${shim.rootfs}/tmp/go`, "go\n");
        assertEquals((await shim.wait()).status, 3);
        await shim.delete();
        assertEquals([await read("out"), await read("err"), await read("ended")], [
          "before\nafter\n",
          "error\n",
          "ended\n",
        ]);
      },
    ),
);

onlyHosted(
  "a logger that does not end by itself is told to, by the host that is there in the end",
  () =>
    withHosted({ args: ["sleep", "1000"] }, async (shim, machine) => {
      const script = `#!/bin/sh
trap 'echo told >"$(dirname "$0")/told"; exit' TERM
echo $$ >"$(dirname "$0")/logger-pid"
exec 5>&-
while :; do sleep 0.02; done
`;
      const uri = `binary://${await shim.makeProgram("logger", script)}`;
      await shim.run({ stdout: uri, stderr: uri });
      const logger = await until(
        "the logger runs",
        async () => Number(await Deno.readTextFile(`${shim.folder}/logger-pid`)),
      );
      for (let i = 0; i < HOSTS; i++) await replaceHost(machine);
      await endContainer(shim);
      await until("the logger has ended", () => !isAlive(logger));
      assertEquals(await Deno.readTextFile(`${shim.folder}/told`), "told\n");
    }),
);

onlyHosted(
  "a file takes what is printed, whatever becomes of hosts",
  () =>
    withHosted({ args: ["sh", "-c", `seq ${MANY}; exit 3`] }, async (shim, machine) => {
      await shim.create({ stdout: `file://${shim.folder}/log` });
      await shim.startProcess();
      await replaceHost(machine);
      assertEquals((await shim.wait()).status, 3);
      await shim.delete();
      assert(await Deno.readTextFile(`${shim.folder}/log`) === lines(MANY), "not all has been written");
    }),
);

onlyHosted(
  "what a process has that is being started when its host dies is closed once it is of no use",
  () =>
    withHosted({}, async (shim, machine) => {
      const runtime = await GatedRuntime.make(shim);
      await shim.run({}, { runtime: runtime.path });
      await assertExecs(shim, "first");
      await replaceHost(machine);
      await shim.state();
      const counts = () => [...descriptorsOf(shim.pid).values()].filter((each) => /^pipe:|fifo|ptmx/.test(each)).length;
      const before = counts();
      for (const moment of ["before", "after"] as const) {
        const id = `${moment}-e`;
        await runtime.close(moment, "exec");
        const exec = later(shim.execWithFifos(id, ["sh", "-c", "echo hello; exit 5"]));
        await runtime.reached();
        await replaceHost(machine);
        await runtime.open();
        const { stdout } = await exec;
        assertEquals(await stdout.text(), "hello\n");
        assertEquals((await shim.wait(id)).status, 5);
        await shim.deleteProcess(id);
        await until("nothing more is open", () => counts() <= before);
      }
      await endContainer(shim);
    }),
);
