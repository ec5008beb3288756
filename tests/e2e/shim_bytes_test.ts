/** A GiB through stdout: every byte arrives, in order, whatever the reader does. */

import { assert, assertEquals } from "@std/assert";
import { must } from "./command.ts";
import { Reader, Writer } from "./fifo.ts";
import { modes } from "./modes.ts";
import { type Attached, withShim } from "./shim.ts";
import { pause } from "./until.ts";

modes(["hosted", "alone"], "pipes come to a host through a holder");

/**
 * What the container prints: a block of random bytes, again and again, each time after its number. The block's size is no
 * multiple of a page's or a pipe's, so a piece that is lost, doubled or out of place changes the checksum.
 */
const BLOCK_SIZE = (16 << 20) + 4099;
const BLOCKS = 64;
const BLOCK = randomBytes(BLOCK_SIZE);
const SCRIPT = `i=0; while [ $i -lt ${BLOCKS} ]; do echo $i; cat /tmp/block; i=$((i+1)); done`;

/** The same in pieces of 100 bytes: fast, then a line that somebody waits for, then fast again. */
const SMALL_BLOCK_SIZE = 8_000_000;
const SMALL_PIECES = "dd ibs=64000 obs=100 if=/tmp/block 2>/dev/null";
const SMALL_SCRIPT = `${SMALL_PIECES}; echo; echo ready; read line; ${SMALL_PIECES}`;

/** The command that makes a checksum of its input. */
const CHECKSUM = "sha256sum";

function randomBytes(count: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(count);
  // It gives no more than this at a time.
  for (let at = 0; at < count; at += 65_536) crypto.getRandomValues(bytes.subarray(at, at + 65_536));
  return bytes;
}

/** What the container prints, as a checksum and a size; once for all tests. */
let expected: ReturnType<typeof printed> | undefined;

async function printed(): Promise<[checksum: string, size: number]> {
  const printed = new Checksum();
  for (let i = 0; i < BLOCKS; i++) {
    await printed.add(new TextEncoder().encode(`${i}\n`));
    await printed.add(BLOCK);
  }
  return await printed.end();
}

/** Reads all of an output in its own way. */
type ReadOutput = (attached: Attached, take: (bytes: Uint8Array<ArrayBuffer>) => Promise<void>) => Promise<void>;

/** Runs the container with a reader, and fails unless the reader gets what the container has printed. */
function check(read: ReadOutput): Promise<void> {
  return withShim({ args: ["sh", "-c", SCRIPT] }, async (shim) => {
    await Deno.writeFile(`${shim.rootfs}/tmp/block`, BLOCK);
    const attached = await shim.createWithFifos();
    const received = new Checksum();
    await shim.startProcess();
    await read(attached, (bytes) => received.add(bytes));
    assertEquals((await shim.wait()).status, 0);
    const [actual, size] = await received.end();
    assert(size >= 2 ** 30, `${size} bytes have arrived`);
    assertEquals([actual, size], await (expected ??= printed()));
    assertEquals(await attached.stderr.text(), "");
    await shim.delete();
  });
}

/** The checksum of what is added to it. */
class Checksum {
  readonly #child = new Deno.Command(CHECKSUM, { stdin: "piped", stdout: "piped" }).spawn();
  readonly #input = this.#child.stdin.getWriter();
  #size = 0;

  async add(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    this.#size += bytes.length;
    await this.#input.write(bytes);
  }

  async end(): Promise<[checksum: string, size: number]> {
    await this.#input.close();
    return [new TextDecoder().decode((await this.#child.output()).stdout), this.#size];
  }
}

Deno.test("a GiB of output arrives whole at a fast reader", () =>
  check(async ({ stdout }, take) => {
    for (let bytes = await stdout.read(); bytes; bytes = await stdout.read()) await take(bytes);
  }));

modes(["hosted"], "readers that are slow are waited for by the same code in each mode");

Deno.test("a GiB of output arrives whole at a reader that reads in bursts", () =>
  check(async ({ stdout }, take) => {
    let untilPause = 0;
    for (let bytes = await stdout.read(); bytes; bytes = await stdout.read()) {
      await take(bytes);
      untilPause -= bytes.length;
      if (untilPause > 0) continue;
      // Bursts of all sizes, with pauses that are long enough for every buffer to fill.
      untilPause = Math.random() * (64 << 20);
      await pause(50);
    }
  }));

Deno.test("a GiB of output arrives whole at a reader that goes away for 5 s and comes back", () =>
  check(async ({ stdout, fifos }, take) => {
    for (let left = 300 << 20; left > 0;) {
      const bytes = await stdout.read();
      if (!bytes) throw new Error("The output has ended");
      await take(bytes);
      left -= bytes.length;
    }
    stdout.close();
    await pause(5000);
    using again = await Reader.open(fifos.stdout);
    for (let bytes = await again.read(); bytes; bytes = await again.read()) await take(bytes);
  }));

modes(["hosted", "alone"], "pipes come to a host through a holder");

Deno.test("output in small pieces arrives whole, and what is printed alone arrives at once", () =>
  withShim({ args: ["sh", "-c", SMALL_SCRIPT] }, async (shim) => {
    const block = crypto.getRandomValues(new Uint8Array(SMALL_BLOCK_SIZE / 256)).map((byte) => byte % 64 + 32);
    const text = new TextDecoder().decode(block).padEnd(SMALL_BLOCK_SIZE, "0123456789 ");
    await Deno.writeTextFile(`${shim.rootfs}/tmp/block`, text);
    const attached = await shim.createWithFifos();
    await shim.startProcess();
    const { stdout } = attached;
    using stdin = await Writer.open(attached.fifos.stdin);
    let received = "";
    while (!received.endsWith("\nready\n")) received += await stdout.line();
    assert(received === `${text}\nready\n`, `${received.length} bytes are not those that were printed first`);
    await stdin.write("go\n");
    assert(await stdout.text() === text, "what arrived then is not what was printed");
    assertEquals((await shim.wait()).status, 0);
    await shim.delete();
  }));

/** Processes that print at the same time, and how much each does, in bytes. */
const PRINTERS = 16;
const PRINTED = 64 << 20;

Deno.test("the output of many processes arrives whole, all at the same time", () =>
  withShim({}, async (shim) => {
    await shim.run();
    const args = ["sh", "-c", `read go; exec dd if=/dev/zero bs=65536 count=${PRINTED / 65_536} 2>/dev/null`];
    const printers = await Promise.all(Array.from({ length: PRINTERS }, async (_, i) => {
      const fifos = await shim.fifos(`p${i}`);
      // A program each: they are to read as fast as they can, and not in turn.
      const count = must(["sh", "-c", `wc -c <'${fifos.stdout}'`], { patienceMs: 60_000 });
      const stderr = Reader.open(fifos.stderr);
      await shim.exec(`p${i}`, args, fifos);
      await shim.startProcess(`p${i}`);
      return { count, stderr: await stderr, stdin: await Writer.open(fifos.stdin) };
    }));
    for (const { stdin } of printers) await stdin.write("\n");
    for (const { count, stdin, stderr } of printers) {
      assertEquals(Number(await count), PRINTED);
      stdin[Symbol.dispose]();
      stderr.close();
    }
    await shim.kill(9);
    await shim.wait();
    await shim.delete();
  }));
