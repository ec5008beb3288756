/** What a holder says, as its host reads it: also one of a build before. */

import { assertEquals } from "@std/assert";
import { decode, type Join } from "../../lib/host/protocol.ts";

/** struct join of lib/standalone/entry.c, with a folder, one argument, and no environment. */
function join(protocol: number, isMoved: number): Uint8Array {
  const strings = new TextEncoder().encode("/bundle\0shim\0");
  const bytes = new Uint8Array(72 + strings.length);
  const view = new DataView(bytes.buffer);
  const fields = [[0, 1], [4, protocol], [24, 32], [28, "/bundle\0".length], [32, 1], [36, 0], [64, 5], [68, isMoved]];
  for (const [at, value] of fields) view.setUint32(at!, value!, true);
  bytes.set(strings, 72);
  return bytes;
}

const [MOVED, HUNG] = [1, 1 << 16];

Deno.test("a host understands holders of this build and of 0.1, and no others", () => {
  const read = (protocol: number, flags: number) => {
    const { kind, cwd, group, hosts, isMoved, isHung } = decode(join(protocol, flags)) as Join;
    assertEquals([kind, cwd, group, hosts], ["join", "/bundle", 32, 5]);
    return [isMoved, isHung];
  };
  assertEquals(read(2, 0), [false, false]);
  assertEquals(read(2, MOVED), [true, false]);
  assertEquals(read(3, 0), [false, false]);
  assertEquals(read(3, MOVED), [true, false]);
  assertEquals(read(3, HUNG), [false, true]);
  assertEquals(read(3, MOVED | HUNG), [true, true]);
  for (const other of [0, 1, 4]) {
    assertEquals(decode(join(other, 0)), { kind: "stranger", protocol: other });
  }
});
