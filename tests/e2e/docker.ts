/**
 * Docker 20.10 of Debian 12, the last that has containerd's runtime v1, with a containerd, folders, sockets and names of its
 * own. It changes nothing of the machine's network, and has nothing to do with a Docker that the machine has.
 */

import { hasCgroups } from "./cgroups.ts";
import { must, type Result, run, type Running, start } from "./command.ts";
import { CTR } from "./env.ts";
import { withEvidence } from "./evidence.ts";
import { Containerd, lastOf, RUNTIME } from "./harness.ts";
import * as leftovers from "./leftovers.ts";
import { mountsBelow } from "./proc.ts";
import { makeRootfs } from "./rootfs.ts";
import { Program } from "./talk.ts";
import { PATIENCE_MS, until } from "./until.ts";

// With their folders: a Docker of another make may come first in PATH.
const DOCKER = "/usr/bin/docker";
const DOCKERD = "/usr/sbin/dockerd";

/** How the version must begin: from 23.0 on there is no runtime v1. */
const DOCKER_VERSION = "20.10.";

/** Why Docker cannot be run on this machine; empty where it can, and must. */
const NO_DOCKER = !hasCgroups(1)
  ? "Docker has runtime v1 only where cgroups are of version 1"
  // As setup.sh does.
  : !/^VERSION_CODENAME=bookworm$/m.test(Deno.readTextFileSync("/etc/os-release"))
  ? "only Debian 12 has a Docker that has runtime v1"
  : "";

/** What all containers run. */
const IMAGE = "busybox:test";

/** Where dockerd makes the folders of its plugins, wherever everything else of it is. */
const PLUGIN_FOLDERS = ["/run/docker/plugins", "/run/docker"];

/** How long it may take to say what has been seen of a failure, in ms: Docker may hang. */
const EVIDENCE_MS = 5000;

/** Options of {@linkcode Docker.run}. */
export interface DockerRunOptions {
  /** Flags of `docker run` besides those that each container here has. */
  readonly flags?: readonly string[];
  readonly stdin?: string | Uint8Array;
  /** How long it may take, in ms, before it counts as one that hangs. */
  readonly patienceMs?: number;
}

/** What `docker inspect` says of a container's state. */
export interface DockerState {
  readonly Status: string;
  readonly Running: boolean;
  readonly Paused: boolean;
  readonly Restarting: boolean;
  /** Of its first process; 0 when it does not run. */
  readonly Pid: number;
  readonly ExitCode: number;
}

/** The Docker that the tests of a file share: until one of them fails. */
let shared: Docker | undefined;

/**
 * Registers a test with Docker. All tests of a file share one Docker, because starting it takes longer than most of them. When
 * a test is over, nothing of its containers may be left.
 */
export function dockerTest(name: string, test: (docker: Docker) => Promise<void>): void {
  if (NO_DOCKER !== "") {
    Deno.test({ name: `${name} [${NO_DOCKER}]`, ignore: true, fn: () => {} });
    return;
  }
  Deno.test(name, () => withDocker(test));
}

async function withDocker(test: (docker: Docker) => Promise<void>): Promise<void> {
  const isNew = shared === undefined;
  const docker = shared ??= new Docker();
  try {
    if (isNew) await docker.start();
    await test(docker);
    await docker.expectNothingLeft();
  } catch (error) {
    // What this test has left, or broken, is not the next one's.
    shared = undefined;
    const evidence = await docker.evidence();
    await docker.remove();
    throw withEvidence(error, `Docker of ${docker.folder}`, evidence);
  }
}

/** Ends the Docker that tests have shared: for `Deno.test.afterAll`. */
export async function endDocker(): Promise<void> {
  await shared?.remove();
  shared = undefined;
}

/** A dockerd, and the containerd that it uses. */
export class Docker {
  readonly #containerd = new Containerd();
  readonly #madeFolders = PLUGIN_FOLDERS.filter((each) => !isThere(each));
  #daemon: Deno.ChildProcess | undefined;
  /** `ctr events`: the order in which dockerd hears of its containers. */
  #events: Program | undefined;
  #told = "";
  #containers = 0;
  /** The containers whose identifiers {@linkcode #containerd} has not been told. */
  readonly #untold = new Set<string>();

  /** Everything of both is in here. */
  get folder(): string {
    return this.#containerd.folder;
  }

