/**
 * A host: one process that is the shim of many containers. Each has its holder, which containerd knows and whose death is
 * that of its shim alone; what a host shares among them is the program, its memory and its thread.
 *
 * The first process that finds no host starts one (lib/standalone/entry.c), with the socket, which listens already, and the
 * lock, which this process holds as long as it lives.
 *
 * Nothing in this folder touches a container but through its Shim, or has one wait for another.
 */

import * as fds from "../../ffi/fd.ts";
import { openNull } from "../../ffi/null.ts";
import { Event } from "../../ffi/poll.ts";
import { Signal } from "../../ffi/signals.ts";
import { accept, isListening, isOwnUser, peerCredentials } from "../../ffi/socket.ts";
import { parse } from "../cli.ts";
import { sleep } from "../async.ts";
import { bounded, type Report, systemLog } from "../log.ts";
import type { Fields } from "../logrus.ts";
import { openPlace, type Place } from "../place.ts";
import { type Identity, Shim } from "../shim.ts";
import { blockEverywhere, receive } from "../signals.ts";
import { isSparedLike, standing } from "./fit.ts";
import { Holder, type HolderOptions } from "./holder.ts";
import { KeptByHolder } from "./kept.ts";
import { removeOrphan } from "./orphans.ts";
import { RECORD_VERSION } from "../record/record.ts";
import { canRead, hasBeenTakenOver } from "../record/recorder.ts";
import { type AboutHost, type FromHolder, type Join, MAX_MESSAGE, ownBuild } from "./protocol.ts";

/** What a host is started with: lib/standalone/entry.c. */
const SOCKET = 3;
const LOCK = 4;
/** The exit status of a holder whose socket cannot be served. */
const NOT_SERVED = 1;
/** How long a host without a container waits for the next one, in ms; where nobody would reap it, it waits for ever. */
const LINGER_MS = 30_000;
/** How long a holder may take to come back that finds no host of another build, in ms: lib/standalone/entry.c. */
const BACK_MS = 6000;
/** How often it is looked whether all have found one, in ms. */
const LOOK_MS = 20;
/** How many descriptors a container may need, with some execs, and this process besides. */
const DESCRIPTORS_EACH = 64;
const DESCRIPTORS_OWN = 64;

/** A container here. */
interface Member {
  readonly holder: Holder;
  readonly kept: KeptByHolder;
  readonly join: Join;
  readonly identity: Identity;
  /** The one that containerd's calls come by, until it is served. */
  listener: number | undefined;
  /** Not there until all has been brought that the container's last host has had. */
  shim: Shim | undefined;
  /** Whether it can be told of what happens. */
  isReady: boolean;
  /** What it could not be told of yet. */
  readonly signals: number[];
}

/**
 * Serves containers until there has been none for a while.
 *
 * @param args the path of the socket
 * @returns the exit code
 * @throws {Error} when it was not started by an entry of ours
 */
export async function run([path]: readonly string[]): Promise<number> {
  if (path === undefined || !isListening(SOCKET)) throw new Error("a host is started by a shim that has found none");
  const report = systemLog();
  try {
    return await serve(path, report);
  } catch (error) {
    // Nobody sees what it prints.
    await report("error", "the host cannot start", { error }, {});
    throw error;
  }
}

async function serve(path: string, report: Report): Promise<number> {
  for (const fd of [SOCKET, LOCK]) fds.setCloexec(fd);
  const unblocked = await blockEverywhere();
  if (unblocked.length > 0) throw new Error("a host needs an entry that has blocked its signals");
  let host: Host | undefined = undefined;
  const place = await openPlace(report, (message, fields) => host?.tellAll(message, fields));
  host = new Host(place, path);
  await host.ended;
  return 0;
}

class Host {
  readonly #place: Place;
  readonly #path: string;
  readonly #members = new Set<Member>();
  readonly #options: HolderOptions;
  readonly #standing = standing("self");
  readonly #ended = Promise.withResolvers<void>();
  readonly #room = roomForContainers();
  readonly #build = ownBuild();
  readonly #report: Report;
  #linger: Disposable | undefined;
  /** The containerds that its containers have been of, as their flags name them. */
  readonly #containerds = new Set<string>();
  /** Whether it has been told to end, once its containers have. */
  #leaving = false;
  /** Whether its containers are going to a host of another build. */
  #isMoving = false;

