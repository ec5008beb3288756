/** What /proc says of processes and mounts: proc(5). */

/** A process, as /proc/PID/stat has it. */
export interface Process {
  readonly pid: number;
  readonly ppid: number;
  /** R, S, Z, ... */
  readonly state: string;
  readonly comm: string;
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined; // gone
  }
}

/** The process with this pid, if there is one; a zombie is one. */
export function processOf(pid: number): Process | undefined {
  const stat = readText(`/proc/${pid}/stat`);
  if (!stat) return undefined;
  // The name is in parentheses and may contain any character.
  const nameEnd = stat.lastIndexOf(")");
  const [state, ppid] = stat.slice(nameEnd + 2).split(" ") as [string, string];
  return { pid, ppid: Number(ppid), state, comm: stat.slice(stat.indexOf("(") + 1, nameEnd) };
}

/** All processes. */
export function processes(): Process[] {
  const found: Process[] = [];
  for (const { name } of Deno.readDirSync("/proc")) {
    const process = /^\d+$/.test(name) ? processOf(Number(name)) : undefined;
    if (process) found.push(process);
  }
  return found;
}

/** Everything below a process, its children first. */
export function descendants(root: number): Process[] {
  const all = processes();
  const found: Process[] = [];
  for (let parents = new Set([root]); parents.size > 0;) {
    const children = all.filter((each) => parents.has(each.ppid));
    found.push(...children);
    parents = new Set(children.map((each) => each.pid));
  }
  return found;
}

/** Whether a process is there and is no zombie. */
export function isAlive(pid: number): boolean {
  const process = processOf(pid);
  return process !== undefined && process.state !== "Z";
}

/** argv of a process; empty for a zombie, and for one that is gone. */
export function argumentsOf(pid: number): string[] {
  return readText(`/proc/${pid}/cmdline`)?.split("\0").slice(0, -1) ?? [];
}

/** How many bytes a process has read, from whatever: proc_pid_io(5). */
export function bytesRead(pid: number): number {
  return Number(/^rchar: (\d+)$/m.exec(Deno.readTextFileSync(`/proc/${pid}/io`))![1]);
}

/** Whether a process is a host of ours, which outlives its containers for a while. */
export function isHost(pid: number): boolean {
  return argumentsOf(pid)[0] === "containerd-shim-host";
}

/** A field of a status file in hex, such as SigBlk. */
function signalField(status: string, field: string): bigint {
  const value = new RegExp(`^${field}:\\s*([0-9a-f]+)$`, "m").exec(status)?.[1];
  if (value === undefined) throw new Error(`There is no ${field} in ${status}`);
  return BigInt(`0x${value}`);
}

/** The signals that a thread blocks and that its process ignores, as sets of bits: bit 0 is signal 1. */
export interface SignalMasks {
  readonly name: string;
  readonly blocked: bigint;
  readonly ignored: bigint;
}

/** The masks of all threads of a process. */
export function threadMasks(pid: number): SignalMasks[] {
  return [...Deno.readDirSync(`/proc/${pid}/task`)].map(({ name }) => {
    const status = Deno.readTextFileSync(`/proc/${pid}/task/${name}/status`);
    return {
      name: /^Name:\s*(.*)$/m.exec(status)?.[1] ?? "",
      blocked: signalField(status, "SigBlk"),
      ignored: signalField(status, "SigIgn"),
    };
  });
}

/** Whether a process has a handler for a signal. */
export function catches(pid: number, signal: number): boolean {
  const caught = signalField(Deno.readTextFileSync(`/proc/${pid}/status`), "SigCgt");
  return (caught >> BigInt(signal - 1) & 1n) === 1n;
}

/** A line of a mountinfo file: proc_pid_mountinfo(5). */
export interface MountInfo {
  readonly path: string;
  /** The same for all mounts of one file system. */
  readonly device: string;
  /** ro, nosuid, ... */
  readonly flags: readonly string[];
  /** shared:N, master:N, unbindable */
  readonly propagation: readonly string[];
  /** cgroup2, overlay, ... */
  readonly type: string;
  /** What the filesystem itself says. */
  readonly options: readonly string[];
}

/** The lines of a mountinfo file. */
export function parseMountInfo(text: string): MountInfo[] {
  return text.trimEnd().split("\n").map((line) => {
    const fields = line.split(" ");
    const separator = fields.indexOf("-", 6);
    return {
      path: fields[4]!.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(parseInt(digits, 8))),
      device: fields[2]!,
      flags: fields[5]!.split(","),
      propagation: fields.slice(6, separator),
      type: fields[separator + 1]!,
      options: fields[separator + 3]!.split(","),
    };
  });
}

/** All that is mounted, deepest last. */
export function mounts(): MountInfo[] {
  return parseMountInfo(Deno.readTextFileSync("/proc/self/mountinfo"));
}

/** What is mounted at or below a folder, deepest last. */
export function mountsBelow(folder: string): string[] {
  return mounts().map(({ path }) => path).filter((path) => path === folder || path.startsWith(`${folder}/`));
}

/** What the descriptors of a process are, by number. */
export function descriptorsOf(pid: number): Map<number, string> {
  const found = new Map<number, string>();
  for (const { name } of Deno.readDirSync(`/proc/${pid}/fd`)) {
    try {
      found.set(Number(name), Deno.readLinkSync(`/proc/${pid}/fd/${name}`));
    } catch {
      // closed since
    }
  }
  return found;
}

/** Whether a shim is a holder: what it maps of its executable is the entry alone. */
export function isHolder(shim: number): boolean {
  return Deno.readTextFileSync(`/proc/${shim}/maps`).match(/containerd-shim( \(deleted\))?$/gm)?.length === 1;
}

/** What all the descriptors are that may be a shim's: its own, and those of the hosts that there are. */
export function filesOf(shim: number): string[] {
  const hosts = processes().map(({ pid }) => pid).filter(isHost);
  return [shim, ...hosts].flatMap((pid) => [...descriptorsOf(pid).values()]);
}

/**
 * How many descriptors a process has for files, pipes, FIFOs, terminals and other processes. Deno makes a pair of sockets
 * of its own half a second after its start, and timers come and go.
 */
export function countDescriptors(pid: number): number {
  const isCounted = (each: string) => !/^(socket:|anon_inode:\[timerfd\])/.test(each);
  return [...descriptorsOf(pid).values()].filter(isCounted).length;
}
