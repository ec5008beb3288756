/** The words that may stand in the place of a shim's flags: what an administrator calls the program for. */

import { type Flag, FLAGS, parseFlags, UsageError, usageOfFlags, type Values } from "./cli.ts";

/** A command, as its help and the manual tell of it. */
export interface Command {
  /** The word in the place of a shim's flags. */
  readonly name: string;
  /** What may stand after its flags, as a synopsis has it. */
  readonly operands: string;
  /** A sentence. */
  readonly summary: string;
  /** What else there is to say: paragraphs. */
  readonly description: readonly string[];
  /** What may stand behind the word. */
  readonly flags: readonly Flag[];
  /** Exit codes and what they mean, where that is more than what the manual says of all. */
  readonly exits?: readonly (readonly [code: string, meaning: string])[];
}

/** `containerd-shim upgrade`: lib/host/upgrade.ts. */
export const UPGRADE = {
  name: "upgrade",
  operands: "",
  summary:
    "Has this build of the executable take over, with their containers, from the hosts of other builds that run.",
  description: ["Containers whose shims are processes by themselves stay as they are."],
  flags: [{ name: "dry-run", type: "bool", default: false, help: "only say what would be done" }],
  exits: [
    ["0", "Every host is of this build now, or there was none."],
    ["1", "Some host, or some of its containers, stay as they were: it has said which, and why."],
  ],
} as const satisfies Command;

/** `containerd-shim inspect`: lib/inspect/inspect.ts. */
export const INSPECT = {
  name: "inspect",
  operands: "[ID]",
  summary: "Shows the shims of runtime v1 on this node, of whatever make, or everything of one of them.",
  description: [
    "ID is a container's, or NAMESPACE/ID. For each shim there is its namespace and container; its pid; its host's, or " +
    "alone for a shim by itself, or other for a Go shim or an older build, which tells less; the container's first " +
    "process, its state, with the status that it has ended with, and how many other processes the shim has started; how " +
    "long the shim has been there; the private memory of its own process, for a host has the rest; the bytes that its " +
    "process has moved from and to the container's streams; the last event that there was for containerd, and how many wait. " +
    "What is not known is -.",
    "A state may also be the shim's: hanging when it has not answered in time, no answer when it cannot be asked, dead when " +
    "it has ended and nobody has cleaned up. A line at the end says more. Nothing is changed: a shim is asked over its own " +
    "socket, as the user whose it is.",
    "With -json it is a list of objects, or one object for ID. Sizes are in bytes, spans in seconds, times as in ISO 8601, " +
    "and what is not known is null: namespace, id, shimPid, shape (hosted, alone, other), host (pid, socket, containers, " +
    "memoryBytes), state, initPid, exitStatus, exitedAt, execs, processes (id, pid, state, exitStatus, exitedAt, movedBytes " +
    "by stream; init first), startedAt, uptimeSeconds, memoryBytes, movedBytes, lastEvent (topic, at), eventsWaiting, " +
    "callsInFlight (method, seconds), lastError and lastWarning (at, message, and fields with name and value, of the last that " +
    "the shim's log has had), hostDeaths (count, and at and reason of the last), bundle, socket, dump (lines, only for ID), " +
    "error. Other fields may follow in later versions.",
  ],
  flags: [
    { name: "json", type: "bool", default: false, help: "print JSON; with -watch, a line for each look" },
    { name: "namespace", type: "string", default: "", help: "only show containers of this containerd namespace" },
    {
      name: "timeout",
      type: "string",
      default: "400ms",
      help:
        "how long nothing is to be heard of any shim before those that have not answered are taken for hanging, in ms or s",
    },
    { name: "watch", type: "bool", default: false, help: "look again every 2 s, until interrupted" },
  ],
  exits: [["0", "Every shim has answered."], ["1", "One has not, or there is no such container."]],
} as const satisfies Command;

/** Every command, in the order in which the manual shows them. */
export const COMMANDS: readonly Command[] = [INSPECT, UPGRADE];

/** What `containerd-shim -help` prints. */
export function usageOfProgram(): string {
  const width = Math.max(...COMMANDS.map(({ name }) => name.length));
  const lines = COMMANDS.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}\n`);
  return `Usage of containerd-shim:\n${usageOfFlags(FLAGS)}\nCommands, each with -help:\n${lines.join("")}`;
}

/** What `containerd-shim COMMAND -help` prints. */
export function usageOfCommand({ name, operands, summary, description, flags }: Command): string {
  const synopsis = ["containerd-shim", name, ...flags.length > 0 ? ["[flags]"] : [], ...operands ? [operands] : []];
  return `Usage: ${synopsis.join(" ")}\n\n${[summary, ...description].join("\n")}\n\n${usageOfFlags(flags)}`;
}

/**
 * Reads what stands after the command's word.
 *
 * @returns the flags' values and the operands; undefined when help was asked for
 * @throws {UsageError}
 */
export function parseCommand<Flags extends readonly Flag[]>(
  command: Command & { readonly flags: Flags },
  args: readonly string[],
): { values: Values<Flags>; rest: readonly string[] } | undefined {
  const wrong = (message: string) => new UsageError(message, usageOfCommand(command));
  try {
    const options = parseFlags(command.flags, args);
    if (options !== undefined && options.rest.length > 0 && command.operands === "") {
      throw wrong(`${command.name} takes no arguments: ${options.rest.join(" ")}`);
    }
    return options;
  } catch (error) {
    throw error instanceof UsageError ? wrong(error.message) : error;
  }
}
