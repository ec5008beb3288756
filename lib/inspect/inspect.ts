/**
 * `containerd-shim inspect`: what an administrator wants to see of a node's shims, whoever has made them. Nothing is changed by
 * it, nor kept up: each is asked over its own socket, all at once, and has its time.
 */

import { INSPECT, parseCommand, usageOfCommand } from "../commands.ts";
import { UsageError } from "../cli.ts";
import { ask, Patience } from "./ask.ts";
import { findShims } from "./find.ts";
import { type Report, reportDead, Reporter } from "./report.ts";
import { details, table } from "./table.ts";

/** Exit codes: all have answered; some have not, or there is no such container; whoever reads has gone, as a shell says it. */
const DONE = 0;
const NOT_ALL = 1;
const BROKEN_PIPE = 141;

/** How often it is looked with -watch, in ms. */
const WATCH_MS = 2000;

/** ED and CUP of console_codes(4): from the cursor to the end, and to the beginning of the screen. */
const CLEAR_REST = "\x1b[J";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
/** How many rows a terminal must have for a table to be cut: one for its head, and one for what is left out. */
const LEAST_ROWS = 3;

/** What is looked for, and how it is shown. */
interface Request {
  readonly name: string | undefined;
  readonly namespace: string;
  readonly timeoutMs: number;
  readonly isJson: boolean;
  readonly watches: boolean;
}

/**
 * Runs the command.
 *
 * @param say writes to standard error
 * @returns the exit code
 * @throws {UsageError}
 */
export async function run(args: readonly string[], say: (text: string) => void): Promise<number> {
  const options = parseCommand(INSPECT, args);
  if (options === undefined) {
    say(usageOfCommand(INSPECT));
    return DONE;
  }
  const { values, rest: [name, ...more] } = options;
  const wrong = (message: string) => new UsageError(message, usageOfCommand(INSPECT));
  if (more.length > 0) throw wrong(`inspect takes one ID: ${[name, ...more].join(" ")}`);
  const timeoutMs = milliseconds(values.timeout);
  if (timeoutMs === undefined) {
    throw wrong(`invalid value ${JSON.stringify(values.timeout)} for -timeout: it is a number with ms or s`);
  }
  const request = { name, namespace: values.namespace, timeoutMs, isJson: values.json, watches: values.watch };
  try {
    for (;;) {
      const code = await show(request, say);
      if (!values.watch) return code;
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
    }
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return BROKEN_PIPE;
    throw error;
  }
}

/** Looks, and shows it. */
async function show({ name, isJson, watches, ...request }: Request, say: (text: string) => void): Promise<number> {
  const shown = await look({ ...request, name, watches });
  const isTerminal = Deno.stdout.isTerminal();
  const style = { hasColours: isTerminal && !Deno.env.get("NO_COLOR"), now: Date.now() };
  const isRedrawn = watches && isTerminal && !isJson;
  const put = (text: string) => print(isRedrawn ? redrawn(text) : text);
  if (name !== undefined && shown.length !== 1) {
    const names = shown.map(({ namespace, id }) => `${namespace}/${id}`).join(", ");
    const why = shown.length === 0 ? `no container ${name} has a shim` : `${name} is several: say which of ${names}`;
    if (isRedrawn) put(`${why}\n`);
    else say(`containerd-shim: ${why}\n`);
    return NOT_ALL;
  }
  if (isJson) {
    // One line for each look, to be read as they come.
    put(`${JSON.stringify(name === undefined ? shown : shown[0], null, watches ? 0 : 2)}\n`);
  } else {
    put(name === undefined ? table(shown, style) : details(shown[0]!, style));
  }
  return shown.some(({ error }) => error !== null) ? NOT_ALL : DONE;
}

/** A container, as it can be named. */
type Named = Pick<Report, "namespace" | "id">;

/** Finds the shims that are wanted and asks them. */
async function look({ name, namespace, timeoutMs, watches }: Omit<Request, "isJson">): Promise<Report[]> {
  const isNamed = (each: Named) => name === undefined || name === each.id || name === `${each.namespace}/${each.id}`;
  const isIn = (each: Named) => namespace === "" || each.namespace === namespace;
  const { shims, dead } = findShims();
  const all = shims.filter(isIn);
  const named = all.filter(isNamed);
  const reporter = new Reporter();
  using patience = new Patience(timeoutMs);
  const options = { patience, isWhole: name !== undefined, asksForExecs: !watches };
  const reports = await Promise.all(
    // The folders of one may have other names than its container.
    (named.length > 0 ? named : all).map(async (shim) =>
      reporter.report(shim, await ask(shim, options), options.isWhole)
    ),
  );
  return [...reports, ...dead.filter(isIn).map(reportDead)].filter(isNamed)
    .toSorted((a, b) => compare(a.namespace, b.namespace) || compare(a.id, b.id) || a.shimPid - b.shimPid);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** What puts a text in the place of the one before, as much of it as there is room for; nothing is left to be put back. */
function redrawn(text: string): string {
  const { rows } = Deno.consoleSize();
  const lines = text.trimEnd().split("\n");
  // A terminal need not know its size: it is 0 then.
  const fits = rows < LEAST_ROWS || lines.length < rows;
  const shown = fits ? lines : [...lines.slice(0, rows - 2), `… ${lines.length - rows + 2} lines more`];
  return HOME + shown.map((line) => `${line}${CLEAR_LINE}\n`).join("") + CLEAR_REST;
}

/** @throws {Deno.errors.BrokenPipe} */
function print(text: string): void {
  let rest: Uint8Array = new TextEncoder().encode(text);
  while (rest.length > 0) rest = rest.subarray(Deno.stdout.writeSync(rest));
}

/** `500ms`, `2s`. */
function milliseconds(text: string): number | undefined {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s)$/.exec(text) ?? [];
  const ms = Number(number) * (unit === "s" ? 1000 : 1);
  return ms > 0 && ms <= LONGEST_MS ? ms : undefined;
}

/** What a timer takes at most. */
const LONGEST_MS = 2 ** 31 - 1;
