/** What a container says of its processes, to be written down: what has changed is another object, and nothing else is. */

import { assert, assertEquals } from "@std/assert";
import { Container } from "../../lib/container/container.ts";
import type { Context } from "../../lib/container/context.ts";
import type { Exec } from "../../lib/container/exec.ts";
import { Commands, type Runner } from "../../lib/record/commands.ts";
import { unkept } from "../../lib/record/keeper.ts";
import type { Runc } from "../../lib/runtime/runc.ts";

/** A process's surroundings in which nothing can be started. */
function contextOf(): Context {
  const nothing = (): never => {
    throw new Error("nothing is started here");
  };
  return {
    reaper: { hold: () => ({ [Symbol.dispose]: () => {} }), watch: nothing, kill: nothing },
    timer: () => ({ [Symbol.dispose]: () => {} }),
    log: { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} },
    keeper: unkept,
    commands: new Commands({ run: nothing, runOn: nothing } as Runner),
    save: () => {},
  } as unknown as Context;
}

const STDIO = { stdin: "", stdout: "", stderr: "", terminal: false };

function containerOf(bundle: string): Container {
  const runc = { program: "runc", exec: () => Promise.reject(new Error("no runtime")) } as unknown as Runc;
  const config = {
    ...{ id: "c", namespace: "n", bundle, workdir: bundle, stdio: STDIO, mounts: [] },
    ...{ noPivotRoot: false, noNewKeyring: false, uid: 0, gid: 0 },
  };
  return new Container(contextOf(), config, runc, () => {});
}

/** What an exec says of itself, looked at anew. */
function fresh(container: Container, id: string): unknown {
  return structuredClone((container.find(id) as Exec).record);
}

Deno.test("each change of an exec is seen in its container's record, and those that are at rest are the same objects", async () => {
  const bundle = await Deno.makeTempDir();
  try {
    const container = containerOf(bundle);
    for (const id of ["before", "e", "after"]) {
      await container.exec({ id, stdio: { ...STDIO, terminal: id === "e" }, spec: { args: [id] } });
    }
    const exec = container.find("e") as Exec;
    const steps: Readonly<Record<string, () => unknown>> = {
      "its input is closed": () => exec.closeStdin(),
      "it is resized": () => exec.resize(80, 25),
      "its start fails": () => exec.start().catch(() => {}),
      "it is deleted": () => exec.delete(),
    };
    for (const [what, step] of Object.entries(steps)) {
      // Twice: it is at rest then.
      const [, { execs: last }] = [container.record, container.record];
      assert(container.record.execs === last, `before ${what}: another list`);
      await step();
      const { execs } = container.record;
      assertEquals(
        execs.map((each) => structuredClone(each)),
        ["before", "e", "after"].map((id) => fresh(container, id)),
      );
      assert(execs[1] !== last[1], `${what}, which is not seen`);
      assert(execs[0] === last[0] && execs[2] === last[2], `${what}, and another is taken for changed`);
    }
    await container.deleteExec("after");
    assertEquals(container.record.execs.map(({ id }) => id), ["before", "e"]);
    await container.exec({ id: "after", stdio: STDIO, spec: {} });
    assertEquals(container.record.execs.map(({ id }) => id), ["before", "e", "after"]);
  } finally {
    await Deno.remove(bundle, { recursive: true });
  }
});

Deno.test("an exec that is looked at while it is being started is seen as it is afterwards", async () => {
  const bundle = await Deno.makeTempDir();
  try {
    const container = containerOf(bundle);
    await container.exec({ id: "e", stdio: STDIO, spec: { args: ["e"] } });
    const exec = container.find("e") as Exec;
    const starting = exec.start().catch(() => {});
    for (let i = 0; i < 5; i++) {
      assertEquals(structuredClone(container.record.execs[0]), fresh(container, "e"));
      await undefined;
    }
    await starting;
    assertEquals([container.record.execs[0]!.state, container.record.execs[0]!.spec], ["stopped", undefined]);
  } finally {
    await Deno.remove(bundle, { recursive: true });
  }
});
