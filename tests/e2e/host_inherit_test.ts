/** What a container, and the OCI runtime, inherit from the shim: the same from a holder as from a shim that is alone. */

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { withContainerd } from "./harness.ts";
import { ALONE, assertHolder, endContainer, type Machine, onlyHosted, shell, withHosted, withMachine } from "./host.ts";
import { hierarchies } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { withShim } from "./shim.ts";

modes(["hosted"], "it is about hosts");

/**
 * An OCI runtime that writes down what it was started with, by lines of a name and a value each, and is runc then. What
 * differs from one container to the next is left out of it: numbers, names, and what says how the shim came to be.
 */
const RECORDING_RUNTIME = `#!/usr/bin/perl
  use Cwd;
  use Fcntl;
  sub slurp { local $/; open my $file, '<', shift or return "none"; <$file> }
  my ($KEYCTL, $GET_KEYRING_ID, $SESSION_KEYRING) = (250, 0, -3);
  my ($IOPRIO_GET, $OF_PROCESS) = (252, 1);
  my $fields = join "|", qw(Umask SigBlk SigIgn SigCgt ShdPnd Cap\\w+ NoNewPrivs Seccomp\\w* Groups Uid Gid),
    qw(Cpus_allowed_list Mems_allowed_list Speculation\\w* THP_enabled);
  my %record = (
    limits => slurp("/proc/self/limits"),
    status => join("", grep /^($fields):/, split /^/, slurp("/proc/self/status")),
    oom_score_adj => slurp("/proc/self/oom_score_adj"),
    timer_slack => slurp("/proc/self/timerslack_ns"),
    coredump_filter => slurp("/proc/self/coredump_filter"),
    personality => slurp("/proc/self/personality"),
    cgroup => slurp("/proc/self/cgroup"),
    cwd => getcwd,
    root => readlink "/proc/self/root",
    session_keyring => syscall($KEYCTL, $GET_KEYRING_ID, $SESSION_KEYRING, 0),
    io_priority => syscall($IOPRIO_GET, $OF_PROCESS, 0),
    namespaces => join(" ", map { readlink } sort glob "/proc/self/ns/*"),
    environment => join("\\n", map { "$_=$ENV{$_}" } sort grep !/^CONTAINERD_SHIM_GROUP$/, keys %ENV),
    process_group => getpgrp == getpgrp getppid ? "its parent's" : "another",
  );
  my @of = map { my @all = split / /, slurp("/proc/$_/stat") =~ s/.*\\) //sr; \\@all } "self", getppid;
  # proc(5) has session as field 6, tty_nr 7, nice 19, rt_priority 40, policy 41; what is left of them begins with field 3.
  $record{session} = $of[0][3] == $of[1][3] ? "its parent's" : "another";
  $record{terminal} = $of[0][4];
  $record{scheduling} = join " ", @{$of[0]}[16, 37, 38];
  my @files = map { readlink } grep { (stat)[1] } glob "/proc/self/fd/*";
  $record{descriptors} = join " ", sort map { s/\\[\\d+\\]//r } grep { !m{/recording-runtime$} } @files;
  my ($folder) = $0 =~ m{(.*)/};
  sysopen my $out, "$folder/record", O_WRONLY | O_APPEND | O_CREAT, 0600 or die "$folder/record: $!";
  my ($command) = grep /^(create|start|kill|delete|exec|state)$/, @ARGV;
  print $out map { my $name = $_; map "$command $name: $_\\n", split /\\n/, $record{$name} } sort keys %record;
  close $out;
  exec "runc", @ARGV;
`;

/** Says what its container has inherited: nothing of it is in the container's specification. */
const RECORDING_CONTAINER = [
  "sh",
  "-c",
  `cat /proc/self/limits /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/self/coredump_filter
  grep -E '^(Umask|Sig(Blk|Ign)|ShdPnd|Cap|NoNewPrivs|Seccomp|Groups|Cpus_allowed_list|Speculation)' /proc/self/status
  cut -d' ' -f19,40,41 /proc/self/stat; ionice; cat /proc/self/cgroup`,
];

/** What has been inherited, by whom, as lines. */
type Record = readonly string[];

/** Runs a container, and another process in it, with a shim started in a way, and says what was inherited. */
async function inherited(machine: Machine, prefix: readonly string[], hosted: boolean): Promise<Record> {
  const lines: string[] = [];
  const more = hosted ? [] : ALONE;
  await withShim({ prefix: [...machine.prefix, ...prefix, ...more], args: RECORDING_CONTAINER }, async (shim) => {
    assertHolder(shim.pid, hosted);
    const runtime = await shim.makeProgram("recording-runtime", RECORDING_RUNTIME);
    const { stdout, stderr } = await shim.createWithFifos({ runtime });
    await shim.startProcess();
    assertEquals(await stderr.text(), "");
    const own = await stdout.text();
    await shim.wait();
    await shim.delete();
    const runtimes = await Deno.readTextFile(`${shim.folder}/record`);
    const keyring = await Deno.readTextFile(`${shim.folder}/keyring`).catch(() => "another");
    const text = runtimes + own.replace(/^/gm, "container: ");
    lines.push(
      ...text.trimEnd().split("\n").map((line) =>
        line.replaceAll(shim.folder, "FOLDER").replaceAll(shim.namespace, "NAMESPACE")
          .replace(`session_keyring: ${keyring}`, "session_keyring: its own")
      ),
    );
  });
  assert(lines.some((line) => line.startsWith("create environment: ")), "the runtime has written nothing");
  assert(lines.some((line) => line.startsWith("container: Max open files")), "the container has said nothing");
  return lines;
}

