/** What is expected of a shim whatever it runs, and on whatever cgroups. */

import { assertEquals } from "@std/assert";
import { Code } from "../../lib/ttrpc/status.ts";
import { processOf } from "./proc.ts";
import { assertStatus, type Shim } from "./shim.ts";
import { until } from "./until.ts";

/** signal(7) */
const SIGKILL = 9;

/** The command of a container for {@linkcode expectPidsKnown}: its init has one child. */
export const INIT_WITH_ONE_CHILD = ["sh", "-c", "sleep 1000 & wait"];

/** ListPids knows init and execs by their ids, and lists what they have started. */
export async function expectPidsKnown(shim: Shim): Promise<void> {
  const init = await shim.run();
  await shim.exec("other", ["sleep", "1000"]);
  const other = await shim.startProcess("other");
  const pids = await until("init has started its child", async () => {
    const pids = await shim.pids();
    return pids.size === 3 && pids;
  });
  const [child] = [...pids.keys()].filter((pid) => pid !== init && pid !== other);
  assertEquals(processOf(child!)?.ppid, init);
  const known = new Map([[init, shim.id], [other, "other"], [child!, undefined]]);
  assertEquals(new Map([...pids].sort()), new Map([...known].sort()));
}

/** Kill of an exec and of an init that have finished answers NOT_FOUND. */
export async function expectFinishedNotFound(shim: Shim): Promise<void> {
  await shim.run();
  await shim.exec("other", ["true"]);
  await shim.startProcess("other");
  await shim.wait("other");
  await assertStatus(shim.kill(SIGKILL, { id: "other" }), Code.NOT_FOUND, "process already finished");
  await shim.kill(SIGKILL);
  await shim.wait();
  await assertStatus(shim.kill(SIGKILL), Code.NOT_FOUND, "process already finished");
  await shim.delete();
}
