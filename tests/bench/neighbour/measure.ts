/** What a container's calls take while another of the same host has trouble, beside such without, and beside the Go shim's. */

import { messageOf } from "../../../lib/errors.ts";
import type { Competitor } from "../bench.ts";
import { callBy, type CallPlan, FIRST_NICE } from "../calls.ts";
import { expectNoEnd } from "../children.ts";
import { endHosts, onlyHost } from "../hosts.ts";
import { disown, own } from "../owned.ts";
import type { Wanted } from "../row.ts";
import { Subject } from "../subject.ts";
import { type Column, format } from "../table.ts";
import { thawAll } from "./disk.ts";
import { ALL, type Scenario, SCENARIOS } from "./scenarios.ts";

/** What p99 of a call is to be under in a host, in ms. */
const LIMIT_MS = 20;
/** How many times that, Go's, and ours without trouble, it must be for `--check` to fail. */
const FAILURE_FACTOR = 5;

/** How a call is measured: now and then, and for so long at most, in ms. */
const PAUSE_MS = 5;
const PATIENCE_MS = 5000;
const METHODS = ["State", "ShimInfo"] as const;
const QUANTILES = [0.5, 0.99, 1];

/** Nobody has trouble. */
const QUIET = "none, at the beginning";
const QUIET_AGAIN = "none, in the end";

type Contender = "hosted" | "Go";

/** What a method's calls have taken, in ms. */
interface Latency {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** What was measured with some trouble. */
interface Line {
  readonly trouble: string;
  readonly method: string;
  readonly latencies: Partial<Record<Contender, Latency>>;
}

/** What is to be measured. */
export interface Plan {
  /** Ours in a host, and Go's. */
  readonly competitors: readonly Competitor[];
  /** How many calls there are of each method. */
  readonly calls: number;
  /** Whether a trouble of this name is asked for. */
  readonly wanted: Wanted;
  say(what: string): void;
}

/** What has been measured. */
export class Report {
  readonly #lines: Line[] = [];
  /** What could not be measured, or did not last as long, and why. */
  readonly errors: string[] = [];

  add(trouble: string, contender: Contender, all: readonly Latency[]): void {
    for (const [i, method] of METHODS.entries()) {
      let line = this.#lines.find((each) => each.trouble === trouble && each.method === method);
      if (!line) this.#lines.push(line = { trouble, method, latencies: {} });
      line.latencies[contender] = all[i]!;
    }
  }

  /** What is so bad that it is no noise: where the machine is busy, it is so for Go's shim too, and without trouble. */
  failures(): string[] {
    const quiet = this.#lines.filter(({ trouble }) => trouble === QUIET || trouble === QUIET_AGAIN);
    return this.#lines.flatMap(({ trouble, method, latencies: { hosted, Go } }) => {
      const others = [Go, ...quiet.map(({ latencies }) => latencies.hosted)].map((each) => each?.p99 ?? 0);
      const most = Math.max(LIMIT_MS, ...others) * FAILURE_FACTOR;
      if (!hosted || hosted.p99 <= most) return [];
      return [
        `${method} while the trouble of another is: ${trouble}: p99 is ${shown(hosted.p99)} ms, over ${shown(most)}`,
      ];
    });
  }

  /** Markdown. */
  toString(): string {
    const column = (contender: Contender, quantile: keyof Latency): Column<Line> => ({
      head: `${contender} ${quantile}`,
      isNumber: true,
      cell: ({ latencies }) => {
        const latency = latencies[contender];
        return latency ? shown(latency[quantile]) : "not measured";
      },
    });
    const columns: readonly Column<Line>[] = [
      { head: "the other's trouble", cell: ({ trouble, method }) => method === METHODS[0] ? trouble : "" },
      { head: "call", cell: ({ method }) => method },
      ...(["hosted", "Go"] as const).flatMap((contender) =>
        (["p50", "p99", "max"] as const).map((quantile) => column(contender, quantile))
      ),
    ];
    return [
      "# What a container notices of another's trouble",
      "",
      `Made by \`make bench BENCH=--neighbour\`. What a call of a quiet container's takes, in ms: hosted, in the same host as the`,
      "container that has the trouble; and of a Go shim while another Go shim's container has it. The caller calls every",
      `${PAUSE_MS} ms, at nice ${FIRST_NICE}, so that it is the shim alone that may wait; those that it would have made while it`,
      `waited count too. p99 is to be under ${LIMIT_MS} ms.`,
      "",
      ...format(this.#lines, columns),
      ...this.errors.map((each) => `\nWhat has failed: ${each}`),
    ].join("\n");
  }
}

function shown(ms: number): string {
  return ms.toFixed(ms < 10 ? 2 : 0);
}

/** Measures calls to a shim. */
async function latenciesOf(subject: Subject, calls: number): Promise<Latency[]> {
  const plan: CallPlan = {
    methods: METHODS,
    callers: [1],
    count: calls,
    pauseMs: PAUSE_MS,
    patienceMs: PATIENCE_MS,
    quantiles: QUANTILES,
  };
  const us = await callBy(["nice", "-n", `${FIRST_NICE}`], subject, plan);
  return METHODS.map((_, i) => {
    const [p50, p99, max] = us.slice(i * QUANTILES.length).map((each) => each / 1000) as [number, number, number];
    return { p50, p99, max };
  });
}

/** Measures all that is wanted. */
export async function measureNeighbours({ competitors, calls, wanted, say }: Plan): Promise<Report> {
  const report = new Report();
  const quiet = new Map<Competitor, Subject>();
  for (const competitor of competitors) {
    const subject = own(new Subject(competitor));
    await subject.prepare();
    await subject.startTimed();
    await subject.runIdle();
    quiet.set(competitor, subject);
  }
  const contender = ({ isHosted }: Competitor): Contender => isHosted ? "hosted" : "Go";
  const measureQuiet = async (trouble: string) => {
    for (const [competitor, subject] of quiet) {
      say(`${trouble}, ${contender(competitor)}`);
      report.add(trouble, contender(competitor), await latenciesOf(subject, calls));
    }
  };
  await measureQuiet(QUIET);
  for (const scenario of [...SCENARIOS, ALL]) {
    if (!wanted({ name: scenario.name, unit: "ms" })) continue;
    for (const [competitor, subject] of quiet) {
      say(`${scenario.name}, ${contender(competitor)}`);
      try {
        await withTrouble(scenario, competitor, async () => {
          report.add(scenario.name, contender(competitor), await latenciesOf(subject, calls));
        });
      } catch (error) {
        expectNoEnd();
        report.errors.push(`${scenario.name}, ${contender(competitor)}: ${messageOf(error)}`);
      }
    }
  }
  await measureQuiet(QUIET_AGAIN);
  for (const subject of quiet.values()) await disown(subject);
  await endHosts();
  return report;
}

/** Does something while there is some trouble, and fails if that has ended before. */
async function withTrouble(scenario: Scenario, competitor: Competitor, action: () => Promise<void>): Promise<void> {
  const subjects: Subject[] = [];
  try {
    const trouble = await scenario.begin(async (options = {}) => {
      const subject = own(new Subject(competitor));
      subjects.push(subject);
      await subject.prepare(options);
      await subject.startTimed();
      if (competitor.isHosted) onlyHost();
      return subject;
    });
    try {
      await action();
      trouble.check();
    } finally {
      await trouble.end();
    }
  } catch (error) {
    // What was begun and not ended.
    expectNoEnd();
    await thawAll();
    for (const each of subjects) await disown(each);
    throw error;
  }
}
