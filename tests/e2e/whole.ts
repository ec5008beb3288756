/** All that a shim does for a container, in one go: for a system on which some of it might not work. */

import { assert, assertEquals } from "@std/assert";
import { type Reader, Writer } from "./fifo.ts";
import { assertExecs } from "./host.ts";
import { type Shim, type ShimOptions, Status } from "./shim.ts";

/** A container that repeats what it is told. */
export const REPEATING: ShimOptions = { args: ["cat"] };

/** signal(7) */
const SIGKILL = 9;

/**
 * Has a shim that has just been started with {@linkcode REPEATING} do all that its API has but checkpoints, and ends the
 * container.
 *
 * @param options `meanwhile` is done to the shim while the container and another process of it run; `runtime` is its OCI runtime
 */
export async function assertServes(
  shim: Shim,
  { meanwhile, runtime }: { readonly meanwhile?: () => Promise<void>; readonly runtime?: string } = {},
): Promise<void> {
  assertEquals(await shim.shimPid(), shim.pid);
  const { pid, fifos, stdout } = await shim.createWithFifos(runtime === undefined ? {} : { runtime });
  assertEquals((await shim.state()).status, Status.CREATED);
  await shim.startProcess();
  using input = await Writer.open(fifos.stdin);
  await assertRepeats(input, stdout);
  const terminal = await startTerminal(shim, "terminal");

  await meanwhile?.();

  await assertRepeats(input, stdout);
  await assertExecs(shim, "other");
  await shim.resize(90, 20, "terminal");
  {
    using keyboard = await Writer.open(terminal.stdin);
    await keyboard.write("typed\n");
    assertEquals(await terminal.output.text(), "typed\r\n20 90\r\ntyped\r\n");
  }
  assertEquals((await shim.wait("terminal")).status, TERMINAL_STATUS);
  await shim.deleteProcess("terminal");
  await shim.exec("killed", ["sleep", "1000"]);
  await shim.startProcess("killed");
  assert((await shim.pids()).has(pid));
  await shim.pause();
  assertEquals((await shim.state()).status, Status.PAUSED);
  await shim.resume();
  await shim.update({ cpu: { shares: 512 } });
  await shim.kill(SIGKILL, { id: "killed" });
  assertEquals((await shim.wait("killed")).status, 128 + SIGKILL);
  await shim.deleteProcess("killed");
  await shim.kill(SIGKILL);
  assertEquals((await shim.wait()).status, 128 + SIGKILL);
  assertEquals((await shim.delete()).status, 128 + SIGKILL);
}

const TERMINAL_STATUS = 6;

/** Starts another process of a container with a terminal, which prints its size and what is typed. */
async function startTerminal(shim: Shim, id: string): Promise<{ readonly stdin: string; readonly output: Reader }> {
  const { stdin, stdout } = await shim.fifos(id);
  const command = ["sh", "-c", `read line; stty size; echo $line; exit ${TERMINAL_STATUS}`];
  await shim.exec(id, command, { stdin, stdout, terminal: true });
  const [output] = await Promise.all([shim.read(stdout), shim.startProcess(id)]);
  return { stdin, output };
}

async function assertRepeats(input: Writer, output: Reader): Promise<void> {
  await input.write("line\n");
  assertEquals(await output.line(), "line\n");
}
