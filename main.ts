/** containerd-shim: argv to exit code. */

import { parse, UsageError } from "./lib/cli.ts";
import { messageOf } from "./lib/errors.ts";
import { run } from "./lib/alone.ts";
import { letThrough } from "./lib/signals.ts";

/** Exit codes, as Go's programs have them: a wrong command line, and anything else that prevents the start. */
const USAGE = 2;
const FAILURE = 1;

/** The word that this program calls itself with to be a host: lib/standalone/entry.c. */
const HOST = "host";

/** What may be done instead, each loaded when it is wanted: lib/commands.ts. */
const COMMANDS: ReadonlyMap<string | undefined, (args: readonly string[]) => Promise<number>> = new Map([
  ["inspect", async (args) => (await import("./lib/inspect/inspect.ts")).run(args, say)],
  ["upgrade", async (args) => (await import("./lib/host/upgrade.ts")).run(args, say)],
]);

async function main(): Promise<number> {
  try {
    if (Deno.args[0] === HOST) return await (await import("./lib/host/host.ts")).run(Deno.args.slice(1));
    const command = COMMANDS.get(Deno.args[0]);
    if (command !== undefined) {
      letThrough();
      return await command(Deno.args.slice(1));
    }
    // Go's shim ignores what is no flag; containerd has none, so it is somebody's typing.
    if (Deno.args[0]?.startsWith("-") === false) throw new UsageError(`no such command: ${Deno.args[0]}`);
    const options = parse(Deno.args);
    if (options === undefined) {
      say(await usage());
      return 0;
    }
    if (options.version) {
      say((await import("./lib/version.ts")).version(), Deno.stdout);
      return 0;
    }
    return await run(options);
  } catch (error) {
    if (error instanceof UsageError) {
      say(`${error.message}\n${error.usage ?? await usage()}`);
      return USAGE;
    }
    say(`containerd-shim: ${messageOf(error)}\n`);
    return FAILURE;
  }
}

async function usage(): Promise<string> {
  return (await import("./lib/commands.ts")).usageOfProgram();
}

function say(text: string, where: { writeSync(bytes: Uint8Array): number } = Deno.stderr): void {
  where.writeSync(new TextEncoder().encode(text));
}

main().then(Deno.exit);
