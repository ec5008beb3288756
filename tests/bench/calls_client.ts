/**
 * A client of one shim, in a process of its own: what a call costs does not depend then on what else the bench has done,
 * and on how many connections it has.
 *
 *     deno run -A tests/bench/calls_client.ts SOCKET ID
 *
 * Prints a line of JSON: for each of {@linkcode CALLS}, and each of {@linkcode CALLERS}, p50 and p99 in µs.
 */

import { containerd } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { CALLERS, CALLS } from "./calls.ts";
import { quantile } from "./stats.ts";

/** Calls of one sample, and those before them that do not count. */
const COUNT = 1000;
const WARM_UP_COUNT = 200;

const SERVICE = "containerd.runtime.linux.shim.v1.Shim";
const { StateRequest } = containerd.runtime.linux.shim.v1;

/** Calls by several callers, of which each calls again as soon as it has been answered; what each call took, in µs. */
async function latencies(call: () => Promise<unknown>, count: number, callers: number): Promise<number[]> {
  const samples: number[] = [];
  let left = count;
  const callOnAndOn = async () => {
    while (left-- > 0) {
      const start = performance.now();
      await call();
      samples.push((performance.now() - start) * 1000);
    }
  };
  await Promise.all(Array.from({ length: callers }, callOnAndOn));
  return samples;
}

if (import.meta.main) {
  const [path, id] = Deno.args as [string, string];
  const requests = { ShimInfo: new Uint8Array(), State: StateRequest.encode({ id }).finish() };
  using client = new Client(await Deno.connect({ transport: "unix", path }));
  const results: number[] = [];
  for (const method of CALLS) {
    const call = () => client.call(SERVICE, method, requests[method]);
    for (const callers of CALLERS) {
      await latencies(call, WARM_UP_COUNT, callers);
      const samples = await latencies(call, COUNT, callers);
      results.push(quantile(samples, 0.5), quantile(samples, 0.99));
    }
  }
  console.log(JSON.stringify(results));
}
