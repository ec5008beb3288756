/**
 * The freezer of cgroup v1: not even SIGKILL ends what it has frozen before that is thawed. That of version 2 lets it through:
 * cgroups(7).
 */

import { Code, StatusError } from "../ttrpc/status.ts";

/** The path of the cgroup that keeps a process frozen, where its hierarchy is mounted; undefined where none does. */
export function frozenCgroup(pid: number): string | undefined {
  const path = freezerOf(pid);
  const state = path === undefined ? "" : textOf(`${path}/freezer.state`);
  return /^(FROZEN|FREEZING)$/m.test(state) ? path : undefined;
}

/**
 * Sees to it that a process that has been sent SIGKILL can die of it.
 *
 * @throws {StatusError} UNAVAILABLE when it is frozen: it dies when somebody thaws it
 */
export function requireThawed(pid: number): void {
  const path = frozenCgroup(pid);
  if (path === undefined) return;
  throw new StatusError(Code.UNAVAILABLE, `process ${pid} has been sent SIGKILL, and ends when ${path} is thawed`);
}

/** The cgroup of a process in the hierarchy of the freezer, if there is one: proc_pid_cgroup(5), proc_pid_mountinfo(5). */
function freezerOf(pid: number): string | undefined {
  const cgroup = /^\d+:(?:[^:]*,)?freezer(?:,[^:]*)?:(.*)$/m.exec(textOf(`/proc/${pid}/cgroup`))?.[1];
  // Nor can the first cgroup be frozen, which is that of what has ended.
  if (cgroup === undefined || cgroup === "/") return undefined;
  const mount = textOf("/proc/self/mountinfo").split("\n").find((line) =>
    / - cgroup \S+ (\S+,)?freezer(,|$)/.test(line)
  );
  const [, , , root, mountPoint] = mount?.split(" ") ?? [];
  if (root === undefined) return undefined;
  return `${mountPoint}${root !== "/" && cgroup.startsWith(root) ? cgroup.slice(root.length) : cgroup}`;
}

/** What a file of the kernel's says; empty where there is none. */
function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
