/**
 * Whether a process may leave to this one what it would do itself.
 *
 * Children are its own, and inherit from it. But files are opened and made here, and filesystems mounted: by the same user,
 * with the same rights, in the same tree. That build, user and namespaces are the same, is in the name of the socket that it
 * has connected to (lib/standalone/entry.c).
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
