/**
 * What the end-to-end tests run, and where: which shim, in which forms, in which folder. Tests in this folder see a shim from
 * outside, as containerd, the kernel and a container do; of lib/ they use what speaks to one.
 */

import { V8_FLAGS } from "../../lib/standalone/make.ts";
import { runName } from "./leftovers.ts";

/** The repository's folder, without a slash at its end. */
export const REPOSITORY = decodeURIComponent(new URL("../..", import.meta.url).pathname).replace(/\/$/, "");

// runc is in /usr/sbin, which is not in every root's PATH.
Deno.env.set("PATH", `${Deno.env.get("PATH") ?? "/usr/bin:/bin"}:/usr/sbin:/sbin`);

// Since 1.7, ctr says before everything else that runtime v1 will be removed.
Deno.env.set("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "1");

/** The folder that containerd and ctr are taken from, instead of the system's. */
const containerdFolder = Deno.env.get("CONTAINERD");

/** The daemon that the tests start. */
export const CONTAINERD = containerdFolder ? `${containerdFolder}/containerd` : "containerd";

/** The client that belongs to it. */
export const CTR = containerdFolder ? `${containerdFolder}/ctr` : "ctr";

/** How the version of both must begin, when it matters. */
export const CONTAINERD_VERSION = Deno.env.get("CONTAINERD_VERSION") ?? "";

/** The executable that this project makes. */
export const OUR_EXECUTABLE = `${REPOSITORY}/bin/containerd-shim`;

/** The same program as one JavaScript file. */
export const OUR_BUNDLE = `${REPOSITORY}/build/containerd-shim.js`;

/** A way to start a shim. */
export interface Form {
  /** As it stands in a test's name. */
  readonly name: string;
  /** The file that containerd is to start. */
  readonly path: string;
}

/** What SHIM may say instead of a path: our bundle under a plain `deno run`. */
const DENO_RUN = "deno-run";

const requested = Deno.env.get("SHIM") || OUR_EXECUTABLE;

/** Whether the shim under test is this project's. */
export const IS_OURS = requested === DENO_RUN || requested === OUR_EXECUTABLE;

/** How our executable lives: each by itself, in a host, or some so and some so. */
export type Way = "alone" | "hosted" | "mixed";

/** The way of this run; a host is what it looks for unless told otherwise. */
export const WAY = (Deno.env.get("WAY") ?? "hosted") as Way;

/** In containerd's environment, the size of a shim's group: lib/standalone/entry.c. */
export const GROUP_VARIABLE = "CONTAINERD_SHIM_GROUP";

if (WAY === "alone") Deno.env.set(GROUP_VARIABLE, "1");
else Deno.env.delete(GROUP_VARIABLE);

/** Where all files of this run are: the folder that tests/run.ts has made, or one that goes when this program ends. */
const runFolder = Deno.env.get("E2E_DIR") ?? makeRunFolder();

function makeRunFolder(): string {
  const folder = Deno.makeTempDirSync({ prefix: "shim-" });
  globalThis.addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));
  return folder;
}

// Sockets in it are to be reached by other users too, so that it is the shim that refuses them.
Deno.chmodSync(runFolder, 0o711);

/** What all names of this run that others can see begin with: containerd namespaces, and with them cgroups. */
const RUN_NAME = runName(runFolder);

/** Our bundle under a plain `deno run`, which is how a product of `deno compile` behaves. */
const denoRun: Form = { name: "deno run", path: `${runFolder}/deno-run` };

/** Every other one of our executable is by itself: by its pid. */
const mixed: Form = { name: "containerd-shim", path: `${runFolder}/mixed` };

/** The shim that most tests use. */
export const SHIM: Form = requested === DENO_RUN
  ? denoRun
  : IS_OURS && WAY === "mixed"
  ? mixed
  : { name: requested.replace(/.*\//, ""), path: requested };

/** What {@linkcode SHIM} is in the end. */
export const EXECUTABLE = SHIM === mixed ? OUR_EXECUTABLE : SHIM.path;

/** All forms of the shim, for what depends on how it was started. Under `deno run` it is always by itself. */
export const FORMS: readonly Form[] = IS_OURS && SHIM !== denoRun && WAY === "alone" ? [SHIM, denoRun] : [SHIM];

if (FORMS.includes(denoRun)) {
  // As Deno reads it: without workers, which would be there before our first line, and could not be told to block signals.
  const v8Flags = V8_FLAGS.replace("single_threaded", "single-threaded");
  const options = `-A --quiet --no-config --no-lock --cached-only ${v8Flags}`;
  writeScript(denoRun.path, `exec '${Deno.execPath()}' run ${options} '${OUR_BUNDLE}' "$@"`);
}
if (FORMS.includes(mixed)) {
  writeScript(mixed.path, `[ $(($$ % 2)) = 0 ] && export ${GROUP_VARIABLE}=1\nexec '${OUR_EXECUTABLE}' "$@"`);
}

function writeScript(path: string, text: string): void {
  // Each test file is a program of its own that may get here while another starts the script.
  const temporary = Deno.makeTempFileSync({ dir: runFolder });
  Deno.writeTextFileSync(temporary, `#!/bin/sh\n${text}\n`);
  Deno.chmodSync(temporary, 0o755);
  Deno.renameSync(temporary, path);
}

let folders = 0;

/** A place for one test. */
export interface Place {
  /** A new folder; its path is short, because that of a socket in it may have 107 bytes at most. */
  readonly folder: string;
  /** A containerd namespace of its own. */
  readonly namespace: string;
}

/** Makes a place that no other test of this run has. */
export function newPlace(): Place {
  for (;;) {
    const folder = `${runFolder}/${++folders}`;
    try {
      Deno.mkdirSync(folder, { mode: 0o711 });
      return { folder, namespace: `${RUN_NAME}-${folders}` };
    } catch (error) {
      // Each test file is a program of its own, with the same folder.
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    }
  }
}

/** Whether there is a choice of modes: another shim has one, and so has ours under `deno run`, which run everything in that. */
const HAS_MODES = EXECUTABLE === OUR_EXECUTABLE;

/** Whether what states these modes is to run now. */
export function runsIn(modes: readonly Way[]): boolean {
  return !HAS_MODES || modes.includes(WAY);
}

// What modes.ts puts in its place is for those that state no modes of their own.
const register = Deno.test;

/**
 * Registers a test that runs in these modes, for the given reason, whatever the file has stated: see modes.ts. Another shim
 * runs it too, unless `isOnlyOurs`.
 */
export function inModes(
  modes: readonly Way[],
  reason: string,
  name: string,
  test: () => Promise<void>,
  { isOnlyOurs = false } = {},
): void {
  if (reason === "") throw new Error(`why does ${name} run in these modes?`);
  if (runsIn(modes) && (IS_OURS || !isOnlyOurs)) register(name, test);
}

/** Registers a test that another shim fails, or that makes no sense for it, for the given reason. */
export function onlyOurs(reason: string, name: string, test: () => Promise<void>): void {
  Deno.test({ name: IS_OURS ? name : `${name} [not with another shim: ${reason}]`, ignore: !IS_OURS, fn: test });
}

/** Registers a test once for each form of the shim. */
export function inEachForm(name: string, test: (form: Form) => Promise<void>): void {
  for (const form of FORMS) Deno.test(`${name} (${form.name})`, () => test(form));
}

/** Both of {@linkcode onlyOurs} and {@linkcode inEachForm}. */
export function onlyOursInEachForm(reason: string, name: string, test: (form: Form) => Promise<void>): void {
  for (const form of FORMS) onlyOurs(reason, `${name} (${form.name})`, () => test(form));
}
