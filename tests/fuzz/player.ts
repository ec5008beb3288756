/** Sends cases to a shim, many at the same time, and looks at what it answers. */

import { assertEquals } from "@std/assert";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { isDisconnect, MAX_PAYLOAD, MessageType, readFrames } from "../../lib/ttrpc/frame.ts";
import { REQUEST } from "../e2e/wire.ts";
import { until, within } from "../e2e/until.ts";
import type { Case } from "./case.ts";
import { concat } from "../../lib/bytes.ts";
import { framesOf } from "./traffic.ts";

/** How many connections are left open, without anybody who reads, while others come and go. */
const LEFT_OPEN = 40;

/** Plays cases. */
export class Player {
  readonly #path: string;
  readonly #answersAll: boolean;
  readonly #left: Deno.Conn[] = [];

  /**
   * @param path of the shim's socket
   * @param answersAll whether each request is answered of a client that sends nothing more, but reads
   */
  constructor(path: string, answersAll: boolean) {
    this.#path = path;
    this.#answersAll = answersAll;
  }

  /**
   * Sends a case, and waits for the answers if it is one that does.
   *
   * @throws {Error} when an answer is missing, or is none
   */
  async play({ chunks, ending }: Case): Promise<void> {
    const conn = await connect(this.#path);
    if (ending === "left" || ending === "half") {
      // There may never be room for all of it.
      const written = write(conn, chunks);
      (ending === "half" ? written.then(() => conn.closeWrite()) : written).catch(() => {});
      this.#left.push(conn);
      if (this.#left.length > LEFT_OPEN) this.#left.shift()!.close();
      return;
    }
    try {
      if (ending === "closed") return await writeAsFarAsTaken(conn, chunks);
      const answers = readAnswers(conn);
      answers.catch(() => {});
      await within("what is sent to be taken", write(conn, chunks));
      await conn.closeWrite();
      if (!this.#answersAll) return await inMoments(answers);
      const answered = await within("all answers, and the end of the connection", answers);
      const asked = framesOf(concat(chunks)).filter(({ isWhole, type }) => isWhole && type === REQUEST)
        .map(({ stream }) => stream);
      assertEquals(answered.toSorted(), asked.toSorted(), "the streams that have had an answer");
    } catch (error) {
      // Another shim may close a connection whenever it likes.
      if (this.#answersAll || !isDisconnect(error)) throw error;
    } finally {
      conn.close();
    }
  }

  /** Closes what has been left open. */
  close(): void {
    for (const conn of this.#left.splice(0)) conn.close();
  }
}

/** Connects, as soon as there is room among those that wait to be accepted. */
function connect(path: string): Promise<Deno.UnixConn> {
  const attempt = () => Deno.connect({ transport: "unix", path });
  return attempt().catch((error) => {
    // Nobody is there any more, if it is anything else.
    if (!(error instanceof Deno.errors.WouldBlock)) throw error;
    return until("there is room for a connection", attempt);
  });
}

async function write(conn: Deno.Conn, chunks: readonly Uint8Array[]): Promise<void> {
  for (const chunk of chunks) {
    for (let at = 0; at < chunk.length;) at += await conn.write(chunk.subarray(at));
  }
}

/** Writes until the connection has no more room, as it may have none ever again: nobody reads the answers. */
function writeAsFarAsTaken(conn: Deno.Conn, chunks: readonly Uint8Array[]): Promise<void> {
  const written = write(conn, chunks);
  written.catch(() => {});
  return inMoments(written);
}

/** How long is waited for what may never come, in ms. */
const MOMENTS_MS = 100;

/** Waits for something, but not for long. */
async function inMoments(something: Promise<unknown>): Promise<void> {
  const late = Promise.withResolvers<void>();
  const timer = setTimeout(late.resolve, MOMENTS_MS);
  try {
    await Promise.race([something, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Reads all answers up to the end; gives their streams. */
async function readAnswers(conn: Deno.Conn): Promise<number[]> {
  const streams: number[] = [];
  try {
    await readFrames(conn, MessageType.RESPONSE, {
      stopped: false,
      onFrame: (stream, payload) => {
        ttrpc.Response.decode(payload);
        streams.push(stream);
      },
      onOversized: (stream, length) => {
        throw new Error(`an answer has ${length} bytes on stream ${stream}: more than ${MAX_PAYLOAD}`);
      },
      onBatchEnd: () => {},
      backpressure: () => undefined,
    });
  } catch (error) {
    // What is missing is known by what has come.
    if (!isDisconnect(error)) throw error;
  }
  return streams;
}
