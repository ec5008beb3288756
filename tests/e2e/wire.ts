/** ttrpc by its bytes, for what a well-behaved client never sends. */

import { ttrpc } from "../../lib/api/ttrpc.js";
import { within } from "./until.ts";

/** The types of frames. */
export const REQUEST = 1;
export const RESPONSE = 2;
/** Length, stream, type, flags. */
const HEADER_SIZE = 10;

/** What is sent as one. */
export interface Frame {
  readonly stream: number;
  readonly type: number;
  readonly payload: Uint8Array;
}

/** A frame's bytes. */
export function encodeFrame({ stream, type, payload }: Frame): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, payload.length);
  view.setUint32(4, stream);
  view.setUint8(8, type);
  bytes.set(payload, HEADER_SIZE);
  return bytes;
}

/** A connection that sends and receives frames, whatever is in them. */
export class RawConnection implements Disposable {
  readonly #conn: Deno.UnixConn;
  /** How many bytes have been sent. */
  written = 0;

  private constructor(conn: Deno.UnixConn) {
    this.#conn = conn;
  }

  static async open(path: string): Promise<RawConnection> {
    return new RawConnection(await Deno.connect({ transport: "unix", path }));
  }

  async send(frame: Frame): Promise<void> {
    await this.write(encodeFrame(frame));
  }

  /** Sends bytes, which may be any part of frames. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const count = await within("room for a frame", this.#conn.write(bytes.subarray(at)));
      at += count;
      this.written += count;
    }
  }

  /** Sends a request, as it should be unless its stream or its type is not. */
  request(
    service: string,
    method: string,
    more:
      & { readonly stream?: number; readonly type?: number; readonly timeoutMs?: number }
      & ttrpc.Request.$Properties = {},
  ): Promise<void> {
    const { stream = 1, type = REQUEST, timeoutMs = 0, payload = new Uint8Array() } = more;
    const request = ttrpc.Request.encode({ service, method, payload, timeoutNano: timeoutMs * 1e6 }).finish();
    return this.send({ stream, type, payload: request });
  }

  /** Sends nothing more, and goes on receiving. */
  async endSending(): Promise<void> {
    await this.#conn.closeWrite();
  }

  /** The next response, and the stream that it is on. */
  async response(): Promise<{ readonly stream: number; readonly response: ttrpc.Response }> {
    const header = new DataView((await this.#read(HEADER_SIZE)).buffer);
    const payload = await this.#read(header.getUint32(0));
    if (header.getUint8(8) !== RESPONSE) throw new Error(`a frame of type ${header.getUint8(8)} was sent`);
    return { stream: header.getUint32(4), response: ttrpc.Response.decode(payload) };
  }

  /** Waits for the end, and fails when something else comes. */
  async end(): Promise<void> {
    const count = await within("the end of the connection", this.#conn.read(new Uint8Array(1)));
    if (count !== null) throw new Error("more has been sent");
  }

  async #read(length: number): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length;) {
      const count = await within("a frame", this.#conn.read(bytes.subarray(at)));
      if (count === null) throw new Error("the connection has been closed");
      at += count;
    }
    return bytes;
  }

  [Symbol.dispose](): void {
    this.#conn.close();
  }
}