/** Gives the process a session keyring of its own, whose number it writes down: keyctl(2). */
const KEYRING = [
  "perl",
  "-e",
  `my $keyring = syscall 250, 1, 0;
  $keyring > 0 or die "keyctl: $!";
  open my $file, '>', "../keyring" or die $!;
  print $file $keyring;
  close $file;
  exec @ARGV`,
];

/** Sets the slack of the process's timers: prctl(2), PR_SET_TIMERSLACK. */
const TIMER_SLACK = ["perl", "-e", "syscall 157, 29, 77777, 0, 0, 0; exec @ARGV"];

/** Where programs are looked for. */
const PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/** Lines that begin with a word, all of them. */
function lines(word: string, ...expected: readonly string[]): RegExp {
  return new RegExp(`(?<!${word}.*\n)${expected.map((each) => `${word}${each}\n`).join("")}(?!${word})`);
}

/** No signal is ignored but SIGFPE, which perl ignores. */
const NONE_BUT_FPE = /^create status: SigIgn:\s0+80$/m;

/** Something that is inherited, what sets it, where it is to be seen, and whether a host has it too: not that of others, then. */
interface Inherited {
  readonly what: string;
  readonly prefix: readonly string[];
  readonly seen: RegExp;
  readonly ofHost?: boolean;
}

const INHERITED: readonly Inherited[] = [
  {
    what: "limits",
    prefix: ["prlimit", "--nofile=1234:5678", "--nproc=4321:8765", "--core=0:4096", "--stack=9437184"],
    seen: /^create limits: Max open files +1234 +5678 /m,
    ofHost: true,
  },
  {
    what: "the limits of locked memory, queues and signals",
    prefix: ["prlimit", "--memlock=1048576", "--msgqueue=409600", "--sigpending=999", "--locks=77"],
    seen: /^container: Max pending signals +999 +999 /m,
    ofHost: true,
  },
  { what: "oom_score_adj", prefix: ["choom", "-n", "123", "--"], seen: /^container: 123$/m },
  { what: "nice", prefix: ["nice", "-n", "3"], seen: /^create scheduling: 3 /m, ofHost: true },
  { what: "a scheduling policy", prefix: ["chrt", "--batch", "0"], seen: /^container: 0 0 3$/m, ofHost: true },
  {
    what: "an I/O priority",
    prefix: ["ionice", "-c2", "-n6"],
    seen: /^container: best-effort: prio 6$/m,
    ofHost: true,
  },
  { what: "CPU affinity", prefix: ["taskset", "-c", "1"], seen: /^container: Cpus_allowed_list:\s1$/m, ofHost: true },
  { what: "a session keyring", prefix: KEYRING, seen: /^create session_keyring: its own$/m },
  { what: "timer slack", prefix: TIMER_SLACK, seen: /^container: 77777$/m },
  { what: "a personality", prefix: ["setarch", "--addr-no-randomize"], seen: /^create personality: 00040000$/m },
  {
    what: "a coredump filter",
    prefix: shell("echo 0x11 >/proc/self/coredump_filter"),
    seen: /^container: 00000011$/m,
  },
  {
    what: "an environment",
    prefix: [
      "env",
      "-i",
      PATH,
      "EMPTY=",
      "DENO_DIR=/x",
      "DENO_LOG=debug",
      "V8=a=b",
      "HOME=/x",
    ],
    // And nothing of what Deno alone is given.
    seen: lines("create environment: ", "DENO_DIR=/x", "DENO_LOG=debug", "EMPTY=", "HOME=/x", PATH, "V8=a=b"),
  },
  { what: "a TMPDIR", prefix: ["env", "TMPDIR=/var/tmp"], seen: /^create environment: TMPDIR=\/var\/tmp$/m },
  { what: "an ignored signal", prefix: shell("trap '' USR2 HUP"), seen: NONE_BUT_FPE },
  { what: "a blocked signal", prefix: ["env", "--block-signal=USR2"], seen: /^create status: SigBlk:\s0+$/m },
];

for (const { what, prefix, seen, ofHost = false } of INHERITED) {
  onlyHosted(
    `${what} that a holder was started with, its container has as from a shim alone`,
    () =>
      withMachine((machine) =>
        // There is a host that has nothing of it.
        withShim({ prefix: machine.prefix }, async () => {
          const hosted = await inherited(machine, prefix, true);
          assertEquals(hosted, await inherited(machine, prefix, false));
          assert(seen.test(hosted.join("\n")), `${seen} is not in\n${hosted.join("\n")}`);
          assertEquals(machine.sizes().toSorted(), ofHost ? [0, 1] : [1]);
        })
      ),
  );
}

