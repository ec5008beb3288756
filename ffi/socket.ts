/** Unix sockets: an inherited listener, peer credentials, and names. */

import * as fds from "./fd.ts";
import { Place, waitedFor } from "./graft.ts";
import { check, libc } from "./libc.ts";

const c = libc({
  getsockopt: [["i32", "i32", "i32", "buffer", "buffer"], "i32"],
  getsockname: [["i32", "buffer", "buffer"], "i32"],
  getpeername: [["i32", "buffer", "buffer"], "i32"],
  socketpair: [["i32", "i32", "i32", "buffer"], "i32"],
  geteuid: [[], "u32"],
  getegid: [[], "u32"],
});

/** socket(2), socket(7), unix(7); values from asm-generic/socket.h. */
export const AF_UNIX = 1;
export const SOCK_STREAM = 1;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SO_ACCEPTCONN = 30;
/** sizeof(struct sockaddr_un) */
const SOCKADDR_UN = 110;

/** Who is at the other end of a Unix socket: struct ucred, unix(7). */
export interface Credentials {
  /** 0 when the peer is in a pid namespace that ours does not see. */
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/**
 * The credentials of a connected Unix socket's peer, as they were when it connected.
 *
 * @throws {SystemError}
 */
export function peerCredentials(fd: number): Credentials {
  const ucred = option(fd, SO_PEERCRED, 3);
  return { pid: ucred[0]!, uid: ucred[1]! >>> 0, gid: ucred[2]! >>> 0 };
}

/** This process's own effective user and group. */
export function ownCredentials(): Credentials {
  return { pid: Deno.pid, uid: c().geteuid(), gid: c().getegid() };
}

function option(fd: number, name: number, words: number): Int32Array {
  const value = new Int32Array(words);
  const length = new Uint32Array([value.byteLength]);
  check(
    c().getsockopt(
      fd,
      SOL_SOCKET,
      name,
      new Uint8Array(value.buffer),
      new Uint8Array(length.buffer),
    ),
    "getsockopt of descriptor",
    fd,
  );
  return value;
}

type Named = "getsockname" | "getpeername";

/** An address as text (an abstract one begins with NUL), undefined for what is no Unix socket or has no address. */
function name(which: Named, fd: number): string | undefined {
  const bytes = new Uint8Array(SOCKADDR_UN);
  const length = new Uint32Array([SOCKADDR_UN]);
  if (c()[which](fd, bytes, new Uint8Array(length.buffer)) !== 0) {
    return undefined;
  }
  if (bytes[0] !== AF_UNIX || length[0]! <= 2) return undefined;
  const path = bytes.subarray(2, length[0]);
  // A path is NUL-terminated inside its length; an abstract name begins with NUL and is as long as it is.
  const end = path[0] === 0 ? -1 : path.indexOf(0);
  return new TextDecoder().decode(end < 0 ? path : path.subarray(0, end));
}

/**
 * A pair of connected stream sockets, nonblocking and close-on-exec; the caller owns both.
 *
 * @throws {SystemError}
 */
export function socketpair(): [number, number] {
  const pair = new Int32Array(2);
  check(
    c().socketpair(
      AF_UNIX,
      SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
      0,
      new Uint8Array(pair.buffer),
    ),
    "socketpair",
  );
  return [pair[0]!, pair[1]!];
}

/** An address in the abstract namespace that no one else uses: this process's, and never twice. */
export function privateAddress(): string {
  return `\0containerd-shim-${Deno.pid}-${crypto.randomUUID()}`;
}

/** A listener, and who the peers are of the connections it accepts, which Deno does not tell. */
export class Listener {
  readonly #listener: Deno.Listener<Deno.UnixConn>;
  readonly #address: string;
  /** Accepted connections by descriptor, each with its inode as /proc shows it: numbers are used again. */
  readonly #accepted = new Map<number, string>();

  private constructor(
    listener: Deno.Listener<Deno.UnixConn>,
    address: string,
  ) {
    this.#listener = listener;
    this.#address = address;
  }

  /**
   * Listens on a path, or on an abstract address (one that begins with NUL).
   *
   * @throws {Deno.errors.AddrInUse} and what else Deno.listen does
   */
  static listen(path: string): Listener {
    const listener = Deno.listen({ transport: "unix", path });
    Place.find((fd) => isListening(fd, path));
    return new Listener(listener, path);
  }

  /**
   * Serves a listening Unix socket that this process has inherited as `fd`, which is the listener's from then on.
   *
   * @throws {Error} when `fd` is no listening Unix socket
   */
  static inherit(fd: number): Listener {
    const address = name("getsockname", fd);
    if (address === undefined || !isListening(fd, address)) {
      throw new Error(
        `descriptor ${fd} is not a listening Unix socket: inherit one, or name one with -socket`,
      );
    }
    fds.setNonblocking(fd);
    const path = privateAddress();
    const listener = Deno.listen({ transport: "unix", path });
    Place.find((each) => isListening(each, path)).put(fd, fd);
    fds.close(fd);
    return new Listener(listener, address);
  }

  /**
   * The next connection and its peer. Not to be called again before it has answered.
   *
   * @throws {Deno.errors.BadResource} when the listener has been closed
   */
  async accept(): Promise<{ conn: Deno.UnixConn; peer: Credentials }> {
    const conn = await this.#listener.accept();
    try {
      return { conn, peer: peerCredentials(this.#latest()) };
    } catch (error) {
      conn.close();
      throw error;
    }
  }

  /** The descriptor of the connection accepted last: the one with our address that was not there before. */
  #latest(): number {
    for (const fd of waitedFor()) {
      const inode = fds.describe(fd);
      if (inode === undefined || this.#accepted.get(fd) === inode) continue;
      if (name("getsockname", fd) !== this.#address) continue;
      if (isListening(fd, this.#address)) continue;
      this.#accepted.set(fd, inode);
      return fd;
    }
    throw new Error("an accepted connection has no descriptor to be found");
  }

  /** Stops listening; a socket that {@link listen} has made in the file system is removed. */
  close(): void {
    this.#listener.close();
  }
}

function isListening(fd: number, address: string): boolean {
  return name("getsockname", fd) === address &&
    option(fd, SO_ACCEPTCONN, 1)[0] === 1;
}

/** The place on Deno's event loop of the connection that was made to `path`. */
export function placeOfConnectionTo(path: string): Place {
  return Place.find((fd) => name("getpeername", fd) === path);
}
