/** What there is to tell of a shim: what it has answered, and what /proc says. The fields are those of `inspect -json`. */

import type { Description } from "../description.ts";
import { linesOf } from "../dump.ts";
import type { Answer, OtherProcess } from "./ask.ts";
import type { Dead, Found } from "./find.ts";
import { privateMemoryOf, uptime } from "./proc.ts";

/** A process of a container. */
export interface ProcessReport {
  /** The container's for init, and the exec's for another. */
  readonly id: string;
  /** In the namespace of this process. */
  readonly pid: number;
  /** created, running, pausing, paused, stopped. */
  readonly state: string;
  /** 128 and the number of the signal, where one has ended it. */
  readonly exitStatus: number | null;
  /** When it ended. */
  readonly exitedAt: string | null;
  /** By stream; null where the shim does not tell. */
  readonly movedBytes: Readonly<Record<string, number>> | null;
}

/** The process that a shim lives in together with others. */
export interface HostReport {
  /** In the namespace of this process. */
  readonly pid: number;
  /** Where holders find it. */
  readonly socket: string;
  /** How many live in it. */
  readonly containers: number;
  /** Private memory of it that has been written to. */
  readonly memoryBytes: number | null;
}

/** A line of the log about what is wrong. */
export interface TroubleReport extends Omit<NonNullable<Description["lastError"]>, "at"> {
  /** When it was written. */
  readonly at: string;
}

/** A shim. What is not known is null; times of the day are as ISO 8601 has them. */
export interface Report {
  /** containerd's. */
  readonly namespace: string;
  /** The container's. */
  readonly id: string;
  /** The process that containerd knows as the shim. */
  readonly shimPid: number;
  /** hosted; alone; other: a Go shim, or an older build of this one; null when it has not answered. */
  readonly shape: "hosted" | "alone" | "other" | null;
  /** Where the shape is hosted. */
  readonly host: HostReport | null;
  /** The container's: none, created, running, pausing, paused, stopped; or the shim's: hanging, no answer, dead. */
  readonly state: string;
  /** The container's first process. */
  readonly initPid: number | null;
  /** That the container has ended with. */
  readonly exitStatus: number | null;
  /** When it has. */
  readonly exitedAt: string | null;
  /** How many processes there are besides the first. */
  readonly execs: number | null;
  /** Init first. */
  readonly processes: readonly ProcessReport[] | null;
  /** When the shim's process was started. */
  readonly startedAt: string | null;
  /** Since then. */
  readonly uptimeSeconds: number | null;
  /** Private memory of the shim's own process that has been written to. */
  readonly memoryBytes: number | null;
  /** Of all processes and streams. */
  readonly movedBytes: number | null;
  /** The last that there was for containerd, delivered or not. */
  readonly lastEvent: { readonly topic: string; readonly at: string } | null;
  /** How many have not been delivered. */
  readonly eventsWaiting: number | null;
  /** Calls that have not been answered, and for how long. */
  readonly callsInFlight: readonly { readonly method: string; readonly seconds: number }[] | null;
  /** The last error that the shim's log has had. */
  readonly lastError: TroubleReport | null;
  /** And the last warning. */
  readonly lastWarning: TroubleReport | null;
  /** How many hosts of it have died, and when and how the last has. */
  readonly hostDeaths: { readonly count: number; readonly at: string; readonly reason: string } | null;
  /** The bundle's folder. */
  readonly bundle: string | null;
  /** Where the shim is asked. */
  readonly socket: string | null;
  /** What SIGUSR1 would have written down. */
  readonly dump: readonly string[] | null;
  /** What an administrator should know of it. */
  readonly error: string | null;
}

const MS = 1000;

/** Tells of processes, each of which is looked at once, however many shims live in it. */
export class Reporter {
  readonly #uptime = uptime();
  readonly #now = Date.now();
  readonly #memory = new Map<number, Promise<number | undefined>>();

