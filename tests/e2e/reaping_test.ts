/** Processes that become a holder's children without end, and those among them whose ends matter. */

import { assert, assertEquals } from "@std/assert";
import { endContainer, onlyHosted, withHosted, withHostedShims } from "./host.ts";
import { modes } from "./modes.ts";
import { quickRuntime } from "./quick_execs.ts";
import type { Shim } from "./shim.ts";
import { replaceHost } from "./takeover.ts";
import { until } from "./until.ts";

modes(["hosted"], "it is about holders, whose hosts may be stopped or die");

/** Has orphans without end, and counts them. */
const FORKING = "i=0; while :; do (: &); i=$((i + 1)); [ $((i % 50)) -gt 0 ] || echo $i >/count; done";
/** How many processes it may have: what is not reaped counts. */
const LIMIT = 1000;
/** How many children a holder has at most at a time: some that have not been reaped in the last milliseconds. */
const FEW = 200;
/** How many are forked in each of the situations. */
const FORKS = 2 * LIMIT;

onlyHosted(
  "orphans are reaped as they end, also while the host is stopped or replaced, and a neighbour is answered",
  () =>
    withHostedShims(
      [{ namespaces: ["ipc", "uts", "mount"], args: ["sh", "-c", FORKING] }, {}],
      async ([forking, neighbour], machine) => {
        await neighbour!.run();
        await forking!.run();
        await forking!.update({ pids: { limit: LIMIT } });
        const { pid, rootfs } = forking!;
        const forked = () => Number(Deno.readTextFileSync(`${rootfs}/count`));
        await until("it forks", () => forked() > 0);
        let most = 0;
        const forkMore = async (when: string) => {
          const enough = forked() + FORKS;
          await until(`it has forked ${when}`, () => {
            const children = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`).trim().split(" ").length;
            most = Math.max(most, children);
            return forked() >= enough;
          });
        };
        await forkMore("beside its host");
        await neighbour!.state();
        const host = machine.host().pid;
        Deno.kill(host, "SIGSTOP");
        try {
          await forkMore("while its host is stopped");
        } finally {
          Deno.kill(host, "SIGCONT");
        }
        await neighbour!.state();
        const replaced = replaceHost(machine);
        await forkMore("while its host is replaced");
        await replaced;
        for (const shim of [forking!, neighbour!]) await shim.state();
        assert(most <= FEW, `its holder had ${most} children`);
        for (const shim of [forking!, neighbour!]) await endContainer(shim);
      },
    ),
);

/** How many execs there are, and how many hosts die meanwhile. */
const EXECS = 60;
const DEATHS = 4;

onlyHosted("execs that end while hosts die have each its own status", () =>
  withHosted({}, async (shim, machine) => {
    await shim.run({}, { runtime: await quickRuntime(shim) });
    const ids = Array.from({ length: EXECS }, (_, i) => `e${i}`);
    const statuses = Promise.all(ids.map((id, i) => statusOf(shim, id, `sleep 0.0${i % 10}; exit ${i}`)));
    statuses.catch(() => {});
    for (let i = 0; i < DEATHS; i++) await replaceHost(machine);
    assertEquals(await statuses, ids.map((_, i) => i));
    for (const id of ids) await shim.deleteProcess(id);
    await endContainer(shim);
  }));

/** What a process ends with that is another's in a container. */
async function statusOf(shim: Shim, id: string, script: string): Promise<number> {
  await shim.exec(id, [script]);
  await shim.startProcess(id);
  return (await shim.wait(id)).status;
}
