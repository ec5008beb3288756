/** What a run of tests says in the end, and what `make check` has chosen. */

import { assert, assertEquals } from "@std/assert";
import { CHOICES } from "../quick.ts";
import { describe, failures, longest, readReport, uncaughtErrors } from "../report.ts";

/** As `deno test --junit-path` writes it. */
const REPORT = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="3" failures="1" errors="0" time="0.122">
    <testsuite name="./tests/e2e/run_test.ts" tests="3" disabled="1" errors="0" failures="1">
        <testcase name="echo x | ctr run &apos;cat&apos; ends" classname="./tests/e2e/run_test.ts" time="0.001" line="9" col="6">
            <failure message="Uncaught Error: 1 &lt; 2">Error: 1 &lt; 2

The log:
line 1
    at file:///a.ts:10:15</failure>
        </testcase>
        <testcase name="passes" classname="./tests/e2e/run_test.ts" time="0.028" line="16" col="6">
        </testcase>
        <testcase name="is skipped" classname="./tests/e2e/run_test.ts" time="0.000" line="17" col="6">
            <skipped/>
        </testcase>
        <testcase name="is cancelled" classname="./tests/e2e/run_test.ts" time="0.000" line="18" col="6">
            <error message="Cancelled"/>
        </testcase>
    </testsuite>
</testsuites>`;

/** As `deno test` prints it. */
const PRINTED = `a test of another file ... FAILED (2ms)
\x1b[0m\x1b[1m\x1b[37m\x1b[41m ERRORS \x1b[0m

a test of another file => ./tests/e2e/exec_test.ts:3:6
error: Error: 1 < 2

./tests/e2e/run_test.ts (uncaught error)
\x1b[0m\x1b[1m\x1b[31merror\x1b[0m: Error: boom
    at file:///a.ts:10:15
This error was not caught from a test and caused the test runner to fail on the referenced module.
It most likely originated from a dangling promise, event/timeout handler or top-level code.

\x1b[0m\x1b[1m\x1b[37m\x1b[41m FAILURES \x1b[0m

./tests/e2e/run_test.ts (uncaught error)
`;

Deno.test("a report's tests are found, with what has failed and what has been skipped", () => {
  const cases = readReport(REPORT);
  assertEquals(cases.map(({ name }) => name), ["echo x | ctr run 'cat' ends", "passes", "is skipped", "is cancelled"]);
  assertEquals(cases.map(({ isSkipped }) => isSkipped), [false, false, true, false]);
  assertEquals(cases.map(({ failure }) => failure !== undefined), [true, false, false, true]);
});

Deno.test("a test that a function of another file has registered is told of with its own file", () => {
  const printed = "\x1b[0mrunning 1 test from ./tests/e2e/exec_test.ts\x1b[0m\nis skipped ... ignored (0ms)\n" +
    "running 2 tests from ./tests/e2e/run_test.ts\npasses ...\n--- output ---\nno test ... of these\n ok (28ms)\n";
  const told = (report: string) => readReport(report, printed).slice(1, 3).map(({ file, line }) => [file, line]);
  assertEquals(told(REPORT), [["tests/e2e/run_test.ts", 16], ["tests/e2e/run_test.ts", 17]]);
  assertEquals(told(REPORT.replaceAll("run_test.ts", "env.ts")), [
    ["tests/e2e/run_test.ts", undefined],
    ["tests/e2e/exec_test.ts", undefined],
  ]);
});

Deno.test("the files that take longest are told, and how long that is", () => {
  const cases = [["a", 1.5], ["b", 7], ["a", 2.6], ["c", 0.2]].map(([file, seconds]) => ({
    ...readReport(REPORT)[1]!,
    file: `${file}`,
    seconds: Number(seconds),
  }));
  assertEquals(longest(cases, 1), "     7 s  b\n     4 s  a\n");
});

Deno.test("a failure is told with its file, its reason, what was seen, and a command that the shell takes", () => {
  const cases = readReport(REPORT).slice(0, 3);
  const told = describe(failures(cases, "alone", (file, pattern) => `test ${file} '${pattern}'`));
  assertEquals(
    told,
    `1) echo x | ctr run 'cat' ends
   tests/e2e/run_test.ts:9 (alone)
     Error: 1 < 2

     The log:
     line 1
         at file:///a.ts:10:15
   again: test tests/e2e/run_test.ts '^echo x . ctr run .cat. ends'
`,
  );
});

Deno.test("an error outside of tests, for which their file was given up, is found in what was printed", () => {
  assertEquals(uncaughtErrors(PRINTED), [
    "./tests/e2e/run_test.ts (uncaught error)\nerror: Error: boom\n    at file:///a.ts:10:15",
  ]);
  assertEquals(uncaughtErrors("ok | 3 passed"), []);
});

Deno.test("make check chooses among files that are there", () => {
  const files = [...Deno.readDirSync(new URL("../e2e", import.meta.url))].map(({ name }) => name);
  assertEquals(Object.keys(CHOICES).filter((each) => !files.includes(each)), []);
  for (const { ways, names } of Object.values(CHOICES)) assert(ways === undefined || names === undefined || ways[0]);
});
