/** Whatever goes wrong on the way to a host, the container runs: its shim is by itself then, or in another host. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { containerd } from "../../lib/api/mod.js";
import { ttrpc } from "../../lib/api/ttrpc.js";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { must } from "./command.ts";
import { newPlace, SHIM } from "./env.ts";
import {
  ALONE,
  assertExecs,
  assertHolder,
  assertOpenFiles,
  assertRuns,
  emptyFolder,
  endContainer,
  firstPath,
  group,
  HOSTS,
  type Machine,
  onlyHosted,
  openFiles,
  shell,
  TALKING,
  withMachine,
} from "./host.ts";
import { names, removeFolder } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { processOf } from "./proc.ts";
import { SERVICE, withShim } from "./shim.ts";
import { until, within } from "./until.ts";
import { encodeFrame, REQUEST } from "./wire.ts";

modes(["hosted"], "it is about hosts");

/** How long a process waits for a host that has started, and for one that has not, in ms: lib/standalone/entry.c. */
const JOIN_MS = 200;
const START_MS = 1000;
/** How much longer the first answer may take than that and the start of a shim alone, in ms. */
const TOLERANCE_MS = 100;
/** How often it is tried: other programs may keep a machine from being fast, but nothing makes it so. */
const ATTEMPTS = 4;
/** A user that no file here belongs to. */
const NOBODY = 65534;

/** How a shim is run. */
interface Run {
  /** What is put before its command line, on the machine. */
  readonly more?: readonly string[];
  /** Whether it has a host. */
  readonly hosted?: boolean;
  /** How long it may look for one, in ms. */
  readonly patienceMs?: number;
}

/** Runs a container to its end, and gives how long its shim took to answer. */
async function runContainer(machine: Machine, { more = [], hosted = false }: Run): Promise<number> {
  let firstAnswerMs = NaN;
  await withShim({ prefix: [...machine.prefix, ...more], args: TALKING }, async (shim) => {
    ({ firstAnswerMs } = shim);
    assertHolder(shim.pid, hosted);
    await assertRuns(shim);
  });
  return firstAnswerMs;
}

/** Fails unless a container runs all the same, and its shim answers as soon as one that is meant to be alone, almost. */
async function assertFallsBack(machine: Machine, run: Run = {}): Promise<void> {
  const { more = [], patienceMs = JOIN_MS } = run;
  const taken: string[] = [];
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const aloneMs = await runContainer(machine, { more: [...more, ...ALONE] });
    const ms = await runContainer(machine, run);
    if (ms <= aloneMs + patienceMs + TOLERANCE_MS) return;
    taken.push(`${Math.round(ms)} ms, and ${Math.round(aloneMs)} ms when it is meant to be alone`);
  }
  throw new Error(`the first answer took too long: ${taken.join("; ")}`);
}

/** Has a folder /run with nothing in it but what the tests and containerd look for there. */
const EMPTY_RUN = "mount --bind /run/containerd /mnt && mount -t tmpfs none /run" +
  " && mkdir /run/containerd && mount --move /mnt /run/containerd";

/** Folders in which no host can be. */
const NO_FOLDERS: readonly (readonly [name: string, setup: string])[] = [
  ["is a file", `${EMPTY_RUN} && : >${HOSTS}`],
  ["is a link to a folder", `${EMPTY_RUN} && mkdir -m 700 /run/other && ln -s other ${HOSTS}`],
  ["cannot be made", `${EMPTY_RUN} && mount -o remount,ro /run`],
  ["cannot be written to", emptyFolder("ro,mode=700")],
  ["is full", emptyFolder("mode=700,nr_inodes=1")],
  ["is another user's", emptyFolder(`mode=700,uid=${NOBODY}`)],
  ["is anyone's", emptyFolder("mode=777")],
  ["is to be looked at by a group", emptyFolder("mode=750")],
];

for (const [name, setup] of NO_FOLDERS) {
  onlyHosted(`where the folder for hosts ${name}, a container's shim is alone`, () =>
    withMachine(async (machine) => {
      await assertFallsBack(machine);
      assertEquals(machine.hosts(), []);
    }, setup));
}

onlyHosted(
  "where a host has no room to write down how many containers it has, it has them all the same",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async (shim) => {
        assertHolder(shim.pid);
        await assertFallsBack(machine, { hosted: true });
        assertEquals(machine.hosts().length, 1);
        await Deno.remove(`${machine.folder}/filler`);
      }), `${emptyFolder("mode=700,size=4k")} && head -c 4096 /dev/zero >${HOSTS}/filler`),
);

