/** `containerd-shim inspect`, as tests call it and read what it prints. */

import { assertEquals } from "@std/assert";
import type { Report } from "../../lib/inspect/report.ts";
import { type Result, run } from "./command.ts";
import { OUR_EXECUTABLE } from "./env.ts";

/** The command line of `containerd-shim inspect`: our executable's, whichever shim is under test. */
export function inspectArguments(...args: string[]): string[] {
  return [OUR_EXECUTABLE, "inspect", ...args];
}

/** Runs it. */
export function inspect(...args: string[]): Promise<Result> {
  return run(inspectArguments(...args));
}

/** What it says of a containerd namespace as JSON, and its exit code. */
export async function inspectAll(
  namespace: string,
  ...flags: string[]
): Promise<{ readonly code: number; readonly reports: readonly Report[] }> {
  const { code, stdout, stderr } = await inspect("-json", "-namespace", namespace, ...flags);
  assertEquals(stderr, "");
  return { code, reports: JSON.parse(stdout) };
}

/** What it says of one container as JSON, which must have answered. */
export async function inspectOne(namespace: string, id: string): Promise<Report> {
  const { code, stdout, stderr } = await inspect("-json", `${namespace}/${id}`);
  assertEquals([code, stderr], [0, ""]);
  return JSON.parse(stdout);
}

/** A table's rows, by the heads of its columns, and the lines that follow it. */
export function parseTable(text: string): { readonly rows: Record<string, string>[]; readonly remarks: string[] } {
  const [head = "", ...lines] = text.trimEnd().split("\n");
  // What is one column has one blank in it at most.
  const heads = head.split(/ {2,}/);
  const rows: Record<string, string>[] = [];
  const remarks: string[] = [];
  for (const line of lines) {
    const cells = line.split(/ {2,}/);
    if (cells.length === heads.length) rows.push(Object.fromEntries(cells.map((cell, i) => [heads[i], cell])));
    else remarks.push(line);
  }
  return { rows, remarks };
}

/** The one report that there must be of a container. */
export function only(reports: readonly Report[], id: string): Report {
  const found = reports.filter((each) => each.id === id);
  assertEquals(found.length, 1, `${id} is there ${found.length} times`);
  return found[0]!;
}
