/**
 * The command line of an OCI runtime: runc's, which crun and others follow. It is given a way to run programs, remembers nothing of
 * a container, and is of use without a shim.
 */

import * as fds from "../../ffi/fd.ts";
import { check, Errno, SystemError } from "../../ffi/libc.ts";
import { MemoryFile } from "../../ffi/memfd.ts";
import { START_CALL } from "../../ffi/process.ts";
import { stat } from "../../ffi/stat.ts";
import { messageOf } from "../errors.ts";
import type { Exit, RunOptions } from "../reaper.ts";

/** A command of the runtime as it is to be run. */
export interface CommandOptions extends RunOptions {
  /** What it is, where it changes something; nothing, where it may as well be run twice. */
  readonly key: string | undefined;
  /** The process that it is for: empty for the container's own. */
  readonly scope: string;
  /** How much is in the log before, in bytes. */
  readonly logged: number;
}

/** How a command has ended, and how much was in the log before, which another process may have seen. */
export interface Outcome extends Pick<Exit, "status"> {
  /** In bytes; what this process has seen, unless given. */
  readonly logged?: number;
}

/** Options of {@link Runc}. */
export interface RuncOptions {
  /** The runtime's program: a path, or a name to be looked up in PATH. */
  readonly command: string;
  /** Where the runtime keeps the state of its containers (`--root`). */
  readonly root: string;
  /** The criu program, when not the default (`--criu`). */
  readonly criu?: string;
  /** Whether it manages cgroups through systemd (`--systemd-cgroup`). */
  readonly systemdCgroup?: boolean;
  /** The working directory of its commands, where it writes its log to, as JSON (`--log`). */
  readonly cwd: string;
  /** Runs a command: whose child it is, is not for the runtime to know. */
  readonly run: (options: CommandOptions) => Promise<Outcome>;
}

/** A runtime command that failed. The message is the runtime's own last error, or why it could not be started. */
export class RuntimeError extends Error {
  /** Tells it from other errors by name. */
  override readonly name = "RuntimeError";
  /** Whether it was ended by a signal: what it had done by then is done. */
  readonly killed: boolean;
  /** Whether it failed because the runtime has no such container. */
  readonly noContainer: boolean;

  /**
   * How a command has failed.
   *
   * @param options whether it was killed, or had no such container: neither, unless given
   */
  constructor(
    message: string,
    { killed = false, noContainer = false, ...options }: ErrorOptions & {
      readonly killed?: boolean;
      readonly noContainer?: boolean;
    } = {},
  ) {
    super(message, options);
    this.killed = killed;
    this.noContainer = noContainer;
  }
}

/** The descriptors of a process that the runtime starts: standard input, output and error; null is /dev/null. */
export type ProcessDescriptors = readonly [stdin: number | null, stdout: number | null, stderr: number | null];

/** How a process gets its standard descriptors: given to it, or a terminal whose master comes through a socket. */
export type ProcessStdio =
  | { readonly descriptors: ProcessDescriptors }
  | { readonly consoleSocket: string };

/** Options of {@link Runc.create}. */
export interface CreateOptions {
  /** The process's standard streams. */
  readonly stdio: ProcessStdio;
  /** Where the runtime writes the pid of the process. */
  readonly pidFile: string;
  /** `--no-pivot`: chroot instead, for a rootfs in memory. */
  readonly noPivotRoot?: boolean;
  /** `--no-new-keyring`: the session keyring of whoever starts the runtime. */
  readonly noNewKeyring?: boolean;
}

/** Options of {@link Runc.exec}. */
export interface ExecOptions {
  /** The process's standard streams. */
  readonly stdio: ProcessStdio;
  /** Where the runtime writes the pid of the process. */
  readonly pidFile: string;
  /** The file with the OCI Process as JSON. */
  readonly process: string;
}