  constructor(place: Place, path: string) {
    this.#place = { ...place, host: () => ({ pid: Deno.pid, path, containers: this.#members.size }) };
    this.#path = path;
    this.#report = bounded(place.report);
    const { poller } = place;
    this.#options = { poller, devNull: openNull(), buffer: new Uint8Array(MAX_MESSAGE) };
    receive(poller, (signal) => this.#onSignal(signal));
    poller.add(SOCKET, Event.IN, () => this.#accept());
    this.#noteSize();
    this.#wait();
  }

  /** Settled when it has no more containers, and will have none. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Has every container's log say something that is nobody's there in particular, and that of the system what it is `about`. */
  tellAll(message: string, fields: Fields, about: Fields = {}): void {
    for (const { shim } of this.#members) shim?.tell(message, fields);
    this.#report("error", message, fields, about);
  }

  #accept(): void {
    for (let socket = accept(SOCKET); socket !== undefined; socket = accept(SOCKET)) this.#greet(socket);
  }

  /** Listens to a process that wants to become a holder here. */
  #greet(socket: number): void {
    const peer = peerCredentials(socket);
    if (!isOwnUser(peer)) return fds.close(socket);
    let member: Member | undefined;
    const holder: Holder = new Holder(socket, peer.pid, this.#options, (message, descriptors) => {
      if (message === undefined) return this.#gone(member);
      if (member === undefined && message.kind === "upgrade") {
        return void this.#upgrade(holder, message, descriptors[0]);
      }
      if (member !== undefined) return this.#told(member, message, descriptors);
      if (message.kind === "join" && descriptors.length === 1) {
        member = this.#join(holder, peer.pid, message, descriptors[0]!);
        if (member !== undefined) return;
      }
      descriptors.forEach(fds.close);
    });
  }

