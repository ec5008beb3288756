/** A short soak: what `make soak` does for twenty minutes. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { plot } from "../soak/plot.ts";
import { csv, growths, type Sample } from "../soak/samples.ts";
import { soak } from "../soak/soak.ts";
import { onlyHosted } from "./host.ts";
import { modes } from "./modes.ts";

modes(["hosted"], "hosts are killed in it");

const SECONDS = Number(Deno.env.get("SOAK_SECONDS") ?? 20);
const SEED = Number(Deno.env.get("SOAK_SEED") ?? Date.now() % 2 ** 32);

onlyHosted(
  `everything at once, and hosts that are killed: in ${SECONDS} s nothing goes wrong, and nothing grows`,
  async () => {
    console.log(`SOAK_SEED=${SEED}`);
    const { samples, growths, counts, kills, exits } = await soak({ seconds: SECONDS, seed: SEED });
    console.log([...counts].map(([kind, count]) => `${count} ${kind}`).join(", "));
    assert(kills > 0, "no host has been killed");
    assert(exits > counts.get("exec")! + counts.get("container")!);
    assert(samples.length > SECONDS / 2, `there are ${samples.length} samples`);
    const grown = growths.filter(({ isTolerated }) => !isTolerated);
    assertEquals(grown.map(({ name, before, after }) => `${name}: ${before} -> ${after}`), []);
    assertMatch(plot(samples, "a soak"), /<polyline/);
    assertEquals(csv(samples).trimEnd().split("\n").length, samples.length + 1);
  },
);

onlyHosted("what looks at a soak's samples finds what has grown", () => {
  const flat: Sample = {
    at: 0,
    hosts: 1,
    hostDescriptors: 100,
    hostThreads: 10,
    hostDirtyKib: 20_000,
    holderDescriptors: 100,
    holderDirtyKib: 48,
    stateP50Ms: 1,
    stateP99Ms: 10,
    kills: 0,
  };
  const grown = (more: Partial<Sample>) => {
    const samples = Array.from({ length: 100 }, (_, at) => at < 50 ? { ...flat, at } : { ...flat, ...more, at });
    return growths(samples, 100).filter(({ isTolerated }) => !isTolerated).map(({ name }) => name as string);
  };
  assertEquals(grown({}), []);
  assertEquals(grown({ hostDescriptors: 130 }), ["hostDescriptors"]);
  assertEquals(grown({ hostThreads: 13 }), ["hostThreads"]);
  assertEquals(grown({ hostDirtyKib: 30_000 }), ["hostDirtyKib"]);
  assertEquals(grown({ holderDescriptors: 130, holderDirtyKib: 200 }), ["holderDescriptors", "holderDirtyKib"]);
  assertEquals(grown({ stateP50Ms: 5, stateP99Ms: 100 }), ["stateP50Ms", "stateP99Ms"]);
  return Promise.resolve();
});