/** What checkpoint and restore have in common: how CRIU is to do it, criu(8). */
export interface CriuOptions {
  /** The folder of the image files. */
  readonly imagePath: string;
  /** The folder that CRIU works in and leaves its log in; the runtime's choice unless given. */
  readonly workPath?: string;
  /** `--tcp-established`: with connections that are open. */
  readonly tcpEstablished?: boolean;
  /** `--ext-unix-sk`: with Unix sockets whose other end is outside. */
  readonly externalUnixSockets?: boolean;
  /** Whether the processes may share a terminal, or a session, with others (`--shell-job`). */
  readonly shellJob?: boolean;
  /** `--file-locks`: with locks on files. */
  readonly fileLocks?: boolean;
  /** `soft`, `full` or `strict`; CRIU's default when empty. */
  readonly manageCgroupsMode?: string;
  /** Types of namespaces that are restored without what was set in them. */
  readonly emptyNamespaces?: readonly string[];
}

/** Options of {@link Runc.checkpoint}. */
export interface CheckpointOptions extends CriuOptions {
  /** Whether the container runs on afterwards. */
  readonly leaveRunning: boolean;
}

/** Options of {@link Runc.restore}. */
export interface RestoreOptions extends CriuOptions, Pick<CreateOptions, "stdio" | "pidFile" | "noPivotRoot"> {}

const NEWLINE = 0x0a;

/** Commands that change nothing. */
const READING: readonly string[] = ["ps", "state"];
/** How long these may take before they are ended, in ms: nothing is lost by that. */
const READING_TIMEOUT_MS = 10_000;

/**
 * An OCI runtime, by its command line. Each method is one command, and rejects with {@link RuntimeError}.
 *
 * ```ts
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const commands: string[] = [];
 * const runc = new Runc({
 *   command: "runc",
 *   root: "/run/runc",
 *   cwd: "/proc",
 *   run: ({ args }) => {
 *     commands.push(args.join(" "));
 *     return Promise.resolve({ status: args.includes("pause") ? 1 : 0 });
 *   },
 * });
 * await runc.kill("c1", 9, true);
 * assertEquals(commands, ["runc --root /run/runc --log /proc/log.json --log-format json kill --all c1 9"]);
 * await assertRejects(() => runc.pause("c1"), RuntimeError, "runc pause ended with status 1 and said nothing");
 * ```
 */
export class Runc {
  readonly #options: RuncOptions;

  /** Runs nothing. */
  constructor(options: RuncOptions) {
    this.#options = options;
  }

  /** The runtime's program. */
  get program(): string {
    return this.#options.command;
  }

  /** `create`: makes the container, its process ready to be started. */
  async create(id: string, bundle: string, options: CreateOptions): Promise<void> {
    const args = ["create", "--bundle", bundle, "--pid-file", options.pidFile];
    if (options.noPivotRoot) args.push("--no-pivot");
    if (options.noNewKeyring) args.push("--no-new-keyring");
    await this.#withStdio(args, options.stdio, options.pidFile, id);
  }

  /** `start`: has the process of a created container run. */
  async start(id: string): Promise<void> {
    await this.#command(["start", id]);
  }

  /** `exec --detach`: starts another process in the container. */
  async exec(id: string, options: ExecOptions): Promise<void> {
    const args = ["exec", "--process", options.process, "--detach", "--pid-file", options.pidFile];
    await this.#withStdio(args, options.stdio, options.pidFile, id);
  }

  /** `kill`: sends a signal to the container's first process, or with `all` to every one. */
  async kill(id: string, signal: number, all: boolean): Promise<void> {
    await this.#command(["kill", ...(all ? ["--all"] : []), id, `${signal}`]);
  }

  /** `delete`: removes what the runtime holds of a stopped container, or with `force` of a running one. */
  async delete(id: string, force = false): Promise<void> {
    await this.#command(["delete", ...(force ? ["--force"] : []), id]);
  }

  /** `pause`: freezes every process. */
  async pause(id: string): Promise<void> {
    await this.#command(["pause", id]);
  }

  /** `resume`: has paused processes go on. */
  async resume(id: string): Promise<void> {
    await this.#command(["resume", id]);
  }

