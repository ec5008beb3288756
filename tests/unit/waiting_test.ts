/**
 * A host's thread is many containers': what may wait as long as a disk or a server does not answer is done by a child, or by the
 * container's own process. So these functions of ffi/ are for those alone who have them done there, or know the path.
 */

import { assertEquals } from "@std/assert";

const ROOT = new URL("../../", import.meta.url);

/** Who may import what, and why that does not wait, by the file of ffi/ and the name there. */
const ALLOWED: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "calls.ts CallList": { "lib/container/rootfs.ts": "for lib/container/calls.ts, which has a child make them" },
  "mount.ts addMount": { "lib/container/rootfs.ts": "into a list" },
  "mount.ts addUnmount": { "lib/container/rootfs.ts": "into a list" },
  "mount.ts addDetach": { "lib/container/rootfs.ts": "into a list" },
  "loop.ts addLoopDevice": { "lib/container/rootfs.ts": "into a list" },
  "fd.ts open": {
    "lib/container/container.ts": "the bundle, which has the shim's own files",
    "lib/container/endpoint.ts": "of a descriptor; and of a path where there is no copier, in a process of its own",
    "lib/host/upgrade.ts": "its own executable",
    "lib/record/keeper.ts": "in a process of its own, or where a holder has no room",
    "lib/record/recorder.ts": "a holder's memory, by /proc",
    "lib/runtime/runc.ts": "the runtime's log, in the bundle",
    "lib/shim.ts": "the shim's log, in its working directory",
  },
  "pipe.ts ensureFifo": { "lib/shim.ts": "the shim's log, in its working directory" },
  "stat.ts stat": { "lib/runtime/runc.ts": "the runtime's log, in the bundle" },
};

/** What Deno has that waits for a path, each with those who call it. */
const SYNCHRONOUS =
  /\bDeno\.(statSync|openSync|copyFileSync|renameSync|linkSync|symlinkSync|chdir|writeFileSync|mkdirSync)\b/g;
const ALLOWED_OF_DENO: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  mkdirSync: {
    "lib/container/console.ts": "in the bundle",
    "lib/container/container.ts": "in the bundle",
    "lib/container/endpoint.ts": "where there is no copier, in a process of its own",
  },
};

/** The program's files but those of the build and of a command, which is a process of its own; with their texts, less comments. */
function* sources(folder = "lib"): Generator<readonly [path: string, text: string]> {
  for (const { name, isDirectory } of Deno.readDirSync(new URL(folder, ROOT))) {
    const path = `${folder}/${name}`;
    if (["lib/standalone", "lib/packaging", "lib/inspect"].includes(path)) continue;
    if (isDirectory) yield* sources(path);
    else if (name.endsWith(".ts") && !name.endsWith(".d.ts")) {
      yield [path, Deno.readTextFileSync(new URL(path, ROOT)).replace(/^\s*(\/?\*|\/\/).*$/gm, "")];
    }
  }
}

/** Whether a file uses a name of a file of ffi/, which it imports as a value, by name or with all others. */
function uses(text: string, file: string, name: string): boolean {
  const imports = text.matchAll(/\bimport (?!type\b)(\{[^}]*\}|\* as \w+) from "[./]*ffi\/([\w.]+)"/g);
  return [...imports].some(([, names, from]) => {
    if (from !== file) return false;
    const [, all] = /^\* as (\w+)$/.exec(names!) ?? [];
    if (all !== undefined) return new RegExp(`\\b${all}\\.${name}\\(`).test(text);
    return new RegExp(`[{,]\\s*(type )?${name}\\b`).exec(names!)?.[1] === undefined &&
      new RegExp(`[{,]\\s*${name}\\b`).test(names!);
  });
}

Deno.test("what may wait is not called where a host's other containers would wait too", () => {
  const files = [...sources()];
  for (const [what, allowed] of Object.entries(ALLOWED)) {
    const [file, name] = what.split(" ") as [string, string];
    const users = files.filter(([, text]) => uses(text, file, name)).map(([path]) => path);
    assertEquals(users.sort(), Object.keys(allowed).sort(), `who uses ${name} of ffi/${file}`);
  }
});

Deno.test("nor is what Deno has that waits for a path", () => {
  const found: Record<string, string[]> = {};
  for (const [path, text] of sources()) {
    for (const [, name] of text.matchAll(SYNCHRONOUS)) {
      const users = found[name!] ??= [];
      if (!users.includes(path)) users.push(path);
    }
  }
  const allowed = Object.entries(ALLOWED_OF_DENO).map(([name, users]) => [name, Object.keys(users).sort()]);
  const used = Object.entries(found).map(([name, users]) => [name, users.sort()]);
  assertEquals(Object.fromEntries(used), Object.fromEntries(allowed));
});
