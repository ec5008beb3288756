/** What gives a process, and all that it starts, hosts of its own: in a mount namespace, a folder for them that is empty. */

/** Where hosts have their sockets and locks. */
export const HOSTS = "/run/containerd-shim";

/** Mounts an empty folder for hosts, with options of tmpfs(5), to be run by a shell. */
export function emptyFolder(options = "mode=700"): string {
  return `mkdir -p -m 700 ${HOSTS} && mount -t tmpfs -o ${options} none ${HOSTS}`;
}

/** A command line's beginning that has a shell run `script` before the rest. */
export function shell(script: string): string[] {
  return ["sh", "-c", `${script} && exec "$@"`, "sh"];
}
