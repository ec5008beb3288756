/** Pinning to CPUs: a call that finds its server on the client's own CPU, or not, costs one of two prices, at random. */

import { runToEnd } from "./children.ts";

/** The CPUs that this process may run on, by number: proc_pid_status(5). */
const allowed = parseCpus(/^Cpus_allowed_list:\s*(\S+)$/m.exec(Deno.readTextFileSync("/proc/self/status"))![1]!);

/** Whether there are two CPUs, so that two processes can have one each. */
export const canPin = allowed.length >= 2;

/** Does something while all threads of this process have one CPU, and those of another process have another. */
export async function withOwnCpus<T>(pid: number, action: () => Promise<T>): Promise<T> {
  if (!canPin) return await action();
  await Promise.all([pin(Deno.pid, [allowed[0]!]), pin(pid, [allowed[1]!])]);
  try {
    return await action();
  } finally {
    await Promise.all([pin(Deno.pid, allowed), pin(pid, allowed)]);
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
