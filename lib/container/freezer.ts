/**
 * The freezer of cgroup v1: not even SIGKILL ends what it has frozen before that is thawed. That of version 2 lets it through:
 * cgroups(7).
 */

import { Code, StatusError } from "../ttrpc/status.ts";
import { cgroupOf, textOf } from "./cgroup.ts";

/** The path of the cgroup that keeps a process frozen, where its hierarchy is mounted; undefined where none does. */
export function frozenCgroup(pid: number): string | undefined {
  const freezer = cgroupOf(pid, "freezer");
  // Nor can the first cgroup be frozen, which is that of what has ended.
  if (freezer === undefined || freezer.version !== 1 || freezer.path === "/") return undefined;
  return /^(FROZEN|FREEZING)$/m.test(textOf(`${freezer.folder}/freezer.state`)) ? freezer.folder : undefined;
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
