/** Standard input, output and error of a container, by FIFO. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { onlyOurs } from "./env.ts";
import { Writer } from "./fifo.ts";
import { modes } from "./modes.ts";
import { countDescriptors, descriptorsOf } from "./proc.ts";
import { type Attached, type Shim, Status, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "another process opens the streams in each");

/** Says something on both outputs. */
const BOTH = ["sh", "-c", "echo out; echo err >&2; exit 4"];

/** Fails unless the container ends with this status. */
async function expectStatus(shim: Shim, status: number): Promise<void> {
  assertEquals((await shim.wait()).status, status);
  await shim.delete();
}

/** All that a process prints. */
function output({ stdout, stderr }: Attached): Promise<[stdout: string, stderr: string]> {
  return Promise.all([stdout.text(), stderr.text()]);
}

Deno.test("stdout and stderr arrive, each on its own FIFO, and end", () =>
  withShim({ args: BOTH }, async (shim) => {
    const attached = await shim.createWithFifos();
    await shim.startProcess();
    assertEquals(await output(attached), ["out\n", "err\n"]);
    const { stdin, stdout, stderr } = await shim.state();
    assertEquals({ stdin, stdout, stderr }, attached.fifos);
    await expectStatus(shim, 4);
  }));

Deno.test("output that nobody has read yet when the container ends is not lost", () =>
  withShim({ args: ["sh", "-c", "seq 1000; seq 1000 >&2"] }, async (shim) => {
    const attached = await shim.createWithFifos();
    await shim.startProcess();
    await shim.wait();
    const numbers = Array.from({ length: 1000 }, (_, i) => `${i + 1}\n`).join("");
    assertEquals(await output(attached), [numbers, numbers]);
    await shim.delete();
  }));

Deno.test("a container without stdio reads an end of file, and what it prints goes nowhere", () =>
  withShim({ args: ["sh", "-c", "read line && exit 1; echo out; echo err >&2; exit 4"] }, async (shim) => {
    await shim.run();
    await expectStatus(shim, 4);
  }));

for (const only of ["stdout", "stderr"] as const) {
  onlyOurs(
    "it wants both or none",
    `a container with ${only} alone runs, and the other goes nowhere`,
    () =>
      withShim({ args: BOTH }, async (shim) => {
        const path = (await shim.fifos())[only];
        const [reader] = await Promise.all([shim.read(path), shim.create({ [only]: path })]);
        await shim.startProcess();
        assertEquals(await reader.text(), only === "stdout" ? "out\n" : "err\n");
        await expectStatus(shim, 4);
      }),
  );
}

onlyOurs(
  "it forgets it",
  "CloseIO of another process before its Start ends its input",
  () =>
    withShim({}, async (shim) => {
      await shim.run();
      const fifos = await shim.fifos("other");
      await shim.exec("other", ["cat"], fifos);
      await shim.closeStdin("other");
      const outputs = [fifos.stdout, fifos.stderr].map((each) => shim.read(each));
      await Promise.all([shim.startProcess("other"), ...outputs]);
      assertEquals((await shim.wait("other")).status, 0);
      await shim.deleteProcess("other");
    }),
);

Deno.test("stdin arrives while it is open; CloseIO ends it once the last writer has gone", () =>
  withShim({ args: ["cat"] }, async (shim) => {
    const { fifos, stdout } = await shim.createWithFifos();
    await shim.startProcess();
    {
      using writer = await Writer.open(fifos.stdin);
      await writer.write("first\n");
      assertEquals(await stdout.line(), "first\n");
    }
    {
      // A client that goes away and comes back, as ctr task attach does.
      using writer = await Writer.open(fifos.stdin);
      await writer.write("second\n");
      assertEquals(await stdout.line(), "second\n");
      await shim.closeStdin();
      await writer.write("third\n");
      assertEquals(await stdout.line(), "third\n");
      assertEquals((await shim.state()).status, Status.RUNNING);
    }
    assertEquals(await stdout.read(), undefined);
    await expectStatus(shim, 0);
  }));

