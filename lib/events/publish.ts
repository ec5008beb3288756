/** The two ways out for an event: containerd's ttrpc event service, and `containerd publish`. */

import { containerd, google } from "../api/mod.js";
import { MemoryFile } from "../../ffi/memfd.ts";
import { messageOf } from "../errors.ts";
import { timestamp } from "../api/time.ts";
import type { Run } from "../reaper.ts";
import { Client } from "../ttrpc/client.ts";
import type { Envelope, Publisher } from "./queue.ts";

/** Options of {@link publisher}. */
export interface PublisherOptions {
  /** Path of containerd's gRPC socket; its ttrpc socket is beside it. */
  readonly address: string;
  /** The containerd program. */
  readonly binary: string;
  /** Runs the program. */
  readonly run: Run;
}

/** How long one way out may take, in ms. */
const TIMEOUT_MS = 30_000;

const SERVICE = "containerd.services.events.ttrpc.v1.Events";

/** Sends events by ttrpc, which starts no process, and where that does not get them there by the command. */
export function publisher(options: PublisherOptions): Publisher {
  return {
    publish: (envelope) => publish(options, envelope),
    reach: async () => {
      const conn = await connect(options.address).catch(() =>
        Deno.connect({ transport: "unix", path: options.address })
      );
      conn.close();
    },
  };
}

/** Connects to containerd's ttrpc server. */
function connect(address: string): Promise<Deno.UnixConn> {
  return Deno.connect({ transport: "unix", path: `${address}.ttrpc` });
}

async function publish(options: PublisherOptions, envelope: Envelope): Promise<void> {
  let reason: unknown;
  try {
    return await forward(options.address, envelope);
  } catch (error) {
    reason = error;
  }
  try {
    await command(options, envelope);
  } catch (error) {
    throw new Error(`failed to publish event: ${messageOf(error)}; by ttrpc: ${messageOf(reason)}`, {
      cause: reason,
    });
  }
}

/** @throws {StatusError | Error} when containerd has not acknowledged the event */
async function forward(address: string, envelope: Envelope): Promise<void> {
  const conn = await connect(address);
  const client = new Client(conn);
  try {
    const request = containerd.services.events.ttrpc.v1.ForwardRequest.encode({
      envelope: {
        timestamp: timestamp(envelope.at),
        namespace: envelope.namespace,
        topic: envelope.topic,
        event: { type_url: envelope.type, value: envelope.value },
      },
    }).finish();
    await client.call(SERVICE, "Forward", request, { timeoutMs: TIMEOUT_MS });
  } finally {
    client.close();
  }
}

/** @throws {Error} when the command has failed, with what it printed */
async function command({ address, binary, run }: PublisherOptions, envelope: Envelope): Promise<void> {
  using input = new MemoryFile("event");
  using output = new MemoryFile("publish-output");
  input.write(google.protobuf.Any.encode({ type_url: envelope.type, value: envelope.value }).finish());
  const { status } = await run({
    args: [binary, "--address", address, "publish", "--topic", envelope.topic, "--namespace", envelope.namespace],
    descriptors: [input.fd, output.fd, output.fd],
    timeoutMs: TIMEOUT_MS,
  });
  if (status !== 0) {
    throw new Error(`${binary} publish ended with status ${status}: ${output.read().trim()}`);
  }
}
