/** A containerd that takes no event, or does not say that it has: its containers are not kept waiting, and no exit is lost. */

import { assert, assertEquals } from "@std/assert";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { must } from "./command.ts";
import { onlyOurs } from "./env.ts";
import { assertSupervised, withServed } from "./fault.ts";
import { modes } from "./modes.ts";
import { isAlive } from "./proc.ts";
import { type Shim, Status } from "./shim.ts";
import { until } from "./until.ts";
import { encodeFrame, RESPONSE } from "./wire.ts";

modes(["hosted"], "events are sent by the same code in each mode");

/** How long Delete may wait for an event to be taken, and its container's streams, with some room; in ms. */
const DELETE_MS = 6000;

/** Answers connections in place of containerd's event service, as `how` does. */
class Impostor implements AsyncDisposable {
  readonly #listener: Deno.Listener<Deno.UnixConn>;
  readonly #conns: Deno.UnixConn[] = [];
  readonly #path: string;
  readonly #ended: Promise<void>;
  #count = 0;

  constructor(shim: Shim, how: (conn: Deno.UnixConn) => Promise<void>) {
    this.#path = `${shim.events.address}.ttrpc`;
    this.#listener = Deno.listen({ transport: "unix", path: this.#path });
    this.#ended = this.#accept(how);
  }

  async #accept(how: (conn: Deno.UnixConn) => Promise<void>): Promise<void> {
    for await (const conn of this.#listener) {
      this.#count++;
      this.#conns.push(conn);
      // It is closed in the midst of it, perhaps.
      how(conn).catch(() => {});
    }
  }

  /** How many connections there have been. */
  get count(): number {
    return this.#count;
  }

  /** Closes all, when this has resolved; its socket is gone then. */
  async [Symbol.asyncDispose](): Promise<void> {
    const path = this.#path;
    this.#listener.close();
    await this.#ended;
    await until("its socket is gone", () => !isThere(path));
    for (const conn of this.#conns) {
      try {
        conn.close();
      } catch {
        // It is closed.
      }
    }
  }
}

function isThere(path: string): boolean {
  try {
    return Deno.lstatSync(path).isSocket !== undefined;
  } catch {
    return false;
  }
}

/** A whole answer to the first request of a connection. */
const ANSWER = encodeFrame({ stream: 1, type: RESPONSE, payload: ttrpc.Response.encode({}).finish() });

/** Reads what there is of a request. */
async function readSome(conn: Deno.UnixConn): Promise<void> {
  await conn.read(new Uint8Array(65_536));
}

/** How a containerd may fail to take an event, and whether it fails at once. */
const FAULTS: readonly (readonly [name: string, how: (conn: Deno.UnixConn) => Promise<void>])[] = [
  ["accepts and answers nothing", readSome],
  ["accepts and reads nothing", () => Promise.resolve()],
  ["closes each connection at once", (conn) => Promise.resolve(conn.close())],
  ["closes each connection when it has read the event", async (conn) => {
    await readSome(conn);
    conn.close();
  }],
  ...[1, 9, 10, ANSWER.length - 1].filter((each) => each < ANSWER.length).map((length) =>
    [`closes each connection after ${length} bytes of its answer`, async (conn: Deno.UnixConn) => {
      await readSome(conn);
      await conn.write(ANSWER.subarray(0, length));
      conn.close();
    }] as const
  ),
  ["answers with rubbish", async (conn) => {
    await readSome(conn);
    await conn.write(crypto.getRandomValues(new Uint8Array(1000)));
  }],
  ["says that its answer has 4 GB", async (conn) => {
    await readSome(conn);
    await conn.write(new Uint8Array([255, 255, 255, 255, 0, 0, 0, 1, RESPONSE, 0]));
  }],
  ["answers on another stream", async (conn) => {
    await readSome(conn);
    await conn.write(encodeFrame({ stream: 3, type: RESPONSE, payload: new Uint8Array() }));
  }],
];

/** Ends a container, and deletes it, while nobody takes its events. */
async function assertNotKept(shim: Shim, init: number): Promise<void> {
  const waiting = shim.wait();
  await shim.exec("other", ["sh", "-c", "exit 3"]);
  await shim.startProcess("other");
  assertEquals((await shim.wait("other")).status, 3);
  await shim.deleteProcess("other");
  await assertSupervised(shim, init);
  await shim.kill(9);
  assertEquals((await waiting).status, 137);
  assertEquals((await shim.state()).status, Status.STOPPED);
  const start = performance.now();
  assertEquals((await shim.delete()).status, 137);
  assert(performance.now() - start < DELETE_MS, `Delete has taken ${performance.now() - start} ms`);
}

