/**
 * A client of one shim, in a process of its own: what a call costs does not depend then on what else the bench has done,
 * and on how many connections it has.
 *
 *     deno run -A tests/bench/calls_client.ts SOCKET ID PLAN
 *
 * PLAN is a {@linkcode CallPlan}, JSON. Prints a line of JSON: for each method, and each number of callers, the quantiles in µs.
 */

import { containerd } from "../../lib/api/mod.js";
import { Client } from "../../lib/ttrpc/client.ts";
import { pause } from "../e2e/until.ts";
import type { CallPlan } from "./calls.ts";
import { quantile, withMissed } from "./stats.ts";

/** For so many calls that count, there is one before them that does not. */
const WARM_UP_SHARE = 5;

const SERVICE = "containerd.runtime.linux.shim.v1.Shim";
const { StateRequest } = containerd.runtime.linux.shim.v1;

/** Some calls. */
interface Calls {
  readonly count: number;
  readonly callers: number;
  readonly pauseMs: number;
  readonly patienceMs: number | undefined;
}

/** Calls by several callers, of which each calls again when it has been answered; what each call took, in µs. */
async function latencies(
  call: () => Promise<unknown>,
  { count, callers, pauseMs, patienceMs }: Calls,
): Promise<number[]> {
  const samples: number[] = [];
  let left = count;
  const over = Promise.withResolvers<void>();
  const timer = patienceMs === undefined ? undefined : setTimeout(() => {
    left = 0;
    over.resolve();
  }, patienceMs);
  const callOnAndOn = async () => {
    while (left-- > 0) {
      const start = performance.now();
      await (patienceMs === undefined ? call() : Promise.race([call(), over.promise]));
      samples.push((performance.now() - start) * 1000);
      if (pauseMs > 0) await pause(pauseMs);
    }
  };
  await Promise.all(Array.from({ length: callers }, callOnAndOn));
  clearTimeout(timer);
  return patienceMs === undefined ? samples : withMissed(samples, pauseMs * 1000);
}

if (import.meta.main) {
  const [path, id, plan] = Deno.args as [string, string, string];
  const { methods, callers, count, pauseMs = 0, patienceMs, quantiles = [0.5, 0.99] }: CallPlan = JSON.parse(plan);
  const requests = { ShimInfo: new Uint8Array(), State: StateRequest.encode({ id }).finish() };
  using client = new Client(await Deno.connect({ transport: "unix", path }));
  const results: number[] = [];
  for (const method of methods) {
    const call = () => client.call(SERVICE, method, requests[method]);
    for (const each of callers) {
      await latencies(call, { count: Math.ceil(count / WARM_UP_SHARE), callers: each, pauseMs, patienceMs });
      const samples = await latencies(call, { count, callers: each, pauseMs, patienceMs });
      results.push(...quantiles.map((part) => quantile(samples, part)));
    }
  }
  console.log(JSON.stringify(results));
}
