/** The journal, and syslog, of a machine of a test's own: sockets of the test's where a shim there finds them. */

import * as fd from "../../ffi/fd.ts";
import { libc } from "../../ffi/libc.ts";
import { openDatagrams, sendDatagram } from "../../ffi/datagram.ts";
import { socketAddress } from "../../ffi/socket.ts";
import { newPlace } from "./env.ts";
import { emptyFolder, type Machine, withMachine } from "./host.ts";

const c = libc({ bind: [["i32", "buffer", "u32"], "i32"] });

/** Larger than any entry may be. */
const BUFFER = 1 << 18;

/** A socket of datagrams that only the test reads. */
export class Datagrams implements Disposable {
  readonly #path: string;
  readonly #socket: number;
  readonly #received: Uint8Array[] = [];

  /** @param path where it is bound; everybody may send to it */
  constructor(path: string) {
    this.#path = path;
    this.#socket = openDatagrams();
    const { address, length } = socketAddress(path);
    if (c().bind(this.#socket, address, length) !== 0) throw new Error(`cannot bind ${path}`);
    Deno.chmodSync(path, 0o666);
  }

  /** All that has come. */
  received(): readonly Uint8Array[] {
    const buffer = new Uint8Array(BUFFER);
    for (let count = fd.read(this.#socket, buffer); count > 0; count = fd.read(this.#socket, buffer)) {
      this.#received.push(buffer.slice(0, count));
    }
    return this.#received;
  }

  /** Has no more room afterwards. */
  fill(): void {
    const sender = openDatagrams();
    while (sendDatagram(sender, this.#path, new Uint8Array([0])));
    fd.close(sender);
  }

  [Symbol.dispose](): void {
    fd.close(this.#socket);
  }
}

/** What there is on a machine. */
export interface SystemLogs {
  readonly journal?: Datagrams;
  readonly syslog?: Datagrams;
}

/** Device files that a runtime and what it runs want, with their numbers. */
const DEVICES = ["null 1 3", "zero 1 5", "full 1 7", "random 1 8", "urandom 1 9", "tty 5 0"];

/** Runs `test` on a machine that has a journal, syslog, both or nothing. */
export async function withSystemLogs(
  which: readonly (keyof SystemLogs)[],
  test: (machine: Machine, logs: SystemLogs) => Promise<void>,
): Promise<void> {
  const { folder } = newPlace();
  using stack = new DisposableStack();
  const open = (name: keyof SystemLogs) =>
    which.includes(name) ? { [name]: stack.use(new Datagrams(`${folder}/${name}`)) } : {};
  const logs: SystemLogs = { ...open("journal"), ...open("syslog") };
  const setup = [
    // What else there is of the machine's is not to be seen.
    "mount -t tmpfs none /run && mkdir -p /run/systemd/journal",
    "mkdir -p /run/dev && mount --rbind /dev /run/dev && mount -t tmpfs none /dev",
    ...DEVICES.map((each) => `mknod -m 666 /dev/${each.replace(" ", " c ")}`),
    "ln -s /proc/self/fd /dev/fd && mkdir /dev/pts && mount --bind /run/dev/pts /dev/pts && ln -s pts/ptmx /dev/ptmx",
    ...logs.journal
      ? [`: >/run/systemd/journal/socket && mount --bind ${folder}/journal /run/systemd/journal/socket`]
      : [],
    ...logs.syslog ? [`: >/dev/log && mount --bind ${folder}/syslog /dev/log`] : [],
    emptyFolder(),
  ];
  await withMachine((machine) => test(machine, logs), setup.join(" && "));
}
