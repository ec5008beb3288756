/** Asks a shim what it is doing, of whatever make it is: nothing that is asked changes anything. */

import { close, O, open } from "../../ffi/fd.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { statDescriptor } from "../../ffi/stat.ts";
import { type Description, description } from "../description.ts";
import { messageOf } from "../errors.ts";
import { INSPECT_METHOD, INSPECT_SERVICE, WHOLE } from "../service/inspection.ts";
import { SERVICE } from "../service/lazy.ts";
import { Client } from "../ttrpc/client.ts";
import { Code, StatusError } from "../ttrpc/status.ts";
import type { Found } from "./find.ts";

/** What a shim answers that does not have our service: a Go shim, or an older build of this one. */
export interface Other {
  /** Undefined when there is no container, or none has been created yet. */
  readonly init: OtherProcess | undefined;
  /** The container's other processes that it knows; undefined when that has not been asked, or answered. */
  readonly execs: readonly OtherProcess[] | undefined;
}

/** A process of a container, by State and ListPids. */
export interface OtherProcess {
  /** Its container's for init, and the exec's for another. */
  readonly id: string;
  /** In the namespace of this process. */
  readonly pid: number;
  /** As this project's shim calls it. */
  readonly state: string;
  /** Of one that has ended; `at` is in ms since the epoch. */
  readonly exit: { readonly status: number; readonly at: number } | undefined;
}

/** An answer, or why there is none. */
export type Answer =
  | { readonly kind: "ours"; readonly description: Description }
  | { readonly kind: "other"; readonly other: Other }
  /** It takes its time. */
  | { readonly kind: "hanging"; readonly error: string }
  | { readonly kind: "failed"; readonly error: string };

/**
 * How long shims are waited for that are asked together: until none of them has been heard of for a while. On a machine that is
 * busy all are late, and none hangs.
 */
export class Patience implements Disposable {
  /** How long nothing may be heard, in ms. */
  readonly ms: number;
  readonly #out = Promise.withResolvers<void>();
  readonly #timer: ReturnType<typeof setInterval>;
  #left = PARTS;

  /** Begins to run out, until disposed of. */
  constructor(ms: number) {
    this.ms = ms;
    this.#timer = setInterval(() => {
      if (--this.#left === 0) this.#out.resolve();
    }, ms / PARTS);
  }

  /** Settled when it has run out. */
  get out(): Promise<void> {
    return this.#out.promise;
  }

  /** One of them has said something. */
  heard(): void {
    this.#left = PARTS;
  }

  /** Ends the waiting; {@link out} may never be settled then. */
  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** What patience is made of: this process may itself be late, with answers that wait for it, and that counts as one at most. */
const PARTS = 8;

/** Options of {@link ask}. */
export interface AskOptions {
  /** Shared by all that are asked together. */
  readonly patience: Patience;
  /** Whether everything is wanted, the descriptors of a shim by itself among it. */
  readonly isWhole: boolean;
  /** Whether an {@link Other} is asked for the container's further processes, which a Go shim starts the OCI runtime for. */
  readonly asksForExecs: boolean;
}

/** Asks. Never rejects. */
export async function ask(shim: Found, options: AskOptions): Promise<Answer> {
  const { patience } = options;
  if (shim.obstacle !== undefined) return { kind: "failed", error: shim.obstacle };
  let connection: Client | undefined;
  const hanging: Answer = { kind: "hanging", error: `no answer within ${patience.ms} ms` };
  const answer = async (): Promise<Answer> => {
    try {
      connection = await connect(shim.addresses);
      return await answerOf(connection, shim, options);
    } catch (cause) {
      return { kind: "failed", error: messageOf(cause) };
    }
  };
  try {
    return await Promise.race([answer(), patience.out.then(() => hanging)]);
  } finally {
    connection?.close();
  }
}

async function connect(addresses: readonly string[]): Promise<Client> {
  const [address, ...others] = addresses as [string, ...string[]];
  try {
    const foreign = FOREIGN.exec(address);
    if (foreign === null) return new Client(await Deno.connect({ transport: "unix", path: address }));
    const socket = openBelow(foreign[1]!, foreign[2]!);
    try {
      return new Client(await Deno.connect({ transport: "unix", path: `/proc/self/fd/${socket}` }));
    } finally {
      close(socket);
    }
  } catch (error) {
    if (others.length > 0) return await connect(others);
    throw new Error(`cannot connect to ${address.replace("\0", "@")}: ${messageOf(error)}`);
  }
}

/** A path that another process has given: the folder that it is below, and the rest. */
const FOREIGN = /^(\/proc\/\d+\/(?:root|cwd))\/(.*)$/s;

/**
 * Opens what is below a folder of another process, following no symbolic link: it would lead to where that process has no
 * access. The descriptor is one of O_PATH, and the caller's.
 *
 * @throws {SystemError} ELOOP where there is a link
 */
function openBelow(folder: string, path: string): number {
  let fd = open(folder, O.PATH | O.DIRECTORY);
  for (const name of path.split("/").filter((each) => each !== "" && each !== ".")) {
    const above = fd;
    try {
      if (name === "..") throw new SystemError("open", Errno.ELOOP, path);
      fd = open(`/proc/self/fd/${above}/${name}`, O.PATH | O.NOFOLLOW);
    } finally {
      close(above);
    }
    if (!statDescriptor(fd).isSymbolicLink) continue;
    close(fd);
    throw new SystemError("open", Errno.ELOOP, path);
  }
  return fd;
}

async function answerOf(client: Client, shim: Found, options: AskOptions): Promise<Answer> {
  // A Go shim wants it.
  const metadata = { "containerd-namespace-ttrpc": shim.namespace };
  const call = (service: string, method: string, payload: Uint8Array) =>
    client.call(service, method, payload, { metadata }).finally(() => options.patience.heard());
  try {
    const payload = await call(INSPECT_SERVICE, INSPECT_METHOD, options.isWhole ? WHOLE : new Uint8Array());
    const value: unknown = JSON.parse(new TextDecoder().decode(payload));
    return { kind: "ours", description: description(value, "the answer") };
  } catch (error) {
    if (!(error instanceof StatusError) || error.code !== Code.UNIMPLEMENTED) throw error;
  }
  const { askOther } = await import("./other.ts");
  const own = (method: string, payload: Uint8Array) => call(SERVICE, method, payload);
  return { kind: "other", other: await askOther(own, shim.id, options) };
}
