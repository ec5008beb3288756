/** What survives what: the column of the README's table that is ours. */

import { assertEquals } from "@std/assert";
import { observe, type Victim, VICTIMS } from "../survival/scene.ts";
import { OURS } from "../survival/subjects.ts";
import { flawOf } from "../survival/talker.ts";
import { withEvidence } from "./evidence.ts";
import { onlyHosted } from "./host.ts";
import { modes } from "./modes.ts";

modes(["hosted"], "hosts are killed in it");

/** What is lost, by who is killed. */
const LOST: Readonly<Record<Victim, readonly string[]>> = {
  containerd: [],
  host: [],
  shim: [
    "the container: killed by containerd",
    "its exit status (ctr fails)",
    "the exec's exit status (ctr fails)",
    "the exec's exit event",
  ],
  exec: ["that exec"],
  create: ["that container"],
  init: ["the container"],
};

for (const [victim, name] of VICTIMS) {
  onlyHosted(`SIGKILL to ${name} loses what the README says`, async () => {
    const seen: string[] = [];
    try {
      assertEquals(await observe(OURS, victim, (each) => seen.push(each)), LOST[victim]);
    } catch (error) {
      throw withEvidence(error, "What was seen", seen.join("\n"));
    }
  });
}

onlyHosted("a gap, a double, disorder and a missing end of numbered lines are found", () => {
  assertEquals(flawOf(["1", "2", "3"], 3), undefined);
  assertEquals(flawOf(["1", "2", "3"], 2), undefined);
  assertEquals(flawOf(["1", "3"], 3), 'after line 1 comes "3"');
  assertEquals(flawOf(["1", "1", "2"], 2), 'after line 1 comes "1"');
  assertEquals(flawOf(["2", "1"], 2), 'after line 0 comes "2"');
  assertEquals(flawOf(["1", "2"], 4), "2 of 4 lines are missing");
  assertEquals(flawOf(["1", "2", "3", "4"], 2), "there are 4 lines instead of 2");
  return Promise.resolve();
});