onlyHosted(
  "where a host could open too few files for any container, its shim is alone, and hosts are not many",
  () =>
    withMachine(async (machine) => {
      await assertFallsBack(machine, { more: ["prlimit", "--nofile=100:100"] });
      assert(machine.hosts().length <= 1, `there are ${machine.hosts().length} hosts without containers`);
    }),
);

onlyHosted(
  "where there is no /dev/null, a shim is by itself at once, and says why it has no container",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async (shim) => {
        assertHolder(shim.pid, false);
        assert(shim.firstAnswerMs < START_MS, `it took ${Math.round(shim.firstAnswerMs)} ms`);
        const error = await assertRejects(() => shim.create(), StatusError);
        assertEquals(error.message, "OCI runtime create failed: open /dev/null: no such file or directory");
        assertEquals([names(machine.folder), shim.output()], [[], ""]);
      }), `${emptyFolder()} && mount -t tmpfs none /dev`),
);

onlyHosted(
  "a process without standard input is a shim by itself",
  () => withMachine((machine) => assertFallsBack(machine, { more: shell("exec <&-") })),
);

onlyHosted(
  "where there is no folder for hosts, it is made, and nobody else gets in",
  () =>
    withMachine(async (machine) => {
      // Not even with this.
      await runContainer(machine, { more: shell("umask 0"), hosted: true });
      assertEquals(Deno.statSync(machine.folder).mode! & 0o7777, 0o700);
      assertEquals(machine.sizes(), [0]);
    }, EMPTY_RUN),
);

onlyHosted(
  "a host that is stopped takes nobody in; and does no harm when it goes on",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async (inside) => {
        await inside.run();
        await assertExecs(inside, "before");
        const host = machine.host();
        const before = openFiles(host.pid);
        Deno.kill(host.pid, "SIGSTOP");
        await until("it has stopped", () => processOf(host.pid)?.state === "T");
        await assertFallsBack(machine);
        await withShim({ prefix: machine.prefix }, async (alone) => {
          assertHolder(alone.pid, false);
          await alone.run();
          Deno.kill(host.pid, "SIGCONT");
          await assertExecs(inside, "after");
          await assertExecs(alone, "after");
          assertEquals(machine.host(), { ...host, size: 1 });
          await assertOpenFiles(host.pid, before);
          await endContainer(alone);
        });
        await runContainer(machine, { hosted: true });
        await endContainer(inside);
      })
    ),
);

onlyHosted(
  "in another mount namespace a container has another host, in the same folder",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async () => {
        await runContainer(machine, { more: ["unshare", "--mount"], hosted: true });
        assertEquals(machine.sizes().toSorted(), [0, 1]);
        const [one, other] = machine.hosts();
        assert(one!.path.replace(/-0$/, "") !== other!.path.replace(/-0$/, ""), "both have the same kind");
      })
    ),
);

onlyHosted(
  "where a host is full, the next container has the next",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async (shim) => {
        assertHolder(shim.pid);
        await withShim({ prefix: machine.prefix }, async () => {
          await runContainer(machine, { more: group(2), hosted: true });
          assertEquals(machine.sizes(), [2, 0]);
          // It is the newcomer that says how many.
          await runContainer(machine, { more: group(3), hosted: true });
        });
        assertEquals(machine.hosts().length, 2);
      })
    ),
);

/** What makes a process another than its host is, where files are opened and filesystems mounted. */
const DIFFERENT: readonly (readonly [name: string, prefix: readonly string[]])[] = [
  ["another umask", shell("umask 027")],
  ["fewer capabilities", ["setpriv", "--bounding-set", "-sys_time"]],
  ["other capabilities to inherit", ["setpriv", "--inh-caps", "+net_raw"]],
  ["no new privileges", ["setpriv", "--no-new-privs"]],
  ["other groups", ["setpriv", "--groups", "1,2"]],
  ["another user in name", ["setpriv", "--ruid", `${NOBODY}`]],
];

