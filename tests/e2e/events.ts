/** Takes what a shim publishes, in either way, instead of containerd. */

import { containerd, google } from "../../lib/api/mod.js";
import { Server } from "../../lib/ttrpc/server.ts";
import { names } from "./leftovers.ts";
import { until } from "./until.ts";

import ttrpc = containerd.services.events.ttrpc.v1;

/** How events are taken: ttrpc Forward, the `publish` command, both (so that it can be seen which is used), or not. */
export type EventsMode = "ttrpc" | "command" | "both" | "none";

/** Something that was published. */
export interface Published {
  readonly by: "ttrpc" | "command";
  readonly namespace: string;
  readonly topic: string;
  readonly typeUrl: string;
  readonly exit: containerd.events.TaskExit;
}

/** Where a shim's events go. */
export class EventSink {
  /** Of the containerd that there is not, for the shim's -address. */
  readonly address: string;
  /** For the shim's -containerd-binary. */
  readonly command: string;
  readonly #folder: string;
  readonly #mode: EventsMode;
  readonly #forwarded: Published[] = [];
  readonly #server: Server;
  #held: Promise<void> | undefined;
  #listener: Deno.Listener<Deno.UnixConn> | undefined;

  constructor(folder: string, mode: EventsMode) {
    this.address = `${folder}/containerd.sock`;
    this.command = `${folder}/containerd`;
    this.#folder = `${folder}/published`;
    this.#mode = mode;
    const forward = (payload: Uint8Array) => this.#forward(payload);
    this.#server = new Server(
      new Map([["containerd.services.events.ttrpc.v1.Events", new Map([["Forward", forward]])]]),
    );
  }

  /** Begins to take events. */
  async start(): Promise<void> {
    await Deno.mkdir(this.#folder, { recursive: true });
    if (this.#mode === "ttrpc" || this.#mode === "both") this.serve();
    if (this.#mode === "command" || this.#mode === "both") await this.#makeCommand();
  }

  /** Serves ttrpc, as a containerd does that has come back. */
  serve(): void {
    this.#listener = Deno.listen({ transport: "unix", path: `${this.address}.ttrpc` });
    this.#accept(this.#listener);
  }

  async #accept(listener: Deno.Listener<Deno.UnixConn>): Promise<void> {
    for await (const conn of listener) this.#server.serveConnection(conn);
  }

  /** Acknowledges nothing until what it returns is called: a containerd that is slow. */
  hold(): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#held = promise;
    return resolve;
  }

  async #forward(payload: Uint8Array): Promise<Uint8Array> {
    const { envelope } = ttrpc.ForwardRequest.decode(payload);
    const { namespace, topic, event } = envelope!;
    this.#forwarded.push({ by: "ttrpc", namespace: namespace!, topic: topic!, ...decode(event!) });
    await this.#held;
    return new Uint8Array();
  }

  /** A `containerd` that keeps what it is given: each event's arguments in one file, its input in another. */
  async #makeCommand(): Promise<void> {
    const script = `#!/bin/sh
base=$(mktemp -u '${this.#folder}/XXXXXX')
cat >"$base.any"
printf '%s\\n' "$@" >"$base.new"
mv "$base.new" "$base.args" # now it is complete
`;
    await Deno.writeTextFile(this.command, script, { mode: 0o755 });
  }

  /** The argument lists that the command was given. */
  commands(): string[][] {
    return names(this.#folder).filter((name) => name.endsWith(".args")).map((name) =>
      Deno.readTextFileSync(`${this.#folder}/${name}`).trimEnd().split("\n")
    );
  }

  /** All that has been published so far. */
  published(): Published[] {
    const byCommand = names(this.#folder).filter((name) => name.endsWith(".args")).map((name): Published => {
      const args = Deno.readTextFileSync(`${this.#folder}/${name}`).trimEnd().split("\n");
      const any = google.protobuf.Any.decode(Deno.readFileSync(`${this.#folder}/${name.replace(/args$/, "any")}`));
      const [namespace, topic] = ["--namespace", "--topic"].map((flag) => args[args.indexOf(flag) + 1] ?? "");
      return { by: "command", namespace: namespace!, topic: topic!, ...decode(any) };
    });
    return [...this.#forwarded, ...byCommand];
  }

  /** The exit of a process, as soon as it has been published. */
  exit(id: string): Promise<Published> {
    return until(`the exit of ${id} is published`, () => this.published().find(({ exit }) => exit.id === id));
  }

  async close(): Promise<void> {
    this.#listener?.close();
    await this.#server.close();
  }
}

function decode(any: google.protobuf.IAny): Pick<Published, "typeUrl" | "exit"> {
  return { typeUrl: any.type_url ?? "", exit: containerd.events.TaskExit.decode(any.value ?? new Uint8Array()) };
}
