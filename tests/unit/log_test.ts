/** What goes to the system's log: in which form, and how much of it. */

import { assert, assertEquals } from "@std/assert";
import { bounded, observed } from "../../lib/log.ts";
import { journalEntry } from "../../lib/system_log.ts";
import { parseEntry } from "../e2e/journal_entry.ts";

const SOURCE = { PRIORITY: "3", SYSLOG_IDENTIFIER: "containerd-shim", SYSLOG_FACILITY: "3" };

Deno.test("an entry of the journal has each field once, whatever is in it, and by a name that the journal takes", () => {
  const fields = {
    ...{
      error: new Error("no\nway=\0"),
      "us_since start": 7,
      someThing: { a: [1] },
      "9lives": "é",
      nothing: undefined,
    },
    ...{ message: "not it", priority: 0, _hostname: "not trusted", "": "nameless", "-": "nameless" },
    ["x".repeat(100)]: "long",
    path: "the line's",
  };
  assertEquals(parseEntry(journalEntry(3, "text\nof it", fields, { id: "c", path: "/b", pid: 7, namespace: "n" })), {
    ...{ MESSAGE: "text\nof it", ...SOURCE },
    ...{ CONTAINER_ID: "c", CONTAINERD_NAMESPACE: "n", BUNDLE: "/b", SHIM_PID: "7" },
    ...{ ERROR: "no\nway=\0", US_SINCE_START: "7", SOME_THING: '{"a":[1]}', LIVES: "é" },
    ...{ HOSTNAME: "not trusted", ["X".repeat(64)]: "long", PATH: "the line's" },
  });
});

Deno.test("a text that is longer than 8 KiB is cut, and is UTF-8 nevertheless", () => {
  const { ERROR } = parseEntry(journalEntry(3, "text", { error: "é".repeat(10_000) + "!" }, {}));
  assertEquals(new TextEncoder().encode(ERROR).length, 8192 + "…".length * 3);
  const odd = parseEntry(journalEntry(3, "text", { error: "a" + "é".repeat(10_000) }, {})).ERROR!;
  assert(new TextEncoder().encode(odd).length < 8192 + 10, "it is longer");
});

Deno.test("of lines that come too often some are passed on, and the next says how many were not", async () => {
  let now = 0;
  const passed: unknown[] = [];
  const report = bounded((_level, _message, fields) => Promise.resolve(void passed.push(fields)), () => now);
  for (let i = 0; i < 60; i++) await report("error", "again", { i }, {});
  assertEquals(passed.length, 50);
  now = 10_001;
  await report("error", "again", { i: 60 }, {});
  await report("error", "again", { i: 61 }, {});
  assertEquals(passed.slice(50), [{ i: 60, omitted: 10 }, { i: 61 }]);
});

Deno.test("errors and warnings alone are told to who observes a log", () => {
  const [written, told]: string[][] = [[], []];
  const write = (level: string) => (message: string) => void written!.push(`${level} ${message}`);
  const log = observed(
    { debug: write("debug"), info: write("info"), warn: write("warning"), error: write("error") },
    (level, message) => void told!.push(`${level} ${message}`),
  );
  log.debug("1");
  log.info("2");
  log.warn("3");
  log.error("4");
  assertEquals(written, ["debug 1", "info 2", "warning 3", "error 4"]);
  assertEquals(told, ["warning 3", "error 4"]);
});
