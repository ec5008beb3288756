/** Pinning to CPUs: a call that finds its server on the client's own CPU, or not, costs one of two prices, at random. */

import { runToEnd } from "./children.ts";

/** The CPUs that this process may run on, by number: proc_pid_status(5). */
const allowed = parseCpus(/^Cpus_allowed_list:\s*(\S+)$/m.exec(Deno.readTextFileSync("/proc/self/status"))![1]!);

/**
 * Does something while all threads of a process have one CPU. What `action` is given is what a command line begins with that
 * is to have another.
 */
export async function withCpus<T>(pid: number, action: (pinned: readonly string[]) => Promise<T>): Promise<T> {
  // With a single CPU there is nothing to choose.
  if (allowed.length < 2) return await action([]);
  await pin(pid, [allowed[1]!]);
  try {
    return await action(["taskset", "--cpu-list", `${allowed[0]}`]);
  } finally {
    await pin(pid, allowed);
  }
}

async function pin(pid: number, cpus: readonly number[]): Promise<void> {
  await runToEnd(["taskset", "--all-tasks", "--cpu-list", "--pid", cpus.join(","), `${pid}`]);
}

/** `0-2,5` */
function parseCpus(list: string): number[] {
  return list.split(",").flatMap((range) => {
    const [first, last = first] = range.split("-").map(Number) as [number, number?];
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}
