/** Limits of a process (getrlimit(2)) that are too small for Deno. */

import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { must, run } from "./command.ts";
import { inModes, OUR_EXECUTABLE, WAY } from "./env.ts";
import { assertHolder, onlyHosted, withMachine } from "./host.ts";
import { withShim } from "./shim.ts";
import { assertServes, REPEATING } from "./whole.ts";

/** By their names for prlimit(1): what the test sets, what Deno needs (lib/standalone/entry.c), and what proc(5) calls it. */
const LIMITS = [
  { name: "as", small: 2 ** 31, least: 34 * 2 ** 30, title: "Max address space" },
  { name: "data", small: 2 ** 28, least: 640 * 2 ** 20, title: "Max data size" },
  { name: "stack", small: 2 ** 17, least: 2 ** 20, title: "Max stack size" },
  { name: "nofile", small: 31, least: 32, title: "Max open files" },
];

inModes(
  ["alone", "hosted"],
  "a host has its own limits, and its children are its holders'",
  "where soft limits are too small for Deno, a shim does all that it does, and the runtime has them as they were",
  () =>
    withMachine((machine) => {
      const prefix = [...machine.prefix, "prlimit", ...LIMITS.map(({ name, small }) => `--${name}=${small}:`)];
      return withShim({ ...REPEATING, prefix }, async (shim) => {
        assertHolder(shim.pid, WAY === "hosted");
        const error = await assertRejects(() => shim.create({}, { runtime: "no-such-runtime" }), StatusError);
        assertMatch(error.message, /"no-such-runtime": executable file not found in \$PATH$/);
        const script = '#!/bin/sh\ncat /proc/self/limits >"$(dirname "$0")/limits"\nexec runc "$@"\n';
        await assertServes(shim, { runtime: await shim.makeProgram("runtime", script) });
        const limits = await Deno.readTextFile(`${shim.folder}/limits`);
        for (const { title, small } of LIMITS) {
          assertEquals(new RegExp(`^${title} +(\\d+)`, "m").exec(limits)?.[1], `${small}`, title);
        }
      });
    }),
  { isOnlyOurs: true },
);

onlyHosted("where a hard limit is too small for Deno, the executable says which in a sentence, and fails", async () => {
  for (const { name, least } of LIMITS) {
    const limit = (value: number) => ["prlimit", `--${name}=${value}:${value}`, OUR_EXECUTABLE, "-version"];
    assertEquals(await run(limit(least - 1)), {
      code: 127,
      stdout: "",
      stderr: `containerd-shim: cannot start: the hard limit ${name} (prlimit(1)) is ${
        least - 1
      }, and Deno needs ${least}\n`,
    });
    await must(limit(least));
  }
});
