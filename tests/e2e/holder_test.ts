/** A holder without a host of ours: the test plays the host, and sees each message. */

import { assertEquals } from "@std/assert";
import { must } from "./command.ts";
import { newPlace, SHIM } from "./env.ts";
import { firstPath, onlyHosted, withMachine } from "./host.ts";
import { removeFolder } from "./leftovers.ts";

/**
 * Has the lock and the socket of a host, and starts a shim, which comes to it; then it does what its script says, and ends
 * the shim. Its arguments are the path of the socket, a folder, the script, and the command line.
 *
 * The messages are those of lib/standalone/entry.c. perl has neither sendmsg(2) nor SCM_RIGHTS of its own.
 */
const PLAY_HOST = `
  use Fcntl qw(:DEFAULT :flock);
  use Socket;
  use POSIX ();
  $| = 1;
  $SIG{PIPE} = 'IGNORE';
  alarm 20;
  my ($path, $folder, $script) = splice @ARGV, 0, 3;
  my ($ACCEPTED, $END, $SPAWN, $KEEP, $DROP) = (1, 4, 5, 6, 7);
  my ($GO, $SIGNALLED, $EXITED, $SPAWNED, $KEPT) = (2, 3, 4, 5, 6);
  my ($SENDMSG, $SOL_SOCKET, $SCM_RIGHTS) = (46, 1, 1);
  my $OWN_ENVIRONMENT = 0xffffffff;

  # The one that a shim is given is descriptor 3; what else is open is close-on-exec.
  $^F = 3;
  socket my $given, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  fileno $given == 3 or die "the socket is descriptor " . fileno $given;
  bind $given, pack_sockaddr_un("$folder/s") and listen $given, 128 or die "$folder/s: $!";
  $^F = 2;
  sysopen my $lock, "$path.lock", O_RDWR | O_CREAT, 0600 or die "$path.lock: $!";
  flock $lock, LOCK_EX | LOCK_NB or die "the lock is taken: $!";
  socket my $listener, AF_UNIX, SOCK_SEQPACKET, 0 or die "socket: $!";
  bind $listener, pack_sockaddr_un($path) and listen $listener, 128 or die "$path: $!";

  our $shim = fork;
  if (!$shim) { chdir $folder; exec @ARGV or die "$ARGV[0]: $!" }
  accept our $holder, $listener or die "accept: $!";

  sub order { pack "LlLLLl", $_[0], $_[1] // 0, $_[2] // 0, $_[3] // 0, $_[4] // 0, 0 }
  sub say_to { defined syswrite $holder, $_[0] or die "write: $!" }
  # What it says: kind, what, detail.
  sub told {
    my $read = sysread $holder, my $message, 1 << 18;
    return "gone" unless $read;
    return $read == 12 ? join " ", unpack "Lll", $message : "$read bytes";
  }
  sub give {
    my ($bytes, @files) = @_;
    my $rights = pack "Qll" . "l" x @files, 16 + 4 * @files, $SOL_SOCKET, $SCM_RIGHTS, map { fileno $_ } @files;
    my $size = length $rights;
    $rights .= "\\0" x (-$size & 7);
    my $piece = pack "PQ", $bytes, length $bytes;
    my $message = pack "QLx4PQPQlx4", 0, 0, $piece, 1, $rights, length $rights, 0;
    syscall($SENDMSG, fileno $holder, $message, 0) == length $bytes or die "sendmsg: $!";
  }
  sub opened { join " ", sort map { readlink } glob "/proc/$shim/fd/*" }
  sub status { waitpid $shim, 0; $? & 127 ? "signal " . ($? & 127) : $? >> 8 }

  my $join = told;
  $join =~ /^\\d+ bytes$/ or die "it says $join";
  eval "$script; 1" or print "failed: $@";
  kill KILL => $shim;
  unlink $path, "$path.lock";
`;

/** Plays the host of a holder, and gives what the script prints. */
async function play(script: string): Promise<string[]> {
  let printed: string[] = [];
  await withMachine(async (machine) => {
    const path = await firstPath(machine);
    const { folder, namespace } = newPlace();
    try {
      await Deno.writeTextFile(`${folder}/given`, "given\n");
      const command = [SHIM.path, "-namespace", namespace, "-workdir", folder];
      const text = await must([...machine.prefix, "perl", "-e", PLAY_HOST, path, folder, script, ...command]);
      printed = text.replaceAll(folder, "FOLDER").trimEnd().split("\n");
    } finally {
      await removeFolder(folder);
    }
  });
  return printed;
}

/** What a holder says first, once it is accepted: a number of its kind, and two that say nothing. */
const GO = "2 0 0";

onlyHosted("a holder that is accepted says so, and ends with the status that it is told", async () => {
  const script = 'say_to order $ACCEPTED; print told, "\\n"; say_to order $END, 7; print told, " ", status, "\\n"';
  assertEquals(await play(script), [GO, "gone 7"]);
});

onlyHosted("a holder whose host goes ends with status 1", async () => {
  const script = 'say_to order $ACCEPTED; print told, "\\n"; close $holder; print status, "\\n"';
  assertEquals(await play(script), [GO, "1"]);
});

onlyHosted("a process whose host goes before it has said anything is a shim by itself", async () => {
  // A holder has the socket of its host.
  const script = `close $holder; close $listener; unlink $path; close $lock;
    socket my $client, AF_UNIX, SOCK_STREAM, 0;
    connect $client, pack_sockaddr_un("$folder/s") or die "connect: $!";
    syswrite $client, pack "NNCC", 1, 1, 1, 0;
    syswrite $client, "x";
    print sysread($client, my $answer, 10), "\\n"`;
  assertEquals(await play(script), ["10"]);
});

