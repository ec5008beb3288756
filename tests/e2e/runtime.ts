/** An OCI runtime that the tests look at, and hold: runc behind a script. */

import { must } from "./command.ts";
import { Writer } from "./fifo.ts";
import { names } from "./leftovers.ts";
import { until } from "./until.ts";

/** Options of {@linkcode Runtime.make}. */
export interface RuntimeOptions {
  /** The command, such as `kill`, that waits: {@linkcode Runtime.held}. */
  readonly hold?: string;
}

/** A runtime that keeps the arguments of each call. */
export class Runtime {
  /** For Create's `runtime`. */
  readonly path: string;
  readonly #calls: string;
  readonly #fifo: string;

  private constructor(folder: string) {
    this.path = `${folder}/runtime`;
    this.#calls = `${folder}/runtime-calls`;
    this.#fifo = `${folder}/runtime-hold`;
  }

  /** Makes one in a folder, which must exist. */
  static async make(folder: string, { hold = "" }: RuntimeOptions = {}): Promise<Runtime> {
    const runtime = new Runtime(folder);
    await Deno.mkdir(runtime.#calls);
    await must(["mkfifo", runtime.#fifo]);
    // --systemd-cgroup is taken out: there need be no systemd here.
    const script = `#!/bin/sh
file=$(mktemp '${runtime.#calls}/XXXXXX')
printf '%s\\n' "$@" >"$file.new"
mv "$file.new" "$file.args" # now it is complete
for each; do
  shift
  [ "$each" = --systemd-cgroup ] || set -- "$@" "$each"
  [ "$each" != '${hold}' ] || read line <'${runtime.#fifo}'
done
exec runc "$@"
`;
    await Deno.writeTextFile(runtime.path, script, { mode: 0o755 });
    return runtime;
  }

  /** The arguments of each call so far, in no order. */
  calls(): string[][] {
    return names(this.#calls).filter((name) => name.endsWith(".args"))
      .map((name) => Deno.readTextFileSync(`${this.#calls}/${name}`).trimEnd().split("\n"));
  }

  /** Waits until the command that is held has been called, and gives what lets it go on when it is disposed of. */
  async held(): Promise<Disposable> {
    return await Writer.open(this.#fifo);
  }

  /** The arguments of the call of a command, as soon as there is one. */
  call(command: string): Promise<string[]> {
    return until(`the runtime's ${command} is called`, () => this.calls().find((args) => args.includes(command)));
  }
}
