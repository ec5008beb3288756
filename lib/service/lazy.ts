/**
 * The Shim service before it is needed: ShimInfo, and everything else when it is first called.
 *
 * The service brings along the container, the runtime and their messages, which take longer to load than all that is
 * needed to answer who this shim is.
 */

import { containerd } from "../api/shim_info.js";
import { type Handler, type Services, unimplemented } from "../ttrpc/server.ts";
import type { Process } from "../container/process.ts";
import type { ContainerRecord } from "../record/record.ts";

const { ShimInfoResponse } = containerd.runtime.linux.shim.v1;

/** The service's full name. */
export const SERVICE = "containerd.runtime.linux.shim.v1.Shim";

/** What is loaded: the methods but ShimInfo, and what the shim wants of the service besides. */
export interface Loaded {
  /** Handlers by name. */
  readonly methods: ReadonlyMap<string, Handler>;
  /** The container's processes, for whoever wants to look. */
  readonly processes: Process[];
  /** What another process needs to go on with the container, which there is not always one of. */
  readonly record: ContainerRecord | undefined;
  /** Goes on with a container where another process has stopped. */
  restore(record: ContainerRecord): void;
  /** Goes on with what nobody knows but the OCI runtime: as far as can be. */
  salvage(): Promise<void>;
  /** To be called when all calls have been gone on with that another process had begun. */
  restored(): void;
  /**
   * Closes what is open for the container, which goes on by itself.
   *
   * @param isHandedOver whether another process goes on with it
   */
  abandon(isHandedOver: boolean): void;
  /** See {@link Container.holdMounts}; of a container that has not been created there is nothing to take off. */
  holdMounts(): () => Promise<void>;
  /**
   * Ends the container, whatever it is doing, and removes it.
   *
   * @throws {Error} when something of it is left
   */
  end(): Promise<void>;
}

/** Options of {@link LazyService}. */
export interface LazyServiceOptions {
  /** The shim's pid, as containerd knows it. */
  readonly pid: number;
  /** Loads the service; called once. */
  readonly load: () => Promise<Loaded>;
}

/** The service. */
export class LazyService {
  /** What the ttrpc server serves. */
  readonly services: Services;
  readonly #options: LazyServiceOptions;
  #loading: Promise<Loaded> | undefined;
  #loaded: Loaded | undefined;

  /** Loads nothing but what ShimInfo takes. */
  constructor(options: LazyServiceOptions) {
    this.#options = options;
    this.services = new Map([[SERVICE, { get: (method) => this.#handler(method) }]]);
  }

  /** Loads what has not been loaded. */
  load(): Promise<Loaded> {
    return this.#loading ??= this.#options.load().then((loaded) => this.#loaded = loaded);
  }

  /** The container's processes; none before the first call. */
  get processes(): Process[] {
    return this.#loaded?.processes ?? [];
  }

  /** What another process needs to go on with the container. */
  get record(): ContainerRecord | undefined {
    return this.#loaded?.record;
  }

  /**
   * Ends the container, if there is one.
   *
   * @throws {Error} when something is left of the container
   */
  async end(): Promise<void> {
    await (await this.#loading)?.end();
  }

  /** See {@link Loaded.abandon}. */
  abandon(isHandedOver: boolean): void {
    this.#loaded?.abandon(isHandedOver);
  }

  /** See {@link Loaded.holdMounts}. */
  holdMounts(): () => Promise<void> {
    return this.#loaded?.holdMounts() ?? (() => Promise.resolve());
  }

  #handler(method: string): Handler | undefined {
    if (method === "ShimInfo") return this.#shimInfo;
    if (this.#loaded !== undefined) return this.#loaded.methods.get(method);
    return async (payload, call) => {
      const own = payload.slice(); // it is valid until the first await
      const { methods } = await this.load();
      const handler = methods.get(method);
      if (handler === undefined) throw unimplemented(call.service, method);
      return handler(own, call);
    };
  }

  readonly #shimInfo: Handler = () => {
    // Who asks this goes on to call the rest, as a rule. The answer is written before any microtask runs.
    if (this.#loading === undefined) queueMicrotask(() => this.load());
    return ShimInfoResponse.encode({ shimPid: this.#options.pid }).finish();
  };
}
