/** What the numbers were measured on, and with. */

import { must, run } from "../e2e/command.ts";
import { CONTAINERD, REPOSITORY } from "../e2e/env.ts";

/** The two shims' executables. */
export interface Shims {
  readonly ours: string;
  readonly go: string;
}

/** The machine and the versions, a Markdown list. To be asked before children are reaped here. */
export async function describeMachine({ ours, go }: Shims): Promise<string> {
  const cpu = /^model name\s*:\s*(.*)$/m.exec(await Deno.readTextFile("/proc/cpuinfo"))?.[1] ?? Deno.build.arch;
  const kib = Number(/^MemTotal:\s*(\d+) kB$/m.exec(await Deno.readTextFile("/proc/meminfo"))![1]);
  return [
    `- ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`,
    `- ${navigator.hardwareConcurrency} × ${cpu}, ${(kib / 2 ** 20).toFixed(0)} GiB, Linux ${Deno.osRelease()}`,
    `- Deno ${Deno.version.deno}, ${await version(CONTAINERD)}, ${await version("runc")}`,
    `- ours: ${inRepository(ours)}${await commit(ours)}; Go: ${inRepository(go)}`,
  ].join("\n");
}

async function version(program: string): Promise<string> {
  const { stdout } = await run([program, "--version"]);
  const found = /(\d+\.\d+\.\d+\S*)/.exec(stdout)?.[1];
  return `${program.replace(/.*\//, "")} ${found ?? "of an unknown version"}`;
}

/** As it is named in the repository, if it is there. */
function inRepository(path: string): string {
  return path.startsWith(`${REPOSITORY}/`) ? path.slice(REPOSITORY.length + 1) : path;
}

/** The commit that is checked out where an executable is made; nothing where there is none, or for another's executable. */
async function commit(path: string): Promise<string> {
  if (inRepository(path) === path) return "";
  try {
    return ` (${(await must(["git", "-C", REPOSITORY, "describe", "--always", "--dirty"])).trim()})`;
  } catch {
    return "";
  }
}
