/** The stages of the bench. */

import { measureMemoryAlone, measureRounds } from "./alone.ts";
import type { Bench } from "./bench.ts";
import { compareWithAlone, measureInCrowd } from "./crowded.ts";

/** All stages, one after another. */
export async function measure(bench: Bench): Promise<void> {
  await measureRounds(bench);
  await measureMemoryAlone(bench);
  for (const crowd of bench.extent.crowds) {
    for (const competitor of bench.competitors) await measureInCrowd(bench, competitor, crowd);
    compareWithAlone(bench, crowd.alive);
  }
}
