/**
 * The command line: one table of flags, read the way Go's `flag` package reads them.
 *
 * That is not how @std/cli reads them, which would also cost each start a millisecond.
 */

/** A flag of the program, or of one of its commands. */
export interface Flag {
  /** Without its dash. */
  readonly name: string;
  /** Whether it takes an argument or is a switch. */
  readonly type: "string" | "bool";
  /** What it is when it is not given. */
  readonly default: string | boolean;
  /** A line of the usage. */
  readonly help: string;
  /** A second name of the same flag. */
  readonly alias?: string;
}

/** Every flag there is, in the order in which help shows them. */
export const FLAGS = [
  {
    name: "address",
    type: "string",
    default: "",
    help: "path of containerd's gRPC socket, which events go back to",
  },
  {
    name: "containerd-binary",
    type: "string",
    default: "containerd",
    help: "path of the containerd binary, for `containerd publish` where containerd serves no ttrpc",
  },
  {
    name: "criu",
    alias: "criu-path",
    type: "string",
    default: "",
    help: "path of the criu binary",
  },
  {
    name: "debug",
    type: "bool",
    default: false,
    help: "enable debug output in logs",
  },
  {
    name: "namespace",
    type: "string",
    default: "",
    help: "containerd namespace that the container belongs to",
  },
  {
    name: "runtime-root",
    type: "string",
    default: "/run/containerd/runc",
    help: "root directory of the OCI runtime's state",
  },
  {
    name: "socket",
    type: "string",
    default: "",
    help:
      "socket to serve: unix://PATH, or a name in the abstract namespace; the listening socket inherited as descriptor 3 when empty",
  },
  {
    name: "systemd-cgroup",
    type: "bool",
    default: false,
    help: "have the OCI runtime manage cgroups through systemd",
  },
  {
    name: "version",
    alias: "v",
    type: "bool",
    default: false,
    help: "print what this executable is made of, and exit",
  },
  {
    name: "workdir",
    type: "string",
    default: "",
    help: "directory for large temporary data and the log FIFOs",
  },
] as const satisfies readonly Flag[];

/** The values of flags, by name. */
export type Values<Flags extends readonly Flag[]> = {
  readonly [F in Flags[number] as F["name"]]: F["type"] extends "bool" ? boolean
    : string;
};

/** The value of every flag of a shim. */
export type Options = Values<typeof FLAGS>;

/** A command line that cannot be understood; its message says why, and `usage` what could be: the program's, if undefined. */
export class UsageError extends Error {
  /** Tells it from other errors by name. */
  override readonly name = "UsageError";

  /**
   * Tells what is wrong, and what is right.
   *
   * @param usage what the user is shown below the message
   */
  constructor(message: string, readonly usage?: string) {
    super(message);
  }
}

/**
 * Reads the arguments of a shim: `-x v`, `-x=v` and `--x` alike, up to the first that is no flag.
 *
 * @returns undefined when help was asked for
 * @throws {UsageError}
 */
export function parse(args: readonly string[]): Options | undefined {
  return parseFlags(FLAGS, args)?.values;
}

/**
 * Reads arguments by a table of flags, up to the first that is no flag.
 *
 * ```ts
 * import { assertEquals, assertThrows } from "@std/assert";
 *
 * const flags = [
 *   { name: "debug", type: "bool", default: false, help: "say more" },
 *   { name: "root", type: "string", default: "/run", help: "a folder" },
 * ] as const;
 * assertEquals(parseFlags(flags, ["--root", "/srv", "-debug=true", "c1"]), {
 *   values: { debug: true, root: "/srv" },
 *   rest: ["c1"],
 * });
 * assertEquals(parseFlags(flags, ["-h"]), undefined);
 * assertThrows(() => parseFlags(flags, ["-root"]), UsageError, "flag needs an argument: -root");
 * ```
 *
 * @returns the values and the arguments that are left; undefined when help was asked for
 * @throws {UsageError}
 */
export function parseFlags<const Flags extends readonly Flag[]>(
  flags: Flags,
  args: readonly string[],
): { values: Values<Flags>; rest: readonly string[] } | undefined {
  const values: Record<string, string | boolean> = {};
  for (const flag of flags) values[flag.name] = flag.default;
  let i = 0;
  for (; i < args.length; i++) {
    const arg = args[i]!;
    if (!arg.startsWith("-") || arg === "-") break;
    if (arg === "--") {
      i++;
      break;
    }
    const [, name, , value] = /^--?([^=]*)(=(.*))?$/s.exec(arg)!;
    if (name === "" || name!.startsWith("-")) {
      throw new UsageError(`bad flag syntax: ${arg}`);
    }
    const flag = flags.find((each: Flag) => each.name === name || each.alias === name);
    if (flag === undefined) {
      if (name === "help" || name === "h") return undefined;
      throw new UsageError(`flag provided but not defined: -${name}`);
    }
    if (flag.type === "bool") {
      values[flag.name] = parseBool(name!, value ?? "true");
      continue;
    }
    if (value === undefined && ++i >= args.length) {
      throw new UsageError(`flag needs an argument: -${name}`);
    }
    values[flag.name] = value ?? args[i]!;
  }
  return { values: values as Values<Flags>, rest: args.slice(i) };
}

/** The words for a boolean that Go's strconv.ParseBool knows. */
const BOOLEANS: Readonly<Record<string, boolean>> = {
  "1": true,
  t: true,
  T: true,
  true: true,
  TRUE: true,
  True: true,
  "0": false,
  f: false,
  F: false,
  false: false,
  FALSE: false,
  False: false,
};

function parseBool(name: string, value: string): boolean {
  if (!Object.hasOwn(BOOLEANS, value)) {
    throw new UsageError(`invalid boolean value ${JSON.stringify(value)} for -${name}: parse error`);
  }
  return BOOLEANS[value]!;
}

/** A paragraph of help for each flag, as Go's `flag` package writes them. */
export function usageOfFlags(flags: readonly Flag[]): string {
  let text = "";
  for (const flag of flags) {
    const value = flag.type === "string" ? " string" : "";
    const initial = flag.default === "" || flag.default === false ? "" : ` (default ${JSON.stringify(flag.default)})`;
    text += `  -${flag.name}${value}\n    \t${flag.help}${initial}\n`;
    if (flag.alias !== undefined) {
      text += `  -${flag.alias}${value}\n    \tthe same as -${flag.name}\n`;
    }
  }
  return text;
}
