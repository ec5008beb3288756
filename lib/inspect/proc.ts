/** What /proc tells of other processes: proc(5). Each is undefined of a process that has gone, or that this one may not look at. */

import { statOf } from "../../ffi/process.ts";

/** A process, as `/proc/PID/stat` has it. */
export interface Life {
  /** R, S, T, … */
  readonly state: string;
  /** In seconds since the machine has started. */
  readonly startedAt: number;
}

/** Clock ticks in a second, as `/proc` counts them: USER_HZ, the same on every architecture that Deno runs on. */
const TICKS = 100;
/** Fields of `/proc/PID/stat` behind the name, counted from 0: state, ppid, starttime. */
const STATE = 0;
const START_TIME = 19;
const KIB = 1024;

/** The numbers of all processes. */
export function pids(): number[] {
  return Array.from(Deno.readDirSync("/proc"), ({ name }) => Number(name)).filter((pid) => pid > 0);
}

/** Whether it runs, and since when. */
export function lifeOf(pid: number): Life | undefined {
  const fields = statOf(pid);
  if (fields.length === 0) return undefined;
  return { state: fields[STATE]!, startedAt: Number(fields[START_TIME]) / TICKS };
}

/** How long the machine has been up, in seconds. */
export function uptime(): number {
  return parseFloat(Deno.readTextFileSync("/proc/uptime"));
}

/** Whose process it is, by its effective user. */
export function userOf(pid: number): number | undefined {
  return attempt(() => Deno.statSync(`/proc/${pid}`).uid) ?? undefined;
}

/** Where a link of the process's leads: `cwd`, `root`, `ns/net`, `fd/3`. */
export function linkOf(pid: number, name: string): string | undefined {
  return attempt(() => Deno.readLinkSync(`/proc/${pid}/${name}`));
}

/** The numbers of its descriptors. */
export function descriptorsOf(pid: number): number[] | undefined {
  return attempt(() => Array.from(Deno.readDirSync(`/proc/${pid}/fd`), ({ name }) => Number(name)));
}

/**
 * Memory that is the process's alone and that it has written to, in bytes. The kernel looks at each page for that: it is
 * waited for elsewhere.
 */
export async function privateMemoryOf(pid: number): Promise<number | undefined> {
  try {
    const text = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`);
    const found = /^Private_Dirty:\s*(\d+) kB$/m.exec(text);
    return found === null ? undefined : Number(found[1]) * KIB;
  } catch {
    return undefined;
  }
}

/** A Unix socket that listens, by its inode: its name, as `/proc/net/unix` writes it; an abstract one begins with @. */
export type Listeners = ReadonlyMap<string, string>;

/** `/proc/net/unix`: __SO_ACCEPTCON of the flags, and SOCK_STREAM. */
const LISTENS = 0x10000;
const STREAM = 1;

/** All stream sockets that listen in the network namespace of a process. */
export function listenersSeenBy(pid: number): Listeners {
  const found = new Map<string, string>();
  const text = attempt(() => Deno.readTextFileSync(`/proc/${pid}/net/unix`)) ?? "";
  for (const line of text.split("\n").slice(1)) {
    // Num RefCount Protocol Flags Type St Inode Path
    const [, flags, type, inode, name] = /^\S+ \S+ \S+ (\S+) (\S+) \S+ +(\d+) (.*)$/.exec(line) ?? [];
    if (name === undefined || (parseInt(flags!, 16) & LISTENS) === 0 || parseInt(type!, 16) !== STREAM) continue;
    found.set(inode!, name);
  }
  return found;
}

function attempt<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}
