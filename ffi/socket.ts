/** Unix sockets: listening, peer credentials, and names. */

import * as fds from "./fd.ts";
import { Place } from "./graft.ts";
import { check, Errno, errno, libc, SystemError } from "./libc.ts";

const c = libc({
  getsockopt: [["i32", "i32", "i32", "buffer", "buffer"], "i32"],
  setsockopt: [["i32", "i32", "i32", "buffer", "u32"], "i32"],
  getsockname: [["i32", "buffer", "buffer"], "i32"],
  getpeername: [["i32", "buffer", "buffer"], "i32"],
  socket: [["i32", "i32", "i32"], "i32"],
  fchmod: [["i32", "u32"], "i32"],
  bind: [["i32", "buffer", "u32"], "i32"],
  listen: [["i32", "i32"], "i32"],
  connect: [["i32", "buffer", "u32"], "i32"],
  accept4: [["i32", "pointer", "pointer", "i32"], "i32"],
  socketpair: [["i32", "i32", "i32", "buffer"], "i32"],
  ioctl: [["i32", "u64", "buffer"], "i32"],
  geteuid: [[], "u32"],
  getegid: [[], "u32"],
});

/** socket(2), socket(7), unix(7); values from asm-generic/socket.h. */
export const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_SEQPACKET = 5;
/** A flag of a type of socket(2): no call waits. */
export const SOCK_NONBLOCK = 0o4000;
/** A flag of a type of socket(2): execve(2) closes it. */
export const SOCK_CLOEXEC = 0o2000000;
/** The level of the options that each socket has. */
export const SOL_SOCKET = 1;
/** recv(2): what is read stays. */
export const MSG_PEEK = 2;
/** recv(2), send(2): this call does not wait. */
export const MSG_DONTWAIT = 0x40;
/** send(2): EPIPE is enough, the signal would be everybody's. */
export const MSG_NOSIGNAL = 0x4000;
/** unix(7); the number is that of TIOCOUTQ, linux/sockios.h. */
const SIOCOUTQ = 0x5411n;
const SO_PEERCRED = 17;
const SO_ACCEPTCONN = 30;
const SO_PEEK_OFF = 42;
/** sizeof(struct sockaddr_un), and where its path begins. */
const SOCKADDR_UN = 110;
const PATH_OFFSET = 2;
/** What an address can be, in bytes: sun_path, less what marks an abstract one and its end. */
export const ADDRESS_LIMIT = SOCKADDR_UN - PATH_OFFSET - 2;
/** How many connections may wait to be accepted; the system allows fewer, as a rule (net.core.somaxconn). */
const BACKLOG = 4096;

/** Who is at the other end of a Unix socket: struct ucred, unix(7). */
export interface Credentials {
  /** 0 when the peer is in a pid namespace that ours does not see. */
  readonly pid: number;
  /** The effective user. */
  readonly uid: number;
  /** The effective group. */
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

/** Whether somebody is this process's own effective user and group. */
export function isOwnUser({ uid, gid }: Credentials): boolean {
  return uid === c().geteuid() && gid === c().getegid();
}

function option(fd: number, name: number, words: number): Int32Array {
  const value = new Int32Array(words);
  const length = new Uint32Array([value.byteLength]);
  check(
    c().getsockopt(fd, SOL_SOCKET, name, new Uint8Array(value.buffer), new Uint8Array(length.buffer)),
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
  if (bytes[0] !== AF_UNIX || length[0]! <= PATH_OFFSET) return undefined;
  const path = bytes.subarray(PATH_OFFSET, length[0]);
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
    c().socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, new Uint8Array(pair.buffer)),
    "socketpair",
  );
  return [pair[0]!, pair[1]!];
}

/**
 * Listens on a path, or on an abstract address (one that begins with NUL), nonblocking and close-on-exec; the caller owns
 * the socket, and the file.
 *
 * @throws {SystemError} EADDRINUSE
 */
export function listenOn(path: string): number {
  return listenAs(socketAddress(path), path);
}

/**
 * The same in a folder, whose path may be longer than that of a socket.
 *
 * @throws {SystemError} EADDRINUSE
 */
