/** A shim without containerd: the tests speak ttrpc to it as containerd would, and see each answer. */

import { assertEquals, assertRejects } from "@std/assert";
import * as fd from "../../ffi/fd.ts";
import { containerd } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { type Code, StatusError } from "../../lib/ttrpc/status.ts";
import { type CgroupVersion, showCgroups2, thaw, withCgroups } from "./cgroups.ts";
import { must } from "./command.ts";
import { type Form, IS_OURS, newPlace, SHIM } from "./env.ts";
import { withEvidence } from "./evidence.ts";
import { EventSink, type EventsMode } from "./events.ts";
import { Reader } from "./fifo.ts";
import * as leftovers from "./leftovers.ts";
import { descendants, isAlive, mountsBelow, type Process, processes } from "./proc.ts";
import { makeRootfs } from "./rootfs.ts";
import { makeSpec, type SpecOptions } from "./spec.ts";
import { PATIENCE_MS, until, within } from "./until.ts";

import v1 = containerd.runtime.linux.shim.v1;

/** A container's states. */
export const Status = containerd.v1.types.Status;

/** The service that a shim serves. */
export const SERVICE = "containerd.runtime.linux.shim.v1.Shim";

/**
 * Starts a program as containerd starts a shim: it listens on a socket (mode 0600), which the program gets as descriptor
 * 3, and the program leads a process group. Deno can pass no descriptor; perl is in every Debian.
 */
const LISTEN_AND_EXEC = `
  use Socket;
  my ($path, $log) = splice @ARGV, 0, 2;
  open STDOUT, '>>', $log and open STDERR, '>&', STDOUT or die "$log: $!";
  $^F = 3; # the highest descriptor that is not close-on-exec
  if ($path) {
    umask 0177;
    socket my $socket, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
    fileno $socket == 3 or die "the socket is descriptor " . fileno $socket;
    bind $socket, pack_sockaddr_un($path) and listen $socket, 128 or die "$path: $!";
    umask 0022;
    setpgrp and exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!";
  }
  setpgrp and exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!";
`;

/** Options of {@linkcode withShim}. */
export interface ShimOptions extends SpecOptions {
  /** What is started; {@linkcode SHIM} unless given. */
  readonly shim?: Form;
  /** How events are taken: as the shim under test publishes them, unless given. */
  readonly events?: EventsMode;
  /** Flags besides those that containerd gives; FOLDER in them stands for the test's folder. */
  readonly flags?: readonly string[];
  /** The -socket flag, instead of the inherited socket; FOLDER in it stands for the test's folder. */
  readonly socket?: string;
  /** The OCI runtime that the container is created with; runc unless given. */
  readonly runtime?: string;
  /** The version of cgroups that the shim finds alone; as the machine has them, unless given. */
  readonly cgroups?: CgroupVersion;
  /** What is put before the shim's command line, and becomes it. */
  readonly prefix?: readonly string[];
  /** Whether the test ends the shim itself. */
  readonly endsItself?: boolean;
  /** Where the bundle really is, or the shim's other folder: what there is otherwise leads there. */
  readonly elsewhere?: { readonly bundle?: string; readonly workdir?: string };
  /** Whether the bundle's folder has the name of the container, as it has where containerd makes it. */
  readonly isNamed?: boolean;
}

/**
 * Runs `test` with a shim of its own, and a bundle for one container. When the test is over, the shim is told to end
 * (unless it has ended), and must leave nothing; whatever is left, also by a test that failed, is removed.
 */
export async function withShim(options: ShimOptions, test: (shim: Shim) => Promise<void>): Promise<void> {
  const shim = new Shim(options);
  try {
    await shim.start();
    await test(shim);
    if (!options.endsItself) {
      // The Go shim, told to end, leaves a container that has not ended by itself.
      if (!IS_OURS) await shim.endContainer();
      const status = await shim.end("SIGTERM");
      if (IS_OURS) assertEquals(status, 0, "the shim's exit status");
    }
    await shim.expectNothingLeft();
  } catch (error) {
    withEvidence(error, `The output of ${shim.folder}'s shim`, shim.output());
    throw withEvidence(error, `What nobody has read of its log`, shim.unreadLog());
  } finally {
    await shim.remove();
  }
}

