/** What a run of tests says in the end, and what `make check` has chosen. */

import { assert, assertEquals } from "@std/assert";
import { CHOICES } from "../quick.ts";
import { describe, failures, readReport } from "../report.ts";

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
    </testsuite>
</testsuites>`;

Deno.test("a report's tests are found, with what has failed and what has been skipped", () => {
  const cases = readReport(REPORT);
  assertEquals(cases.map(({ name }) => name), ["echo x | ctr run 'cat' ends", "passes", "is skipped"]);
  assertEquals(cases.map(({ isSkipped }) => isSkipped), [false, false, true]);
  assertEquals(cases.map(({ failure }) => failure !== undefined), [true, false, false]);
});

Deno.test("a failure is told with its file, its reason, what was seen, and a command that the shell takes", () => {
  const told = describe(failures(readReport(REPORT), "alone", (file, pattern) => `test ${file} '${pattern}'`));
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

Deno.test("make check chooses among files that are there", () => {
  const files = [...Deno.readDirSync(new URL("../e2e", import.meta.url))].map(({ name }) => name);
  assertEquals(Object.keys(CHOICES).filter((each) => !files.includes(each)), []);
  for (const { ways, names } of Object.values(CHOICES)) assert(ways === undefined || names === undefined || ways[0]);
});
