/** containerd-shim: argv to exit code. */

import { parse, usage, UsageError } from "./lib/cli.ts";
import { messageOf } from "./lib/errors.ts";
import { run } from "./lib/shim.ts";

/** Exit codes, as Go's programs have them: a wrong command line, and anything else that prevents the start. */
const USAGE = 2;
const FAILURE = 1;

async function main(): Promise<number> {
  try {
    const options = parse(Deno.args);
    if (options === undefined) {
      say(usage());
      return 0;
    }
    return await run(options);
  } catch (error) {
    if (error instanceof UsageError) {
      say(`${error.message}\n${usage()}`);
      return USAGE;
    }
    say(`containerd-shim: ${messageOf(error)}\n`);
    return FAILURE;
  }
}

function say(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(text));
}

main().then(Deno.exit);
