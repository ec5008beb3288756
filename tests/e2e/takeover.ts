/** Hosts that die, and what is to be seen of the moments in which there is none. */

import { assert, assertEquals } from "@std/assert";
import { ensureFifo } from "../../ffi/pipe.ts";
import { pathOfState } from "../../lib/host/kept.ts";
import { type Host, killHost, type Machine } from "./host.ts";
import { processOf } from "./proc.ts";
import type { Shim } from "./shim.ts";
import { until, within } from "./until.ts";

/** An answer that is looked at later: where the test fails before it comes to that, this is not what failed. */
export function later<T>(answer: Promise<T>): Promise<T> {
  answer.catch(() => {});
  return answer;
}

/** Kills a machine's only host, and waits until there is another. */
export async function replaceHost(machine: Machine): Promise<Host> {
  const { pid } = await killHost(machine);
  return await until("there is another host", () => machine.hosts().find((each) => each.pid !== pid));
}

/** Leads to the file in memory in which a shim's state is written down, as long as its holder lives. */
export function statePath({ pid }: Pick<Shim, "pid">): string {
  return pathOfState(pid);
}

/** Where that file has its version, and its first entry, in bytes: lib/record/state_file.ts. */
export const STATE_VERSION_AT = 8;
export const STATE_FIRST = 4096;

/** Writes over what is at a place of a file. */
export async function overwrite(path: string, at: number, bytes: Uint8Array): Promise<void> {
  using file = await Deno.open(path, { write: true });
  await file.seek(at, Deno.SeekMode.Start);
  assertEquals(await file.write(bytes), bytes.length);
}

/** Has the lock of a host, as if one were about to start; it says so, and lets go of it when its input ends. */
const HOLD_LOCK = `
  use Fcntl qw(:DEFAULT :flock);
  sysopen my $lock, $ARGV[0], O_RDWR or die "$ARGV[0]: $!";
  flock $lock, LOCK_EX or die "$ARGV[0]: $!";
  syswrite STDOUT, "locked\\n";
  <STDIN>;
`;

/** Kills a machine's only host, and has none come, in spite of its holders, until what is done meanwhile is done. */
export async function withoutHost<T>(machine: Machine, shims: readonly Shim[], test: () => Promise<T>): Promise<T> {
  const host = machine.host();
  // Otherwise one of them would have the lock first.
  for (const shim of shims) {
    shim.signal("SIGSTOP");
    await until("it has stopped", () => processOf(shim.pid)?.state === "T");
  }
  await killHost(machine);
  const lock = new Deno.Command("perl", {
    args: ["-e", HOLD_LOCK, machine.fileOf(host, ".lock")],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const reader = lock.stdout.getReader();
  try {
    assert(!(await within("the lock", reader.read())).done, "the lock is not held");
    for (const shim of shims) shim.signal("SIGCONT");
    const result = await test();
    assertEquals(machine.hosts(), []);
    return result;
  } finally {
    await reader.cancel();
    await lock.stdin.close();
    await lock.status;
  }
}

/** A moment of a run of the OCI runtime: before it has done anything, and when it has done everything. */
export type Moment = "before" | "after";

/** Writes down what it is asked for, waits at that moment for whoever it is that lets it go on, and is runc otherwise. */
const GATED_RUNTIME = `#!/bin/sh
folder=$(dirname "$0")
for each; do
  case $each in create|start|exec|kill|delete|pause|resume|update|state|ps|restore|checkpoint) break;; esac
done
echo "$each" >>"$folder/runs"
wait_at() {
  [ -p "$folder/$1" ] || return
  echo "$$" >"$folder/waiting.new"
  mv "$folder/waiting.new" "$folder/waiting"
  read -r line <"$folder/$1"
}
wait_at "before $each"
runc "$@"
status=$?
wait_at "after $each"
exit $status
`;

/** An OCI runtime that waits where it is told to, and tells what it has been asked for. */
export class GatedRuntime {
  readonly path: string;
  readonly #folder: string;
  #gate: string | undefined;

  private constructor(folder: string, path: string) {
    this.#folder = folder;
    this.path = path;
  }

  static async make(shim: Shim): Promise<GatedRuntime> {
    const folder = `${shim.folder}/runtime`;
    await Deno.mkdir(folder);
    return new GatedRuntime(folder, await shim.makeProgram("runtime/gated-runtime", GATED_RUNTIME));
  }

  /** Has the next run of a command wait. */
  close(moment: Moment, command: string): Promise<void> {
    this.#gate = `${this.#folder}/${moment} ${command}`;
    ensureFifo(this.#gate, 0o600);
    return Promise.resolve();
  }

  /** The process that waits, as soon as it does. */
  async reached(): Promise<number> {
    const path = `${this.#folder}/waiting`;
    const pid = await until("the runtime waits", async () => Number(await Deno.readTextFile(path)));
    await Deno.remove(path);
    return pid;
  }

  /** Has the one that waits go on. */
  async open(): Promise<void> {
    const gate = this.#gate!;
    using file = await within("the runtime", Deno.open(gate, { write: true }));
    await Deno.remove(gate);
    await file.write(new TextEncoder().encode("\n"));
  }

  /** How often it has been asked for something. */
  runs(command: string): number {
    const text = Deno.readTextFileSync(`${this.#folder}/runs`);
    return text.split("\n").filter((each) => each === command).length;
  }
}

/** Waits until a process has ended, and its parent has reaped it. */
export async function untilReaped(pid: number): Promise<void> {
  await until(`process ${pid} has been reaped`, () => processOf(pid) === undefined);
}
