/** A holder without a host of ours: the test plays the host, and sees each message. */

import { assert, assertEquals } from "@std/assert";
import { must } from "./command.ts";
import { newPlace, SHIM } from "./env.ts";
import { firstPath, HOLDER_KIB, onlyHosted, withMachine } from "./host.ts";
import { removeFolder } from "./leftovers.ts";
import { modes } from "./modes.ts";

modes(["hosted"], "a holder has a host");

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
  $SIG{ALRM} = sub { die "nothing more has come\\n" };
  alarm 15;
  my ($path, $folder, $script) = splice @ARGV, 0, 3;
  my ($ACCEPTED, $REFUSED, $FULL, $END, $SPAWN, $KEEP, $DROP, $DONE, $ACCEPT, $OPEN, $MOVE, $PONG) = 1 .. 12;
  my @KINDS = qw(nothing joined go signalled exited spawned held ping);
  my ($WATCH, $HOLD) = (13, 14);
  my ($CLD_EXITED, $CLD_KILLED) = (1, 2);
  my ($SENDMSG, $RECVMSG, $MSG_CMSG_CLOEXEC, $SOL_SOCKET, $SCM_RIGHTS) = (46, 47, 0x40000000, 1, 1);
  my $OWN_ENVIRONMENT = 0xffffffff;
  my $MESSAGE_SIZE = 1 << 18;

  # The one that a shim is given is descriptor 3; what else is open is close-on-exec.
  $^F = 3;
  socket my $given, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  fileno $given == 3 or die "the socket is descriptor " . fileno $given;
  bind $given, pack_sockaddr_un("$folder/s") and listen $given, 128 or die "$folder/s: $!";
  $^F = 2;
  # What a host has.
  sub lock_and_listen {
    my ($path) = @_;
    sysopen my $lock, "$path.lock", O_RDWR | O_CREAT, 0600 or die "$path.lock: $!";
    flock $lock, LOCK_EX | LOCK_NB or die "the lock is taken: $!";
    socket my $listener, AF_UNIX, SOCK_SEQPACKET, 0 or die "socket: $!";
    bind $listener, pack_sockaddr_un($path) and listen $listener, 128 or die "$path: $!";
    return ($lock, $listener);
  }
  my ($lock, $listener) = lock_and_listen $path;

  our ($shim, $holder, %join);
  # A number, and three of what follows it.
  sub order { pack "LlLLLl", $_[0], $_[1] // 0, $_[2] // 0, $_[3] // 0, $_[4] // 0, 0 }
  sub say_to { defined syswrite $holder, $_[0] or die "write: $!" }
  sub give {
    my ($bytes, @files) = @_;
    my $rights = pack "Qll" . "l" x @files, 16 + 4 * @files, $SOL_SOCKET, $SCM_RIGHTS, map { fileno $_ } @files;
    my $size = length $rights;
    $rights .= "\\0" x (-$size & 7);
    my $piece = pack "PQ", $bytes, length $bytes;
    my $message = pack "QLx4PQPQlx4", 0, 0, $piece, 1, $rights, length $rights, 0;
    syscall($SENDMSG, fileno $holder, $message, 0) == length $bytes or die "sendmsg: $!";
  }
  # A message, and the descriptors that come with it; nothing, when it has gone.
  sub received {
    my ($bytes, $rights) = map { "\\0" x $_ } $MESSAGE_SIZE, 64;
    my $piece = pack "PQ", $bytes, $MESSAGE_SIZE;
    my $message = pack "QLx4PQPQlx4", 0, 0, $piece, 1, $rights, length $rights, 0;
    my $length = syscall $RECVMSG, fileno $holder, $message, $MSG_CMSG_CLOEXEC;
    return if $length < 1;
    my ($size) = unpack "Q", $rights;
    return (substr($bytes, 0, $length), $size > 0 ? unpack "x16l*", substr $rights, 0, $size : ());
  }
  # What it says: kind, what, detail, more, and descriptors.
  sub told {
    my ($bytes, @given) = received;
    return "gone" unless defined $bytes;
    my ($kind, @rest) = unpack "Ll3", $bytes;
    return length $bytes == 16 ? ($KINDS[$kind], @rest, @given) : length($bytes) . " bytes";
  }
  # What it says when it comes.
  sub joined {
    my ($bytes, @given) = received or die "nobody comes";
    my @names = qw(kind protocol build entered group folder_size arguments environment);
    my %join;
    @join{@names, qw(signals spawned pid error serial hosts is_moved is_hung)} = unpack "L2Q2L4QLl3LS2", $bytes;
    my $strings = substr $bytes, 72;
    $join{cwd} = unpack "Z*", substr $strings, 0, $join{folder_size};
    $join{strings} = [split /\\0/, substr($strings, $join{folder_size}), -1];
    $join{given} = readlink "/proc/self/fd/$given[0]";
    POSIX::close($_) for @given;
    $join{kind} == 1 && @given == 1 or die "it says $join{kind} with @given";
    return %join;
  }
  # Has it for a holder; says what it brings. It is told that the host is the process $host: 0 has it ask for no sign of life.
  our $host = 0;
  sub take {
    my ($meanwhile) = @_;
    say_to order $ACCEPTED, $host;
    $meanwhile->() if $meanwhile;
    my @brought;
    for (;;) {
      my ($kind, $number, $error, $more, @given) = told;
      return @brought if $kind eq "go";
      my @numbers = ($number, map { $number + 1 + $_ } grep { $more >> $_ & 1 } 0 .. 31);
      $kind eq "held" && @given == @numbers or die "it says $kind @numbers with @given";
      push @brought, map { "$numbers[$_] " . readlink "/proc/self/fd/$given[$_]" } 0 .. $#numbers;
      POSIX::close($_) for @given;
    }
  }
  sub come { accept $holder, $listener or die "accept: $!"; %join = joined }
  # This host dies, and the next is there.
  sub die_and_come { close $holder; come }
  sub opened { join " ", sort map { readlink } glob "/proc/$shim/fd/*" }
  sub kept { readlink("/proc/$shim/fd/$_[0]") // "nothing" }
  sub status { waitpid $shim, 0; $? & 127 ? "signal " . ($? & 127) : $? >> 8 }
  sub slurp { local $/; open my $file, '<', $_[0] or return ""; <$file> }
  sub wait_until { my ($condition) = @_; select undef, undef, undef, 0.002 until $condition->() }
  sub state_of { slurp("/proc/$_[0]/stat") =~ /\\) (\\S)/s ? $1 : "gone" }
  sub stop { kill STOP => $shim; wait_until(sub { state_of($shim) eq "T" }) }
  sub go_on { kill CONT => $shim }

  # Has it start /bin/sh with a script, in the folder; gives the end of a pipe that its output comes by.
  sub shell {
    my ($serial, $text, %more) = @_;
    pipe my $read, my $write or die $!;
    open my $null, '+<', "/dev/null" or die $!;
    my @environment = @{$more{environment} // []};
    my @strings = ($folder, "/no/such/program", "/bin/sh", "shell", "-c", $text, @environment);
    my $count = @environment ? @environment : $OWN_ENVIRONMENT;
    my $bytes = order($SPAWN, $serial, 2, 3, $count) . join "", map { "$_\\0" } @strings;
    give $bytes, $more{stdin} // $null, $write, $null;
    close $write;
    return $read;
  }

  eval {
    $shim = fork;
    if (!$shim) {
      chdir $folder;
      # Whoever has started this may have left something open.
      POSIX::close($_) for 4 .. 255;
      exec @ARGV or die "$ARGV[0]: $!";
    }
    come;
    eval "$script; 1" or die $@;
    1;
  } or print "failed: $@";
  kill KILL => $shim;
  waitpid $shim, 0;
  unlink $path, "$path.lock";
`;

/**
 * Plays the host of a holder, and gives what the script prints.
 *
 * @param before what is put before the shim's command line, and becomes it
 */
async function play(script: string, before: readonly string[] = []): Promise<string[]> {
  let printed: string[] = [];
  await withMachine(async (machine) => {
    const path = await firstPath(machine);
    const { folder, namespace } = newPlace();
    try {
      await Deno.writeTextFile(`${folder}/given`, "given\n");
      await Deno.writeTextFile(`${folder}/other`, "other\n");
      await must(["mkfifo", `${folder}/fifo`]);
      const command = [...before, SHIM.path, "-namespace", namespace, "-workdir", folder];
      const text = await must([...machine.prefix, "perl", "-e", PLAY_HOST, path, folder, script, ...command]);
      printed = text.replaceAll(folder, "FOLDER").replaceAll(namespace, "NAMESPACE").trimEnd().split("\n");
    } finally {
      await removeFolder(folder);
    }
  });
  return printed;
}

/** What a holder says once it is accepted: a number of its kind, and three that say nothing. */
const GO = "go 0 0 0";

onlyHosted("a process that looks for a host says what it is", async () => {
  const script = `
    print "$join{protocol} $join{group} $join{signals} $join{hosts} $join{is_moved}\\n";
    print "$join{spawned} $join{pid} $join{error} $join{serial}\\n";
    print $join{build} && $join{entered} ? "built and entered\\n" : "not\\n";
    print "$join{cwd} @{$join{strings}}[1 .. $join{arguments} - 1]\\n";
    my %environment = map { $_ => 1 } @{$join{strings}}[$join{arguments} .. $join{arguments} + $join{environment} - 1];
    print $environment{"PATH=$ENV{PATH}"} && keys %environment == keys %ENV ? "its environment\\n" : "another\\n";
    print $join{given} eq readlink "/proc/self/fd/3" ? "its socket\\n" : "another\\n"`;
  assertEquals(await play(script), [
    "3 32 0 0 0",
    "0 0 0 0",
    "built and entered",
    "FOLDER -namespace NAMESPACE -workdir FOLDER",
    "its environment",
    "its socket",
  ]);
});

onlyHosted("a holder that is accepted says so, and ends with the status that it is told", async () => {
  const script = 'say_to order $ACCEPTED; print "@{[told]}\\n"; say_to order $END, 7; print told, " ", status, "\\n"';
  assertEquals(await play(script), [GO, "gone 7"]);
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

onlyHosted("a holder keeps a descriptor by the number that it is told, and drops it when told to", async () => {
  const script = `take;
    open my $file, '<', "$folder/given" or die $!;
    open my $other, '<', "$folder/other" or die $!;
    # Messages are taken in their order: when one is answered, those before it have been.
    my $now = sub { say_to order($OPEN, 9, 0, O_RDONLY, -1) . "$folder/none\\0"; told };
    $now->();
    my $before = opened;
    give order($KEEP, 20), $file;
    give order($KEEP, 9), $other;
    $now->();
    print join(" ", map { kept $_ } 9, 20), "\\n";
    give order($KEEP, 20), $other;
    $now->();
    print kept(20), "\\n";
    say_to order $DROP, 9;
    say_to order $DROP, 20;
    $now->();
    print opened eq $before ? "as before" : opened, "\\n";
    # Several at once: bits are for the numbers after the first.
    give order($KEEP, $_), $file for 9, 10, 12, 20, 41;
    say_to order($DROP, 9, 1 << 10 - 10 | 1 << 20 - 10 | 1 << 41 - 10);
    $now->();
    print join(" ", map { kept $_ } 9, 10, 12, 20, 41), "\\n"`;
  assertEquals(await play(script), [
    "FOLDER/other FOLDER/given",
    "FOLDER/other",
    "as before",
    "nothing nothing FOLDER/given nothing nothing",
  ]);
});

onlyHosted("a holder starts a child as it is told to, is its parent, and says how it has ended", async () => {
  const script = `take;
    say_to order $DONE, 0;
    my $text = 'echo $0 $PPID $NAME $(pwd) $(echo /proc/self/fd/*); exit 3';
    my $read = shell 17, $text, environment => ["NAME=value", "PATH=/bin"];
    my ($kind, $pid, $error, $serial) = told;
    print $pid > 0 ? "$kind $error $serial\\n" : "$kind $pid\\n";
    my @said = split / /, join "", <$read>;
    print "$said[0] ", ($said[1] == $shim ? "its child" : "child of $said[1]"), " @said[2 .. $#said]";
    my ($end, $who, $status, $code) = told;
    print $who == $pid && $code == $CLD_EXITED ? "$end $status" : "$end $who $code", "\\n"`;
  // The shell has another open for what it substitutes.
  const files = "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2";
  const [spawned, said, exited] = await play(script);
  assertEquals([spawned, said!.slice(0, said!.indexOf(files) + files.length), exited], [
    "spawned 0 17",
    `shell its child value FOLDER ${files}`,
    "exited 3",
  ]);
});

onlyHosted("a holder says why a child cannot be started, and goes on", async () => {
  const script = `take;
    my $serial = 0;
    sub try { my ($cwd, @programs) = @_;
      say_to order($SPAWN, ++$serial, scalar @programs, 1, 0) . join "", map { "$_\\0" } $cwd, @programs, "name";
      print "@{[told]}\\n" }
    try "", "/no/such/program";
    try "/no/such/folder", "/bin/true";
    try "", "$folder/given", "/no/such/program";
    try "", "$folder/given/below", "$folder/given";
    my $read = shell 5, 'echo well';
    told;
    print <$read>`;
  const [ENOENT, EACCES] = [2, 13];
  const expected = [ENOENT, ENOENT, EACCES, EACCES].map((error, i) => `spawned 0 ${error} ${i + 1}`);
  assertEquals(await play(script), [...expected, "well"]);
});

/** What a holder says before it answers what it is asked for now: nothing, as a rule. */
const TOLD_NOTHING = `
  my $told_nothing = sub {
    say_to order($OPEN, 60, 0, 0, -1) . "/dev/null\\0";
    my ($kind, $number, undef, undef, $fd) = told;
    POSIX::close($fd) if defined $fd;
    return $kind eq "held" && $number == 60 ? "nothing" : "$kind $number";
  };
`;

/**
 * Starts two shells with the numbers 1 and 2, which end with 3 and by SIGKILL when their input does: `end_all` ends that,
 * and waits until they have been reaped. Their pids are $first and $second.
 */
const TWO_SHELLS = `${TOLD_NOTHING}
  pipe my $until, my $gate or die $!;
  my @read;
  push @read, shell 1, 'read line; exit 3', stdin => $until;
  my (undef, $first) = told;
  push @read, shell 2, 'read line; kill -9 $$', stdin => $until;
  my (undef, $second) = told;
  close $until;
  my $end_all = sub { close $gate; for my $pid ($first, $second) { wait_until(sub { state_of($pid) eq "gone" }) } };
  my %name = ($first => "the first", $second => "the second");
`;

onlyHosted("a holder reaps what has ended at once, whatever its host does, and tells of it once", async () => {
  const script = `take; ${TWO_SHELLS}
    say_to order $DONE, 0;
    $end_all->();
    my %ended;
    for (1, 2) {
      my ($kind, $pid, $status, $code) = told;
      $ended{$name{$pid}} = "$kind $status $code";
    }
    print $told_nothing->(), "\\n";
    say_to order $DONE, $_ for $first, $second;
    print $told_nothing->();
    print "\\n$_ $ended{$_}" for sort keys %ended`;
  const [CLD_EXITED, CLD_KILLED] = [1, 2];
  assertEquals(await play(script), [
    "nothing",
    "nothing",
    `the first exited 3 ${CLD_EXITED}`,
    `the second exited 9 ${CLD_KILLED}`,
  ]);
});

onlyHosted("a holder tells of no exit before it is told that it may", async () => {
  const script = `take; ${TWO_SHELLS}
    $end_all->();
    print $told_nothing->(), "\\n";
    say_to order $DONE, 0;
    my ($kind, $pid) = told;
    print $name{$pid} ? $kind : "$kind $pid", "\\n"`;
  assertEquals(await play(script), ["nothing", "exited"]);
});

onlyHosted("a holder passes on its signals, and tells of those that end which it is to watch", async () => {
  const script = `take;
    say_to order $DONE, 0;
    for my $signal (POSIX::SIGUSR1, POSIX::SIGTERM, POSIX::SIGINT, POSIX::SIGHUP) {
      kill $signal, $shim;
      my ($kind, $which) = told;
      print $which == $signal ? $kind : "$kind $which", "\\n";
    }
    # An orphan becomes its child.
    pipe my $until, my $gate or die $!;
    my $read = shell 1, 'exec 3<&0; (sh -c "echo \\$\\$; read x <&3; kill -9 \\$\\$") & exit 0', stdin => $until;
    close $until;
    my (undef, $pid) = told;
    my ($kind, $who, $status, $code) = told;
    print $who == $pid ? "$kind $status $code" : "$kind $who", "\\n";
    chomp(my $orphan = <$read>);
    say_to order $WATCH, $orphan;
    close $gate;
    ($kind, $who, $status, $code) = told;
    print $who == $orphan ? "$kind $status $code" : "$kind $who", "\\n"`;
  assertEquals(await play(script), [...Array(4).fill("signalled"), "exited 0 1", "exited 9 2"]);
});

/** Has an orphan end with 5, and waits until it has been reaped; gives its pid. */
const ORPHAN = `${TOLD_NOTHING}
  my $serial = 0;
  my $orphan = sub {
    my $read = shell ++$serial, '(sh -c "echo \\$\\$; exit 5") & exit 0';
    told, say_to order $DONE, (told)[1];
    chomp(my $pid = <$read>);
    wait_until(sub { state_of($pid) eq "gone" });
    return $pid;
  };
`;

onlyHosted(
  "of an orphan that has ended already, a holder tells when it has been told to keep it, and not otherwise",
  async () => {
    const script = `take; ${ORPHAN}
    say_to order $DONE, 0;
    my $asked = sub { my ($pid) = @_; say_to order $WATCH, $pid; $told_nothing->() };
    my $pid = $orphan->();
    print $asked->($pid), "\\n";
    say_to order $DONE, $pid;
    say_to order $HOLD, 1;
    my @pids = map { $orphan->() } 1 .. 3;
    print $asked->($pids[1]) eq "exited $pids[1]" ? "told of\\n" : "not\\n";
    print join(" ", (told)[0, 1]), "\\n";
    # The next host is told, too, and of others that it asks for.
    die_and_come;
    take;
    say_to order $DONE, 0;
    my ($kind, $who, $status, $code) = told;
    print $who == $pids[1] ? "$kind $status $code" : "$kind $who", "\\n";
    say_to order $DONE, $who;
    say_to order $WATCH, $pids[2];
    ($kind, $who, $status, $code) = told;
    print $who == $pids[2] ? "$kind $status $code" : "$kind $who", "\\n";
    say_to order $HOLD, 0;
    print $asked->($pids[0]), "\\n"`;
    assertEquals(await play(script), ["nothing", "told of", "held 60", "exited 5 1", "exited 5 1", "nothing"]);
  },
);

onlyHosted("what a holder keeps of many that have ended, it forgets when it is told to, with its memory", async () => {
  const script = `take; ${TOLD_NOTHING}
    say_to order $DONE, 0;
    my $memory = sub { slurp("/proc/$shim/smaps_rollup") =~ /^Private_Dirty:\\s+(\\d+)/m; $1 };
    say_to order $HOLD, 1;
    my $before = $memory->();
    my $read = shell 1, 'i=0; while [ $i -lt 2000 ]; do (: &); i=$((i + 1)); done; echo $i';
    my (undef, $pid) = told;
    print <$read>;
    say_to order $DONE, (told)[1];
    print $memory->() - $before >= 12 ? "kept\\n" : "not kept\\n";
    say_to order $HOLD, 0;
    $told_nothing->();
    print $memory->(), "\\n"`;
  const [count, kept, memory] = await play(script);
  assertEquals([count, kept], ["2000", "kept"]);
  assert(Number(memory) <= HOLDER_KIB, `a holder has ${memory} KiB of its own`);
});

onlyHosted("what a holder cannot send for the moment, it sends later", async () => {
  const script = `take;
    # The hard limit is among what a host's path is made from.
    system("prlimit", "--pid", $shim, "--nofile=64:") == 0 or die "prlimit";
    open my $file, '<', "$folder/given" or die $!;
    give order($KEEP, 8 + $_), $file for 0 .. 19;
    close $holder;
    come;
    # More descriptors are on their way than it may have open: unix(7), ETOOMANYREFS.
    socketpair my $here, my $there, AF_UNIX, SOCK_SEQPACKET, 0 or die $!;
    { local $holder = $here; give "more", ($file) x 8 for 1 .. 12 }
    my @brought = take(sub {
      # It waits, in nanosleep(2).
      wait_until(sub { slurp("/proc/$shim/syscall") =~ /^35 / });
      close $here;
      close $there;
    });
    print scalar(@brought), "\\n"`;
  // Only with these may a process have more on their way.
  const unprivileged = ["setpriv", "--bounding-set=-sys_resource,-sys_admin"];
  assertEquals(await play(script, unprivileged), ["20"]);
});

onlyHosted("a holder takes what it does not know for nothing", async () => {
  const script = `take;
    say_to order 99, 1;
    say_to "short";
    give order(98), $lock;
    say_to order $DROP, 12345;
    say_to order $DONE, 1;
    say_to order $DONE, -64;
    my $read = shell 1, 'echo well';
    told;
    print <$read>;
    print opened =~ /lock/ ? "kept" : "closed", "\\n"`;
  assertEquals(await play(script), ["well", "closed"]);
});

onlyHosted("a holder accepts a connection when it is told to, keeps it, and gives it", async () => {
  const script = `take;
    # As a host does.
    fcntl $given, F_SETFL, O_NONBLOCK or die $!;
    socket my $listener, AF_UNIX, SOCK_STREAM, 0 or die $!;
    bind $listener, pack_sockaddr_un("$folder/kept") and listen $listener, 1 or die $!;
    fcntl $listener, F_SETFL, O_NONBLOCK or die $!;
    give order($KEEP, 30), $listener;
    my ($number, $from) = (9, 3);
    for my $path ("$folder/s", "$folder/kept") {
      say_to order($ACCEPT, $number, $from);
      print "@{[told]}\\n";
      socket my $client, AF_UNIX, SOCK_STREAM, 0 or die $!;
      connect $client, pack_sockaddr_un($path) or die $!;
      say_to order($ACCEPT, $number, $from);
      my ($kind, $which, $error, undef, $fd) = told;
      print "$kind $which $error ", kept($number) eq readlink("/proc/self/fd/$fd") ? "the same" : "another", "\\n";
      open my $accepted, '+<&=', $fd or die $!;
      syswrite $accepted, "hello\\n";
      print scalar <$client>;
      ($number, $from) = (40, 30);
    }
    say_to order($ACCEPT, 41, 77);
    print "@{[told]}\\n"`;
  const [EBADF, EAGAIN] = [9, 11];
  assertEquals(await play(script), [
    `held 9 ${EAGAIN} 0`,
    "held 9 0 the same",
    "hello",
    `held 40 ${EAGAIN} 0`,
    "held 40 0 the same",
    "hello",
    `held 41 ${EBADF} 0`,
  ]);
});

onlyHosted("a holder opens a file when it is told to, keeps it, and gives it", async () => {
  const script = `take;
    my $open = sub {
      my ($number, $path, $flags, $first) = @_;
      say_to order($OPEN, $number, 0, $flags, $first) . "$path\\0";
      my ($kind, $which, $error, undef, $fd) = told;
      print "$kind $which $error";
      return print "\\n" unless defined $fd;
      print " ", kept($number), kept($number) eq readlink "/proc/self/fd/$fd" ? "" : " and another", "\\n";
      POSIX::close($fd);
    };
    $open->(9, "$folder/given", O_RDONLY, -1);
    $open->(10, "$folder/none", O_RDONLY, -1);
    $open->(11, "given", O_RDONLY, -1);
    # Opened to write first, a FIFO must have a reader.
    my ($both, $write) = (O_RDWR | O_NONBLOCK, O_WRONLY | O_NONBLOCK);
    $open->(12, "$folder/fifo", $both, $write);
    sysopen my $reader, "$folder/fifo", O_RDONLY | O_NONBLOCK or die $!;
    $open->(12, "$folder/fifo", $both, $write);
    print scalar(grep { readlink =~ /fifo/ } glob "/proc/$shim/fd/*"), "\\n";
    slurp("/proc/$shim/fdinfo/12") =~ /^flags:\\s+(\\d+)/m;
    printf "%o\\n", oct($1) & (O_ACCMODE | O_NONBLOCK);
    # The first must be possible, and so must be the second.
    $open->(13, "$folder/none", O_RDWR | O_CREAT, O_RDONLY);
    $open->(13, "$folder/given", O_RDONLY | O_DIRECTORY, O_RDONLY);
    print kept(13), "\\n"`;
  const [ENOENT, ENXIO, ENOTDIR] = [2, 6, 20];
  assertEquals(await play(script), [
    "held 9 0 FOLDER/given",
    `held 10 ${ENOENT}`,
    "held 11 0 FOLDER/given",
    `held 12 ${ENXIO}`,
    "held 12 0 FOLDER/fifo",
    "1",
    "4002",
    `held 13 ${ENOENT}`,
    `held 13 ${ENOTDIR}`,
    "nothing",
  ]);
});

onlyHosted("a holder that cannot keep a descriptor says why", async () => {
  const script = `take;
    my ($limit) = slurp("/proc/$shim/limits") =~ /^Max open files\\s+(\\d+)/m;
    # When this is answered, it has opened all that it has for itself.
    say_to order($OPEN, 9, 0, O_RDONLY, -1) . "$folder/none\\0";
    told;
    my $before = opened;
    say_to order($OPEN, $limit, 0, O_RDONLY, -1) . "$folder/given\\0";
    my ($kind, $which, $error, $more) = told;
    print $which == $limit ? "$kind $error $more" : "$kind $which", "\\n";
    print opened eq $before ? "as before" : opened, "\\n"`;
  const EMFILE = 24;
  assertEquals(await play(script), [`held ${EMFILE} 0`, "as before"]);
});

onlyHosted("a holder whose host goes comes to the next, and says where it was left", async () => {
  const script = `print scalar(take), "\\n";
    my %first = %join;
    open my $file, '<', "$folder/given" or die $!;
    open my $other, '<', "$folder/other" or die $!;
    give order($KEEP, 20), $file;
    give order($KEEP, 9), $other;
    give order($KEEP, 30), $other;
    say_to order $DROP, 30;
    say_to order($OPEN, 12, 0, O_RDWR | O_NONBLOCK, -1) . "$folder/fifo\\0";
    told;
    my $read = shell 41, 'read line';
    told;
    $read = shell 42, 'echo \$$; read line';
    told;
    chomp(my $pid = <$read>);
    for my $signal (POSIX::SIGUSR1, POSIX::SIGTERM) {
      kill $signal, $shim;
      told;
    }
    say_to order $DONE, -(POSIX::SIGUSR1);
    die_and_come;
    print join(" ", map { $join{$_} } qw(protocol group hosts is_moved)), "\\n";
    print $join{signals} == 1 << POSIX::SIGTERM - 1 ? "terminated" : $join{signals}, "\\n";
    print $join{spawned} == 5 && $join{pid} == $pid ? "its pid" : "another", " $join{error} $join{serial}\\n";
    my $same = grep { "@{[$join{$_}]}" eq "@{[$first{$_}]}" } qw(build entered cwd arguments environment given);
    print "$same of 6\\n";
    print "@{$join{strings}}" eq "@{$first{strings}}" ? "the same strings\\n" : "others\\n";
    print join("\\n", take), "\\n";
    # What is answered now is so by this one.
    say_to order $DROP, 9;
    my @programs = ("", "/no/such/program", "name");
    say_to order($SPAWN, 43, 1, 1, 0) . join "", map { "$_\\0" } @programs;
    print "@{[told]}\\n";
    say_to order $DONE, -(POSIX::SIGTERM);
    die_and_come;
    print join(" ", map { $join{$_} } qw(hosts signals spawned pid error serial)), "\\n";
    print join("\\n", take), "\\n"`;
  const ENOENT = 2;
  assertEquals(await play(script), [
    "0",
    "3 32 1 0",
    "terminated",
    "its pid 0 42",
    "6 of 6",
    "the same strings",
    "9 FOLDER/other",
    "12 FOLDER/fifo",
    "20 FOLDER/given",
    `spawned 0 ${ENOENT} 43`,
    `2 0 5 0 ${ENOENT} 43`,
    "12 FOLDER/fifo",
    "20 FOLDER/given",
  ]);
});

/** Has a program inherit its standard input by other numbers, too. */
const STRAY = ["perl", "-MPOSIX", "-e", "POSIX::dup2(0, $_) for 4, 8, 10, 16, 99; exec @ARGV"];

onlyHosted("what a holder has been started with by chance is not what it has kept", async () => {
  const script = `take;
    open my $file, '<', "$folder/given" or die $!;
    give order($KEEP, 20), $file;
    die_and_come;
    print join("\\n", take), "\\n"`;
  assertEquals(await play(script, STRAY), ["20 FOLDER/given"]);
});

onlyHosted("a holder does what its host had told it before it died, and goes to the next then", async () => {
  const script = `take;
    open my $file, '<', "$folder/given" or die $!;
    stop;
    give order($KEEP, 20), $file;
    my $read = shell 7, 'echo started; read line; echo ended';
    say_to order($OPEN, 21, 0, O_RDONLY, -1) . "$folder/other\\0";
    say_to order $DROP, 20;
    give order($KEEP, 22), $file;
    close $holder;
    go_on;
    come;
    print $join{pid} > 0 ? "started" : "not started", " $join{error} $join{serial}\\n";
    print join("\\n", take), "\\n";
    print <$read>`;
  assertEquals(await play(script), [
    "started 0 7",
    "21 FOLDER/other",
    "22 FOLDER/given",
    "started",
    "ended",
  ]);
});

onlyHosted("that its host has died with something unread, hinders no holder from doing what it was told", async () => {
  const script = `take;
    kill USR1 => $shim;
    my $set = "";
    vec($set, fileno $holder, 1) = 1;
    select my $ready = $set, undef, undef, 10 or die "it says nothing";
    stop;
    my $read = shell 7, 'echo started';
    close $holder;
    go_on;
    come;
    print $join{pid} > 0 ? "started" : "not started", " $join{error} $join{serial}\\n";
    # And perhaps SIGCONT, if it has been stopped where it looks for signals.
    my $signals = $join{signals} & ~(1 << POSIX::SIGCONT - 1);
    print $signals == 1 << POSIX::SIGUSR1 - 1 ? "the signal" : $signals, "\\n";
    take;
    print <$read>`;
  assertEquals(await play(script), ["started 0 7", "the signal", "started"]);
});

onlyHosted(
  "what ends while there is no host is reaped, and told to the next, as often as it takes",
  async () => {
    const script = `take; ${TWO_SHELLS}
    say_to order $DONE, 0;
    close $holder;
    $end_all->();
    come;
    print scalar(take), " ", $told_nothing->(), "\\n";
    say_to order $DONE, 0;
    my @once = map { join " ", told } 1, 2;
    print $told_nothing->(), "\\n";
    # It has not said that it knows.
    die_and_come;
    take;
    say_to order $DONE, 0;
    my @twice = map { join " ", told } 1, 2;
    print "@once" eq "@twice" ? "the same" : "@once, then @twice", "\\n";
    say_to order $DONE, $first;
    die_and_come;
    take;
    say_to order $DONE, 0;
    print $name{(told)[1]}, ", ", $told_nothing->(), "\\n";
    print join("\\n", sort map { my ($kind, $pid, $status, $code) = split / /; "$name{$pid} $kind $status $code" } @once)`;
    assertEquals(await play(script), [
      "0 nothing",
      "nothing",
      "the same",
      "the second, nothing",
      "the first exited 3 1",
      "the second exited 9 2",
    ]);
  },
);

onlyHosted("a signal that comes while there is no host is passed on to the next", async () => {
  const script = `take;
    close $holder;
    accept $holder, $listener or die "accept: $!";
    kill HUP => $shim;
    %join = joined;
    print "$join{hosts} $join{signals}\\n";
    take;
    my ($kind, $signal) = told;
    print $signal == POSIX::SIGHUP ? $kind : "$kind $signal", "\\n"`;
  assertEquals(await play(script), ["1 0", "signalled"]);
});

onlyHosted("a holder that comes back has no more memory of its own than it may have", async () => {
  const script = `take;
    my $memory = sub { slurp("/proc/$shim/smaps_rollup") =~ /^Private_Dirty:\\s+(\\d+)/m; $1 };
    open my $file, '<', "$folder/given" or die $!;
    give order($KEEP, 8 + $_), $file for 0 .. 99;
    my $read = shell 1, 'exit 0';
    told;
    for (1 .. 5) {
      die_and_come;
      take;
      $read = shell 1, 'exit 0';
      told;
      print $memory->(), "\\n";
    }`;
  const dirty = (await play(script)).map(Number);
  assertEquals(dirty.length, 5);
  for (const each of dirty) assert(each > 0 && each <= HOLDER_KIB, `a holder has ${dirty} KiB of its own`);
});

/** A process in the place of the host, that may be killed. */
const VICTIM = `
  $host = fork // die "fork: $!";
  if (!$host) { sleep 1000; POSIX::_exit(0) }
`;

onlyHosted(
  "a holder asks its host for a sign of life, and kills one that gives none when asked five times",
  async () => {
    const script = `${VICTIM} take;
    my @said;
    for (1 .. 7) { push @said, told; say_to order $PONG }
    print "@said\n", state_of($host), "\n";
    @said = told, print "$said[0] " for 1 .. 5;
    waitpid $host, 0;
    print $? & 127, "\n";
    # The kernel does not let it end, as it seems.
    print told, "\n";
    die_and_come;
    print "$join{hosts} $join{is_hung}\n";
    $host = 0;
    take;
    die_and_come;
    print "$join{hosts} $join{is_hung}\n"`;
    assertEquals(await play(script, ["env", "CONTAINERD_SHIM_WATCHDOG=1"]), [
      Array(7).fill("ping 0 0 0").join(" "),
      "S",
      "ping ping ping ping ping 9",
      "gone",
      "1 1",
      "2 0",
    ]);
  },
);

onlyHosted("a holder whose host talks does not ask it whether it lives", async () => {
  const script = `${VICTIM} take;
    for (1 .. 50) { say_to order $DONE, -1; select undef, undef, undef, 0.05 }
    kill HUP => $shim;
    print((told)[0], "\n");
    kill KILL => $host`;
  // It asks each second.
  assertEquals(await play(script, ["env", "CONTAINERD_SHIM_WATCHDOG=5"]), ["signalled"]);
});

/**
 * What the path of a host of another build is, as lib/standalone/entry.c has it: a hash of that, the user, the namespaces, and of
 * cgroups, CPU affinity, scheduling, I/O priority and hard limits, which this process and the holder have in common.
 */
const PATH_OF_BUILD = `
  use integer;
  sub path_of {
    my ($build) = @_;
    my $hash = 0xcbf29ce484222325;
    my $add = sub { $hash = ($hash ^ $_) * 0x100000001b3 for unpack "C*", $_[0] };
    $add->(pack "QLL", $build, $>, $) + 0);
    $add->(readlink "/proc/self/ns/$_") for qw(cgroup ipc mnt net pid time user uts);
    my ($IOPRIO_GET, $OF_PROCESS, $SCHED_GETAFFINITY, $SCHED_GETATTR, $PRLIMIT) = (252, 1, 204, 315, 302);
    $add->(slurp("/proc/self/cgroup"));
    my ($mask, $attributes) = ("\\0" x 1024, "\\0" x 56);
    $add->(substr $mask, 0, syscall($SCHED_GETAFFINITY, 0, 1024, $mask));
    syscall($SCHED_GETATTR, 0, $attributes, 56, 0);
    my ($size, $policy, $flags, $nice, $priority) = unpack "LLQlL", $attributes;
    my $io = syscall($IOPRIO_GET, $OF_PROCESS, 0);
    $add->(pack "LlLL", $policy, $nice, $priority, $io >> 13 ? $io : 0);
    for my $resource (0 .. 15) {
      my $limit = "\\0" x 16;
      syscall($PRLIMIT, 0, $resource, 0, $limit);
      $add->(substr $limit, 8);
    }
    return sprintf "/run/containerd-shim/%u-0", $hash;
  }
`;

onlyHosted(
  "a holder that is to move goes to a host of the other build, and back when that does not want it",
  async () => {
    const script = `${PATH_OF_BUILD} take;
    print path_of($join{build}) eq $path ? "its own path\\n" : path_of($join{build}) . " is not $path\\n";
    my $own = $join{build};
    my ($other_lock, $other) = lock_and_listen path_of($own + 1);
    open my $file, '<', "$folder/given" or die $!;
    give order($KEEP, 20), $file;
    my $move = sub {
      give pack("LlQQ", $MOVE, 0, $own + 1, 0), $file;
      print told, "\\n";
      close $holder;
      accept $holder, $other or die "accept: $!";
      %join = joined;
      print $join{build} == $own + 1 ? "of the other build" : "of $join{build}", " $join{hosts} $join{is_moved}\\n";
    };
    $move->();
    say_to order $REFUSED;
    print told, "\\n";
    die_and_come;
    print $join{build} == $own ? "of its own build" : "of $join{build}", " $join{hosts} $join{is_moved}\\n";
    print join("\\n", take), "\\n";
    $move->();
    print join("\\n", take), "\\n";
    # If that one dies, the next is of its build.
    close $holder;
    accept $holder, $other or die "accept: $!";
    %join = joined;
    print $join{build} == $own + 1 ? "of the other build" : "of $join{build}", " $join{hosts} $join{is_moved}\\n";
    unlink path_of($own + 1), path_of($own + 1) . ".lock"`;
    assertEquals(await play(script), [
      "its own path",
      "gone",
      "of the other build 1 1",
      "gone",
      "of its own build 1 0",
      "20 FOLDER/given",
      "gone",
      "of the other build 2 1",
      "20 FOLDER/given",
      "of the other build 3 1",
    ]);
  },
);

onlyHosted("a holder that is to move, and finds nothing that becomes a host, comes back", async () => {
  const script = `take;
    open my $program, '<', "/bin/true" or die $!;
    my $build = $join{build};
    give pack("LlQQ", $MOVE, 0, $build + 1, 0), $program;
    print told, "\\n";
    die_and_come;
    print $join{build} == $build ? "of its own build" : "of $join{build}", " $join{hosts} $join{is_moved}\\n";
    take;
    my $read = shell 1, 'echo well';
    told;
    print <$read>;
    unlink grep { !/^\\Q$path\\E/ } glob "/run/containerd-shim/*"`;
  assertEquals(await play(script), ["gone", "of its own build 1 0", "well"]);
});