Deno.test("a megabyte of stdin arrives whole", () =>
  withShim({ args: ["md5sum"] }, async (shim) => {
    const { fifos, stdout } = await shim.createWithFifos();
    await shim.startProcess();
    {
      using writer = await Writer.open(fifos.stdin);
      await writer.write("0123456789abcdef".repeat(1 << 16));
    }
    await shim.closeStdin();
    assertEquals(await stdout.text(), "14d785daab3823736c981ca82a750c98  -\n");
    await expectStatus(shim, 0);
  }));

Deno.test("an exec has stdio and a status of its own", () =>
  withShim({}, async (shim) => {
    const init = await shim.run();
    const attached = await shim.execWithFifos("other", ["sh", "-c", "read line; echo got $line; echo err >&2; exit 6"]);
    assert(attached.pid !== init);
    assertEquals((await shim.state("other")).status, Status.RUNNING);
    {
      using writer = await Writer.open(attached.fifos.stdin);
      await writer.write("something\n");
    }
    assertEquals(await output(attached), ["got something\n", "err\n"]);
    assertEquals((await shim.wait("other")).status, 6);
    assertEquals((await shim.state("other")).status, Status.STOPPED);
    assertEquals((await shim.deleteProcess("other")).pid, attached.pid);
    await assertRejects(() => shim.state("other"), StatusError);
  }));

Deno.test(
  "a process of the container has its three descriptors and no other",
  () =>
    withShim({}, async (shim) => {
      const { pid } = await shim.createWithFifos();
      await shim.startProcess();
      const other = await shim.execWithFifos("other", ["sleep", "1000"]);
      for (const each of [pid, other.pid]) assertEquals([...descriptorsOf(each).keys()].sort(), [0, 1, 2]);
    }),
);

Deno.test(
  "the shim has no descriptor more after a container than before",
  () =>
    withShim({ args: ["cat"] }, async (shim) => {
      const before = countDescriptors(shim.pid);
      const init = await shim.createWithFifos();
      await shim.startProcess();
      const other = await shim.execWithFifos("other", ["echo", "out"]);
      assertEquals(await output(other), ["out\n", ""]);
      await shim.wait("other");
      await shim.deleteProcess("other");
      await shim.closeStdin();
      assertEquals(await output(init), ["", ""]);
      await expectStatus(shim, 0);
      await until("they are closed", () => countDescriptors(shim.pid) <= before);
    }),
);

Deno.test("file:// makes the file with its folders, and appends stdout and stderr to it", () =>
  withShim({ args: BOTH }, async (shim) => {
    const path = `${shim.folder}/logs/a b/c.log`;
    const uri = `file://${encodeURI(path)}`;
    await shim.run({ stdout: uri, stderr: uri });
    await expectStatus(shim, 4);
    assertEquals((await Deno.readTextFile(path)).split("\n").sort(), ["", "err", "out"]);
    await shim.run({ stdout: uri, stderr: uri });
    await expectStatus(shim, 4);
    assertEquals((await Deno.readTextFile(path)).split("\n").sort(), ["", "err", "err", "out", "out"]);
  }));

Deno.test("a plain file is appended to", () =>
  withShim({ args: BOTH }, async (shim) => {
    const path = `${shim.folder}/plain.log`;
    await Deno.writeTextFile(path, "before\n");
    await shim.run({ stdout: path, stderr: path });
    await expectStatus(shim, 4);
    assertEquals((await Deno.readTextFile(path)).split("\n").sort(), ["", "before", "err", "out"]);
  }));

Deno.test("a container is not created before its output has a reader, which may be late, or a second has passed", () =>
  withShim({ args: ["sh", "-c", "echo out; echo err >&2"] }, async (shim) => {
    const fifos = await shim.fifos();
    const creating = shim.create(fifos);
    // Answered after Create has been read.
    await shim.shimPid();
    assertEquals(shim.containerProcesses(), [], "it is there before its readers");
    const [stdout, stderr] = await Promise.all([shim.read(fifos.stdout), shim.read(fifos.stderr)]);
    await creating;
    await shim.startProcess();
    assertEquals([await stdout.text(), await stderr.text()], ["out\n", "err\n"]);
    await shim.wait();
    await shim.delete();
  }));

onlyOurs(
  "it waits for ever",
  "a container whose output nobody reads runs all the same",
  () =>
    withShim({ args: ["sh", "-c", "echo out; exit 4"] }, async (shim) => {
      await shim.run(await shim.fifos());
      await expectStatus(shim, 4);
    }),
);
