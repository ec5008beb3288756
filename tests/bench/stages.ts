/** The stages of the bench. */

import { measureMemoryAlone, measureRounds } from "./alone.ts";
import type { Bench } from "./bench.ts";
import { compareWithAlone, measureInCrowd } from "./crowded.ts";
import { measureFirstContainers, measureFloods, measureHostMemory, withWarmHost } from "./hosted.ts";

/** All stages, one after another. */
export async function measure(bench: Bench): Promise<void> {
  await measureFirstContainers(bench);
  await withWarmHost(bench, () => measureRounds(bench));
  await measureHostMemory(bench);
  await measureFloods(bench);
  await measureMemoryAlone(bench);
  for (const crowd of bench.extent.crowds) {
    for (const competitor of bench.competitors) await measureInCrowd(bench, competitor, crowd);
    compareWithAlone(bench, crowd.alive);
  }
}
