/** What a process uses, as /proc tells: proc(5). */

const KIB_PER_MIB = 1024;
const NS_PER_S = 1e9;

/** A process's memory, in MiB. */
export interface Memory {
  /** All of its pages that are in memory. */
  readonly rss: number;
  /** The same, each shared page divided by those that share it. */
  readonly pss: number;
  /** What no other process shares and cannot be dropped. */
  readonly privateDirty: number;
}

/** The memory of a process. */
export function memoryOf(pid: number): Memory {
  const rollup = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
  const mib = (field: string) => Number(new RegExp(`^${field}:\\s*(\\d+) kB$`, "m").exec(rollup)![1]) / KIB_PER_MIB;
  return { rss: mib("Rss"), pss: mib("Pss"), privateDirty: mib("Private_Dirty") };
}

/** A count of each thread of a process, by the thread's id. */
export type ThreadCounts = ReadonlyMap<number, number>;

function countsOf(pid: number, count: (folder: string) => number): ThreadCounts {
  const counts = new Map<number, number>();
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    try {
      counts.set(Number(name), count(`/proc/${pid}/task/${name}`));
    } catch {
      // The thread has ended.
    }
  }
  if (counts.size === 0) throw new Error(`Cannot tell what the threads of process ${pid} use`);
  return counts;
}

/** What has been added between two counts; what a thread did that has ended meanwhile is not known. */
export function growth(before: ThreadCounts, after: ThreadCounts): number {
  return [...after].reduce((sum, [thread, count]) => sum + count - (before.get(thread) ?? 0), 0);
}

/** CPU time that a process's threads have used, its children's not included, in s; /proc/PID/stat counts in 10 ms. */
export function cpuTimeOf(pid: number): ThreadCounts {
  return countsOf(pid, (folder) => Number(Deno.readTextFileSync(`${folder}/schedstat`).split(" ")[0]) / NS_PER_S);
}

/** How often a process's threads have been taken off a CPU: at least once for each time that they were woken. */
export function switchesOf(pid: number): ThreadCounts {
  return countsOf(pid, (folder) => {
    const counts = Deno.readTextFileSync(`${folder}/status`).matchAll(/^(?:non)?voluntary_ctxt_switches:\s*(\d+)$/gm);
    return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
  });
}