/** What the holder has in common with its host, or it would have another. */
const SHARED: readonly (readonly [what: string, prefix: readonly string[], seen: RegExp])[] = [
  ["a umask", shell("umask 027"), /^create status: Umask:\s0027$/m],
  ["a bounding set", ["setpriv", "--bounding-set", "-sys_time"], /^create status: CapBnd:/m],
  ["groups", ["setpriv", "--groups", "1,2"], /^create status: Groups:\s1 2 $/m],
  ["no new privileges", ["setpriv", "--no-new-privs"], /^container: NoNewPrivs:\s1$/m],
];

for (const [what, prefix, seen] of SHARED) {
  onlyHosted(
    `${what} that a holder shares with its host, its container has as from a shim alone`,
    () =>
      withMachine((machine) =>
        withShim({ prefix: [...machine.prefix, ...prefix] }, async () => {
          const hosted = await inherited(machine, prefix, true);
          assertEquals(hosted, await inherited(machine, prefix, false));
          assert(seen.test(hosted.join("\n")), `${seen} is not in\n${hosted.join("\n")}`);
          assertNotEquals(hosted, await inherited(machine, [], false));
        })
      ),
  );
}

/** Where the first hierarchy of cgroups is that a process can be moved in. */
function hierarchy(): string {
  const [first] = hierarchies(["cgroup"]).filter((each) => !/cpuset|systemd/.test(each));
  return first ?? hierarchies(["cgroup2"])[0]!;
}

onlyHosted(
  "the runtime runs in the cgroup that the holder has been moved to, and the host does not",
  () =>
    withHosted({}, async (shim, machine) => {
      const cgroup = `${hierarchy()}/${shim.namespace}-holder`;
      await Deno.mkdir(cgroup);
      try {
        await Deno.writeTextFile(`${cgroup}/cgroup.procs`, `${shim.pid}`);
        const runtime = await shim.makeProgram("recording-runtime", RECORDING_RUNTIME);
        await shim.run({}, { runtime });
        const record = await Deno.readTextFile(`${shim.folder}/record`);
        for (const command of ["create", "start"]) {
          assert(record.includes(`${command} cgroup: `), `the runtime was not told to ${command}`);
          const inside = new RegExp(`^${command} cgroup: .*/${shim.namespace}-holder$`, "m");
          assert(inside.test(record), `it ran ${command} elsewhere:\n${record}`);
        }
        assert(!Deno.readTextFileSync(`/proc/${machine.host().pid}/cgroup`).includes(shim.namespace));
        await endContainer(shim);
        assertEquals(await Deno.readTextFile(`${cgroup}/cgroup.procs`), `${shim.pid}\n`);
      } finally {
        const root = cgroup.replace(/\/[^/]*$/, "");
        await Deno.writeTextFile(`${root}/cgroup.procs`, `${shim.pid}`).catch(() => {});
        await Deno.remove(cgroup);
      }
    }),
);

/** Says what a container of containerd's has inherited. */
const REPORT = ["/bin/sh", "-c", RECORDING_CONTAINER[2]!];

/** How containerd is started: with what it hands on to its shims, and with what it changes for them, as oom_score_adj. */
const ODD_DAEMON = [
  "choom",
  "-n",
  "100",
  "--",
  "nice",
  "-n",
  "2",
  "taskset",
  "-c",
  "0",
  "prlimit",
  "--nofile=2345:6789",
];

onlyHosted(
  "a container of a containerd that was started oddly has inherited the same in a host as alone",
  () =>
    withMachine(async (machine) => {
      const reports: string[] = [];
      // Another has started the host.
      await withShim({ prefix: machine.prefix }, async () => {
        for (const more of [[], ALONE]) {
          await withContainerd(async (containerd) => {
            const id = containerd.newId();
            await containerd.runDetached(id, ["/bin/sleep", "1000"]);
            const shim = containerd.shimOf(id);
            assertHolder(shim, more.length === 0);
            assertEquals(await Deno.readTextFile(`/proc/${shim}/oom_score_adj`), "101\n");
            const init = await containerd.running(id);
            assertEquals(await Deno.readTextFile(`/proc/${init}/oom_score_adj`), "101\n");
            const { code, stdout } = await containerd.run(REPORT);
            assertEquals(code, 0);
            const exec = await containerd.exec(id, [], REPORT);
            reports.push(`${stdout}\nexec\n${exec}`.replaceAll(containerd.namespace, "NAMESPACE"));
            await containerd.end(id);
          }, { prefix: [...machine.prefix, ...more, ...ODD_DAEMON] });
        }
      });
      assertEquals(reports[0], reports[1]);
      assert(/^Cpus_allowed_list:\s0$/m.test(reports[0]!), reports[0]!);
    }),
);
