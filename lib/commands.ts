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

/** Every command, in the order in which the manual shows them. */
export const COMMANDS: readonly Command[] = [UPGRADE];

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