  /** @returns undefined when it does not become one; the descriptor is still the caller's then */
  #join(holder: Holder, pid: number, join: Join, listener: number): Member | undefined {
    const refuse = (how: "refused" | "full") => void holder.tell(how);
    // The next host would not have room for it either.
    if (this.#room < 1) return refuse("refused");
    // One that comes back is not kept out.
    const isClosed = this.#leaving || this.#isMoving && join.hosts === 0;
    if (isClosed || this.#members.size >= Math.min(join.group, this.#room)) return refuse("full");
    if (join.build !== this.#build || !isListening(listener)) return refuse("refused");
    // One that comes back stands as it did when it first came to a host of its kind.
    const isLikeThis = join.hosts > 0 || standing(pid) === this.#standing;
    // The next host may be like it, or be started by it.
    if (!(isLikeThis && isSparedLike(pid)) && join.hosts === 0) return refuse("full");
    if (join.isMoved && !canRead(join.cwd)) return refuse("refused");
    let member: Member;
    try {
      const options = parse(join.args);
      // Help, the version, and a socket that is not inherited, are for a process by itself.
      if (options === undefined || options.version || options.socket !== "") return refuse("refused");
      this.#containerds.add(options["containerd-binary"]);
      const { cwd, entered } = join;
      const kept = new KeptByHolder(holder);
      const identity = { options, pid, cwd, entered, parent: holder, keeper: kept, build: join.build };
      member = { holder, kept, join, identity, listener, shim: undefined, isReady: false, signals: [] };
      if (join.hosts === 0) this.#start(member);
    } catch {
      // It finds that out once more, by itself, and says it on its own standard error.
      return refuse("refused");
    }
    holder.path = join.variable("PATH");
    if (join.isMoved) holder.noteMoved();
    this.#members.add(member);
    this.#linger?.[Symbol.dispose]();
    this.#linger = undefined;
    this.#noteSize();
    holder.tell("accepted");
    return member;
  }

  /** Says who this is; and hands over to another build, if that is wanted. */
  async #upgrade(
    asker: Holder,
    { build, goes }: Extract<FromHolder, { kind: "upgrade" }>,
    executable: number | undefined,
  ): Promise<void> {
    let [moved, stayed] = [0, this.#members.size];
    const containers = this.#members.size;
    if (goes && executable !== undefined && !this.#isMoving) {
      this.#isMoving = true;
      const members = [...this.#members];
      await Promise.allSettled(members.map((member) => this.#move(member, build, executable)));
      // Those that find no host there come back.
      const isBack = (member: Member) => [...this.#members].some((each) => each !== member && isSame(each, member));
      const hasMoved = (member: Member) => !isBack(member) && hasBeenTakenOver(member.identity.cwd, build);
      for (let ms = 0; ms < BACK_MS; ms += LOOK_MS) {
        if (members.every((each) => hasMoved(each) || isBack(each))) break;
        await sleep(this.#place.timer, LOOK_MS);
      }
      moved = members.filter(hasMoved).length;
      stayed = members.length - moved;
      this.#isMoving = false;
      if (stayed === 0) this.#leaving = true;
    }
    if (executable !== undefined) fds.close(executable);
    const about: AboutHost = {
      pid: Deno.pid,
      build: `${this.#build}`,
      recordVersion: RECORD_VERSION,
      ...{ containers, moved, stayed },
    };
    asker.say(new TextEncoder().encode(JSON.stringify(about)));
    if (this.#leaving && this.#members.size === 0) this.#end();
  }

  /** Sends a holder to a host of another build. */
  async #move({ holder, shim, isReady }: Member, build: bigint, executable: number): Promise<void> {
    if (shim === undefined || !isReady) return;
    try {
      await shim.leave(() => holder.mute());
    } finally {
      holder.move(build, executable);
    }
  }

  /** @throws {Error} when the container's shim cannot be what it was started as */
  #start(member: Member): Shim {
    const { identity, holder } = member;
    const shim = new Shim(this.#place, identity);
    member.shim = shim;
    holder.beforeStart = () => shim.save();
    shim.ended.then(() => holder.tell("end", 0));
    return shim;
  }

  #told(member: Member, message: FromHolder, descriptors: readonly number[]): void {
    const { holder, shim } = member;
    switch (message.kind) {
      case "held":
        return descriptors.forEach((fd, i) => member.kept.bring(message.numbers[i]!, fd));
      case "go":
        return void this.#go(member);
      case "signalled":
        member.signals.push(message.signal);
        return this.#tellSignals(member);
      case "exited":
        // It is forgotten there when it is known here.
        return shim!.exited(message, () => holder.tell("done", message.pid));
      default:
        throw new Error(`a holder has said ${message.kind} when it is not to`);
    }
  }

  #tellSignals({ isReady, shim, holder, signals }: Member): void {
    if (!isReady) return;
    for (const signal of signals.splice(0)) {
      shim!.onSignal(signal);
      holder.tell("done", -signal);
    }
  }

  async #go(member: Member): Promise<void> {
    const { holder, join, listener } = member;
    if (listener === undefined) return;
    member.listener = undefined;
    try {
      const listen = () => holder.tell("done", 0);
      if (member.shim === undefined) {
        await this.#start(member).takeOver(join, listen);
      } else {
        member.shim.keepHost();
        listen();
      }
      member.shim!.serve(listener);
      member.isReady = true;
      this.#tellSignals(member);
    } catch (error) {
      // It is too late to go alone.
      member.shim?.log.error("the host cannot serve this container: its shim ends", { error });
      holder.tell("end", NOT_SERVED);
    }
  }

  /** A holder has ended, or was not to be one. */
  #gone(member: Member | undefined): void {
    if (member === undefined) return;
    const orphan = member.shim?.unstarted;
    member.shim?.abandon();
    if (orphan !== undefined) {
      removeOrphan(this.#place, orphan).catch((error) => {
        const { id, bundle: path } = orphan;
        this.tellAll("a container is left whose shim has died", { container: id, error }, { id, path });
      });
    }
    member.kept.abandon();
    if (member.listener !== undefined) fds.close(member.listener);
    this.#members.delete(member);
    this.#noteSize();
    this.#place.noteWork();
    if (this.#members.size > 0 || this.#isMoving) return;
    if (this.#leaving) this.#end();
    else this.#wait();
  }

  /** Tells those who look for a host that it has started, and whether it is full. */
  #noteSize(): void {
    fds.writeAt(LOCK, new Uint8Array(new Uint32Array([this.#members.size]).buffer), 0);
  }

  #wait(): void {
    this.#linger = this.#place.timer(LINGER_MS, () => this.#isReaped() ? this.#end() : this.#wait());
  }

  /**
   * Whether this process is reaped when it ends: a containerd that is process 1 of a pid namespace reaps nobody but those whom
   * it has started itself.
   */
  #isReaped(): boolean {
    try {
      const parent = Deno.readLinkSync(`/proc/${Deno.ppid}/exe`);
      return !this.#containerds.has(parent.replace(/ \(deleted\)$/, ""));
    } catch {
      return true; // Its parent has gone, or is no program.
    }
  }

  #end(): void {
    // Who comes now finds nothing, and tries again until this process has ended, and its lock with it.
    remove(this.#path);
    remove(`${this.#path}.lock`);
    remove(`${this.#path}.dump`);
    this.#ended.resolve();
  }

  #onSignal(signal: number): void {
    switch (signal) {
      case Signal.SIGTERM:
      case Signal.SIGINT:
        this.#leaving = true;
        if (this.#members.size === 0) this.#end();
        return;
      case Signal.SIGUSR1:
        this.#dump();
    }
  }

  async #dump(): Promise<void> {
    const { describe, describeProcess, linesOf, linesOfProcess, writeDump } = await import("../dump.ts");
    const place = { host: undefined, process: undefined };
    const lines = [...this.#members].flatMap(({ shim }) =>
      shim === undefined ? [] : linesOf(describe(shim.subjects, place))
    );
    const text = [...lines, ...linesOfProcess(describeProcess(this.#place.poller))].join("\n") + "\n";
    writeDump(`${this.#path}.dump`, text);
  }
}

function isSame(a: Member, b: Member): boolean {
  return a.identity.pid === b.identity.pid;
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // There is none.
  }
}

/** How many containers there are descriptors for: Deno has raised the soft limit to the hard one. */
function roomForContainers(): number {
  const limit = /^Max open files\s+(\d+)/m.exec(Deno.readTextFileSync("/proc/self/limits"))?.[1];
  return limit === undefined ? Infinity : Math.floor((Number(limit) - DESCRIPTORS_OWN) / DESCRIPTORS_EACH);
}