onlyHosted("a holder keeps a descriptor that it is to keep, says its number, and drops it when told to", async () => {
  const script = `say_to order $ACCEPTED;
    print told, "\\n";
    open my $file, '<', "$folder/given" or die $!;
    my $before = opened;
    give order($KEEP), $file;
    my ($kind, $number) = split / /, told;
    print $kind == $KEPT ? "kept" : "kind $kind", " ", readlink "/proc/$shim/fd/$number", "\\n";
    # The oldest descriptor that is asked for again is the same one.
    give order($KEEP), $file;
    my ($again, $other) = split / /, told;
    print $other == $number ? "the same" : "another", "\\n";
    say_to order $DROP, $number;
    say_to order $DROP, $other;
    # Messages are taken in their order.
    give order($KEEP), $file;
    told =~ / (\\d+) / and say_to order $DROP, $1;
    say_to spawn_of("true");
    told; told;
    print opened eq $before ? "as before" : opened, "\\n";
    sub spawn_of { order($SPAWN, 0, 1, 1, $OWN_ENVIRONMENT) . join "", map { "$_\\0" } "", "/bin/$_[0]", $_[0] }`;
  assertEquals(await play(script), [GO, "kept FOLDER/given", "another", "as before"]);
});

/** Has the holder start `/bin/sh -c SCRIPT` in the test's folder, with a pipe to this process for its standard output. */
const SPAWN_SHELL = `
  sub shell {
    my ($text, @environment) = @_;
    pipe my $read, my $write or die $!;
    open my $null, '+<', "/dev/null" or die $!;
    my @strings = ($folder, "/no/such/program", "/bin/sh", "shell", "-c", $text, @environment);
    my $count = @environment ? @environment : $OWN_ENVIRONMENT;
    give order($SPAWN, 0, 2, 3, $count) . join("", map { "$_\\0" } @strings), $null, $write, $null;
    close $write;
    return $read;
  }
  say_to order $ACCEPTED;
  told;
`;

onlyHosted("a holder starts a child as it is told to, is its parent, and says how it has ended", async () => {
  const script = `${SPAWN_SHELL}
    my $read = shell 'echo $0 $PPID $NAME $(pwd) $(echo /proc/self/fd/*); exit 3', "NAME=value", "PATH=/bin";
    my ($kind, $pid, $error) = split / /, told;
    print $kind == $SPAWNED && $pid > 0 ? "spawned" : "$kind $pid", " $error\\n";
    my @said = split / /, join "", <$read>;
    print "$said[0] ", ($said[1] == $shim ? "its child" : "child of $said[1]"), " @said[2 .. $#said]";
    my ($end, $who, $word) = split / /, told;
    print $end == $EXITED && $who == $pid ? "exited" : "$end $who", " ", $word >> 8, "\\n"`;
  // The shell has another open for what it substitutes.
  const files = "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2";
  const [spawned, said, exited] = await play(script);
  assertEquals([spawned, said!.slice(0, said!.indexOf(files) + files.length), exited], [
    "spawned 0",
    `shell its child value FOLDER ${files}`,
    "exited 3",
  ]);
});

onlyHosted("a holder says why a child cannot be started, and goes on", async () => {
  const script = `${SPAWN_SHELL}
    sub try { my ($cwd, @programs) = @_;
      say_to order($SPAWN, 0, scalar @programs, 1, 0) . join "", map { "$_\\0" } $cwd, @programs, "name";
      print told, "\\n" }
    try "", "/no/such/program";
    try "/no/such/folder", "/bin/true";
    try "", "$folder/given", "/no/such/program";
    try "", "$folder/given/below", "$folder/given";
    my $read = shell 'echo well';
    told;
    print <$read>`;
  const [ENOENT, EACCES] = [2, 13];
  const expected = [ENOENT, ENOENT, EACCES, EACCES].map((error) => `5 0 ${error}`);
  assertEquals(await play(script), [...expected, "well"]);
});

onlyHosted("a holder passes on its signals, and reaps whoever ends below it", async () => {
  const script = `${SPAWN_SHELL}
    for my $signal (POSIX::SIGUSR1, POSIX::SIGTERM, POSIX::SIGINT, POSIX::SIGHUP) {
      kill $signal, $shim;
      print told eq "$SIGNALLED $signal 0" ? "passed on" : "not", "\\n";
    }
    # An orphan becomes its child.
    my $read = shell '(sh -c "echo \\$\\$; read x </dev/null; kill -9 \\$\\$") & exit 0';
    my %ended;
    my ($spawned, $pid) = split / /, told;
    for (1, 2) { my ($kind, $who, $word) = split / /, told; $ended{$who} = $word if $kind == $EXITED }
    chomp(my $orphan = <$read>);
    print "$ended{$pid} $ended{$orphan}\\n"`;
  assertEquals(await play(script), ["passed on", "passed on", "passed on", "passed on", "0 9"]);
});

onlyHosted("a holder takes what it does not know for nothing", async () => {
  const script = `${SPAWN_SHELL}
    say_to order 99, 1;
    say_to "short";
    give order(98), $lock;
    say_to order $DROP, 12345;
    my $read = shell 'echo well';
    told;
    print <$read>;
    print opened =~ /lock/ ? "kept" : "closed", "\\n"`;
  assertEquals(await play(script), ["well", "closed"]);
});
