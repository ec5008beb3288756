/** What a server makes of what is sent on a connection, and what of that a container would notice. */

import { containerd, google } from "../../lib/api/mod.js";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { HEADER_SIZE, MAX_PAYLOAD } from "../../lib/ttrpc/frame.ts";
import { SERVICE } from "../e2e/shim.ts";
import { REQUEST } from "../e2e/wire.ts";
import { FIFOS, INIT, LOG_FILE, NO_FOLDER, PLACE } from "./requests.ts";

import runc = containerd.linux.runc;
import v1 = containerd.runtime.linux.shim.v1;

/** A frame that is there as a whole, unless it is the last and cut off. */
export interface Sent {
  readonly stream: number;
  readonly type: number;
  readonly flags: number;
  /** What its header says. */
  readonly length: number;
  readonly payload: Uint8Array;
  readonly isWhole: boolean;
  /** What it asks for; undefined when that cannot be parsed, or it is too long or of another type. */
  readonly request: ttrpc.Request | undefined;
}

/** The frames that are sent on a connection. */
export function framesOf(bytes: Uint8Array): Sent[] {
  const frames: Sent[] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at + HEADER_SIZE <= bytes.length;) {
    const length = view.getUint32(at);
    const payload = bytes.subarray(at + HEADER_SIZE, at + HEADER_SIZE + length);
    const [stream, type, flags] = [view.getUint32(at + 4), view.getUint8(at + 8), view.getUint8(at + 9)];
    const isWhole = payload.length === length;
    const isRequest = isWhole && type === REQUEST && length <= MAX_PAYLOAD;
    const request = isRequest ? parse(() => ttrpc.Request.decode(payload)) : undefined;
    frames.push({ stream, type, flags, length, payload, isWhole, request });
    at += HEADER_SIZE + length;
  }
  return frames;
}

/** What a decoder gives; undefined when it refuses. */
export function parse<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch {
    return undefined;
  }
}

/** A deadline that is waited for, in ns. */
const SOON_NS = 1e9;

/** Whether a request is one that may not be answered while the container runs. */
export function isEndless({ request }: Sent): boolean {
  if (request?.service !== SERVICE || request.method !== "Wait") return false;
  return request.timeoutNano <= 0 || request.timeoutNano > SOON_NS;
}

/** The id of an exec that a request may register. */
export function execOf({ request }: Sent): string | undefined {
  if (request?.service !== SERVICE || request.method !== "Exec") return undefined;
  return parse(() => v1.ExecProcessRequest.decode(request.payload).id);
}

/** Signals that there are. */
const FIRST_SIGNAL = 1;
const LAST_SIGNAL = 64;

/** Whether a request is a good one that the container, or this machine, would notice. */
export function isHarmful({ request }: Sent): boolean {
  if (request?.service !== SERVICE) return false;
  const { method, payload } = request;
  return parse(() => {
    switch (method) {
      case "Pause":
        google.protobuf.Empty.decode(payload);
        return true;
      case "Kill": {
        const { id, signal } = v1.KillRequest.decode(payload);
        return (id === "" || id === INIT) && signal >= FIRST_SIGNAL && signal <= LAST_SIGNAL;
      }
      case "Checkpoint": {
        const { path, options } = v1.CheckpointTaskRequest.decode(payload);
        const { exit, imagePath, workPath } = runc.CheckpointOptions.decode(options?.value ?? new Uint8Array());
        return exit ||
          [path, imagePath, workPath].some((each) => each !== "" && each !== NO_FOLDER && !each.includes("\0"));
      }
      case "Exec": {
        const { stdin, stdout, stderr } = v1.ExecProcessRequest.decode(payload);
        return [stdin, stdout, stderr].some(isSomewhereElse);
      }
      default:
        return false;
    }
  }) ?? false;
}

/** Whether an output would go to somewhere on this machine that is not the fuzzer's. */
function isSomewhereElse(target: string): boolean {
  if (/^\s*file:/i.test(target)) return ![`file://${LOG_FILE}`, `file://${PLACE}`, "file:"].includes(target);
  if (/^\s*binary:/i.test(target)) return !target.startsWith(`binary://${PLACE}/nothing`) && target !== "binary:";
  if (!target.startsWith("/")) return false;
  return !FIFOS.some((each) => target.startsWith(each)) && target !== PLACE && target !== `${PLACE}/nothing`;
}
