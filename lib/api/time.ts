/** Times on the wire. */

/** A point in time as google.protobuf.Timestamp has it. */
export function timestamp(at: Date): { seconds: number; nanos: number } {
  const ms = at.getTime();
  const seconds = Math.floor(ms / 1000);
  return { seconds, nanos: (ms - seconds * 1000) * 1e6 };
}
