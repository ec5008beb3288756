/** Limits of a process (getrlimit(2)) that are too small for Deno. */

import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { must, run } from "./command.ts";
import { inModes, OUR_EXECUTABLE, WAY } from "./env.ts";
import { assertHolder, endContainer, onlyHosted, withHosted, withMachine } from "./host.ts";
import { Gate, quickRuntime } from "./quick_execs.ts";
import { withShim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { within } from "./until.ts";
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

/** How many execs there are at once, and how many descriptors a process may have open that has not raised its limit. */
const EXECS = 180;
const SOFT = 1024;

onlyHosted(
  `${EXECS} execs at once print all that they have to print, with a soft limit of ${SOFT} open files and a host's death`,
  () =>
    withMachine((machine) =>
      withShim({ prefix: [...machine.prefix, "prlimit", `--nofile=${SOFT}:`] }, async (shim) => {
        await shim.run({}, { runtime: await quickRuntime(shim) });
        using gate = await Gate.make(shim);
        const ids = Array.from({ length: EXECS }, (_, i) => `e${i}`);
        const script = `echo before; ${gate.script}; ulimit -n`;
        const execs = await Promise.all(ids.map((id) => shim.execWithFifos(id, [script])));
        await replaceHost(machine);
        gate.open(EXECS);
        const outputs = await Promise.all(execs.map(({ stdout }) => stdout.text()));
        assertEquals(new Set(outputs), new Set([`before\n${SOFT}\n`]));
        assertEquals(new Set(await Promise.all(ids.map(async (id) => (await shim.wait(id)).status))), new Set([0]));
        await Promise.all(ids.map((id) => shim.deleteProcess(id)));
        await endContainer(shim);
      })
    ),
);

/** A hard limit of a holder, and more execs than it can keep the descriptors of. */
const HARD = 256;
const TOO_MANY = 40;

onlyHosted(
  "an exec whose output could be lost for want of descriptors is refused with a sentence, and others are whole",
  () =>
    withHosted({}, async (shim, machine) => {
      await shim.run({}, { runtime: await quickRuntime(shim) });
      await must(["prlimit", "--pid", `${shim.pid}`, `--nofile=${HARD}:${HARD}`]);
      using gate = await Gate.make(shim);
      const started: { readonly id: string; readonly output: Deno.FsFile }[] = [];
      let refusal: unknown;
      try {
        for (let i = 0; refusal === undefined && i < TOO_MANY; i++) {
          const id = `e${i}`;
          const { stdout } = await shim.fifos(id);
          // Both of its ends, so that nobody waits for the other.
          const output = Deno.openSync(stdout, { read: true, write: true });
          await shim.exec(id, [`echo before; ${gate.script}; echo after`], { stdout });
          try {
            await shim.startProcess(id);
            started.push({ id, output });
          } catch (error) {
            refusal = error;
            output.close();
            await shim.deleteProcess(id);
          }
        }
        assertMatch(`${refusal}`, /too many open files/i);
        const first = machine.host();
        await replaceHost(machine);
        // The next host has another path, which the hard limit is a part of.
        for (const ending of ["", ".lock"]) Deno.removeSync(machine.fileOf(first, ending));
        gate.open(started.length);
        const expected = "before\nafter\n";
        for (const { id, output } of started) {
          const bytes = new Uint8Array(expected.length);
          for (let at = 0; at < bytes.length;) {
            at += await within(`output of ${id}`, output.read(bytes.subarray(at))) ?? 0;
          }
          assertEquals(new TextDecoder().decode(bytes), expected);
          assertEquals((await shim.wait(id)).status, 0);
          await shim.deleteProcess(id);
        }
      } finally {
        for (const { output } of started) output.close();
      }
      await endContainer(shim);
    }),
);
