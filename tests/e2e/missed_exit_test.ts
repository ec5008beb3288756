/** Exits that no SIGCHLD tells of, and runtimes that die at the wrong moment. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { StatusError } from "../../lib/ttrpc/status.ts";
import { inEachForm, onlyOurs, onlyOursInEachForm } from "./env.ts";
import { modes } from "./modes.ts";
import { isAlive, processOf } from "./proc.ts";
import { withShim } from "./shim.ts";
import { until } from "./until.ts";

modes(["hosted", "alone"], "exits are known in another way in each");

/** Becomes the parent of what a command of runc starts, and stays to reap it: prctl(PR_SET_CHILD_SUBREAPER). */
const ADOPTING = (command: string) =>
  `#!/usr/bin/perl
if (grep { $_ eq '${command}' } @ARGV) {
  pipe my $r, my $w;
  if (fork) { close $w; exit <$r>; }
  close $r;
  syscall ${Deno.build.arch === "x86_64" ? 157 : 167}, 36, 1, 0, 0, 0;
  my $status = system('runc', @ARGV) >> 8;
  open STDIN, '</dev/null'; open STDOUT, '>/dev/null'; open STDERR, '>/dev/null';
  print $w $status; close $w;
  1 while wait > 0;
  exit;
}
exec 'runc', @ARGV;
`;

/** The statuses that can be told of a process that another has reaped: the true one since Linux 6.15. */
const told = (status: number) => {
  const [major, minor] = Deno.osRelease().split(".").map(Number) as [number, number];
  return major > 6 || (major === 6 && minor >= 15) ? status : 255;
};

onlyOursInEachForm(
  "it waits for ever",
  "an init that another has adopted is known to have ended within a second",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      const init = await shim.run({}, { runtime: await shim.makeProgram("runtime", ADOPTING("create")) });
      assert(processOf(init)!.ppid !== shim.pid, "it is the shim's child all the same");
      const waiting = shim.wait();
      const start = performance.now();
      Deno.kill(init, "SIGKILL");
      assertEquals((await waiting).status, told(137));
      assert(performance.now() - start < 1000, "it took longer than a second");
      const { exit } = await shim.events.exit(shim.id);
      assertEquals([exit.pid, exit.exitStatus], [init, told(137)]);
      await shim.delete();
      assertEquals(shim.events.published().length, 1);
    }),
);

onlyOurs(
  "it waits for ever",
  "an exec that another has adopted is known to have ended, with its status",
  () =>
    withShim({}, async (shim) => {
      await shim.run({}, { runtime: await shim.makeProgram("runtime", ADOPTING("exec")) });
      await shim.exec("other", ["sh", "-c", "mkfifo /tmp/go; read line </tmp/go; exit 7"]);
      const pid = await shim.startProcess("other");
      assert(processOf(pid)!.ppid !== shim.pid, "it is the shim's child all the same");
      await until("it waits", () => Deno.statSync(`${shim.rootfs}/tmp/go`).isFifo);
      const waiting = shim.wait("other");
      await Deno.writeTextFile(`${shim.rootfs}/tmp/go`, "go\n");
      assertEquals((await waiting).status, told(7));
      assertEquals((await shim.events.exit("other")).exit.exitStatus, told(7));
      await shim.deleteProcess("other");
    }),
);

onlyOurs(
  "it waits for ever",
  "an exec that had ended and been reaped by another before its pid was known has ended",
  () =>
    withShim({}, async (shim) => {
      // By the time this runtime says what it has started, that is gone without a trace.
      const script = ADOPTING("exec").replace("print $w $status", "1 while wait > 0; print $w $status");
      await shim.run({}, { runtime: await shim.makeProgram("runtime", script) });
      await shim.exec("other", ["true"]);
      await shim.startProcess("other");
      // Nobody can tell how.
      assertEquals((await shim.wait("other")).status, 255);
      assertEquals((await shim.events.exit("other")).exit.exitStatus, 255);
      await shim.deleteProcess("other");
    }),
);

inEachForm(
  "a process that ends before the runtime has written down its pid is reaped, and its status told",
  (form) =>
    withShim({ shim: form }, async (shim) => {
      const script = `#!/bin/sh
case " $* " in *" exec "*)
  for each; do case $previous in --pid-file) file=$each;; esac; previous=$each; done
  runc "$@" || exit
  mv "$file" "$file.late"
  while [ "$(sed 's/.*) \\(.\\).*/\\1/' "/proc/$(cat "$file.late")/stat" 2>/dev/null)" != "" ]; do sleep 0.01; done
  mv "$file.late" "$file"
  exit;;
esac
exec runc "$@"
`;
      await shim.run({}, { runtime: await shim.makeProgram("runtime", script) });
      await shim.exec("other", ["sh", "-c", "exit 9"]);
      await shim.startProcess("other");
      assertEquals((await shim.wait("other")).status, 9);
      await shim.deleteProcess("other");
    }),
);

Deno.test("a runtime that is killed before it creates the container fails Create; the next one works", () =>
  withShim({ args: ["sh", "-c", "exit 4"] }, async (shim) => {
    const runtime = await shim.makeProgram(
      "runtime",
      `#!/bin/sh\ncase " $* " in *" create "*) kill -9 $$;; esac; exec runc "$@"\n`,
    );
    const error = await assertRejects(() => shim.create({}, { runtime }), StatusError);
    assertMatch(error.message, /create/);
    await shim.run();
    assertEquals((await shim.wait()).status, 4);
    await shim.delete();
  }));

onlyOurs(
  "it leaves the container",
  "a runtime that is killed when it has created the container leaves none",
  () =>
    withShim({}, async (shim) => {
      const script = `#!/bin/sh\ncase " $* " in *" create "*) runc "$@"; kill -9 $$;; esac; exec runc "$@"\n`;
      const runtime = await shim.makeProgram("runtime", script);
      await assertRejects(() => shim.create({}, { runtime }), StatusError);
      await until("its init has ended", () => shim.containerProcesses().length === 0);
      await until("everything is reaped", () => shim.children().length === 0);
      assertEquals(shim.leftovers(), []);
    }),
);

onlyOurs(
  "it leaves the process",
  "a runtime that is killed when it has started an exec leaves none",
  () =>
    withShim({}, async (shim) => {
      const script = `#!/bin/sh\ncase " $* " in *" exec "*) runc "$@"; kill -9 $$;; esac; exec runc "$@"\n`;
      const init = await shim.run({}, { runtime: await shim.makeProgram("runtime", script) });
      await shim.exec("other", ["sleep", "1000"]);
      await assertRejects(() => shim.startProcess("other"), StatusError);
      assertEquals((await shim.wait("other")).status, 255);
      await until("it has ended, and been reaped", () => shim.children().every(({ pid }) => pid === init));
      assertEquals(shim.containerProcesses(), [init]);
      assert(isAlive(init));
      await shim.deleteProcess("other");
    }),
);
