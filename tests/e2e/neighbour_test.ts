/**
 * What one container of a host does, or has done to it, and what the others notice: they are answered and run processes while
 * it still goes on. What it does with files is in file_stdio_test.ts; docs/isolation.md has the whole list.
 */

import { assert, assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { Code } from "../../lib/ttrpc/status.ts";
import { forAll, numbers } from "./at_a_time.ts";
import { assertExecs, endContainer, onlyHosted, withHostedShims } from "./host.ts";
import { bytesRead, isAlive } from "./proc.ts";
import { SERVICE, type Shim, type ShimOptions, Status } from "./shim.ts";
import { GatedRuntime, later } from "./takeover.ts";
import { PATIENCE_MS, until } from "./until.ts";
import { encodeFrame, RawConnection, REQUEST } from "./wire.ts";

import v1 = containerd.runtime.linux.shim.v1;

/**
 * Runs a test with two shims in one host: one that is to be a bad neighbour, and one with a container that runs. The latter must
 * still run in the end, in the same host, and so must the host: what its containers do is not what a host dies of.
 */
function withNeighbour(test: (bad: Shim, other: Shim) => Promise<void>, options: ShimOptions = {}): Promise<void> {
  return withHostedShims([options, {}], async ([bad, other], machine) => {
    const pid = await other!.run();
    const host = machine.host();
    assertEquals(host.size, 2);
    await test(bad!, other!);
    assertEquals((await other!.state()).pid, pid);
    assertEquals(machine.host(), host);
    await endContainer(other!);
  });
}

let execs = 0;

/** Fails unless a container's shim answers, and runs another process there. */
async function assertServed(shim: Shim): Promise<void> {
  assertEquals(await shim.shimPid(), shim.pid);
  assertEquals((await shim.state()).status, Status.RUNNING);
  await assertExecs(shim, `served-${++execs}`);
}

/** What a container is asked for, in an order that can be, by the command of the runtime that this takes. */
const HANGING: readonly (readonly [string, (shim: Shim, runtime: string) => Promise<unknown>])[] = [
  ["create", (shim, runtime) => shim.create({}, { runtime })],
  ["start", (shim) => shim.startProcess()],
  ["exec", (shim) => shim.exec("e", ["true"]).then(() => shim.startProcess("e"))],
  ["kill", (shim) => shim.kill(9)],
  ["delete", (shim) => shim.wait().then(() => shim.delete())],
];

onlyHosted(
  "while the runtime of a container hangs in create, start, exec, kill or delete, its neighbour is served",
  () =>
    withNeighbour(async (bad, other) => {
      const runtime = await GatedRuntime.make(bad);
      for (const [command, call] of HANGING) {
        await runtime.close("before", command);
        let isAnswered = false;
        const answer = later(call(bad, runtime.path).finally(() => isAnswered = true));
        await runtime.reached();
        await assertServed(other);
        assert(!isAnswered, `${command} does not hang`);
        await runtime.open();
        await answer;
      }
    }),
);

/** How many terminals flood, and how many pipes. */
const FLOODS = 4;
/** What a reader has read of a flood that flows, more than is read for its own start. */
const FLOW_BYTES = 1 << 20;

/** A process that reads as fast as it can, until it is ended. */
class ReadingProcess implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;

  constructor(command: Deno.Command) {
    this.#process = command.spawn();
  }

  /** One that reads a FIFO. */
  static drain(path: string): ReadingProcess {
    return new ReadingProcess(new Deno.Command("cat", { args: [path], stdin: "null", stdout: "null" }));
  }

  /** How many bytes it has read. */
  get arrived(): number {
    return bytesRead(this.#process.pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (isAlive(this.#process.pid)) this.#process.kill("SIGKILL");
    await this.#process.status;
  }
}

onlyHosted(
  "while a container floods four terminals and four pipes, its neighbour is served",
  () =>
    withNeighbour(async (bad, other) => {
      await bad.run();
      await using drains = new AsyncDisposableStack();
      const all: ReadingProcess[] = [];
      for (const terminal of [true, false]) {
        for (const number of numbers(1, FLOODS)) {
          const id = `${terminal ? "terminal" : "pipe"}-${number}`;
          const { stdin, stdout } = await bad.fifos(id);
          all.push(drains.use(ReadingProcess.drain(stdout)));
          await bad.exec(id, ["cat", "/dev/zero"], terminal ? { stdin, stdout, terminal } : { stdout });
          await bad.startProcess(id);
        }
      }
      const flows = async () => {
        const before = all.map(({ arrived }) => arrived);
        await until(
          "all that is printed flows",
          () => all.every(({ arrived }, i) => arrived > before[i]! + FLOW_BYTES),
        );
      };
      await flows();
      for (const _ of numbers(1, 3)) await assertServed(other);
      await flows();
      await endContainer(bad);
    }),
);

/** How many calls wait. */
const WAITS = 10_000;

onlyHosted(
  "while ten thousand calls wait for the end of a container, its neighbour is served; all are answered when it has ended",
  () =>
    withNeighbour(async (bad, other) => {
      await bad.run();
      using client = await bad.connect();
      const payload = v1.WaitRequest.encode({ id: bad.id }).finish();
      const options = { timeoutMs: PATIENCE_MS };
      const waits = later(Promise.all(numbers(1, WAITS).map(() => client.call(SERVICE, "Wait", payload, options))));
      // What came after them has been answered.
      await client.call(SERVICE, "ShimInfo", new Uint8Array(), options);
      await assertServed(other);
      await bad.kill(9);
      const statuses = (await waits).map((answer) => v1.WaitResponse.decode(answer).exitStatus);
      assertEquals([statuses.length, new Set(statuses)], [WAITS, new Set([137])]);
      await bad.delete();
    }),
);

/** How many processes are registered, how many of these calls are in flight, and how many are answered while another waits. */
const EXECS = 2000;
const IN_FLIGHT = 32;
const MEANWHILE = 4 * IN_FLIGHT;

onlyHosted(
  "while two thousand execs of a container are registered, its neighbour is served between any few of them",
  () =>
    withNeighbour(async (bad, other) => {
      await bad.run();
      let registered = 0;
      const register = (number: number) => bad.exec(`e${number}`, ["true"]).then(() => registered++);
      const all = later(forAll(numbers(1, EXECS), IN_FLIGHT, register));
      while (registered < EXECS) {
        const before = registered;
        await other.state();
        const meanwhile = registered - before;
        assert(meanwhile <= MEANWHILE, `while one call has waited, ${meanwhile} have been registered`);
      }
      await all;
      await assertServed(other);
      await endContainer(bad);
    }),
);

/** A frame whose payload is no request. */
const BAD = encodeFrame({ stream: 1, type: REQUEST, payload: new Uint8Array([0x0f, 0xff, 0xff]) });
/** What has come of answers when some are read, in bytes. */
const ANSWERS = 1 << 20;

/**
 * Connects to a socket and sends a frame, in hex, again and again, as fast as they are taken, and reads the answers if the third
 * argument is not empty.
 */
const FLOOD = `
  use Socket;
  use Fcntl;
  my ($path, $frame, $reads) = @ARGV;
  socket my $socket, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  connect $socket, pack_sockaddr_un($path) or die "connect: $!";
  fcntl $socket, F_SETFL, O_NONBLOCK;
  my $bytes = pack("H*", $frame) x 65536;
  my $at = 0;
  vec(my $set, fileno $socket, 1) = 1;
  for (;;) {
    select my $in = $reads && $set, my $out = $set, undef, undef;
    defined sysread $socket, my $answers, 1 << 20 or $!{EAGAIN} or die "read: $!" if $reads && vec $in, fileno $socket, 1;
    $at += syswrite($socket, $bytes, length($bytes) - $at, $at) // 0 if vec $out, fileno $socket, 1;
    $at = 0 if $at == length $bytes;
  }
`;

onlyHosted(
  "while a container's shim is flooded with bad requests, its neighbour is served, whether the answers are read or not",
  () =>
    withNeighbour(async (bad, other) => {
      await using floods = new AsyncDisposableStack();
      const flood = (reads: string) => {
        const args = ["-e", FLOOD, bad.socketPath, BAD.toHex(), reads];
        return floods.use(new ReadingProcess(new Deno.Command("perl", { args, stdin: "null", stdout: "null" })));
      };
      const heard = flood("1");
      flood("");
      const flows = async () => {
        const before = heard.arrived;
        await until("bad requests are answered", () => heard.arrived > before + ANSWERS);
      };
      await flows();
      for (const _ of numbers(1, 20)) {
        const before = heard.arrived;
        await other.state();
        const meanwhile = heard.arrived - before;
        assert(meanwhile < ANSWERS, `while one call has waited, ${meanwhile} bytes of answers have come to others`);
      }
      await assertServed(other);
      await flows();
      assertEquals(await bad.shimPid(), bad.pid);
    }),
);

onlyHosted(
  "while a client of a container's shim has sent half of a request, its neighbour is served, and so are its other clients",
  () =>
    withNeighbour(async (bad, other) => {
      const init = await bad.run();
      using connection = await RawConnection.open(bad.socketPath);
      const name = new TextEncoder().encode(SERVICE);
      const frame = encodeFrame({ stream: 1, type: REQUEST, payload: new Uint8Array([0x0a, name.length, ...name]) });
      await connection.write(frame.subarray(0, frame.length / 2));
      await assertServed(other);
      assertEquals((await bad.state()).pid, init);
      await connection.write(frame.subarray(frame.length / 2));
      assertEquals((await connection.response()).response.status?.code, Code.UNIMPLEMENTED);
      await endContainer(bad);
    }),
);

/** A line or two each: more than a FIFO holds. */
const LOGGED_CALLS = 2000;

onlyHosted(
  "while nobody reads the log of a container's shim, which is full, its neighbour is served",
  () =>
    withNeighbour(async (bad, other) => {
      await bad.run();
      await Promise.all(numbers(1, LOGGED_CALLS).map(() => bad.state()));
      await assertServed(other);
      await endContainer(bad);
    }, { flags: ["-debug"] }),
);
