/** Where the cgroups of a process are: cgroups(7), proc_pid_cgroup(5), proc_pid_mountinfo(5). */

/** A cgroup of a hierarchy that has a controller. */
export interface Cgroup {
  /** Of its hierarchy. */
  readonly version: 1 | 2;
  /** Its path in the hierarchy: / is the first, and in version 1 also that of a process that has ended. */
  readonly path: string;
  /** Where its hierarchy is mounted, or the part of it that is. */
  readonly mountPoint: string;
  /** Its own folder. */
  readonly folder: string;
}

/** The cgroup of a process that a controller looks at, if its hierarchy is mounted. */
export function cgroupOf(pid: number, controller: string): Cgroup | undefined {
  const cgroups = textOf(`/proc/${pid}/cgroup`);
  const first = new RegExp(`^\\d+:(?:[^:]*,)?${controller}(?:,[^:]*)?:(.*)$`, "m").exec(cgroups);
  const path = (first ?? /^0::(.*)$/m.exec(cgroups))?.[1];
  if (path === undefined) return undefined;
  const mounted = first ? new RegExp(` - cgroup \\S+ (\\S+,)?${controller}(,|$)`) : / - cgroup2 /;
  const mount = textOf("/proc/self/mountinfo").split("\n").find((line) => mounted.test(line));
  const [, , , root, mountPoint] = mount?.split(" ") ?? [];
  if (root === undefined || mountPoint === undefined) return undefined;
  const [top, all] = [root, path].map((each) => `${each.replace(/\/$/, "")}/`) as [string, string];
  if (!all.startsWith(top)) return undefined;
  const below = all.slice(top.length - 1, -1);
  return { version: first ? 1 : 2, path, mountPoint, folder: `${mountPoint}${below}` };
}

/** What a file of the kernel's says; empty where there is none. */
export function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
