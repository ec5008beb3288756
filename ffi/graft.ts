/**
 * Descriptors of ours on Deno's own event loop.
 *
 * Deno waits for its sockets with one epoll instance and takes no descriptor from outside. But a socket that Deno has
 * made can be exchanged under its number: dup2(2) puts another file there, and epoll_ctl(2) registers that file with the
 * data word (the address of Deno's bookkeeping) that the first one was registered with, which
 * /proc/self/fdinfo/<epoll> shows (proc(5), "tfd").
 */

import * as fds from "./fd.ts";
import { check, libc } from "./libc.ts";

const c = libc({ epoll_ctl: [["i32", "i32", "i32", "buffer"], "i32"] });

/** epoll_ctl(2). */
const EPOLL_CTL_ADD = 1;

/** A descriptor as an epoll instance has it. */
interface Registration {
  readonly fd: number;
  readonly events: number;
  readonly data: bigint;
}

/** A place on Deno's event loop: the number of a socket that Deno waits for, and how. */
export class Place {
  /** The socket's descriptor, which stays Deno's. */
  readonly fd: number;
  readonly #epoll: number;
  readonly #registration: Registration;

  private constructor(epoll: number, registration: Registration) {
    this.fd = registration.fd;
    this.#epoll = epoll;
    this.#registration = registration;
  }

  /**
   * The place of the one socket, among those that Deno waits for, that `is` picks.
   *
   * @throws {Error} when there is none: Deno is not the Deno this was written for
   */
  static find(is: (fd: number) => boolean): Place {
    for (const epoll of epolls()) {
      for (const registration of registrations(epoll)) {
        if (is(registration.fd)) return new Place(epoll, registration);
      }
    }
    throw new Error("Deno's event loop has no such socket registered");
  }

  /**
   * Makes Deno wait for `waited` while its calls on this place go to `used`. Both stay the caller's; `waited` must stay
   * open as long as it is to be waited for.
   *
   * @throws {SystemError}
   */
  put(waited: number, used: number): void {
    // The socket that was here has no other name: its registration goes with it.
    fds.dup2(waited, this.fd);
    const event = new DataView(new ArrayBuffer(12));
    event.setUint32(0, this.#registration.events, true);
    event.setBigUint64(4, this.#registration.data, true);
    check(
      c().epoll_ctl(this.#epoll, EPOLL_CTL_ADD, this.fd, new Uint8Array(event.buffer)),
      "epoll_ctl EPOLL_CTL_ADD of descriptor",
      this.fd,
    );
    // A registration belongs to the file and the number together: it outlives the exchange of the file.
    if (used !== waited) fds.dup2(used, this.fd);
    fds.setCloexec(this.fd);
  }
}

function epolls(): number[] {
  const found: number[] = [];
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    const fd = Number(name);
    if (fds.describe(fd) === "anon_inode:[eventpoll]") found.push(fd);
  }
  return found;
}

function registrations(epoll: number): Registration[] {
  const found: Registration[] = [];
  const text = Deno.readTextFileSync(`/proc/self/fdinfo/${epoll}`);
  for (const [, fd, events, data] of text.matchAll(/^tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)/gm)) {
    found.push({
      fd: Number(fd),
      events: parseInt(events!, 16),
      data: BigInt("0x" + data),
    });
  }
  return found;
}
