/** The report: what was measured, on what, and what is to be thought of it. */

import { FIRST_NICE } from "./calls.ts";
import type { Extent } from "./extent.ts";
import { SETTLE_MS } from "./memory.ts";
import type { HostLine, Results } from "./results.ts";
import { hostTable, table } from "./table.ts";

const MIB = 1 << 20;
const LINE_WIDTH = 120;

/** The pictures of a report. */
export interface Pictures {
  readonly alone: string;
  readonly hosted: string;
}

/** What a report is made of. */
export interface ReportOptions {
  readonly results: Results;
  readonly extent: Extent;
  /** A Markdown list. */
  readonly machine: string;
  /** The paths of the pictures from the report's; none where there are none. */
  readonly pictures: Pictures | undefined;
  /** What went wrong. */
  readonly failures: readonly string[];
}

/** How it was measured, and what the table's words mean: paragraphs. */
function explanation({ rounds, warmUps, bytes, idleMs, idleAfterMs, work }: Extent): string[] {
  const mib = (count: number) => `${count / MIB} MiB`;
  return [
    "Made by `make bench`. Medians, and the quartiles between which half of the samples are. A round of ours in a host, " +
    "one of Go's, and one of ours alone (`CONTAINERD_SHIM_GROUP=1`) take turns: " +
    `${rounds} of each, after ${warmUps} to warm up. A crowd is of one kind, and its rounds follow each other.`,
    `A sample of output is ${mib(bytes.large)} in large writes and ${mib(bytes.small)} in small ones, on a terminal ` +
    `${mib(bytes.terminalLarge)} and ${mib(bytes.terminalSmall)}. Memory is looked at ${SETTLE_MS / 1000} s after a ` +
    `container's start, after ${work.execs} execs, and after a further ${
      mib(work.bytes)
    } of output ("work"); wake-ups ` +
    `are all context switches in ${idleMs / 1000} s that begin ${
      idleAfterMs / 1000
    } s after the start. 1 MiB is 1 048 576 bytes; 1 MB and 1 GB are powers of ten.`,
    "A limit, and in parentheses what is aimed at, is for our median divided by Go's (×), or for our median itself. " +
    "`short` misses the limit, `ok` the aim; a mark in parentheses is for a row beside the one that has the target, or " +
    "for one in a crowd.",
  ];
}

/** What was measured in a host, and how. */
function hostSection(lines: readonly HostLine[], pictures: Pictures | undefined): string {
  const paragraphs = [
    "The host is warm: it has another container, which does nothing, and has had others. Where it has to start, there was " +
    "none before; of Go's shim, and of ours alone, that is the same as ever. Memory is looked at " +
    `${
      SETTLE_MS / 1000
    } s after the last start; that of all is the private dirty memory of hosts and holders, or of all ` +
    "shims, divided by the number of containers, which do nothing. CPU time is the holder's, and all of its host's.",
    "While others write, somebody calls State now and then, some ms after each answer; the writers' output is read as fast " +
    "as it comes. All CPUs are busy with it. A caller like any other process waits for its turn among those that read, " +
    `which have the more to do the faster the shim is; one at nice ${FIRST_NICE} (Go's gets the same) does not, and what ` +
    "it waits for is the shim.",
    "× alone: the median in a host divided by that alone.",
  ];
  return ["## In a host", ...paragraphs.map(wrap), ...image(pictures?.hosted), hostTable(lines)].join("\n\n");
}

function image(path: string | undefined): string[] {
  return path === undefined ? [] : [`![Our medians divided by Go's](${path})`];
}

/** Breaks a paragraph into lines. */
function wrap(paragraph: string): string {
  const lines = [""];
  for (const word of paragraph.split(" ")) {
    const line = lines.at(-1)!;
    if (line === "") lines[lines.length - 1] = word;
    else if (line.length + 1 + word.length <= LINE_WIDTH) lines[lines.length - 1] = `${line} ${word}`;
    else lines.push(word);
  }
  return lines.join("\n");
}

/** The report, Markdown. */
export function report({ results, extent, machine, pictures, failures }: ReportOptions): string {
  const alone = extent.host.isOnly ? [] : results.alive;
  const hostLines = results.hostLines();
  const sections = [
    ...hostLines.length === 0 ? [] : [hostSection(hostLines, pictures)],
    ...alone.map((alive) => {
      const [head, picture] = alive === 1 ? ["By itself", image(pictures?.alone)] : [`With ${alive} alive`, []];
      return [`## ${head}`, ...picture, table(results.lines(alive))].join("\n\n");
    }),
  ];
  return [
    "# This shim and Debian's Go shim",
    ...explanation(extent).map(wrap),
    machine,
    ...sections,
    ...failures.length === 0 ? [] : ["## What went wrong", failures.map((each) => `- ${each}`).join("\n")],
  ].join("\n\n");
}