  get #address(): string {
    return `unix://${this.folder}/d.sock`;
  }

  get #dataRoot(): string {
    return `${this.folder}/data`;
  }

  /** Sockets are in it: its name is short. */
  get #execRoot(): string {
    return `${this.folder}/x`;
  }

  get #logFile(): string {
    return `${this.folder}/dockerd.log`;
  }

  /** Starts both, and makes the image. */
  async start(): Promise<void> {
    const { address, namespace, rootfs } = this.#containerd;
    await makeRootfs(rootfs);
    await this.#containerd.start();
    this.#events = new Program([CTR, "--address", address, "--namespace", namespace, "events"], (text) => {
      this.#told += text;
    });
    await this.#startDaemon();
    const layer = `${this.folder}/layer.tar`;
    await must(["tar", "-C", rootfs, "-cf", layer, "."]);
    await this.must("import", "--change", "ENV PATH=/bin", layer, IMAGE);
  }

  async #startDaemon(): Promise<void> {
    const { address, namespace } = this.#containerd;
    const config = `${this.folder}/daemon.json`;
    // Instead of the machine's; and the one path that no flag of it has.
    await Deno.writeTextFile(config, JSON.stringify({ "deprecated-key-path": `${this.folder}/key.json` }));
    const flags = [
      ...["--config-file", config, "--data-root", this.#dataRoot, "--exec-root", this.#execRoot],
      ...["--host", this.#address, "--group", "root", "--pidfile", `${this.folder}/d.pid`],
      ...["--containerd", address, "--containerd-namespace", namespace],
      ...["--containerd-plugins-namespace", `${namespace}-plugins`],
      // Where `ctr` puts the cgroups of a namespace: leftovers.ts looks there.
      ...["--cgroup-parent", `/${namespace}`],
      ...["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"],
    ];
    const daemon = new Deno.Command("sh", {
      args: ["-c", `exec '${DOCKERD}' "$@" >>'${this.#logFile}' 2>&1`, "sh", ...flags],
      stdin: "null",
    }).spawn();
    this.#daemon = daemon;
    let ended = false;
    daemon.status.then(() => ended = true);
    await until("dockerd takes connections", async () => {
      if (ended) throw new Error("dockerd has ended");
      (await Deno.connect({ transport: "unix", path: `${this.folder}/d.sock` })).close();
      return true;
    });
    // Answered when it serves.
    const version = await this.must("version", "--format", "{{.Server.Version}}");
    if (!version.startsWith(DOCKER_VERSION)) throw new Error(`dockerd is of version ${version.trim()}`);
  }

  #arguments(args: readonly string[]): string[] {
    return [DOCKER, "--config", `${this.folder}/client`, "--host", this.#address, ...args];
  }

  /** Runs docker. */
  docker(args: readonly string[], options: { readonly stdin?: string | Uint8Array } = {}): Promise<Result> {
    return run(this.#arguments(args), options);
  }

  /** Starts docker, which goes on until it is ended or done. */
  startDocker(...args: string[]): Running {
    return start(this.#arguments(args));
  }

  /** Runs docker, which must succeed, and gives what it printed. */
  must(...args: string[]): Promise<string> {
    return must(this.#arguments(args));
  }

  /** A name for a container that no other has. */
  newName(): string {
    const name = `c${++this.#containers}`;
    this.#untold.add(name);
    return name;
  }

  /** `docker run` of a container. */
  runArguments(name: string, command: readonly string[], flags: readonly string[] = []): string[] {
    const all = ["--name", name, "--cidfile", this.#idFile(name), "--runtime", RUNTIME, "--network", "none", ...flags];
    return this.#arguments(["run", ...all, IMAGE, ...command]);
  }

  #idFile(name: string): string {
    return `${this.folder}/${name}.cid`;
  }

  /** The identifier of a container, in containerd's words too; undefined as long as there is none. */
  #idOf(name: string): string | undefined {
    try {
      return Deno.readTextFileSync(this.#idFile(name)) || undefined;
    } catch {
      return undefined;
    }
  }

  /**
   * Runs a container to its end, and removes it: `docker run --rm`.
   *
   * @throws {Error} when that takes too long, with what all have said of that container
   */
  async run(command: readonly string[], options: DockerRunOptions = {}): Promise<Result> {
    const { flags = [], stdin = "", patienceMs = PATIENCE_MS } = options;
    const name = this.newName();
    const args = this.runArguments(name, command, ["--rm", ...flags]);
    try {
      const result = await run(args, { stdin, patienceMs });
      return { ...result, stderr: withoutWarnings(result.stderr) };
    } catch (error) {
      throw withEvidence(error, `${name} hangs`, await this.#evidenceOf(name));
    }
  }

  /** Starts a container that {@linkcode removeContainer} removes, and gives its name. */
  async runDetached(command: readonly string[], flags: readonly string[] = []): Promise<string> {
    const name = this.newName();
    await must(this.runArguments(name, command, ["--detach", ...flags]));
    return name;
  }

  /** Ends a container if it has not ended, and removes it. */
  async removeContainer(name: string): Promise<void> {
    await this.must("rm", "--force", name);
  }

  /** Runs another process in a container to its end: `docker exec`. */
  exec(name: string, command: readonly string[], options: DockerRunOptions = {}): Promise<Result> {
    const { flags = [], ...rest } = options;
    return run(this.#arguments(["exec", ...flags, name, ...command]), rest);
  }

  /** What `docker inspect` says of a container's state. */
  async state(name: string): Promise<DockerState> {
    return JSON.parse(await this.must("inspect", "--format", "{{json .State}}", name));
  }

  /** Waits until a container has ended and is not started again, and gives its status: `docker inspect` says so. */
  async exited(name: string): Promise<number> {
    const state = await until(`${name} has ended`, async () => {
      const state = await this.state(name);
      return state.Status === "exited" && state;
    });
    return state.ExitCode;
  }

  /** How often a container has been started again. */
  async restarts(name: string): Promise<number> {
    return Number(await this.must("inspect", "--format", "{{.RestartCount}}", name));
  }

  /** What containers have left behind. */
  async #leftovers(): Promise<string[]> {
    this.#tellIds();
    const { namespace } = this.#containerd;
    const mounts = [...mountsBelow(this.#dataRoot), ...mountsBelow(this.#execRoot)];
    return [
      ...(await this.must("ps", "--all", "--format", "container {{.Names}}: {{.Status}}")).split("\n").filter(Boolean),
      ...await this.#containerd.leftovers(),
      ...leftovers.paths(`${this.#execRoot}/runtime-runc/${namespace}`).map((each) => `runc state ${each}`),
      ...leftovers.paths(`${this.#execRoot}/containerd`).map((each) => `FIFOs ${each}`),
      // dockerd mounts its folder itself, onto itself.
      ...mounts.filter((each) => each !== this.#dataRoot).map((each) => `mount ${each}`),
    ];
  }

  /** Tells who looks for what containers leave how those are named that there have been. */
  #tellIds(): void {
    for (const name of this.#untold) {
      const id = this.#idOf(name);
      if (id === undefined) continue;
      this.#containerd.newId(id);
      this.#untold.delete(name);
    }
  }

  /** Fails when containers have left something. */
  async expectNothingLeft(): Promise<void> {
    await leftovers.expectNone(() => this.#leftovers());
  }

  /** What all have said of a container, in the order in which they did. */
  async #evidenceOf(name: string): Promise<string> {
    const id = this.#idOf(name);
    if (id === undefined) return "dockerd has made no container";
    const of = (text: string) => text.split("\n").filter((line) => line.includes(id));
    return [
      "docker ps:",
      await this.#list(["--filter", `id=${id}`]),
      "ctr events:",
      ...of(this.#told),
      "dockerd:",
      ...of(this.#log()),
      "containerd:",
      ...of(this.#containerd.log()),
    ].join("\n");
  }

  /** What was seen of all of it, for a test that fails. */
  async evidence(): Promise<string> {
    return [
      "docker ps --all:",
      await this.#list([]),
      "What ctr events has told ends:",
      lastOf(this.#told),
      "The log of dockerd ends:",
      lastOf(this.#log()),
      "The log of containerd ends:",
      lastOf(this.#containerd.log()),
    ].join("\n");
  }

  #list(flags: readonly string[]): Promise<string> {
    return run(this.#arguments(["ps", "--all", "--no-trunc", ...flags]), { patienceMs: EVIDENCE_MS })
      .then(({ stdout, stderr }) => `${stdout}${stderr}`.trimEnd(), (error) => error.message);
  }

  #log(): string {
    try {
      return Deno.readTextFileSync(this.#logFile);
    } catch {
      return "";
    }
  }

  /** Ends all that belongs to this Docker, and removes all that it has made. */
  async remove(): Promise<void> {
    try {
      this.#daemon?.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await this.#daemon?.status;
    await this.#events?.kill();
    this.#tellIds();
    // It ends the containers too, and undoes what dockerd has mounted: all that is below its folder.
    await this.#containerd.remove();
    // A Docker of the machine's own may have come meanwhile.
    for (const each of this.#madeFolders) await Deno.remove(each).catch(() => {});
  }
}

/** dockerd says of each container that runtime v1 will go. */
function withoutWarnings(stderr: string): string {
  return stderr.split("\n").filter((line) => !line.startsWith("WARNING: ")).join("\n");
}

function isThere(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
