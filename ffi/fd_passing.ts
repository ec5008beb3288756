/** Descriptors that come through a Unix socket: SCM_RIGHTS of unix(7), by recvmsg(2). */

import * as fds from "./fd.ts";
import { check, Errno, errno, libc, SystemError } from "./libc.ts";
import { AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET } from "./socket.ts";

const c = libc({
  socket: [["i32", "i32", "i32"], "i32"],
  bind: [["i32", "buffer", "u32"], "i32"],
  listen: [["i32", "i32"], "i32"],
  accept4: [["i32", "pointer", "pointer", "i32"], "i32"],
  recvmsg: [["i32", "buffer", "i32"], "isize"],
});

/** unix(7), recvmsg(2), from linux/socket.h. */
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** sun_path of struct sockaddr_un, with its NUL */
const PATH_SIZE = 108;
/** struct cmsghdr: length, level, type */
const CMSG_HEADER_SIZE = 16;
/** The sender also writes some bytes, the name of what it sends; they are of no use here. */
const DATA_SIZE = 4096;
const CONTROL_SIZE = 64;

/**
 * Listens on a path for those who have a descriptor to give; the caller owns the socket.
 *
 * @throws {SystemError}
 */
export function listenForDescriptors(path: string): number {
  const address = new Uint8Array(2 + PATH_SIZE);
  address[0] = AF_UNIX;
  const bytes = new TextEncoder().encode(path);
  if (bytes.length >= PATH_SIZE) throw new Error(`${path}: unix socket path too long (> ${PATH_SIZE - 1})`);
  address.set(bytes, 2);
  const socket = check(c().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
  try {
    check(c().bind(socket, address, address.length), "bind of a socket to", path);
    check(c().listen(socket, 1), "listen on", path);
  } catch (error) {
    fds.close(socket);
    throw error;
  }
  return socket;
}

/**
 * The descriptor that somebody has sent by now to a {@link listenForDescriptors}; the caller owns it.
 *
 * @throws {Error} when nobody has connected, or what was sent is not one descriptor
 */
export function receiveDescriptor(listener: number): number {
  const connection = c().accept4(listener, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (connection === -1) {
    if (errno() === Errno.EAGAIN) throw new Error("nobody has connected to send a descriptor");
    throw new SystemError("accept4", errno());
  }
  try {
    // One piece of memory: struct iovec, the data, the control message, and struct msghdr that points to them.
    const iovec = 0;
    const data = 16;
    const control = data + DATA_SIZE;
    const header = control + CONTROL_SIZE;
    const memory = new Uint8Array(header + 56);
    const view = new DataView(memory.buffer);
    const base = BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(memory)));
    view.setBigUint64(iovec, base + BigInt(data), true);
    view.setBigUint64(iovec + 8, BigInt(DATA_SIZE), true);
    view.setBigUint64(header + 16, base + BigInt(iovec), true);
    view.setBigUint64(header + 24, 1n, true);
    view.setBigUint64(header + 32, base + BigInt(control), true);
    view.setBigUint64(header + 40, BigInt(CONTROL_SIZE), true);
    const message = new Uint8Array(memory.buffer, header);
    check(Number(c().recvmsg(connection, message, MSG_CMSG_CLOEXEC)), "recvmsg");
    const length = view.getBigUint64(control, true);
    const isRights = view.getInt32(control + 8, true) === SOL_SOCKET &&
      view.getInt32(control + 12, true) === SCM_RIGHTS;
    if (view.getBigUint64(header + 40, true) === 0n || !isRights || length !== BigInt(CMSG_HEADER_SIZE + 4)) {
      throw new Error("what was sent is not one descriptor");
    }
    return view.getInt32(control + CMSG_HEADER_SIZE, true);
  } finally {
    fds.close(connection);
  }
}
