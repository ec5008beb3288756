/** Many execs in little time: processes that an OCI runtime of the test's own starts, beside the container. */

import type { Shim } from "./shim.ts";

/** Starts a shell with the script that is an exec's only argument; is runc for all else. */
const QUICK = `#!/bin/sh
case " $* " in *" exec "*)
  for each; do case $previous in --pid-file) file=$each;; --process) process=$each;; esac; previous=$each; done
  script=$(sed 's/.*"args":\\["\\([^"]*\\)"\\].*/\\1/' "$process")
  sh -c "$script" &
  echo $! >"$file"
  exit;;
esac
exec runc "$@"
`;

/** Makes that runtime, and gives its path. The script of an exec has no quote and no backslash in it. */
export function quickRuntime(shim: Shim): Promise<string> {
  return shim.makeProgram("quick-runtime", QUICK);
}

/** What lets processes go on, as many as are told to: each reads a line of it. */
export class Gate implements Disposable {
  /** A piece of a script that waits at it. */
  readonly script: string;
  readonly #file: Deno.FsFile;

  private constructor(path: string) {
    this.script = `read line <${path}`;
    this.#file = Deno.openSync(path, { read: true, write: true });
  }

  /** Makes one in the folder of a shim's test. */
  static async make(shim: Shim): Promise<Gate> {
    const { stdin } = await shim.fifos("gate");
    return new Gate(stdin);
  }

  /** Lets so many go on. At once: reads that wait may keep all threads that Deno has for files. */
  open(count: number): void {
    this.#file.writeSync(new TextEncoder().encode("\n".repeat(count)));
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}
