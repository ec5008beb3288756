/** Many containers: none fails, and none leaves anything. */

import { assertEquals } from "@std/assert";
import { forAll, numbers } from "./at_a_time.ts";
import { inEachForm, SHIM } from "./env.ts";
import { type Containerd, withContainerd } from "./harness.ts";
import { modes } from "./modes.ts";

modes(["alone"], "host_test runs as many containers in hosts, in turn and at once");

/** How many containers each test runs; fewer in a form that is not the one to be shipped. */
const MANY = 100;
const FEWER = 20;
/** How many run at once, where they do. */
const AT_A_TIME = 4;

/** Runs a container whose output and status are told by its number. */
async function runOne(containerd: Containerd, number: number): Promise<void> {
  const code = number % 256;
  const script = `echo out ${number}; echo err ${number} >&2; exit ${code}`;
  const result = await containerd.run(["/bin/sh", "-c", script]);
  assertEquals(result, { code, stdout: `out ${number}\n`, stderr: `err ${number}\n` });
}

inEachForm(
  "many containers one after another all run, and nothing is left",
  (form) =>
    withContainerd(async (containerd) => {
      const count = form === SHIM ? MANY : FEWER;
      for (let number = 1; number <= count; number++) await runOne(containerd, number);
    }, { shim: form }),
);

inEachForm(
  "many containers, four at a time, all run, and nothing is left",
  (form) =>
    withContainerd(async (containerd) => {
      const count = form === SHIM ? MANY : FEWER;
      await forAll(numbers(1, count), AT_A_TIME, (number) => runOne(containerd, number));
    }, { shim: form }),
);