/** What a shim answers that its pid is, to whoever asks. */
export async function askPid(client: Client): Promise<number> {
  const answer = await client.call(SERVICE, "ShimInfo", new Uint8Array(), { timeoutMs: PATIENCE_MS });
  return v1.ShimInfoResponse.decode(answer).shimPid;
}

/** A message's reader, as the generated code has it. */
interface Decoder<T> {
  decode(bytes: Uint8Array): T;
}

/** What answers nothing. */
const EMPTY: Decoder<void> = { decode: () => {} };

/** What Delete and DeleteProcess answer, and in part Wait. */
export interface Exit {
  readonly pid: number;
  readonly status: number;
  /** Seconds since the epoch. */
  readonly at: number;
}

/** What a container's process reads from and writes to: paths, or nothing. */
export interface Stdio {
  readonly stdin?: string;
  readonly stdout?: string;
  readonly stderr?: string;
  readonly terminal?: boolean;
}

type Three<T> = [T, T, T];

/** A process whose stdio the test has the other end of. */
export interface Attached {
  readonly pid: number;
  /** Their paths. */
  readonly fifos: Required<Omit<Stdio, "terminal">>;
  readonly stdout: Reader;
  readonly stderr: Reader;
}

/** A shim that only one test uses. */
export class Shim {
  /** Everything of it is in here. */
  readonly folder: string;
  readonly namespace: string;
  /** The container's. */
  readonly id = "c";
  /** The bundle's folder, which is the shim's working directory. */
  readonly bundle: string;
  readonly workdir: string;
  /** A root filesystem of busybox; the container's unless Create is given mounts. */
  readonly rootfs: string;
  /** Takes what the shim publishes. */
  readonly events: EventSink;
  readonly #options: ShimOptions;
  #process: Deno.ChildProcess | undefined;
  #ended = false;
  #firstAnswerMs = NaN;
  readonly #shown = new AsyncDisposableStack();
  #client: Client | undefined;
  readonly #fifos: string[] = [];
  readonly #readers: Reader[] = [];

  constructor(options: ShimOptions = {}) {
    this.#options = options;
    ({ folder: this.folder, namespace: this.namespace } = newPlace());
    this.bundle = `${this.folder}/${options.isNamed ? this.id : "bundle"}`;
    this.workdir = `${this.folder}/work`;
    this.rootfs = `${this.folder}/rootfs`;
    this.events = new EventSink(this.folder, options.events ?? (IS_OURS ? "ttrpc" : "command"));
  }

  /** What the shim has written to its stdout and stderr, which are not its log. */
  output(): string {
    try {
      return Deno.readTextFileSync(`${this.folder}/output`);
    } catch {
      return "";
    }
  }

  /** What is in its log, if it lives and nobody has read it: reads it. */
  unreadLog(): string {
    const buffer = new Uint8Array(1 << 20);
    let log: number | undefined;
    try {
      log = fd.open(`${this.workdir}/shim.stdout.log`, fd.O.RDONLY | fd.O.NONBLOCK);
      return new TextDecoder().decode(buffer.subarray(0, Math.max(fd.read(log, buffer), 0)));
    } catch {
      return "";
    } finally {
      if (log !== undefined) fd.close(log);
    }
  }

  /** Where it is served, as Deno's connect takes it. */
  get socketPath(): string {
    const { socket } = this.#options;
    if (socket === undefined) return `${this.folder}/s`;
    const named = socket.replace("FOLDER", this.folder);
    return named.startsWith("unix://") ? named.slice("unix://".length) : `\0${named}`;
  }

  /** The command line it is started with. */
  get arguments(): string[] {
    const { shim = SHIM, flags = [], socket } = this.#options;
    const socketFlag = socket === undefined ? [] : ["-socket", socket.replace("FOLDER", this.folder)];
    return [
      shim.path,
      ...["-namespace", this.namespace],
      ...["-workdir", this.workdir],
      ...["-address", this.events.address],
      ...["-containerd-binary", this.events.command],
      ...socketFlag,
      ...flags.map((each) => each.replace("FOLDER", this.folder)),
    ];
  }

