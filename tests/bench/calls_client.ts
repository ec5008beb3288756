/**
 * A client of one shim, in a process of its own: what a call costs does not depend then on what else the bench has done,
 * and on how many connections it has.
 *
 *     deno run -A tests/bench/calls_client.ts SOCKET ID PLAN
 *
 * PLAN is a {@linkcode CallPlan}, JSON. Prints a line of JSON: for each method, and each number of callers, p50 and p99 in µs.
 */

import { containerd } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { pause } from "../e2e/until.ts";
import type { CallPlan } from "./calls.ts";
import { quantile } from "./stats.ts";

/** For so many calls that count, there is one before them that does not. */
const WARM_UP_SHARE = 5;

const SERVICE = "containerd.runtime.linux.shim.v1.Shim";
const { StateRequest } = containerd.runtime.linux.shim.v1;

/** Calls by several callers, of which each calls again when it has been answered; what each call took, in µs. */
async function latencies(
  call: () => Promise<unknown>,
  { count, callers, pauseMs }: { readonly count: number; readonly callers: number; readonly pauseMs: number },
): Promise<number[]> {
  const samples: number[] = [];
  let left = count;
  const callOnAndOn = async () => {
    while (left-- > 0) {
      const start = performance.now();
      await call();
      samples.push((performance.now() - start) * 1000);
      if (pauseMs > 0) await pause(pauseMs);
    }
  };
  await Promise.all(Array.from({ length: callers }, callOnAndOn));
  return samples;
}

if (import.meta.main) {
  const [path, id, plan] = Deno.args as [string, string, string];
  const { methods, callers, count, pauseMs = 0 }: CallPlan = JSON.parse(plan);
  const requests = { ShimInfo: new Uint8Array(), State: StateRequest.encode({ id }).finish() };
  using client = new Client(await Deno.connect({ transport: "unix", path }));
  const results: number[] = [];
  for (const method of methods) {
    const call = () => client.call(SERVICE, method, requests[method]);
    for (const each of callers) {
      await latencies(call, { count: Math.ceil(count / WARM_UP_SHARE), callers: each, pauseMs });
      const samples = await latencies(call, { count, callers: each, pauseMs });
      results.push(quantile(samples, 0.5), quantile(samples, 0.99));
    }
  }
  console.log(JSON.stringify(results));
}
