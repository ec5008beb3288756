/** The shim's socket: how it is given, and who may use it. */

import { assertEquals } from "@std/assert";
import { inEachForm } from "./env.ts";
import { modes } from "./modes.ts";
import { askPid, Status, withShim } from "./shim.ts";
import { connectAs, NOBODY } from "./stranger.ts";

modes(["hosted", "alone"], "another process listens in each");

inEachForm(
  "a peer of another user or group is refused, and nothing of it is read",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      // Lets everyone through to the socket: what refuses them is to be the shim.
      await Deno.chmod(shim.socketPath, 0o777);
      const answers = [];
      for (const [uid, gid] of [[NOBODY, NOBODY], [NOBODY, 0], [0, NOBODY], [0, 0]]) {
        answers.push(await connectAs(shim.socketPath, uid!, gid!));
      }
      assertEquals(answers, ["refused", "refused", "refused", "answered"]);
    }),
);

inEachForm("many connections at once are all served", (form) =>
  withShim({ shim: form }, async (shim) => {
    const pids = await Promise.all(Array.from({ length: 50 }, async () => {
      using client = await shim.connect();
      return await askPid(client);
    }));
    assertEquals(pids, pids.map(() => shim.pid));
  }));

for (const socket of ["unix://FOLDER/named", "FOLDER/abstract"]) {
  inEachForm(
    `a shim serves the socket that -socket ${socket} names`,
    (form) =>
      withShim({ shim: form, socket, args: ["sh", "-c", "exit 3"] }, async (shim) => {
        await shim.run();
        assertEquals((await shim.wait()).status, 3);
        assertEquals((await shim.state()).status, Status.STOPPED);
        await shim.delete();
      }),
  );
}
