/** Messages through a Unix socket, and descriptors with them: SCM_RIGHTS of unix(7), by recvmsg(2) and sendmsg(2). */

import * as fds from "./fd.ts";
import { Errno, errno, libc, SystemError } from "./libc.ts";
import { MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SOL_SOCKET } from "./socket.ts";

const c = libc({
  recvmsg: [["i32", "buffer", "i32"], "isize"],
  sendmsg: [["i32", "buffer", "i32"], "isize"],
});

/** unix(7), recvmsg(2), from linux/socket.h. */
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** struct cmsghdr: length, level, type; sizeof(int) for each descriptor. */
const CMSG_HEADER_SIZE = 16;
const DESCRIPTOR_SIZE = 4;
/** The most descriptors that a message has here. */
const MAX_DESCRIPTORS = 8;
const CONTROL_SIZE = CMSG_HEADER_SIZE + MAX_DESCRIPTORS * DESCRIPTOR_SIZE;
/** struct iovec, and struct msghdr with where its iov, iovlen, control and controllen are. */
const IOVEC_SIZE = 16;
const MSGHDR_SIZE = 56;
const MSGHDR = { iov: 16, iovlen: 24, control: 32, controllen: 40 } as const;

/** A message as it has come. */
export interface Message {
  /** A view of the buffer that it was received into; empty at the end of a connection. */
  readonly bytes: Uint8Array;
  /** The caller's, close-on-exec. */
  readonly descriptors: readonly number[];
}

/** struct msghdr for one piece of data and a control message, all in one piece of memory with pointers into it. */
class Header {
  readonly memory = new Uint8Array(CONTROL_SIZE + IOVEC_SIZE + MSGHDR_SIZE);
  readonly view = new DataView(this.memory.buffer);
  readonly msghdr = this.memory.subarray(CONTROL_SIZE + IOVEC_SIZE);
  static readonly #at = CONTROL_SIZE + IOVEC_SIZE;

  constructor(data: Uint8Array<ArrayBuffer>, controlSize: number) {
    const { view } = this;
    const base = addressOf(this.memory);
    view.setBigUint64(CONTROL_SIZE, addressOf(data), true);
    view.setBigUint64(CONTROL_SIZE + 8, BigInt(data.length), true);
    view.setBigUint64(Header.#at + MSGHDR.iov, base + BigInt(CONTROL_SIZE), true);
    view.setBigUint64(Header.#at + MSGHDR.iovlen, 1n, true);
    if (controlSize === 0) return;
    view.setBigUint64(Header.#at + MSGHDR.control, base, true);
    view.setBigUint64(Header.#at + MSGHDR.controllen, BigInt(controlSize), true);
  }

  get controlSize(): number {
    return Number(this.view.getBigUint64(Header.#at + MSGHDR.controllen, true));
  }
}

function addressOf(memory: Uint8Array<ArrayBuffer>): bigint {
  return BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(memory)));
}

/**
 * Receives what is there, without waiting: a message, where the socket keeps them apart, and otherwise bytes.
 *
 * @param flags of recvmsg(2), besides
 * @returns undefined when nothing is there
 * @throws {SystemError} ECONNRESET when the peer has gone, for one
 */
export function receiveMessage(socket: number, buffer: Uint8Array<ArrayBuffer>, flags = 0): Message | undefined {
  const header = new Header(buffer, CONTROL_SIZE);
  const count = Number(c().recvmsg(socket, header.msghdr, flags | MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
  if (count < 0) {
    const error = errno();
    if (error === Errno.EAGAIN) return undefined;
    throw new SystemError("recvmsg from descriptor", error, socket);
  }
  const { view } = header;
  const descriptors: number[] = [];
  const isRights = header.controlSize >= CMSG_HEADER_SIZE &&
    view.getInt32(8, true) === SOL_SOCKET && view.getInt32(12, true) === SCM_RIGHTS;
  if (isRights) {
    const length = Number(view.getBigUint64(0, true));
    for (let at = CMSG_HEADER_SIZE; at < length; at += DESCRIPTOR_SIZE) descriptors.push(view.getInt32(at, true));
  }
  return { bytes: buffer.subarray(0, count), descriptors };
}

/**
 * Sends a message, and descriptors with it, which stay the caller's; does not wait.
 *
 * @returns false when there is no room for it
 * @throws {SystemError} EPIPE or ECONNRESET when the peer has gone; EMSGSIZE
 */
export function sendMessage(
  socket: number,
  bytes: Uint8Array<ArrayBuffer>,
  descriptors: readonly number[] = [],
): boolean {
  const length = CMSG_HEADER_SIZE + descriptors.length * DESCRIPTOR_SIZE;
  // Aligned, as cmsg(3) has it.
  const header = new Header(bytes, descriptors.length === 0 ? 0 : length + (length & DESCRIPTOR_SIZE));
  const { view } = header;
  view.setBigUint64(0, BigInt(length), true);
  view.setInt32(8, SOL_SOCKET, true);
  view.setInt32(12, SCM_RIGHTS, true);
  descriptors.forEach((fd, i) => view.setInt32(CMSG_HEADER_SIZE + i * DESCRIPTOR_SIZE, fd, true));
  const count = Number(c().sendmsg(socket, header.msghdr, MSG_DONTWAIT | MSG_NOSIGNAL));
  if (count >= 0) return true;
  const error = errno();
  if (error === Errno.EAGAIN) return false;
  throw new SystemError("sendmsg to descriptor", error, socket);
}

/** The sender also writes some bytes, the name of what it sends; they are of no use here. */
const NAME_SIZE = 4096;

/**
 * The descriptor that somebody has sent by now through a connection, where it stays too; the caller owns this one.
 *
 * @throws {Error} when what was sent is not one descriptor
 */
export function peekDescriptor(connection: number): number {
  const descriptors = receiveMessage(connection, new Uint8Array(NAME_SIZE), MSG_PEEK)?.descriptors ?? [];
  const [first, ...more] = descriptors;
  if (first !== undefined && more.length === 0) return first;
  descriptors.forEach(fds.close);
  throw new Error("what was sent is not one descriptor");
}