export function listenIn(folder: string, name: string): number {
  const fd = fds.open(folder, fds.O.PATH | fds.O.DIRECTORY);
  try {
    return listenAs(socketAddress(`/proc/self/fd/${fd}/${name}`), `${folder}/${name}`);
  } finally {
    fds.close(fd);
  }
}

function listenAs({ address, length }: Address, path: string): number {
  const socket = check(c().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
  try {
    // Of a socket that has no name yet, it is what its name's mode will be: unix(7) has no other way without a gap.
    check(c().fchmod(socket, fds.OWNER_ONLY), "fchmod of the socket for", path);
    check(c().bind(socket, address, length), "bind of a socket to", path);
    check(c().listen(socket, BACKLOG), "listen on", path);
  } catch (error) {
    fds.close(socket);
    throw error;
  }
  return socket;
}

/**
 * Connects to a socket that keeps messages apart, nonblocking and close-on-exec; the caller owns it.
 *
 * @throws {SystemError} ECONNREFUSED when nobody listens
 */
export function connectToPackets(path: string): number {
  const { address, length } = socketAddress(path);
  const socket = check(c().socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
  try {
    check(c().connect(socket, address, length), "connect to", path);
  } catch (error) {
    fds.close(socket);
    throw error;
  }
  return socket;
}

/** struct sockaddr_un, and how many bytes of it count. */
export interface Address {
  /** The struct. */
  readonly address: Uint8Array<ArrayBuffer>;
  /** In bytes. */
  readonly length: number;
}

/**
 * The address of a path, or an abstract one (which begins with NUL).
 *
 * @throws {Error} when it is longer than {@link ADDRESS_LIMIT}
 */
export function socketAddress(path: string): Address {
  const bytes = new TextEncoder().encode(path);
  const isAbstract = bytes[0] === 0;
  if (bytes.length > ADDRESS_LIMIT + (isAbstract ? 1 : 0)) {
    throw new Error(`${JSON.stringify(path)}: unix socket path too long (> ${ADDRESS_LIMIT})`);
  }
  const address = new Uint8Array(SOCKADDR_UN);
  address[0] = AF_UNIX;
  address.set(bytes, PATH_OFFSET);
  // An abstract name is as long as the address says, a path ends with NUL.
  return { address, length: PATH_OFFSET + bytes.length + (isAbstract ? 0 : 1) };
}

/**
 * A connection that waits to be accepted, nonblocking and close-on-exec; the caller owns it.
 *
 * @returns undefined when none waits
 * @throws {SystemError} EMFILE, say
 */
export function accept(listener: number): number | undefined {
  for (;;) {
    const fd = c().accept4(listener, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return fd;
    const error = errno();
    if (error === Errno.EAGAIN) return undefined;
    // Its peer has given it up: the next one may be there.
    if (error === Errno.EINTR || error === Errno.ECONNABORTED) continue;
    throw new SystemError("accept4 on descriptor", error, listener);
  }
}

/**
 * Has recv(2) with MSG_PEEK begin with what comes first, and go on from there with each call: SO_PEEK_OFF of socket(7).
 *
 * @throws {SystemError}
 */
export function peekFromStart(fd: number): void {
  const value = new Uint8Array(4);
  check(c().setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, value, value.length), "setsockopt SO_PEEK_OFF of descriptor", fd);
}

/**
 * How much memory the messages take that the peer of a stream socket has not read, in bytes; 0 when it has read all that was
 * sent: SIOCOUTQ of unix(7).
 *
 * @throws {SystemError}
 */
export function unreadByPeer(fd: number): number {
  const count = new Int32Array(1);
  check(c().ioctl(fd, SIOCOUTQ, new Uint8Array(count.buffer)), "ioctl SIOCOUTQ of descriptor", fd);
  return count[0]!;
}

/** Whether a descriptor is a Unix socket that listens. */
export function isListening(fd: number): boolean {
  return name("getsockname", fd) !== undefined && option(fd, SO_ACCEPTCONN, 1)[0] === 1;
}

/** An address in the abstract namespace that no one else uses: this process's, and never twice. */
export function privateAddress(): string {
  return `\0containerd-shim-${Deno.pid}-${crypto.randomUUID()}`;
}

/** The place on Deno's event loop of the connection that was made to `path`. */
export function placeOfConnectionTo(path: string): Place {
  return Place.find((fd) => name("getpeername", fd) === path);
}
