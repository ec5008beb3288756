/** Datagrams to Unix sockets that are named by a path: unix(7). */

import { check, Errno, errno, libc, SystemError } from "./libc.ts";
import { AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_NONBLOCK, socketAddress } from "./socket.ts";

const c = libc({
  socket: [["i32", "i32", "i32"], "i32"],
  // ssize_t; but nothing as large as an i32 is sent.
  sendto: [["i32", "buffer", "usize", "i32", "buffer", "u32"], "i32"],
});

/** socket(2), from asm-generic/socket.h. */
const SOCK_DGRAM = 2;

/**
 * A socket that datagrams are sent from, close-on-exec; the caller owns it.
 *
 * @throws {SystemError}
 */
export function openDatagrams(): number {
  return check(c().socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
}

/**
 * Sends a datagram to whoever has bound a socket to a path; does not wait. The path is looked up each time, so one who comes
 * again is found.
 *
 * @returns false when its receiver has no room for it
 * @throws {SystemError} ENOENT or ECONNREFUSED when nobody is there; EMSGSIZE
 */
export function sendDatagram(socket: number, path: string, bytes: Uint8Array<ArrayBuffer>): boolean {
  const { address, length } = socketAddress(path);
  const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
  if (c().sendto(socket, bytes, BigInt(bytes.length), flags, address, length) >= 0) return true;
  const error = errno();
  if (error === Errno.EAGAIN) return false;
  throw new SystemError("sendto", error, path);
}
