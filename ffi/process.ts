/** Processes: starting and reaping children, subreaper, kill. */

import { check, cstring, Errno, errno, libc, SystemError } from "./libc.ts";
import { fullSignalSet, signalSet } from "./signals.ts";
import * as fds from "./fd.ts";
import { openNull } from "./null.ts";

const c = libc({
  prctl: [["i32", "u64", "u64", "u64", "u64"], "i32"],
  wait4: [["i32", "buffer", "i32", "pointer"], "i32"],
  kill: [["i32", "i32"], "i32"],
  getrlimit: [["i32", "buffer"], "i32"],
  setrlimit: [["i32", "buffer"], "i32"],
  syscall: [["i32", "u32", "u32", "u32"], "i32"],
});

const spawning = libc({
  access: [["buffer", "i32"], "i32"],
  chdir: [["buffer"], "i32"],
  fchdir: [["i32"], "i32"],
  posix_spawnp: [["buffer", "buffer", "buffer", "buffer", "pointer", "pointer"], "i32"],
  posix_spawn_file_actions_init: [["buffer"], "i32"],
  posix_spawn_file_actions_adddup2: [["buffer", "i32", "i32"], "i32"],
  posix_spawn_file_actions_destroy: [["buffer"], "i32"],
  posix_spawnattr_init: [["buffer"], "i32"],
  posix_spawnattr_setflags: [["buffer", "i16"], "i32"],
  posix_spawnattr_setsigmask: [["buffer", "buffer"], "i32"],
  posix_spawnattr_setsigdefault: [["buffer", "buffer"], "i32"],
  posix_spawnattr_destroy: [["buffer"], "i32"],
});

/** prctl(2), from linux/prctl.h. */
const PR_SET_CHILD_SUBREAPER = 36;
/** getrlimit(2), from asm-generic/resource.h */
const RLIMIT_NOFILE = 7;
/** Where the executable's entry says what the soft limit was: lib/standalone/entry.c. */
const LIMIT_VARIABLE = "CONTAINERD_SHIM_NOFILE";
/** Where the entry has the soft limits that it looks at, as they were, if it has raised one that was too small for Deno. */
const LIMITS_VARIABLE = "CONTAINERD_SHIM_LIMITS";
/** By this name the entry takes limits and a program, sets them, and becomes that: become_child of lib/standalone/entry.c. */
const CHILD = "containerd-shim-child";
/** What a child of this process executes to be this executable again, whatever has become of the file's name. */
export const OWN_EXECUTABLE = "/proc/self/exe";
/** wait(2) */
const WNOHANG = 1;
/** access(2) */
const X_OK = 1;
/** close_range(2): its number on every architecture, and its flag. */
const SYS_CLOSE_RANGE = 436;
const CLOSE_RANGE_CLOEXEC = 4;
/** posix_spawn(3), from spawn.h. */
const POSIX_SPAWN_SETPGROUP = 0x02;
const POSIX_SPAWN_SETSIGDEF = 0x04;
const POSIX_SPAWN_SETSIGMASK = 0x08;
/** At least sizeof(posix_spawnattr_t) (336) and sizeof(posix_spawn_file_actions_t) (80) in glibc. */
const SPAWN_OBJECT_SIZE = 512;

/**
 * Makes this process the parent of its descendants' orphans: PR_SET_CHILD_SUBREAPER of prctl(2).
 *
 * @throws {SystemError}
 */
export function becomeSubreaper(): void {
  check(c().prctl(PR_SET_CHILD_SUBREAPER, 1n, 0n, 0n, 0n), "prctl");
}

/** Marks every descriptor from `least` on close-on-exec: what this process inherited is not its children's. */
export function closeOnExecFrom(least: number): void {
  if (c().syscall(SYS_CLOSE_RANGE, least, 0xffff_ffff, CLOSE_RANGE_CLOEXEC) === 0) return;
  // Linux before 5.11 has no such call.
  for (const { name } of [...Deno.readDirSync("/proc/self/fd")]) {
    // The folder itself is no longer open.
    if (Number(name) >= least && fds.describe(Number(name)) !== undefined) fds.setCloexec(Number(name));
  }
}

/**
 * Sets the soft limit of open files back to what this process was started with, for its children's sake: Deno raises it at
 * start. Nothing, where that is not known.
 *
 * @throws {SystemError}
 */
export function restoreOpenFilesLimit(): void {
  const soft = Deno.env.get(LIMIT_VARIABLE);
  // Where limits have been raised, this may be one that is too small: children are given it when they are started.
  if (Deno.env.has(LIMITS_VARIABLE)) return;
  if (soft === undefined || !/^[1-9]\d*$/.test(soft)) return;
  const limit = new BigUint64Array(2);
  const bytes = new Uint8Array(limit.buffer);
  check(c().getrlimit(RLIMIT_NOFILE, bytes), "getrlimit");
  limit[0] = BigInt(soft);
  check(c().setrlimit(RLIMIT_NOFILE, bytes), "setrlimit");
}

