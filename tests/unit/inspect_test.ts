/** What `containerd-shim inspect` makes of what it knows: text for people. */

import { assert, assertEquals } from "@std/assert";
import { Patience } from "../../lib/inspect/ask.ts";
import { type Dead } from "../../lib/inspect/find.ts";
import { type Report, reportDead } from "../../lib/inspect/report.ts";
import { details, size, span, table } from "../../lib/inspect/table.ts";

const DEAD: Dead = { pid: 7, namespace: "n", id: "c", bundle: "/b", address: "unix:///s" };
const NOW = Date.parse("2026-01-02T03:04:05Z");
const PLAIN = { hasColours: false, now: NOW };

function report(more: Partial<Report>): Report {
  return { ...reportDead(DEAD), error: null, ...more };
}

Deno.test("sizes have one digit behind the point where there is one before it", () => {
  const KIB = 1024;
  const expected: [number | null, string | null][] = [
    [null, null],
    [0, "0 B"],
    [1023, "1023 B"],
    [8 * KIB, "8 KiB"],
    [1023 * KIB, "1023 KiB"],
    [1024 * KIB - 1, "1.0 MiB"],
    [7 * KIB * KIB + 300 * KIB, "7.3 MiB"],
    [9.97 * KIB * KIB, "10 MiB"],
    [2 ** 40, "1.0 TiB"],
    [2 ** 50, "1024 TiB"],
  ];
  for (const [bytes, text] of expected) assertEquals(size(bytes), text);
});

Deno.test("spans of time are told by their two largest units", () => {
  const [MINUTE, HOUR, DAY] = [60, 3600, 86_400];
  const expected: [number | null, string | null][] = [
    [null, null],
    [-1, "0s"],
    [59.9, "59s"],
    [MINUTE, "1m0s"],
    [HOUR - 1, "59m59s"],
    [HOUR + 2 * MINUTE + 5, "1h2m"],
    [DAY - 1, "23h59m"],
    [3 * DAY + 4 * HOUR, "3d4h"],
    [400 * DAY, "400d0h"],
  ];
  for (const [seconds, text] of expected) assertEquals(span(seconds), text);
});

Deno.test("a table's columns are as wide as they need to be, and numbers end where they do", () => {
  const reports = [
    report({ id: "a-long-name", shimPid: 1, state: "running", uptimeSeconds: 5, movedBytes: 2048, eventsWaiting: 0 }),
    report({ shimPid: 12345, state: "stopped", exitStatus: 137, error: "something is wrong" }),
  ];
  assertEquals(
    table(reports, PLAIN).split("\n"),
    [
      "NAMESPACE  ID            SHIM  HOST  INIT  STATE          EXECS  UPTIME  MEMORY  MOVED  LAST EVENT  WAITING",
      "n          a-long-name      1     -     -  running            -      5s       -  2 KiB  -                 0",
      "n          c            12345     -     -  stopped (137)      -       -       -      -  -                 -",
      "n/c: something is wrong",
      "",
    ],
  );
});

Deno.test("colours do not move what stands beside them", () => {
  const reports = [report({ state: "running" }), report({ state: "dead", error: "it has died" })];
  const coloured = table(reports, { ...PLAIN, hasColours: true });
  // deno-lint-ignore no-control-regex
  assertEquals(coloured.replace(/\x1b\[\d+m/g, ""), table(reports, PLAIN));
  assert(coloured.includes("\x1b[32mrunning\x1b[0m") && coloured.includes("\x1b[31mdead\x1b[0m"), coloured);
});

Deno.test("what a terminal would obey is not printed, whoever has named a container so", () => {
  const evil = report({ namespace: "\x1b]0;x\x07", id: "a\nb\x9b2J", error: "\r\x1b[H" });
  for (const text of [table([evil], PLAIN), details(evil, PLAIN)]) {
    // deno-lint-ignore no-control-regex
    assertEquals(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(text), false, JSON.stringify(text));
    assert(text.includes("a?b?2J"), text);
  }
});

Deno.test("patience runs out when nothing is heard for as long as it is, and not before", async () => {
  const MS = 40;
  using patience = new Patience(MS);
  let isOut = false;
  patience.out.then(() => isOut = true);
  const begin = performance.now();
  let last = begin;
  while (performance.now() - begin < 3 * MS) {
    await new Promise((resolve) => setTimeout(resolve, 1));
    patience.heard();
    last = performance.now();
    assertEquals(isOut, false);
  }
  await patience.out;
  assert(performance.now() - last > MS / 2);
});