  /**
   * Tells of a shim that runs.
   *
   * @param isWhole whether everything has been asked for
   */
  async report(shim: Found, answer: Answer, isWhole: boolean): Promise<Report> {
    const { pid, namespace, id, bundle, addresses, isStopped, startedAt } = shim;
    const uptimeSeconds = Math.max(0, this.#uptime - startedAt);
    const stopped = isStopped ? `process ${pid} has been stopped by a signal: SIGCONT has it go on` : undefined;
    const error = "error" in answer ? answer.error : undefined;
    return {
      ...NOTHING,
      ...{ namespace, id, shimPid: pid },
      ...await this.#told(answer, isWhole),
      startedAt: iso(this.#now - uptimeSeconds * MS),
      uptimeSeconds: Math.round(uptimeSeconds * MS) / MS,
      memoryBytes: await this.#memoryOf(pid) ?? null,
      bundle: bundle ?? null,
      socket: addresses[0]?.replaceAll("\0", "@") ?? null,
      error: [error, stopped].filter((each) => each !== undefined).join("; ") || null,
    };
  }

  #memoryOf(pid: number): Promise<number | undefined> {
    const known = this.#memory.get(pid) ?? privateMemoryOf(pid);
    this.#memory.set(pid, known);
    return known;
  }

  #told(answer: Answer, isWhole: boolean): Partial<Report> | Promise<Partial<Report>> {
    switch (answer.kind) {
      case "ours":
        return this.#ours(answer.description, isWhole);
      case "other": {
        const { init, execs } = answer.other;
        const processes = init === undefined ? [] : execs === undefined ? null : [init, ...execs].map(ofOther);
        return {
          shape: "other",
          ...ofInit(init && ofOther(init)),
          execs: init === undefined ? 0 : execs?.length ?? null,
          processes,
        };
      }
      case "hanging":
        return { state: "hanging" };
      case "failed":
        return { state: "no answer" };
    }
  }

  async #ours(description: Description, isWhole: boolean): Promise<Partial<Report>> {
    const { host, eventsWaiting, lastEvent, crashes, lastError, lastWarning } = description;
    const processes = description.processes.map(({ id, pid, state, exit, moved }) => ({
      ...{ id, pid, state, ...ofExit(exit) },
      movedBytes: Object.fromEntries(moved.map(({ stream, bytes }) => [stream, bytes])),
    }));
    const [init] = processes;
    return {
      // It knows that better than its folders' names.
      ...init && { id: init.id },
      shape: host === undefined ? "alone" : "hosted",
      host: host === undefined ? null : {
        pid: host.pid,
        socket: host.path,
        containers: host.containers,
        memoryBytes: await this.#memoryOf(host.pid) ?? null,
      },
      ...ofInit(init),
      execs: Math.max(0, processes.length - 1),
      processes,
      movedBytes: description.processes.flatMap(({ moved }) => moved).reduce((sum, { bytes }) => sum + bytes, 0),
      lastEvent: lastEvent === undefined ? null : { topic: lastEvent.topic, at: iso(lastEvent.at) },
      eventsWaiting,
      callsInFlight: description.calls.map(({ method, ageMs }) => ({ method, seconds: Math.round(ageMs) / MS })),
      lastError: ofTrouble(lastError),
      lastWarning: ofTrouble(lastWarning),
      hostDeaths: { count: crashes.count, at: iso(crashes.at), reason: crashes.reason },
      dump: isWhole ? linesOf(description) : null,
    };
  }
}

/** Tells of a shim that has died. */
export function reportDead({ pid, namespace, id, bundle, address }: Dead): Report {
  return {
    ...NOTHING,
    ...{ namespace, id, shimPid: pid, bundle, socket: address.replace(/^unix:\/\//, "") },
    state: "dead",
    error: `its shim ${pid} has ended, and nobody has cleaned up ${bundle}: containerd does when it runs`,
  };
}

const NOTHING: Report = {
  namespace: "",
  id: "",
  shimPid: 0,
  shape: null,
  host: null,
  state: "none",
  initPid: null,
  exitStatus: null,
  exitedAt: null,
  execs: null,
  processes: null,
  startedAt: null,
  uptimeSeconds: null,
  memoryBytes: null,
  movedBytes: null,
  lastEvent: null,
  eventsWaiting: null,
  callsInFlight: null,
  lastError: null,
  lastWarning: null,
  hostDeaths: null,
  bundle: null,
  socket: null,
  dump: null,
  error: null,
};

function ofInit(init: ProcessReport | undefined): Partial<Report> {
  if (init === undefined) return { state: "none" };
  const { pid, state, exitStatus, exitedAt } = init;
  return { state, initPid: pid, exitStatus, exitedAt };
}

function ofOther({ id, pid, state, exit }: OtherProcess): ProcessReport {
  return { id, pid, state, ...ofExit(exit), movedBytes: null };
}

function ofExit(exit: OtherProcess["exit"]): Pick<ProcessReport, "exitStatus" | "exitedAt"> {
  return { exitStatus: exit?.status ?? null, exitedAt: exit === undefined ? null : iso(exit.at) };
}

function ofTrouble(trouble: Description["lastError"]): TroubleReport | null {
  return trouble === undefined ? null : { ...trouble, at: iso(trouble.at) };
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