  /** Makes a bundle, starts the shim in it, and waits until it answers. */
  async start(): Promise<void> {
    const { cgroups } = this.#options;
    if (cgroups === 2) this.#shown.use(await showCgroups2(`${this.folder}-cgroups`));
    const { elsewhere = {} } = this.#options;
    for (const name of ["bundle", "workdir"] as const) {
      if (elsewhere[name] === undefined) await Deno.mkdir(this[name], { recursive: true });
      else await Deno.symlink(elsewhere[name], this[name]);
    }
    await makeRootfs(this.rootfs);
    const spec = makeSpec(this.#options, { cgroup: `/${this.namespace}/${this.id}`, rootfs: this.rootfs });
    await Deno.writeTextFile(`${this.bundle}/config.json`, JSON.stringify(spec));
    await this.events.start();
    const inherited = this.#options.socket === undefined ? this.socketPath : "";
    const startedAt = performance.now();
    this.#process = new Deno.Command("perl", {
      args: [
        ...["-e", LISTEN_AND_EXEC, inherited, `${this.folder}/output`],
        ...this.#options.prefix ?? [],
        ...cgroups ? withCgroups(cgroups) : [],
        ...this.arguments,
      ],
      cwd: this.bundle,
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    this.#process.status.then(() => this.#ended = true);
    await this.call("ShimInfo", new Uint8Array(), EMPTY);
    this.#firstAnswerMs = performance.now() - startedAt;
  }

  /** How long it took to start, up to its first answer. */
  get firstAnswerMs(): number {
    return this.#firstAnswerMs;
  }

  /** The shim's process. */
  get pid(): number {
    return this.#process!.pid;
  }

  /** How the shim ends: its exit code, or 128 + the signal that ended it. */
  get status(): Promise<number> {
    return within("the shim's end", this.#process!.status.then(({ code }) => code));
  }

  /** Another connection to the shim than its calls have, which the caller closes. */
  async connect(): Promise<Client> {
    const connect = (path: string) => Deno.connect({ transport: "unix", path });
    const path = this.socketPath;
    // Go's net package has counted the NUL at the end of an abstract name as part of it, and no longer does.
    const other = path.startsWith("\0") && !IS_OURS ? `${path}\0` : path;
    return new Client(await until("the shim takes connections", () => connect(path).catch(() => connect(other))));
  }

  /** Calls a method by its bytes, over the one connection that containerd would have. */
  async call<T>(method: string, request: Uint8Array, response: Decoder<T>, timeoutMs = PATIENCE_MS): Promise<T> {
    this.#client ??= await this.connect();
    // As containerd does, whose Go shim wants it.
    const metadata = { "containerd-namespace-ttrpc": this.namespace };
    return response.decode(await this.#client.call(SERVICE, method, request, { timeoutMs, metadata }));
  }

  /** @returns the pid of the container's init */
  async create(stdio: Stdio = {}, more: v1.ICreateTaskRequest = {}): Promise<number> {
    const { id, bundle } = this;
    const { runtime = "runc" } = this.#options;
    const request = v1.CreateTaskRequest.encode({ id, bundle, runtime, ...stdio, ...more });
    return (await this.call("Create", request.finish(), v1.CreateTaskResponse)).pid;
  }

  /** @returns the pid of the started process */
  async startProcess(id: string = this.id): Promise<number> {
    const response = await this.call("Start", v1.StartRequest.encode({ id }).finish(), v1.StartResponse);
    assertEquals(response.id, id);
    return response.pid;
  }

  /** Creates the container and starts it. */
  async run(stdio: Stdio = {}, more: v1.ICreateTaskRequest = {}): Promise<number> {
    const pid = await this.create(stdio, more);
    await this.startProcess();
    return pid;
  }

  state(id: string = this.id): Promise<v1.StateResponse> {
    return this.call("State", v1.StateRequest.encode({ id }).finish(), v1.StateResponse);
  }

  async wait(id: string = this.id, timeoutMs = PATIENCE_MS): Promise<Omit<Exit, "pid">> {
    const request = v1.WaitRequest.encode({ id }).finish();
    const { exitStatus, exitedAt } = await this.call("Wait", request, v1.WaitResponse, timeoutMs);
    return { status: exitStatus, at: seconds(exitedAt) };
  }

  async kill(signal: number, options: { readonly id?: string; readonly all?: boolean } = {}): Promise<void> {
    const request = v1.KillRequest.encode({ id: options.id ?? this.id, signal, all: options.all ?? false });
    await this.call("Kill", request.finish(), EMPTY);
  }

  async delete(): Promise<Exit> {
    const { pid, exitStatus, exitedAt } = await this.call("Delete", new Uint8Array(), v1.DeleteResponse);
    return { pid, status: exitStatus, at: seconds(exitedAt) };
  }

  async deleteProcess(id: string): Promise<Exit> {
    const request = v1.DeleteProcessRequest.encode({ id }).finish();
    const { pid, exitStatus, exitedAt } = await this.call("DeleteProcess", request, v1.DeleteResponse);
    return { pid, status: exitStatus, at: seconds(exitedAt) };
  }

  /** Freezes all processes of the container. */
  async pause(): Promise<void> {
    await this.call("Pause", new Uint8Array(), EMPTY);
  }

  /** Has them go on. */
  async resume(): Promise<void> {
    await this.call("Resume", new Uint8Array(), EMPTY);
  }

  /** Registers another process of the container. */
  async exec(id: string, args: readonly string[], stdio: Stdio = {}): Promise<void> {
    const process = { args, cwd: "/", env: ["PATH=/bin"], user: { uid: 0, gid: 0 } };
    const value = new TextEncoder().encode(JSON.stringify(process));
    const spec = { type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process", value };
    await this.call("Exec", v1.ExecProcessRequest.encode({ id, spec, ...stdio }).finish(), EMPTY);
  }

  /** @returns the pids, each with the id of the process that the shim knows it as */
  async pids(): Promise<Map<number, string | undefined>> {
    const request = v1.ListPidsRequest.encode({ id: this.id }).finish();
    const { processes } = await this.call("ListPids", request, v1.ListPidsResponse);
    const ids = (processes ?? []).map(({ pid, info }) => {
      if (!info) return [pid, undefined] as const;
      assertEquals(info.type_url, "containerd.linux.runc.ProcessDetails");
      return [pid, containerd.linux.runc.ProcessDetails.decode(info.value as Uint8Array).execId] as const;
    });
    return new Map(ids.map(([pid, id]) => [pid as number, id as string | undefined]));
  }

  /** Sets the size of a process's terminal, in characters. */
  async resize(width: number, height: number, id: string = this.id): Promise<void> {
    await this.call("ResizePty", v1.ResizePtyRequest.encode({ id, width, height }).finish(), EMPTY);
  }

  /** Changes what the container may use: an OCI LinuxResources. */
  async update(resources: unknown): Promise<void> {
    const value = new TextEncoder().encode(JSON.stringify(resources));
    const type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
    await this.call("Update", v1.UpdateTaskRequest.encode({ resources: { type_url, value } }).finish(), EMPTY);
  }

  /** Has the container's processes written down in a folder. */
  async checkpoint(path: string, options: containerd.linux.runc.ICheckpointOptions = {}): Promise<void> {
    const value = containerd.linux.runc.CheckpointOptions.encode(options).finish();
    const any = { type_url: "containerd.linux.runc.CheckpointOptions", value };
    await this.call("Checkpoint", v1.CheckpointTaskRequest.encode({ path, options: any }).finish(), EMPTY);
  }

  async closeStdin(id: string = this.id): Promise<void> {
    await this.call("CloseIO", v1.CloseIORequest.encode({ id, stdin: true }).finish(), EMPTY);
  }

  async shimPid(): Promise<number> {
    return (await this.call("ShimInfo", new Uint8Array(), v1.ShimInfoResponse)).shimPid;
  }

  /** Makes a program of a script in the test's folder, an OCI runtime say, and gives its path. */
  async makeProgram(name: string, script: string): Promise<string> {
    const path = `${this.folder}/${name}`;
    await Deno.writeTextFile(path, script, { mode: 0o755 });
    return path;
  }

  /** Makes the FIFOs of a process in the test's folder, and gives their paths. */
  async fifos(process: string = this.id): Promise<Attached["fifos"]> {
    const [stdin, stdout, stderr] = ["0", "1", "2"].map((each) => `${this.folder}/${process}-${each}`) as Three<string>;
    await must(["mkfifo", stdin, stdout, stderr]);
    this.#fifos.push(stdin, stdout, stderr);
    return { stdin, stdout, stderr };
  }

  /** Creates the container with FIFOs, whose output the test reads. */
  async createWithFifos(more: v1.ICreateTaskRequest = {}): Promise<Attached> {
    return await this.createWithFifosOf(await this.fifos(), more);
  }

  /** The same with FIFOs that there are. */
  async createWithFifosOf(fifos: Attached["fifos"], more: v1.ICreateTaskRequest = {}): Promise<Attached> {
    return await this.#attach(fifos, this.create(fifos, more));
  }

  /** Registers another process of the container and starts it, with FIFOs, whose output the test reads. */
  async execWithFifos(id: string, args: readonly string[]): Promise<Attached> {
    const fifos = await this.fifos(id);
    return await this.#attach(fifos, this.exec(id, args, fifos).then(() => this.startProcess(id)));
  }

  /** Opens the output at the same time as the shim does: either may wait for the other. */
  async #attach(fifos: Attached["fifos"], process: Promise<number>): Promise<Attached> {
    const [pid, stdout, stderr] = await Promise.all([process, this.read(fifos.stdout), this.read(fifos.stderr)]);
    return { pid, fifos, stdout, stderr };
  }

  /** Opens an output, as soon as the shim has; it is closed when the test is over, if it is not before. */
  async read(path: string): Promise<Reader> {
    const reader = await Reader.open(path);
    this.#readers.push(reader);
    return reader;
  }

  /** The processes in the container's cgroup. */
  containerProcesses(): number[] {
    return leftovers.containerProcesses(this.namespace);
  }

  /** The shim's children. */
  children(): Process[] {
    return processes().filter(({ ppid }) => ppid === this.pid);
  }

  /** Closes the connection to the shim; the next call makes another. */
  disconnect(): void {
    this.#client?.close();
    this.#client = undefined;
  }

  /** Kills and deletes the container, if there is one. */
  async endContainer(): Promise<void> {
    try {
      await this.kill(9);
      await this.wait();
      await this.delete();
    } catch (error) {
      if (!(error instanceof StatusError)) throw error;
    }
  }

  /** Sends the shim a signal; nothing happens when it has ended. */
  signal(signal: Deno.Signal): void {
    if (isAlive(this.pid)) this.#process!.kill(signal);
  }

  /** Sends the shim a signal, and gives its exit status. */
  async end(signal: Deno.Signal): Promise<number> {
    this.#process!.kill(signal);
    return await this.status;
  }

  /** What the shim and its container have left behind. */
  leftovers(): string[] {
    return [
      ...mountsBelow(this.folder).map((each) => `mount ${each}`),
      ...leftovers.loopsBelow(this.folder).map(({ device, file }) => `${device} of ${file}`),
      ...leftovers.namespaceLeftovers(this.namespace),
    ];
  }

  /** Fails when the shim or its container has left something. */
  async expectNothingLeft(): Promise<void> {
    // What the shim has started may end after it, and is reaped by another then.
    await leftovers.expectNone(() => this.leftovers());
  }

  /** Ends all that belongs to this shim, and removes all that it has made. */
  async remove(): Promise<void> {
    this.#client?.close();
    if (this.#process) {
      const below = this.#ended ? [] : [this.pid, ...descendants(this.pid).map(({ pid }) => pid)];
      const processes = [...below, ...leftovers.containerProcesses(this.namespace)];
      for (const pid of processes) if (isAlive(pid)) Deno.kill(pid, "SIGKILL");
      await until("all processes have ended", () => {
        thaw(this.namespace);
        return !processes.some(isAlive);
      });
      await this.status;
    }
    await this.events.close();
    for (const reader of this.#readers) reader.close();
    for (const fifo of this.#fifos) {
      // Ends the wait of whoever still waits for the other end.
      (await Deno.open(fifo, { read: true, write: true }).catch(() => undefined))?.close();
    }
    await leftovers.removeNamespace(this.namespace);
    await this.#shown.disposeAsync();
    await leftovers.removeFolder(this.folder);
  }
}

/** A time on the wire, in seconds since the epoch; NaN when there is none. */
export function seconds(timestamp: { seconds?: number | null; nanos?: number | null } | null | undefined): number {
  return timestamp ? (timestamp.seconds ?? 0) + (timestamp.nanos ?? 0) / 1e9 : NaN;
}

/** Fails unless a call is answered with this code and this message. */
export async function assertStatus(call: Promise<unknown>, code: Code, message: string | RegExp): Promise<void> {
  const error = await assertRejects(() => call, StatusError);
  // Go's messages end with the kind of error, which the code says already.
  const actual = IS_OURS
    ? error.message
    : error.message.replace(/: (not found|failed precondition|invalid argument|already exists|unknown)$/, "");
  const matches = typeof message === "string" ? actual === message : message.test(actual);
  assertEquals({ code: error.code, message: matches ? message : actual }, { code, message });
}
