/**
 * Measures this project's shim, alone and in a host, and Debian's Go shim, in turn, all driven by the same client.
 *
 *     deno run -A tests/bench/main.ts [--quick] [--hosted | --neighbour] [--only PATTERN] [--rounds N] [--ours PATH]
 *         [--go PATH] [--out FILE] [--svg FOLDER] [--check]
 *
 * Prints tables of medians. The whole bench, which is that without --quick, --hosted, --only and --rounds, also writes them
 * to RESULTS.md, and pictures to hosted.svg and alone.svg, beside this file; --out and --svg name another file and folder.
 * --hosted leaves out what has nothing to do with hosts. --neighbour measures something else: what a container's calls take
 * while another of its host has trouble (folder neighbour), and writes that to NEIGHBOUR.md. PATTERN is a regular expression
 * that is looked for in the names of rows. With --check the exit code is 1 when a row is so bad that it cannot be noise. It is
 * 1 in any case when a row could not be measured.
 */

import { folder } from "./folder.ts";
import { messageOf } from "../../lib/errors.ts";
import { must } from "../e2e/command.ts";
import { makeRootfs } from "../e2e/rootfs.ts";
import { pause } from "../e2e/until.ts";
import type { Competitor } from "./bench.ts";
import { aloneChart, hostedChart } from "./chart.ts";
import { adoptAll, ALONE, endAll, HOSTED } from "./children.ts";
import { Daemon } from "./daemon.ts";
import { type Flags, parseFlags } from "./flags.ts";
import { packEmptyProgram } from "./floor.ts";
import { hostFiles, separateHosts, separateMounts } from "./hosts.ts";
import { describeMachine } from "./machine.ts";
import { detachAll, thawAll } from "./neighbour/disk.ts";
import { measureNeighbours, type Report } from "./neighbour/measure.ts";
import { disownAll, own } from "./owned.ts";
import { report } from "./report.ts";
import { errors, Results } from "./results.ts";
import { measure } from "./stages.ts";
import { failures } from "./verdict.ts";

/** How long what is being measured may take to notice that it was interrupted, in ms. */
const NOTICE_MS = 5_000;

const PICTURES = { alone: "alone.svg", hosted: "hosted.svg" };

/** Whether the bench was told to stop. */
let interrupted = false;
const interruption = Promise.withResolvers<never>();
interruption.promise.catch(() => {});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.addSignalListener(signal, () => {
    interrupted = true;
    interruption.reject(new Error(`Interrupted by ${signal}`));
  });
}

// It belongs to a row that says so itself, or to a round that was interrupted: what was started must still be ended.
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  if (!interrupted) console.error(`A rejection that nobody awaited: ${messageOf(event.reason)}`);
});

let measuring: Promise<unknown> | undefined;

async function main(): Promise<number> {
  const flags = parseFlags(Deno.args);
  const machine = await describeMachine(flags);
  const rootfs = `${folder}/rootfs`;
  const emptyProgram = `${folder}/empty`;
  await makeRootfs(rootfs);
  if (!flags.neighbour) await packEmptyProgram(emptyProgram);
  // What has been written lately is dirty in the page cache, and counts as its mapper's private dirty memory.
  await must(["sync"]);
  separateHosts();
  if (flags.neighbour) separateMounts();
  adoptAll();

  const competitor = async (name: Competitor["name"], path: string): Promise<Competitor> => {
    const isHosted = name === "hosted";
    const daemon = own(new Daemon(path, rootfs, isHosted ? HOSTED : ALONE));
    await daemon.start();
    return { name, path, rootfs, daemon, isHosted };
  };
  if (flags.neighbour) {
    const neighbours = async () =>
      await measureNeighbours({
        competitors: [await competitor("hosted", flags.ours), await competitor("Go", flags.go)],
        calls: flags.extent.neighbourCalls,
        wanted: flags.wanted,
        say: (what) => console.error(what),
      });
    const measured = neighbours();
    measuring = measured;
    return await tell(await Promise.race([measured, interruption.promise]), machine, flags);
  }
  const results = new Results();
  const bench = async () =>
    await measure({
      extent: flags.extent,
      competitors: [await competitor("ours", flags.ours), await competitor("Go", flags.go)],
      hosted: await competitor("hosted", flags.ours),
      emptyProgram,
      wanted: flags.wanted,
      results,
      say: (what) => console.error(what),
    });
  measuring = bench();
  await Promise.race([measuring, interruption.promise]);

  const { isOnly } = flags.extent.host;
  const aloneLines = isOnly ? [] : results.alive.flatMap((alive) => results.lines(alive));
  const hostLines = results.hostLines();
  const lines = [...aloneLines, ...hostLines];
  const wrong = [...errors(lines), ...flags.check ? failures(lines) : []];
  const pictures = flags.svg === undefined ? undefined : PICTURES;
  const text = report({ results, extent: flags.extent, machine, pictures, failures: wrong });
  console.log(text);
  if (flags.out !== undefined) await Deno.writeTextFile(flags.out, `${text}\n`);
  if (flags.svg !== undefined) {
    if (!isOnly) await Deno.writeTextFile(`${flags.svg}/${PICTURES.alone}`, aloneChart(aloneLines));
    await Deno.writeTextFile(`${flags.svg}/${PICTURES.hosted}`, hostedChart(hostLines));
  }
  return wrong.length === 0 ? 0 : 1;
}

/** Prints what a container has noticed of another, and gives the exit code. */
async function tell(report: Report, machine: string, { check, out }: Flags): Promise<number> {
  const wrong = check ? report.failures() : [];
  const text = [`${report}`, "", machine, ...wrong.map((each) => `\nToo slow: ${each}`)].join("\n");
  console.log(text);
  if (out !== undefined) await Deno.writeTextFile(out, `${text}\n`);
  return report.errors.length + wrong.length === 0 ? 0 : 1;
}

let code = 1;
try {
  code = await main();
} catch (error) {
  console.error(messageOf(error));
} finally {
  const files = hostFiles();
  await thawAll();
  await endAll();
  // It makes nothing new then.
  await Promise.race([measuring?.catch(() => {}), pause(NOTICE_MS)]);
  detachAll();
  for (const path of files) await Deno.remove(path).catch(() => {}); // those of the hosts that it has killed
  for (const failure of await disownAll()) {
    console.error(`Something is left: ${messageOf(failure)}`);
    code = 1;
  }
  await Deno.remove(folder, { recursive: true });
}
Deno.exit(code);
