/**
 * What `make check` runs of the end-to-end tests, in some four minutes: the main job in each way that a shim lives, and each
 * subject once. A file that is not named here runs whole, and hosted. `make test` runs everything.
 */

import type { Way } from "./e2e/env.ts";

/** How much of a file is run. */
export interface Choice {
  /** hosted, unless given: of those that the file states. */
  readonly ways?: readonly Way[];
  /** What the names of its tests begin with; all, unless given. */
  readonly names?: readonly string[];
}

/** Subjects that are not another's in a host run alone; what is long runs in part, or not at all. */
export const CHOICES: Readonly<Record<string, Choice>> = {
  // The main job.
  "run_test.ts": { ways: ["alone", "hosted"] },
  "shim_life_test.ts": { ways: ["alone", "hosted"] },
  "terminal_test.ts": { ways: ["alone", "hosted"] },
  // What depends on how a shim has been started.
  "flags_test.ts": { ways: ["alone"] },
  "process_test.ts": { ways: ["alone", "hosted"] },
  "shim_end_test.ts": { ways: ["alone", "hosted"] },
  "shim_socket_test.ts": { ways: ["alone"] },
  "signals_test.ts": { ways: ["alone", "hosted"] },
  // Subjects of which the one way has as much as the other.
  "checkpoint_test.ts": {
    names: [
      "a checkpoint leaves",
      "a container that is restored",
      "a checkpoint that fails",
      "a restore that fails says",
    ],
  },
  "system_log_test.ts": { names: ["errors and warnings go to the journal", "where there is no journal"] },
  "security_test.ts": { ways: ["alone"] },
  "shell_test.ts": { ways: ["alone"] },
  // Shims of both kinds.
  "restart_test.ts": { ways: ["mixed"] },
  // Of what takes a second for each of many cases, some.
  "deadline_test.ts": { names: ["Start whose runtime hangs", "Delete whose runtime hangs"] },
  "docker_test.ts": { names: ["docker run prints", "docker stop ends", "12 short containers"] },
  "execs_test.ts": { names: ["twenty execs at once"] },
  "fault_events_test.ts": { names: ["a containerd that closes each connection at once", "events are told by ttrpc"] },
  "fault_runtime_test.ts": {
    names: [
      "a runtime that crashes",
      "a runtime that leaves no pid file",
      "a runtime that is killed when it has made a cgroup",
      "while the runtime hangs in exec",
    ],
  },
  "fault_stdio_test.ts": { names: ["when the FIFO of std", "FIFOs that are removed", "a log whose FIFO"] },
  "fault_system_test.ts": {
    names: ["a container whose cgroups are gone", "a host that is stopped", "an exec that the"],
  },
  "first_process_test.ts": { names: ["where containerd", "a failed Create", "Delete is"] },
  "host_fallback_test.ts": {
    names: [
      "where the folder for hosts is another user's",
      "where a host accepts, and says nothing",
      "where a host says that it is full",
      "what has another umask",
      "another user has no host of ours",
    ],
  },
  "host_inherit_test.ts": { names: ["limits that a holder", "the runtime runs in the cgroup"] },
  "holder_test.ts": {
    names: [
      "a process that looks",
      "a holder keeps",
      "a holder starts",
      "a holder passes on",
      "a holder whose host goes",
      "a holder that is to move goes",
      "a signal that comes",
    ],
  },
  "host_test.ts": {
    names: [
      "containers share a host",
      "ps shows a host",
      "CONTAINERD_SHIM_GROUP=2 has",
      "CONTAINERD_SHIM_GROUP=1 has",
      "SIGKILL to a holder",
      "a host's death is nobody else's",
    ],
  },
  "logger_test.ts": {
    names: ["a logger is given", "a container is not created before", "stdout goes to a logger", "ctr run --log-uri"],
  },
  "shim_bytes_test.ts": { names: ["output in small pieces", "the output of many processes"] },
  "soak_test.ts": { names: ["what looks at a soak's samples"] },
  "survival_test.ts": { names: ["SIGKILL to the host", "SIGKILL to the container's init", "a gap, a double"] },
  "takeover_test.ts": {
    names: [
      "Create with streams is answered, and done once, though hosts die",
      "Start is answered, and done once, though hosts die",
      "Kill is answered, and done once, though its host dies",
      "what ends while there is no host",
      "SIGTERM that comes while there is no host",
      "a call that too many hosts have died of",
    ],
  },
  "takeover_record_test.ts": {
    names: [
      "where what is written down has been",
      "where nothing can be believed, a container that has been created",
      "where nothing can be believed, what was being changed",
      "where nothing can be written down",
      "the log of a shim",
      "what is written down of a shim",
    ],
  },
  "takeover_streams_test.ts": {
    names: ["output that", "what a container has printed", "input comes", "a terminal goes on", "a logger goes on"],
  },
  "takeover_wire_test.ts": {
    names: [
      "a request of a MiB",
      "a request that changes something",
      "of requests that come together, the last of them, with 5000",
      "a client that sends nothing more",
      "a deadline that passes",
      "whoever connects and calls",
      "exits wait for a containerd",
    ],
  },
  "takeover_stress_test.ts": { names: ["what looks at numbered lines"] },
  "upgrade_test.ts": {
    names: [
      "containers go to a host of another build",
      "--dry-run says",
      "a host that cannot read",
      "a wrong argument",
    ],
  },
  "watchdog_test.ts": {
    names: [
      "a host that hangs is killed",
      "a call that hangs two hosts is refused, and not made again: U",
      "a shim whose hosts",
    ],
  },
  "old_systems_test.ts": { names: ["with glibc 2.31", "where the kernel has no system call since Linux 5.1, a shim"] },
  // What is long by its nature.
  "many_test.ts": { ways: [] },
  "shim_death_test.ts": { ways: [] },
  "upgrade_stress_test.ts": { ways: [] },
};
