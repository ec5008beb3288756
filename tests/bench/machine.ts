/** What the numbers were measured on. */

import { run } from "../e2e/command.ts";

/** The machine and the versions, a Markdown list. To be asked before children are reaped here. */
export async function describeMachine(): Promise<string> {
  const cpu = /^model name\s*:\s*(.*)$/m.exec(await Deno.readTextFile("/proc/cpuinfo"))?.[1] ?? Deno.build.arch;
  return [
    `- ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`,
    `- ${navigator.hardwareConcurrency} × ${cpu}, Linux ${Deno.osRelease()}`,
    `- Deno ${Deno.version.deno}, ${await version("containerd")}, ${await version("runc")}`,
  ].join("\n");
}

async function version(program: string): Promise<string> {
  const { stdout } = await run([program, "--version"]);
  const found = /(\d+\.\d+\.\d+\S*)/.exec(stdout)?.[1];
  return `${program} ${found ?? "of an unknown version"}`;
}
