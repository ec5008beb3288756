/** What is measured of hosts, besides what a shim in one does as one by itself. */

import { pause, until } from "../e2e/until.ts";
import { floorRound } from "./alone.ts";
import { type Bench, type Competitor, noting, subjectRound } from "./bench.ts";
import { FIRST_NICE, stateLatency } from "./calls.ts";
import { Crowd } from "./crowd.ts";
import { Flood } from "./flood.ts";
import { endHosts, hosts, onlyHost } from "./hosts.ts";
import { SETTLE_MS } from "./memory.ts";
import type { Row, Step } from "./row.ts";
import { firstReply, lastEnd } from "./rows.ts";
import type { Subject } from "./subject.ts";
import { memoryOf } from "./usage.ts";

const KIB_PER_MIB = 1024;
/** How many others write: with them a host is full. */
const WRITERS = 31;

/** What shows that one flows: more than its reader has read for its own start. */
const FLOW_BYTES = 1 << 20;

/** The first reply, where there is no host yet. */
export const FIRST_CONTAINER: Row = { name: "exec to first reply, host starts", unit: "ms", isOfHost: true };
/** Of the process that containerd has started, which is all there is of a shim by itself. */
export const HOLDER_MEMORY: Row = { name: "private dirty of a holder", unit: "KiB", digits: 0, isOfHost: true };
/** Median of State in a full host. */
export const FLOOD_STATE: Row = {
  name: `State p50, ${WRITERS} others write flat out`,
  unit: "µs",
  digits: 0,
  isOfHost: true,
};

/** The same, where its caller need not wait for its turn of the CPU. */
export const FLOOD_STATE_FIRST: Row = { ...FLOOD_STATE, name: `${FLOOD_STATE.name}, caller at nice ${FIRST_NICE}` };

/** How fast the others are meanwhile, together. */
export const FLOOD_SPEED: Row = {
  name: `stdout of ${WRITERS}, 64 KiB writes`,
  unit: "MB/s",
  moreIsBetter: true,
  digits: 0,
  isOfHost: true,
};

const sharedMemoryRows = new Map<number, Row>();

/** The private dirty memory of all processes, hosts and holders, divided by the number of containers. */
export function sharedMemory(containers: number): Row {
  const found = sharedMemoryRows.get(containers) ??
    { name: `private dirty of all, each of ${containers}`, unit: "MiB", isOfHost: true };
  sharedMemoryRows.set(containers, found);
  return found;
}

const firstContainerSteps: readonly Step<Subject>[] = [
  { ...firstReply, rows: [FIRST_CONTAINER] },
  { ...lastEnd, rows: [] },
];

/** Shims that find no host and start one, each in turn with such as need none. */
export async function measureFirstContainers(bench: Bench): Promise<void> {
  const { extent: { rounds, warmUps }, say } = bench;
  if (!bench.wanted(FIRST_CONTAINER)) return;
  say("first containers");
  for (let i = -warmUps; i < rounds; i++) {
    for (const competitor of contenders(bench)) {
      await subjectRound(bench, { competitor, alive: 1, steps: firstContainerSteps, keep: i >= 0 });
      await endHosts();
    }
    await floorRound(bench, FIRST_CONTAINER, i >= 0);
  }
}

/** Does something while there is a host, because it has a container. */
export async function withWarmHost(bench: Bench, action: () => Promise<void>): Promise<void> {
  const keeper = new Crowd(bench.hosted);
  await noting(bench, { alive: 1, contenders: ["hosted"], rows: [firstReply.rows[0]!] }, () => keeper.grow(1));
  await action();
  await keeper.disperse();
  await endHosts();
}

/** The memory of hosts with more and more idle containers, and of as many shims by themselves. */
export async function measureHostMemory(bench: Bench): Promise<void> {
  const { extent: { host: { sizes, times } }, say } = bench;
  const wanted = sizes.filter((size) => bench.wanted(sharedMemory(size)) || bench.wanted(HOLDER_MEMORY));
  if (wanted.length === 0) return;
  for (let i = 0; i < times; i++) {
    for (const competitor of contenders(bench)) {
      const rows = [HOLDER_MEMORY, ...wanted.map(sharedMemory)];
      const crowd = new Crowd(competitor);
      await noting(bench, { alive: 1, contenders: [competitor.name], rows }, async () => {
        for (const size of wanted) {
          say(`memory of ${size}, ${competitor.name}, ${i + 1} of ${times}`);
          await crowd.grow(size - crowd.subjects.length);
          await pause(SETTLE_MS);
          takeMemory(bench, competitor, crowd);
        }
      });
      await crowd.disperse();
      await endHosts();
    }
  }
}

function takeMemory({ wanted, results }: Bench, { name }: Competitor, { subjects }: Crowd): void {
  const take = (row: Row, sample: number) => wanted(row) && results.of(1, name, row).samples.push(sample);
  const each = subjects.map(({ pid }) => memoryOf(pid).privateDirty);
  const all = [...each, ...hosts().map((pid) => memoryOf(pid).privateDirty)];
  for (const one of each) take(HOLDER_MEMORY, one * KIB_PER_MIB);
  take(sharedMemory(subjects.length), all.reduce((sum, one) => sum + one, 0) / subjects.length);
}

/** How long a call takes a container that is quiet, while others of its host write as fast as they can. */
export async function measureFloods(bench: Bench): Promise<void> {
  const { extent: { host: { flood } }, wanted, results, say } = bench;
  const rows = [FLOOD_STATE, FLOOD_STATE_FIRST, FLOOD_SPEED];
  if (!rows.some(wanted) || flood.times === 0) return;
  for (const competitor of contenders(bench)) {
    const { name } = competitor;
    say(`${WRITERS} write, ${name}`);
    const crowd = new Crowd(competitor);
    const floods: Flood[] = [];
    await noting(bench, { alive: 1, contenders: [name], rows }, async () => {
      await crowd.grow(1 + WRITERS);
      if (competitor === bench.hosted) onlyHost();
      const [quiet, ...others] = crowd.subjects as [Subject, ...Subject[]];
      floods.push(...others.map((subject) => new Flood(subject)));
      for (const each of floods) await each.prepare();
      for (const each of floods) each.begin();
      await until("all that write are read", () => floods.every((each) => each.arrived() > FLOW_BYTES));
      for (let i = 0; i < flood.times; i++) {
        const samples = await stateInFlood(quiet, floods, flood.calls);
        for (const [row, sample] of samples) results.of(1, name, row).samples.push(sample);
      }
    });
    for (const each of floods) each.end();
    await crowd.disperse();
    await endHosts();
  }
}

/** @returns p50 of State in µs, the same of a caller that comes first, and what flowed during the former in MB/s */
async function stateInFlood(quiet: Subject, floods: readonly Flood[], count: number): Promise<[Row, number][]> {
  const arrived = () => floods.reduce((sum, each) => sum + each.arrived(), 0);
  const before = arrived();
  const start = performance.now();
  const latency = await stateLatency(quiet, { count, comesFirst: false });
  const seconds = (performance.now() - start) / 1000;
  const speed = (arrived() - before) / 1e6 / seconds;
  const first = await stateLatency(quiet, { count, comesFirst: true });
  return [[FLOOD_STATE, latency], [FLOOD_STATE_FIRST, first], [FLOOD_SPEED, speed]];
}

/** All three. */
function contenders({ competitors: [ours, go], hosted }: Bench): readonly Competitor[] {
  return [hosted, go, ours];
}
