/** The hosts that the bench's shims join: no other shims of the machine do. */

import { check, cstring, libc } from "../../ffi/libc.ts";
import { MS } from "../../ffi/mount.ts";
import { argumentsOf, isHost, processes } from "../e2e/proc.ts";
import { until } from "../e2e/until.ts";

/** unshare(2), from linux/sched.h. */
const CLONE_NEWNS = 0x0002_0000;
const CLONE_NEWUTS = 0x0400_0000;

/** umount2(2), from linux/fs.h. */
const MNT_DETACH = 2;

const c = libc({
  unshare: [["i32"], "i32"],
  mount: [["buffer", "buffer", "buffer", "u64", "pointer"], "i32"],
  umount2: [["buffer", "i32"], "i32"],
});

/**
 * Gives what is started from now on a UTS namespace of this process's own. A host is joined from its own namespaces only
 * (lib/standalone/entry.c), so hosts can be ended here, and are warm or not, whatever else runs on the machine.
 *
 * @throws {SystemError}
 */
export function separateHosts(): void {
  // Of this thread alone, which is the one that starts children.
  check(c().unshare(CLONE_NEWUTS), "unshare");
}

/**
 * Gives what is started from now on a mount namespace of this process's own too: what is mounted there nobody else sees, and it
 * goes with the last process. Only Deno's synchronous functions see it here: the others work on other threads.
 *
 * @throws {SystemError}
 */
export function separateMounts(): void {
  check(c().unshare(CLONE_NEWNS), "unshare");
  const nothing = cstring("");
  check(c().mount(nothing, cstring("/"), nothing, BigInt(MS.REC | MS.PRIVATE), null), "mount", "/");
}

/**
 * Takes a mount of that namespace off, whoever uses it.
 *
 * @throws {SystemError}
 */
export function detach(path: string): void {
  check(c().umount2(cstring(path), MNT_DETACH), "umount2", path);
}

function namespaceOf(process: number | "thread-self"): string | undefined {
  try {
    return Deno.readLinkSync(`/proc/${process}/ns/uts`);
  } catch {
    return undefined; // gone
  }
}

/** The hosts that there are. */
export function hosts(): number[] {
  const own = namespaceOf("thread-self");
  return processes().map(({ pid }) => pid).filter((pid) => isHost(pid) && namespaceOf(pid) === own);
}

/** The one host that there is. */
export function onlyHost(): number {
  const [host, ...others] = hosts();
  if (host === undefined || others.length > 0) throw new Error(`there are ${others.length + (host ? 1 : 0)} hosts`);
  return host;
}

/** Whether a shim that has just been started is in a host: it has one thread then, and several by itself. */
export function isInHost(shim: number): boolean {
  return [...Deno.readDirSync(`/proc/${shim}/task`)].length === 1;
}

/** Ends all hosts; their containers' shims have ended. */
export async function endHosts(): Promise<void> {
  for (const pid of hosts()) Deno.kill(pid, "SIGTERM");
  await until("the hosts have ended", () => hosts().length === 0);
}

/** The files of all hosts, for when these have been killed. */
export function hostFiles(): string[] {
  const paths = hosts().flatMap((pid) => argumentsOf(pid).slice(2, 3));
  return paths.flatMap((path) => [path, `${path}.lock`, `${path}.dump`]);
}
