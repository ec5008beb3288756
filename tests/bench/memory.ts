/** What shims hold, and what they do when there is nothing to do. */

import { pause } from "../e2e/until.ts";
import type { Extent } from "./extent.ts";
import { flow, largeFlow } from "./output.ts";
import { newId, type Row } from "./row.ts";
import type { Subject } from "./subject.ts";
import { growth, type Memory, memoryOf, switchesOf, type ThreadCounts } from "./usage.ts";

/** After this a shim has given back what it gives back, and does nothing more, in ms. */
export const SETTLE_MS = 3_000;

/** Rows of one moment. */
type MomentRows = Readonly<Record<keyof Memory, Row>>;

function rowsAt(moment: string): MomentRows {
  return {
    rss: { name: `RSS ${moment}`, unit: "MiB" },
    pss: { name: `PSS ${moment}`, unit: "MiB" },
    privateDirty: { name: `private dirty ${moment}`, unit: "MiB" },
  };
}

/** With a container that does nothing, before it has done anything. */
export const AFTER_START = rowsAt("after start");
const AFTER_EXECS = rowsAt("after 100 execs");
/** After the execs, and then a GiB of output, a quarter of that in the quick bench. */
export const AFTER_WORK = rowsAt("after work");
/** From the first moment to the last. */
export const GROWTH: Row = { name: "private dirty, growth by work", unit: "MiB" };
export const WAKE_UPS: Row = { name: "idle wake-ups", unit: "1/s" };

/** All rows, in their order. */
export const MEMORY_ROWS: readonly Row[] = [
  ...[AFTER_START, AFTER_EXECS, AFTER_WORK].flatMap((rows) => Object.values(rows)),
  GROWTH,
  WAKE_UPS,
];

/** Somebody whose memory is looked at. */
export interface Holder<T = { readonly pid: number }> {
  readonly subject: T;
  /** Takes a sample. */
  take(row: Row, sample: number): void;
}

/** Who is looked at. */
export interface Holders {
  /** All that do nothing at first. */
  readonly idle: readonly Holder[];
  /** Those of them that work then, each with a container that runs. */
  readonly workers: readonly Holder<Subject>[];
}

/** Looks at all of them at the same time, while they do nothing, and at some after they have worked. */
export async function measureMemory({ idle, workers }: Holders, { idleMs, idleAfterMs, work }: Extent): Promise<void> {
  await pause(SETTLE_MS);
  const starts = new Map(idle.map((each) => [each.subject, takeMemory(each, AFTER_START).privateDirty]));

  await pause(Math.max(0, idleAfterMs - SETTLE_MS));
  const before: ThreadCounts[] = idle.map(({ subject }) => switchesOf(subject.pid));
  const start = performance.now();
  await pause(idleMs);
  const seconds = (performance.now() - start) / 1000;
  idle.forEach(({ subject, take }, i) => take(WAKE_UPS, growth(before[i]!, switchesOf(subject.pid)) / seconds));

  await Promise.all(workers.map(({ subject }) => execs(subject, work.execs)));
  await pause(SETTLE_MS);
  for (const each of workers) takeMemory(each, AFTER_EXECS);
  for (const { subject } of workers) await flow(subject, largeFlow(work.bytes));
  await pause(SETTLE_MS);
  for (const each of workers) {
    each.take(GROWTH, takeMemory(each, AFTER_WORK).privateDirty - starts.get(each.subject)!);
  }
}

function takeMemory({ subject, take }: Holder, rows: MomentRows): Memory {
  const memory = memoryOf(subject.pid);
  for (const kind of ["rss", "pss", "privateDirty"] as const) take(rows[kind], memory[kind]);
  return memory;
}

async function execs(subject: Subject, count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const id = newId();
    await subject.withHeldFifos(id, (paths) => subject.execToEnd(id, ["true"], paths));
  }
}