  /** `update`: changes the resources of a container. */
  async update(id: string, resources: Readonly<Record<string, unknown>>): Promise<void> {
    using input = new MemoryFile("resources");
    input.write(new TextEncoder().encode(JSON.stringify(resources)));
    await this.#command(["update", "--resources", "-", id], input.fd);
  }

  /** `checkpoint`: writes down all that the container's processes are. */
  async checkpoint(id: string, options: CheckpointOptions): Promise<void> {
    await this.#command(["checkpoint", ...criuArgs(options), ...(options.leaveRunning ? ["--leave-running"] : []), id]);
  }

  /** `restore --detach`: makes the container, its processes running on from where a checkpoint was made of them. */
  async restore(id: string, bundle: string, options: RestoreOptions): Promise<void> {
    const args = ["restore", ...criuArgs(options), "--detach", "--bundle", bundle, "--pid-file", options.pidFile];
    if (options.noPivotRoot) args.push("--no-pivot");
    await this.#withStdio(args, options.stdio, options.pidFile, id);
  }

  /**
   * `state`: what the runtime knows of a container: `status` and `pid` among other things.
   *
   * @throws {RuntimeError} when it is not JSON, either
   */
  async state(id: string): Promise<Readonly<Record<string, unknown>>> {
    const output = await this.#command(["state", id]);
    try {
      return JSON.parse(output);
    } catch (cause) {
      throw new RuntimeError(`state of container ${id} is no JSON: ${messageOf(cause)}`, { cause });
    }
  }

  /** `ps`: the pids of every process in the container's cgroup. */
  async ps(id: string): Promise<number[]> {
    const output = await this.#command(["ps", "--format", "json", id]);
    let pids: unknown;
    try {
      pids = JSON.parse(output);
    } catch (cause) {
      throw new RuntimeError(`ps of container ${id} printed no JSON: ${messageOf(cause)}`, { cause });
    }
    // No process at all is printed as null.
    if (pids === null) return [];
    if (Array.isArray(pids) && pids.every((each) => Number.isSafeInteger(each) && each > 0)) return pids;
    throw new RuntimeError(`ps of container ${id} printed something else than pids`);
  }