for (const [name, prefix] of DIFFERENT) {
  onlyHosted(
    `what has ${name} than the host, has another`,
    () =>
      withMachine((machine) =>
        withShim({ prefix: machine.prefix }, async (shim) => {
          assertHolder(shim.pid);
          const before = machine.host();
          for (let i = 0; i < 2; i++) await runContainer(machine, { more: prefix, hosted: true });
          assertEquals(machine.sizes(), [1, 0]);
          assertEquals(machine.hosts()[0], before);
        })
      ),
  );

  onlyHosted(
    `where all have ${name} than others, they share a host`,
    () =>
      withMachine((machine) =>
        withShim({ prefix: [...machine.prefix, ...prefix] }, async (shim) => {
          assertHolder(shim.pid);
          await runContainer(machine, { more: prefix, hosted: true });
          assertEquals(machine.sizes(), [1]);
        })
      ),
  );
}

/** Has the environment grow by so many strings of 100 KB each. */
function crowded(strings: number): string[] {
  return ["perl", "-e", `$ENV{"FILLER$_"} = "x" x 100000 for 1 .. ${strings}; exec @ARGV`];
}

onlyHosted(
  "what was started with more than a message may have, is alone; with somewhat less, it has a host",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async () => {
        await assertFallsBack(machine, { more: crowded(3) });
        await runContainer(machine, { more: crowded(1), hosted: true });
        assertEquals(machine.sizes(), [1]);
      })
    ),
);

/**
 * Starts our shim as another user, asks it for ShimInfo and has it end. It prints what has been answered, in hex, how many
 * mappings of its file there are, and its exit status. Its arguments are a folder, the user, the request in hex, and the
 * command line.
 */
const AS_ANOTHER = `
  use Socket;
  my ($folder, $user, $request) = splice @ARGV, 0, 3;
  $^F = 3; # the highest descriptor that is not close-on-exec
  socket my $socket, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  fileno $socket == 3 or die "the socket is descriptor " . fileno $socket;
  bind $socket, pack_sockaddr_un("$folder/s") and listen $socket, 128 or die "$folder/s: $!";
  chown $user, $user, $folder, "$folder/s";
  chdir $folder;
  $( = $) = "$user $user";
  $< = $> = $user;
  $> == $user and $) + 0 == $user or die "cannot be user $user";
  my $shim = fork;
  if (!$shim) { setpgrp and exec @ARGV or die "$ARGV[0]: $!" }
  close $socket;
  $^F = 2;
  socket my $client, AF_UNIX, SOCK_STREAM, 0 or die "socket: $!";
  connect $client, pack_sockaddr_un("$folder/s") or die "connect: $!";
  syswrite $client, pack("H*", $request) or die "write: $!";
  my $answer = "";
  my $length = sub { length $answer < 10 ? 10 : 10 + unpack("N", $answer) };
  while (length $answer < $length->()) {
    sysread $client, $answer, $length->() - length $answer, length $answer or die "the answer ends: $!";
  }
  open my $maps, '<', "/proc/$shim/maps" or die "maps: $!";
  my $mapped = grep /containerd-shim$/, <$maps>;
  kill TERM => $shim;
  waitpid $shim, 0;
  print unpack("H*", substr $answer, 10), " $shim $mapped $?";
`;

/** Starts a shim as {@linkcode NOBODY}, and says whether it is a holder. */
async function startAsNobody(machine: Machine): Promise<boolean> {
  const { folder, namespace } = newPlace();
  try {
    const payload = ttrpc.Request.encode({ service: SERVICE, method: "ShimInfo" }).finish();
    const request = encodeFrame({ stream: 1, type: REQUEST, payload }).toHex();
    const flags = ["-namespace", namespace, "-workdir", folder, "-address", `${folder}/none`];
    const command = ["perl", "-e", AS_ANOTHER, folder, `${NOBODY}`, request, SHIM.path, ...flags];
    const printed = await must([...machine.prefix, ...command]);
    const [answer, pid, mapped, status] = printed.split(" ");
    const { payload: info } = ttrpc.Response.decode(Uint8Array.fromHex(answer!));
    const { shimPid } = containerd.runtime.linux.shim.v1.ShimInfoResponse.decode(info);
    assertEquals([shimPid, status], [Number(pid), "0"]);
    return mapped === "1";
  } finally {
    await removeFolder(folder);
  }
}

onlyHosted(
  "another user has no host of ours, and its shim is alone",
  () =>
    withMachine((machine) =>
      withShim({ prefix: machine.prefix }, async () => {
        assertEquals(await startAsNobody(machine), false);
        assertEquals(machine.sizes(), [1]);
      })
    ),
);

onlyHosted("another user has hosts in a folder of its own", () =>
  withMachine(async (machine) => {
    assertEquals(await startAsNobody(machine), true);
    await until("the host has none", () => machine.sizes().join() === "0");
  }, emptyFolder(`mode=700,uid=${NOBODY},gid=${NOBODY}`)));

