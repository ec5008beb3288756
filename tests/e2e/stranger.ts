/** Somebody else who finds a shim's socket, and tries what it does. */

import { ttrpc } from "../../lib/api/ttrpc.js";
import { must } from "./command.ts";
import { SERVICE } from "./shim.ts";
import { encodeFrame, REQUEST } from "./wire.ts";

/** A user that no file here belongs to. */
export const NOBODY = 65534;

/**
 * Connects as a user, sends a request and says what comes of it. Its arguments are the socket, whose name is in the abstract
 * namespace if it begins with `@`, its type, the user, the group and the request in hex. A peer that closes a connection with
 * something unread in it resets it: unix(7).
 */
const CONNECT_AS = `
  use Socket;
  my ($path, $type, $uid, $gid, $request) = @ARGV;
  $path =~ s/^@/\\0/;
  $( = $) = "$gid $gid";
  $< = $> = $uid;
  $> == $uid and $) + 0 == $gid or die "cannot be user $uid, group $gid";
  socket my $socket, AF_UNIX, $type, 0 or die "socket: $!";
  connect $socket, $path =~ /^\\0/ ? pack("Sa*", AF_UNIX, $path) : pack_sockaddr_un($path)
    or print "cannot connect: $!" and exit;
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

/** socket(2) */
export const STREAM = 1;
export const SEQPACKET = 5;

/** How a connection is made. */
export interface ConnectOptions {
  /** The socket's type: {@linkcode STREAM} unless given. */
  readonly type?: number;
  /** What is put before the command line, and becomes it. */
  readonly prefix?: readonly string[];
}

/** What becomes of a connection to a socket, as Deno's connect takes its path, that a user makes. */
export function connectAs(path: string, uid: number, gid: number, options: ConnectOptions = {}): Promise<string> {
  const { type = STREAM, prefix = [] } = options;
  return must([...prefix, "perl", "-e", CONNECT_AS, path.replace("\0", "@"), `${type}`, `${uid}`, `${gid}`, request()]);
}
