/** The shim's socket: how it is given, and who may use it. */

import { assertEquals } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { must } from "./command.ts";
import { inEachForm } from "./env.ts";
import { SERVICE, Status, withShim } from "./shim.ts";
import { PATIENCE_MS } from "./until.ts";
import { encodeFrame, REQUEST } from "./wire.ts";

import v1 = containerd.runtime.linux.shim.v1;

/** A user that no file here belongs to. */
const NOBODY = 65534;

/**
 * Connects as a user, sends a request and says what comes of it. Its arguments are the socket, the user, the group and the
 * request in hex. A peer that closes a connection with something unread in it resets it: unix(7).
 */
const CONNECT_AS = `
  use Socket;
  my ($path, $uid, $gid, $request) = @ARGV;
  $( = $) = "$gid $gid";
  $< = $> = $uid;
  $> == $uid and $) + 0 == $gid or die "cannot be user $uid, group $gid";
  socket my $socket, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  connect $socket, pack_sockaddr_un($path) or die "connect: $!";
  $SIG{PIPE} = 'IGNORE';
  my $written = syswrite $socket, pack("H*", $request);
  print "refused" and exit if !defined $written && $!{EPIPE};
  my $read = sysread $socket, my $buffer, 1;
  if (defined $read && !$read) {
    # It has ended its side only, perhaps: it is closed when there is no more writing to it, not even of nothing.
    select undef, undef, undef, 0.001 while defined syswrite $socket, "", 0;
    $read = sysread $socket, $buffer, 1;
  }
  print defined $read ? ($read ? "answered" : "read, and closed") : $!{ECONNRESET} ? "refused" : "failed: $!";
`;

/** A whole frame that asks for ShimInfo. */
function request(): string {
  const payload = ttrpc.Request.encode({ service: SERVICE, method: "ShimInfo" }).finish();
  return encodeFrame({ stream: 1, type: REQUEST, payload }).toHex();
}

inEachForm(
  "a peer of another user or group is refused, and nothing of it is read",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      // Lets everyone through to the socket: what refuses them is to be the shim.
      await Deno.chmod(shim.socketPath, 0o777);
      const answers = [];
      for (const [uid, gid] of [[NOBODY, NOBODY], [NOBODY, 0], [0, NOBODY], [0, 0]]) {
        answers.push(await must(["perl", "-e", CONNECT_AS, shim.socketPath, `${uid}`, `${gid}`, request()]));
      }
      assertEquals(answers, ["refused", "refused", "refused", "answered"]);
    }),
);

inEachForm("many connections at once are all served", (form) =>
  withShim({ shim: form }, async (shim) => {
    const pids = await Promise.all(Array.from({ length: 50 }, async () => {
      using client = await shim.connect();
      const answer = await client.call(SERVICE, "ShimInfo", new Uint8Array(), { timeoutMs: PATIENCE_MS });
      return v1.ShimInfoResponse.decode(answer).shimPid;
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
