/** The bench's command line. */

import { parseArgs } from "@std/cli/parse-args";
import { OUR_EXECUTABLE } from "../e2e/env.ts";
import { type Extent, FULL, onlyHosts, QUICK } from "./extent.ts";
import type { Wanted } from "./row.ts";

const HERE = import.meta.dirname!;

/** What is to be done. */
export interface Flags {
  readonly extent: Extent;
  readonly check: boolean;
  /** Whether it is what a container notices of another that is measured, and nothing else. */
  readonly neighbour: boolean;
  readonly ours: string;
  readonly go: string;
  readonly wanted: Wanted;
  /** The file for the report, and the folder for its pictures; they are not written where this is undefined. */
  readonly out: string | undefined;
  readonly svg: string | undefined;
}

/** As they are given. */
interface Given {
  readonly quick: boolean;
  readonly hosted: boolean;
  readonly neighbour: boolean;
  readonly check: boolean;
  readonly ours: string;
  readonly go: string;
  readonly rounds?: string;
  readonly only?: string;
  readonly out?: string;
  readonly svg?: string;
}

/** @throws {Error} with what is wrong with them */
export function parseFlags(args: readonly string[]): Flags {
  const flags: Given = parseArgs(args, {
    boolean: ["quick", "hosted", "neighbour", "check"],
    string: ["rounds", "only", "ours", "go", "out", "svg"],
    default: { ours: OUR_EXECUTABLE, go: "/usr/bin/containerd-shim" },
    unknown(argument: string) {
      throw new Error(`Cannot measure with ${argument}: there is no such flag`);
    },
  });
  const whole = flags.quick ? QUICK : FULL;
  const extent = flags.hosted ? onlyHosts(whole) : whole;
  const rounds = flags.rounds === undefined ? extent.rounds : Number(flags.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`Cannot measure ${flags.rounds} rounds`);
  const pattern = new RegExp(flags.only ?? "");
  // What stands in the repository is whole.
  const isWhole = !flags.quick && !flags.hosted && flags.only === undefined && flags.rounds === undefined;
  return {
    extent: { ...extent, rounds },
    check: flags.check,
    neighbour: flags.neighbour,
    ours: absolute(flags.ours),
    go: absolute(flags.go),
    wanted: ({ name }) => pattern.test(name),
    out: flags.out ?? (isWhole ? `${HERE}/${flags.neighbour ? "NEIGHBOUR.md" : "RESULTS.md"}` : undefined),
    svg: flags.svg ?? (isWhole && !flags.neighbour ? HERE : undefined),
  };
}

/** What starts a shim has another working directory. */
function absolute(path: string): string {
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}