/** The soft limit of open files of a process, as /proc/PID/limits has it: proc(5). Infinity where there is none. */
export function openFilesLimitOf(pid: number | "self"): number {
  const limit = /^Max open files\s+(\d+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/limits`))?.[1];
  return limit === undefined ? Infinity : Number(limit);
}

/** A child that has ended and been reaped. */
export interface Exit {
  /** Another process's, maybe, now that this one has been reaped. */
  readonly pid: number;
  /** Its exit code, or 128 + the signal that ended it. */
  readonly status: number;
}

/**
 * Reaps one ended child, if there is one: wait4(2) with WNOHANG.
 *
 * @throws {SystemError}
 */
export function reap(): Exit | undefined {
  const word = new Int32Array(1);
  for (;;) {
    const pid = c().wait4(-1, new Uint8Array(word.buffer), WNOHANG, null);
    if (pid > 0) return { pid, status: exitStatus(word[0]!) };
    if (pid === 0 || errno() === Errno.ECHILD) return undefined;
    if (errno() !== Errno.EINTR) check(pid, "wait4");
  }
}

/** What proc_pid_stat(5) has of a process, from its state on; nothing when there is none, or it has been reaped. */
export function statOf(pid: number): string[] {
  try {
    // The name, in parentheses, may have any character in it.
    return Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/^.*\) /s, "").trim().split(" ");
  } catch {
    return [];
  }
}

/** argv of a process; nothing of one of the kernel's, and of one that has ended. */
export function argumentsOf(pid: number): string[] {
  try {
    return Deno.readTextFileSync(`/proc/${pid}/cmdline`).split("\0").slice(0, -1);
  } catch {
    return [];
  }
}

/** The parent of a process; undefined when there is none, or the process has been reaped. */
export function parentOf(pid: number): number | undefined {
  const [, parent] = statOf(pid);
  return parent === undefined ? undefined : Number(parent);
}

/** The status word of wait(2) as a shell says it. */
export function exitStatus(word: number): number {
  const signal = word & 0x7f;
  return signal === 0 ? (word >> 8) & 0xff : 128 + signal;
}

/**
 * kill(2); signal 0 asks whether the process exists.
 *
 * @throws {SystemError} ESRCH when there is no such process
 */
export function kill(pid: number, signal: number): void {
  check(c().kill(pid, signal), "kill of process", pid);
}

/** What a {@link SystemError} calls it when a program cannot be started. */
export const START_CALL = "start of program";

/** What a program is started with. */
export interface ChildOptions {
  /** argv; the first is also the program, unless that is given: a path, or a name to be looked up in PATH. */
  readonly args: readonly string[];
  /** The program, where it is not what it is to be called. */
  readonly program?: string;
  /** Working directory; this process's own when not given. */
  readonly cwd?: string;
  /**
   * The child's descriptors, by their number there: ours, which stay ours, or null for /dev/null. The child has no other.
   */
  readonly descriptors: readonly (number | null)[];
  /** The whole environment, as NAME=value; when not given, what this process was started with. */
  readonly environment?: readonly string[];
}

/** What a child of this process is started with. */
export interface SpawnOptions extends ChildOptions {
  /** Whether the child leads a process group of its own. */
  readonly newProcessGroup?: boolean;
}

/**
 * Starts a child by posix_spawn(3), with no signal blocked and every signal at its default, and gives its pid. Whoever
 * reaps this process's children learns how it ends.
 *
 * @throws {SystemError} of {@link START_CALL}, ENOENT when there is no such program; of another call, ENOENT when there is no such
 * working directory, or no /dev/null that is wanted
 */
export function spawn(options: SpawnOptions): number {
  const p = spawning();
  const actions = new Uint8Array(SPAWN_OBJECT_SIZE);
  const attributes = new Uint8Array(SPAWN_OBJECT_SIZE);
  const own: number[] = [];
  ok(p.posix_spawn_file_actions_init(actions), "file_actions_init");
  ok(p.posix_spawnattr_init(attributes), "attr_init");
  try {
    let flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
    // attr_init's process group is 0: the child's own
    if (options.newProcessGroup) flags |= POSIX_SPAWN_SETPGROUP;
    ok(p.posix_spawnattr_setflags(attributes, flags), "attr_setflags");
    ok(p.posix_spawnattr_setsigmask(attributes, signalSet([])), "attr_setsigmask");
    ok(p.posix_spawnattr_setsigdefault(attributes, fullSignalSet()), "attr_setsigdefault");
    options.descriptors.forEach((fd, number) => {
      let source = fd;
      if (source === null) own.push(source = openNull());
      if (source < options.descriptors.length) {
        // Its number is one that the child has another descriptor under, which may come first; or this one, which would be
        // closed by execve(2) if it is to be: before glibc 2.29.
        own.push(source = fds.duplicate(source, options.descriptors.length));
      }
      ok(p.posix_spawn_file_actions_adddup2(actions, source, number), "file_actions_adddup2");
    });
    const envp = options.environment === undefined
      ? ownEnvironment()
      : new StringArray(options.environment.map(cstring));
    const pid = new Int32Array(1);
    const program = options.program ?? options.args[0]!;
    const start = () => {
      const { path, args } = withLimits(program, options.args);
      const argv = new StringArray(args.map(cstring));
      return p.posix_spawnp(
        new Uint8Array(pid.buffer),
        cstring(path),
        actions,
        attributes,
        argv.pointer,
        envp.pointer,
      );
    };
    const error = options.cwd === undefined ? start() : inFolder(options.cwd, start);
    if (error !== 0) {
      throw new SystemError(START_CALL, error, JSON.stringify(program));
    }
    return pid[0]!;
  } finally {
    p.posix_spawn_file_actions_destroy(actions);
    p.posix_spawnattr_destroy(attributes);
    for (const fd of own) fds.close(fd);
  }
}

/**
 * What has a program started with the limits that this process was started with. Its own are not those: Deno would fail by them;
 * and to set the child's from here would be too late for what that starts.
 *
 * @throws {SystemError} when there is no such program
 */
function withLimits(
  program: string,
  args: readonly string[],
): { readonly path: string; readonly args: readonly string[] } {
  const limits = Deno.env.get(LIMITS_VARIABLE);
  if (limits === undefined) return { path: program, args };
  const found = candidates(program, Deno.env.get("PATH")).find((path) => spawning().access(cstring(path), X_OK) === 0);
  if (found === undefined) throw new SystemError(START_CALL, errno(), JSON.stringify(program));
  return { path: OWN_EXECUTABLE, args: [CHILD, ...limits.trim().split(" "), found, ...args] };
}

/** Where programs are looked for when the environment does not say: execvp(3). */
const DEFAULT_PATH = "/bin:/usr/bin";

/** The paths that a program may have, by the PATH of an environment. */
export function candidates(program: string, path: string = DEFAULT_PATH): string[] {
  return program.includes("/") ? [program] : path.split(":").map((folder) => `${folder || "."}/${program}`);
}

/**
 * Calls something with another working directory, which is this whole process's meanwhile: glibc before 2.29 has no
 * posix_spawn_file_actions_addchdir_np(3).
 */
function inFolder<T>(folder: string, call: () => T): T {
  const { chdir, fchdir } = spawning();
  const before = fds.open(".", fds.O.PATH | fds.O.DIRECTORY);
  try {
    check(chdir(cstring(folder)), "chdir to", folder);
    try {
      return call();
    } finally {
      check(fchdir(before), "fchdir to descriptor", before);
    }
  } finally {
    fds.close(before);
  }
}

/** The posix_spawn functions return the error instead of setting errno. */
function ok(error: number, what: string): void {
  if (error !== 0) throw new SystemError(`posix_spawn_${what}`, error);
}

/** A NULL-terminated array of pointers to strings, and the strings, in one piece of memory that does not move. */
class StringArray {
  readonly #bytes: Uint8Array<ArrayBuffer>;

  constructor(strings: readonly Uint8Array[]) {
    const table = (strings.length + 1) * 8;
    this.#bytes = new Uint8Array(strings.reduce((size, each) => size + each.length, table));
    const view = new DataView(this.#bytes.buffer);
    const base = Deno.UnsafePointer.value(this.pointer);
    let at = table;
    strings.forEach((string, i) => {
      view.setBigUint64(i * 8, BigInt(base) + BigInt(at), true);
      this.#bytes.set(string, at);
      at += string.length;
    });
  }

  /** Valid as long as this object is reachable. */
  get pointer(): Deno.PointerValue {
    return Deno.UnsafePointer.of(this.#bytes);
  }
}

let environment: StringArray | undefined;

/**
 * The environment this process was started with. Not the C library's: the executable's entry adds to that what Deno is
 * to see, and no child is to see.
 */
function ownEnvironment(): StringArray {
  return environment ??= readEnvironment();
}

/**
 * What an environment entry begins with that is containerd's alone, from systemd (sd_notify(3)): runc would pass it on to the
 * container, and wait in `start` for the container to say that it is ready. lib/standalone/entry.c leaves it out too.
 */
const NOT_FOR_CHILDREN = new TextEncoder().encode("NOTIFY_SOCKET=");

function readEnvironment(): StringArray {
  const strings: Uint8Array[] = [];
  const bytes = Deno.readFileSync("/proc/self/environ");
  for (let at = 0; at < bytes.length;) {
    const end = bytes.indexOf(0, at);
    if (end < 0) break;
    const string = bytes.subarray(at, end + 1);
    if (!NOT_FOR_CHILDREN.every((byte, i) => string[i] === byte)) strings.push(string);
    at = end + 1;
  }
  return new StringArray(strings);
}
