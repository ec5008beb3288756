/**
 * What a container has printed, and nobody has read yet, is charged to its cgroup as long as it is in a pipe: it is little, and
 * none of its processes is killed for that.
 */

import { assert, assertEquals } from "@std/assert";
import * as fd from "../../ffi/fd.ts";
import { PIPE_SIZE, pipeSize } from "../../ffi/pipe.ts";
import { hasController, textOf } from "./cgroups.ts";
import { type Reader, Writer } from "./fifo.ts";
import { endContainer, onlyHosted, withHosted } from "./host.ts";
import { containerCgroups } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { type Attached, type Shim, withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { createWithTerminal } from "./terminal.ts";
import { pause, until } from "./until.ts";

modes(["hosted"], "the code is the same in each");

const MIB = 1 << 20;

/** How much a container prints on each of its outputs, in bytes. */
const PRINTED = 32 * MIB;

/** Prints on both outputs when it is told to. */
const FLOOD = `read go; yes | head -c ${PRINTED} & yes | head -c ${PRINTED} >&2; wait; exit 3`;

/** A line, which is of 64 bytes with its end. */
const LINE = "x".repeat(63);

/** How long a process that writes does nothing when the pipe is full, in ms. */
const STALLED_MS = 50;

/** Waits until a container's processes have written what there is room for, and no more. */
async function untilStalled(shim: Shim): Promise<void> {
  const written = () =>
    shim.containerProcesses().reduce((sum, pid) => {
      return sum + Number(/^wchar: (\d+)$/m.exec(textOf(`/proc/${pid}/io`))?.[1] ?? 0);
    }, 0);
  await until("it is kept waiting", async () => {
    const before = written();
    await pause(STALLED_MS);
    return before > PIPE_SIZE && written() === before;
  });
}

/** Sets how much memory a container may have, in bytes. */
async function limitMemory(shim: Shim, limit: number): Promise<void> {
  await shim.update({ memory: { limit } });
  const files = ["memory.limit_in_bytes", "memory.max"];
  const limits = containerCgroups(shim.namespace).flatMap((folder) => files.map((file) => textOf(`${folder}/${file}`)));
  assert(limits.includes(`${limit}\n`), "the container has no memory limit");
}

/** Reads all, and gives how much that was, in bytes. */
async function countBytes(reader: Reader): Promise<number> {
  let count = 0;
  for (let bytes = await reader.read(); bytes; bytes = await reader.read()) count += bytes.length;
  return count;
}

/** Has a process print, and waits until there is no more room for what it prints. */
async function fillPipes(shim: Shim, fifo: string): Promise<void> {
  {
    using stdin = await Writer.open(fifo);
    await stdin.write("go\n");
  }
  await untilStalled(shim);
}

/** Registers a test, if containers can have a memory limit here. */
function test(name: string, fn: () => Promise<void>): void {
  const ignore = !hasController("memory");
  Deno.test({ name: ignore ? `${name} [there is no memory controller]` : name, ignore, fn });
}

/** A limit with which the Go shim's container lives, in bytes. */
const LEAST = 3 * MIB;

test("a container whose memory limit is 3 MiB prints 64 MiB to who reads late, and is not killed", () =>
  withShim({ args: ["sh", "-c", FLOOD] }, async (shim) => {
    const attached = await shim.createWithFifos();
    await shim.startProcess();
    await limitMemory(shim, LEAST);
    await fillPipes(shim, attached.fifos.stdin);
    const counts = [countBytes(attached.stdout), countBytes(attached.stderr)];
    assertEquals((await shim.wait()).status, 3);
    assertEquals(await Promise.all(counts), [PRINTED, PRINTED]);
    await shim.delete();
  }));

test("a container whose memory limit is 3 MiB prints 1 MiB on a terminal to who reads late, and is not killed", () =>
  withShim({ terminal: true, args: ["sh", "-c", `read go; yes ${LINE} | head -c ${MIB}; exit 3`] }, async (shim) => {
    const { stdin, output } = await createWithTerminal(shim);
    await shim.startProcess();
    await limitMemory(shim, LEAST);
    await fillPipes(shim, stdin);
    const count = countBytes(output);
    assertEquals((await shim.wait()).status, 3);
    // What has been typed comes back; and each line ends with two characters.
    assertEquals(await count, "go\r\n".length + MIB + MIB / (LINE.length + 1));
    await shim.delete();
  }));

/** A process that prints without end. */
class Flood {
  readonly #shim: Shim;
  readonly #id: string;
  readonly #attached: Attached;

  private constructor(shim: Shim, id: string, attached: Attached) {
    this.#shim = shim;
    this.#id = id;
    this.#attached = attached;
  }

  static async start(shim: Shim, id: string): Promise<Flood> {
    return new Flood(shim, id, await shim.execWithFifos(id, ["yes"]));
  }

  /** Reads until its FIFO has a size in bytes, or so much that it has none but that for long. */
  async expectSize(expected: number): Promise<void> {
    const fifo = fd.open(this.#attached.fifos.stdout, fd.O.RDONLY | fd.O.NONBLOCK);
    try {
      let left = 16 * MIB;
      while (left > 0 && (pipeSize(fifo) !== expected || expected === PIPE_SIZE)) {
        left -= (await this.#attached.stdout.read())!.length;
      }
      assertEquals(pipeSize(fifo), expected, this.#id);
    } finally {
      fd.close(fifo);
    }
  }

  async end(): Promise<void> {
    await this.#shim.kill(9, { id: this.#id });
    await Promise.all([this.#shim.wait(this.#id), countBytes(this.#attached.stdout)]);
    await this.#shim.deleteProcess(this.#id);
  }
}

/** How large pipes are ever made, in bytes: lib/container/stream.ts. */
const LARGE = 512 * 1024;

if (hasController("memory")) {
  onlyHosted(
    "pipes are made larger as far as the container's memory limit allows it, for all of its processes together",
    () =>
      withHosted({}, async (shim, machine) => {
        await shim.run();
        for (
          const [mib, size] of [[0, LARGE], [32, LARGE], [16, LARGE / 2], [8, 2 * PIPE_SIZE], [4, PIPE_SIZE]] as const
        ) {
          if (mib > 0) await limitMemory(shim, mib * MIB);
          const flood = await Flood.start(shim, `with-${mib}-MiB`);
          await flood.expectSize(size);
          await flood.end();
        }
        await limitMemory(shim, 16 * MIB);
        for (const [i, size] of [LARGE / 2, LARGE / 2, 2 * PIPE_SIZE, PIPE_SIZE].entries()) {
          await (await Flood.start(shim, `together-${i}`)).expectSize(size);
        }
        // What a host has made large counts for the next one too.
        await replaceHost(machine);
        await (await Flood.start(shim, "after")).expectSize(PIPE_SIZE);
        await endContainer(shim);
      }),
  );
}
