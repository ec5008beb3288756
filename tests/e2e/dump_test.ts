/** SIGUSR1: what the shim is doing, in its log and in the bundle, whoever reads the log. */

import { assertEquals, assertMatch } from "@std/assert";
import { onlyOursInEachForm } from "./env.ts";
import { modes } from "./modes.ts";
import { isHolder } from "./proc.ts";
import { type Shim, withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "what is told of a host is not what is told of a shim by itself");

/** Fails unless this tells of a running container that somebody waits for. */
function assertDump(text: string, shim: Shim, pid: number): void {
  assertMatch(text, /BEGIN dump/);
  assertMatch(text, /call Wait in flight for \d+\.\d{3} s/);
  assertMatch(text, new RegExp(`process ${shim.id} pid ${pid} running`));
  // In a host, memory and descriptors are all its containers'.
  if (isHolder(shim.pid)) assertMatch(text, /in the host \d+ .* of \d+/);
  else assertMatch(text, /memory: \d+ bytes resident[^]*descriptor \d+ .*shim\.stdout\.log/);
  assertMatch(text, /END dump/);
}

/** Reads the log until the end of a dump. */
async function dumpIn(log: Deno.FsFile): Promise<string> {
  const buffer = new Uint8Array(65_536);
  let text = "";
  while (!text.includes("END dump")) {
    text += new TextDecoder().decode(buffer.subarray(0, await log.read(buffer) ?? 0));
  }
  return text;
}

onlyOursInEachForm(
  "it prints the stacks of its goroutines",
  "SIGUSR1 has the shim say what it is doing, in its log and in the bundle",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      const pid = await shim.run();
      const ended = shim.wait();
      // Where the test fails before it comes to that, this is not what failed.
      ended.catch(() => {});
      // On the same connection: when this is answered, the Wait has been read.
      await shim.shimPid();
      const dump = `${shim.bundle}/shim.dump.log`;

      shim.signal("SIGUSR1");
      const written = () =>
        until("the dump is in the bundle", () => {
          try {
            return Deno.readTextFileSync(dump) || undefined;
          } catch {
            return undefined;
          }
        });
      assertDump(await written(), shim, pid);

      Deno.removeSync(dump);
      using log = await Deno.open(`${shim.workdir}/shim.stdout.log`, { read: true, write: true });
      assertDump(await dumpIn(log), shim, pid);
      shim.signal("SIGUSR1");
      assertDump(await dumpIn(log), shim, pid);
      // Its reader may have thrown it away.
      assertDump(await written(), shim, pid);

      shim.signal("SIGPIPE");
      await shim.kill(9);
      assertEquals((await ended).status, 137);
      await shim.delete();
    }),
);
