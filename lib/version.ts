/** What this executable is made of, for `-version`: an item a line. */

import { libc } from "../ffi/libc.ts";
import { ownBuild } from "./host/protocol.ts";
import config from "../deno.json" with { type: "json" };

/** Has the commit's hash put in its place when the executable is made: lib/standalone/make.ts. */
const COMMIT = "@COMMIT@";

const c = libc({ gnu_get_libc_version: [[], "pointer"] });

/** The program's name and version, then what each part is and which: in columns. */
export function version(): string {
  const build = ownBuild();
  const items = {
    "containerd-shim": config.version,
    commit: COMMIT.startsWith("@") ? "unknown" : COMMIT,
    build: build === 0n ? "none" : build.toString(16).padStart(16, "0"),
    Deno: Deno.version.deno,
    V8: Deno.version.v8,
    glibc: Deno.UnsafePointerView.getCString(c().gnu_get_libc_version()!),
    maker: Deno.build.standalone ? "deno compile" : build === 0n ? "none" : "a copy of Deno",
  };
  const width = Math.max(...Object.keys(items).map((name) => name.length));
  return Object.entries(items).map(([name, value]) => `${name.padEnd(width)}  ${value}\n`).join("");
}