/** Fails unless the exits of both processes are taken, with their statuses, by a containerd that is as it should be. */
async function assertTold(shim: Shim, init: number): Promise<void> {
  const exits = [await shim.events.exit("other"), await shim.events.exit(shim.id)];
  assertEquals(exits.map(({ exit }) => exit.exitStatus), [3, 137]);
  assertEquals(exits[1]!.exit.pid, init);
  const order = shim.events.published().map(({ exit }) => exit.id);
  assert(order.indexOf("other") < order.indexOf(shim.id), `they have come as ${order}`);
}

for (const [name, how] of FAULTS) {
  onlyOurs(
    "it has no way but the command",
    `a containerd that ${name} keeps no container waiting, and is told of each exit when it is as it should be`,
    () =>
      withServed({ events: "none" }, async ({ shim }) => {
        const init = await shim.run();
        {
          await using impostor = new Impostor(shim, how);
          await assertNotKept(shim, init);
          assert(impostor.count > 0, "nobody has tried to tell it");
        }
        shim.events.serve();
        // A containerd that comes back connects to its shims.
        shim.disconnect();
        assertEquals(await shim.shimPid(), shim.pid);
        await assertTold(shim, init);
      }),
  );
}

/** Leaves a socket at each path that nobody listens at, as a containerd does that was killed. */
const LEAVE_SOCKETS = `
  use Socket;
  for (@ARGV) { socket my $s, AF_UNIX, SOCK_STREAM, 0; bind $s, pack_sockaddr_un($_) or die "$_: $!" }
`;

onlyOurs(
  "it loses the exits",
  "a socket that refuses keeps no container waiting, and the containerd that comes back is told of each exit",
  () =>
    withServed({ events: "none" }, async ({ shim }) => {
      const init = await shim.run();
      const socket = `${shim.events.address}.ttrpc`;
      await must(["perl", "-e", LEAVE_SOCKETS, shim.events.address, socket]);
      await assertNotKept(shim, init);
      await Deno.remove(socket);
      shim.events.serve();
      shim.disconnect();
      assertEquals(await shim.shimPid(), shim.pid);
      await assertTold(shim, init);
    }),
);

modes(["hosted", "alone"], "another process starts the publish command in each");

/** Ways of `containerd publish` to fail, where there is no other way. */
const COMMANDS: readonly (readonly [string, string])[] = [
  ["fails", "exit 1"],
  ["crashes", "kill -SEGV $$"],
  ["reads nothing, and fails", "exec <&-; exit 1"],
  ["prints a megabyte, and fails", "head -c 1000000 /dev/zero; exit 1"],
  ["hangs", "exec sleep 1000"],
];

for (const [name, fault] of COMMANDS) {
  onlyOurs(
    "it waits for it, and tries once",
    `a publish command that ${name} keeps no container waiting; nothing of it is left when the shim ends`,
    () =>
      withServed({ events: "none", endsItself: true }, async ({ shim }) => {
        const init = await shim.run();
        const script = `#!/bin/sh\necho $$ >>'${shim.folder}/tried'\n${fault}\n`;
        await Deno.writeTextFile(shim.events.command, script, { mode: 0o755 });
        await assertNotKept(shim, init);
        const tried = () => Deno.readTextFileSync(`${shim.folder}/tried`).trim().split("\n").map(Number);
        await until("it has been tried", () => tried().length > 0);
        if (name !== "hangs") {
          shim.events.serve();
          shim.disconnect();
          await shim.shimPid();
          await assertTold(shim, init);
        }
        shim.signal("SIGTERM");
        assertEquals(await shim.status, 0);
        await until("no command is left", () => tried().every((pid) => !isAlive(pid)));
      }),
  );
}

onlyOurs(
  "it has no way but the command",
  "events are told by ttrpc as soon as it is there, though the command hangs that was tried before",
  () =>
    withServed({ events: "none", args: ["sh", "-c", "exit 4"] }, async ({ shim }) => {
      await Deno.writeTextFile(shim.events.command, "#!/bin/sh\nexec sleep 1000\n", { mode: 0o755 });
      await shim.run();
      assertEquals((await shim.wait()).status, 4);
      await until("the command hangs", () => shim.children().some(({ comm }) => comm === "sleep"));
      for (const { pid, comm } of shim.children()) if (comm === "sleep") Deno.kill(pid, "SIGKILL");
      shim.events.serve();
      const { exit } = await shim.events.exit(shim.id);
      assertEquals(exit.exitStatus, 4);
      await shim.delete();
    }),
);
