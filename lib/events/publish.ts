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
    publish: (envelopes, onAcknowledged) => publish(options, envelopes, onAcknowledged),
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

async function publish(
  options: PublisherOptions,
  envelopes: readonly Envelope[],
  onAcknowledged: (envelope: Envelope) => void,
): Promise<void> {
  let client: Client | undefined;
  try {
    for (const envelope of envelopes) {
      try {
        client ??= new Client(await connect(options.address));
        await client.call(SERVICE, "Forward", requestOf(envelope), { timeoutMs: TIMEOUT_MS });
      } catch (reason) {
        client?.close();
        client = undefined;
        await command(options, envelope).catch((error) => {
          throw new Error(`failed to publish event: ${messageOf(error)}; by ttrpc: ${messageOf(reason)}`, {
            cause: reason,
          });
        });
      }
      onAcknowledged(envelope);
    }
  } finally {
    client?.close();
  }
}

function requestOf({ at, namespace, topic, type, value }: Envelope): Uint8Array {
  return containerd.services.events.ttrpc.v1.ForwardRequest.encode({
    envelope: { timestamp: timestamp(at), namespace, topic, event: { type_url: type, value } },
  }).finish();
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
