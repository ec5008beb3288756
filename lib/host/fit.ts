/**
 * Whether a process may leave to this one what it would do itself.
 *
 * Children are its own, and inherit from it. But files are opened and made here, and filesystems mounted: by the same user,
 * with the same rights, in the same tree. That build, user and namespaces are the same, and what each may use of the machine
 * (cgroups, scheduling, affinity, I/O priority, hard limits), is in the name of the socket that it has connected to
 * (lib/standalone/entry.c).
 */

/** What has to be the same in /proc/PID/status: proc(5). */
const FIELDS = /^(?:Uid|Gid|Groups|Umask|Cap\w+|NoNewPrivs|Seccomp\w*):.*$/gm;

/** What matters of a process, as text to be compared; undefined when it is not to be seen. */
export function standing(pid: number | "self"): string | undefined {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`).match(FIELDS)?.join("\n");
    return [status, Deno.readLinkSync(`/proc/${pid}/root`), label(pid)].join("\n");
  } catch {
    return undefined;
  }
}

/** What a security module calls it, where there is one. */
function label(pid: number | "self"): string {
  try {
    return Deno.readTextFileSync(`/proc/${pid}/attr/current`);
  } catch {
    return "";
  }
}

/** What containerd adds to its own oom_score_adj for its shims, right after their start: a holder that joins may have it already. */
const ABOVE_CONTAINERD = 1;

/**
 * Sees to it that this process is not killed for want of memory before a process that it serves, which it does as long as it
 * lives: it takes the lowest oom_score_adj of all that have joined (proc(5)). A host has some MiB, which the next one takes
 * again at once; so killing it frees nothing, and keeps all its containers waiting.
 *
 * @returns false when it would be killed before: it may not lower its own so far, which takes CAP_SYS_RESOURCE
 */
export function isSparedLike(pid: number): boolean {
  try {
    const [own, theirs] = [oomScoreAdj("self"), oomScoreAdj(pid)];
    if (own <= theirs) return true;
    try {
      Deno.writeTextFileSync("/proc/self/oom_score_adj", `${theirs}`, { create: false });
      return true;
    } catch {
      return own <= theirs + ABOVE_CONTAINERD;
    }
  } catch {
    return false; // It has gone.
  }
}

function oomScoreAdj(pid: number | "self"): number {
  return Number(Deno.readTextFileSync(`/proc/${pid}/oom_score_adj`));
}