/**
 * Has the lock of a host, and does with those who come what its script says; it prints a line when it is ready. Its
 * arguments are the path of the socket, what the lock has in it, in hex, and the script.
 */
const FAKE_HOST = `
  use Fcntl qw(:DEFAULT :flock);
  use Socket;
  $| = 1;
  my ($path, $count, $script) = @ARGV;
  sysopen my $lock, "$path.lock", O_RDWR | O_CREAT | O_TRUNC, 0600 or die "$path.lock: $!";
  flock $lock, LOCK_EX | LOCK_NB or die "the lock is taken: $!";
  syswrite $lock, pack("H*", $count);
  socket our $socket, AF_UNIX, SOCK_SEQPACKET, 0 or die "socket: $!";
  our $address = pack_sockaddr_un($path);
  sub serve {
    bind $socket, $address and listen $socket, shift or die "$path: $!";
    print "\\n";
  }
  # What comes is read; the answer is one of struct order.
  sub answer {
    my ($kind, $size) = @_;
    serve 128;
    my @clients;
    while (accept my $client, $socket) {
      sysread $client, my $join, 1 << 18;
      syswrite $client, substr(pack("Ll5", $kind, 0, 0, 0, 0, 0), 0, $size // 24);
      push @clients, $client;
    }
  }
  eval $script;
  die $@ if $@;
  sleep;
`;

/** What a host may have written into its lock: nothing, as long as it has not started. */
const STARTING = "";
const EMPTY = "00000000";

/** What such a host does. */
interface FakeHost {
  readonly name: string;
  readonly script: string;
  /** In its lock. */
  readonly count?: string;
  readonly run?: Run;
}

const FAKE_HOSTS: readonly FakeHost[] = [
  { name: "listens, and accepts nobody", script: "serve 128" },
  { name: "starts, and never ends to", script: "serve 128", count: STARTING, run: { patienceMs: START_MS } },
  { name: "accepts, and says nothing", script: "serve 128; my @a; while (accept my $c, $socket) { push @a, $c }" },
  { name: "accepts, and closes", script: "serve 128; while (accept my $c, $socket) { close $c }" },
  {
    name: "has no room in its queue",
    script: "serve 0; socket my $c, AF_UNIX, SOCK_SEQPACKET, 0; connect $c, $address",
  },
  { name: "has the lock, and no socket", script: 'print "\\n"' },
  { name: "is about to start, and does not", script: 'print "\\n"', count: STARTING, run: { patienceMs: START_MS } },
  { name: "refuses", script: "answer 2" },
  { name: "says what nobody knows", script: "answer 99" },
  { name: "says half a word", script: "answer 1, 3" },
  {
    name: "listens as another user",
    script: `bind $socket, $address; chmod 0777, $path; $> = ${NOBODY}; listen $socket, 128; print "\\n"`,
  },
  { name: "says that it is full", script: "answer 3", run: { hosted: true } },
  { name: "has written that it is full", script: "serve 128", count: "ffffffff", run: { hosted: true } },
];

/** Runs `test` where a host that does not do what it is to has the place of the first host. */
async function withFakeHost(
  machine: Machine,
  { script, count = EMPTY }: Pick<FakeHost, "script" | "count">,
  test: () => Promise<void>,
): Promise<void> {
  const path = await firstPath(machine);
  const [program, ...args] = [...machine.prefix, "perl", "-e", FAKE_HOST, path, count, script];
  const fake = new Deno.Command(program, { args, stdin: "null", stdout: "piped" }).spawn();
  try {
    const reader = fake.stdout.getReader();
    const { done } = await within("the fake host", reader.read());
    await reader.cancel();
    assertEquals(done, false, "the fake host does not start");
    await test();
  } finally {
    try {
      fake.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await fake.status;
    for (const ending of ["", ".lock"]) {
      await Deno.remove(machine.fileOf({ path }, ending)).catch(() => {});
    }
  }
}

for (const { name, run = {}, ...fake } of FAKE_HOSTS) {
  const outcome = run.hosted ? "the next container has another" : "the next container's shim is alone";
  onlyHosted(
    `where a host ${name}, ${outcome}`,
    () =>
      withMachine((machine) =>
        withFakeHost(machine, fake, async () => {
          await assertFallsBack(machine, run);
          assertEquals(machine.sizes(), run.hosted ? [0] : []);
        })
      ),
  );
}