  async #withStdio(args: string[], stdio: ProcessStdio, pidFile: string, id: string): Promise<void> {
    try {
      if ("consoleSocket" in stdio) {
        await this.#command([...args, "--console-socket", stdio.consoleSocket, id]);
        return;
      }
      const { status, logged } = await this.#run([...args, id], stdio.descriptors);
      if (status !== 0) throw this.#failure(args[0]!, status, logged, "");
    } catch (error) {
      removeUnfinished(pidFile);
      throw error;
    }
  }

  /** Runs a command whose output is its own; gives what it printed on standard output. */
  async #command(args: string[], input: number | null = null): Promise<string> {
    using output = new MemoryFile("runc-output");
    using errors = new MemoryFile("runc-errors");
    const { status, logged } = await this.#run(args, [input, output.fd, errors.fd]);
    if (status !== 0) {
      throw this.#failure(args[0]!, status, logged, errors.read());
    }
    return output.read();
  }

  async #run(args: string[], descriptors: ProcessDescriptors): Promise<{ status: number; logged: number }> {
    const { command, root, criu, systemdCgroup, cwd, run } = this.#options;
    const size = this.#logSize();
    const before = size ?? 0;
    const pidFile = args.indexOf("--pid-file");
    // Where it has been removed, the container is still to be ended: what the runtime says goes to its standard error then.
    const isThere = size !== undefined || isDirectory(cwd);
    try {
      const { status, logged = before } = await run({
        ...READING.includes(args[0]!) ? { key: undefined, timeoutMs: READING_TIMEOUT_MS } : { key: args.join(" ") },
        scope: args[0] === "exec" ? args[pidFile + 1]! : "",
        logged: before,
        args: [
          command,
          "--root",
          root,
          ...(isThere ? ["--log", this.#log, "--log-format", "json"] : []),
          ...(criu ? ["--criu", criu] : []),
          ...(systemdCgroup ? ["--systemd-cgroup"] : []),
          ...args,
        ],
        cwd: isThere ? cwd : "/",
        descriptors,
      });
      return { status, logged };
    } catch (cause) {
      throw new RuntimeError(this.#startFailure(cause), { cause });
    }
  }

  /** Why the runtime could not be started. */
  #startFailure(cause: unknown): string {
    const { command } = this.#options;
    const missing = cause instanceof SystemError && cause.call === START_CALL && cause.errno === Errno.ENOENT;
    if (!missing || command.includes("/")) return messageOf(cause);
    // The words that a runtime has for the same failure of a container's command, and that are looked for.
    return `exec: ${JSON.stringify(command)}: executable file not found in $PATH`;
  }

  get #log(): string {
    return `${this.#options.cwd}/log.json`;
  }

  /** How much of the log there is already, in bytes: what a command says comes after it. Undefined when there is none. */
  #logSize(): number | undefined {
    try {
      return stat(this.#log)?.size;
    } catch {
      return undefined; // It cannot be read either.
    }
  }

  /** Why a command failed: its last error in the log, or else what it printed, or else its status. */
  #failure(command: string, status: number, logged: number, printed: string): RuntimeError {
    const logs = this.#lastError(logged);
    const said = logs ?? printed.trim();
    const killed = status > 128;
    if (said === "") {
      const nothing = `${this.#options.command} ${command} ended with status ${status} and said nothing`;
      const reason = this.#logTrouble();
      return new RuntimeError(reason === undefined ? nothing : `${nothing}, for its log has no room: ${reason}`, {
        killed,
      });
    }
    // crun 1.8 says which file or folder of its state it has not found.
    const noContainer = said.includes("does not exist") ||
      said.includes(`${this.#options.root}/`) && said.endsWith(": No such file or directory");
    return new RuntimeError(said, { killed, noContainer });
  }

  /** Why nothing can be written to the log, if nothing can. */
  #logTrouble(): string | undefined {
    try {
      const fd = fds.open(this.#log, fds.O.WRONLY | fds.O.APPEND | fds.O.CREAT | fds.O.NOFOLLOW, fds.OWNER_ONLY);
      try {
        // An empty line: of those that are none of the runtime's, nobody takes note.
        check(fds.write(fd, new Uint8Array([NEWLINE])), "write to", this.#log);
      } finally {
        fds.close(fd);
      }
      return undefined;
    } catch (error) {
      return messageOf(error);
    }
  }

  #lastError(since: number): string | undefined {
    let lines: string[];
    try {
      const bytes = Deno.readFileSync(this.#log);
      lines = new TextDecoder().decode(bytes.subarray(since)).split("\n");
    } catch {
      return undefined;
    }
    for (const line of lines.reverse()) {
      try {
        const { level, msg } = JSON.parse(line);
        if (level === "error" && typeof msg === "string") return msg.trim();
      } catch {
        // a line that was cut off, or none of the runtime's
      }
    }
    return undefined;
  }
}

/** Removes what runc writes a pid file to before it has its name: as long as it is there, no other can be written. */
function removeUnfinished(pidFile: string): void {
  const slash = pidFile.lastIndexOf("/") + 1;
  try {
    Deno.removeSync(`${pidFile.slice(0, slash)}.${pidFile.slice(slash)}`);
  } catch {
    // As a rule it has its name, or has not been begun.
  }
}

function isDirectory(path: string): boolean {
  try {
    return stat(path)?.isDirectory === true;
  } catch {
    return false;
  }
}

function criuArgs(options: CriuOptions): string[] {
  const args = ["--image-path", options.imagePath];
  if (options.workPath) args.push("--work-path", options.workPath);
  if (options.tcpEstablished) args.push("--tcp-established");
  if (options.externalUnixSockets) args.push("--ext-unix-sk");
  if (options.shellJob) args.push("--shell-job");
  if (options.fileLocks) args.push("--file-locks");
  if (options.manageCgroupsMode) args.push("--manage-cgroups-mode", options.manageCgroupsMode);
  for (const each of options.emptyNamespaces ?? []) args.push("--empty-ns", each);
  return args;
}
