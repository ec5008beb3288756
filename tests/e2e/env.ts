/** What the end-to-end tests run, and where: which shim, in which forms, in which folder. */

/** The repository's folder, without a slash at its end. */
export const REPOSITORY = decodeURIComponent(new URL("../..", import.meta.url).pathname).replace(/\/$/, "");

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

/** Where all files of this run are, and the names that only this run uses begin with. */
const runFolder = Deno.env.get("E2E_DIR") ?? Deno.makeTempDirSync({ prefix: "shim-e2e-" });
// Sockets in it are to be reached by other users too, so that it is the shim that refuses them.
Deno.chmodSync(runFolder, 0o711);

/** What all names of this run that others can see begin with: containerd namespaces, and with them cgroups. */
export const RUN_NAME = runFolder.replace(/.*\//, "").toLowerCase().replace(/[^a-z0-9]+/g, "-");

/** The process below which everything that a test starts is found, also when its parent is dead. */
export const ROOT_PID = Number(Deno.env.get("E2E_ROOT_PID") ?? Deno.pid);

/** Our bundle under a plain `deno run`, which is how a product of `deno compile` behaves. */
const denoRun: Form = { name: "deno run", path: `${runFolder}/deno-run` };

/** The shim that most tests use. */
export const SHIM: Form = requested === DENO_RUN ? denoRun : { name: requested.replace(/.*\//, ""), path: requested };

/** All forms of the shim, for what depends on how it was started. */
export const FORMS: readonly Form[] = IS_OURS && SHIM !== denoRun ? [SHIM, denoRun] : [SHIM];

if (FORMS.includes(denoRun)) {
  const options = "-A --quiet --no-config --no-lock --cached-only --v8-flags=--single-threaded";
  const script = `#!/bin/sh\nexec '${Deno.execPath()}' run ${options} '${OUR_BUNDLE}' "$@"\n`;
  // Each test file is a program of its own that may get here while another starts the script.
  const temporary = Deno.makeTempFileSync({ dir: runFolder });
  Deno.writeTextFileSync(temporary, script);
  Deno.chmodSync(temporary, 0o755);
  Deno.renameSync(temporary, denoRun.path);
}

let folders = 0;

/** A new folder of this run with a name that is short: the path of a socket in it has 107 bytes at most. */
export function newFolder(): string {
  const folder = `${runFolder}/${crypto.randomUUID().slice(0, 6)}${folders++}`;
  Deno.mkdirSync(folder, { recursive: true, mode: 0o711 });
  return folder;
}

/** Registers a test that another shim fails, or that makes no sense for it, for the given reason. */
export function onlyOurs(reason: string, name: string, test: () => Promise<void>): void {
  Deno.test({ name: IS_OURS ? name : `${name} [not with another shim: ${reason}]`, ignore: !IS_OURS, fn: test });
}

/** Registers a test once for each form of the shim. */
export function inEachForm(name: string, test: (form: Form) => Promise<void>): void {
  for (const form of FORMS) Deno.test(`${name} (${form.name})`, () => test(form));
}

/** {@linkcode onlyOurs} and {@linkcode inEachForm} in one. */
export function inEachFormOfOurs(reason: string, name: string, test: (form: Form) => Promise<void>): void {
  for (const form of FORMS) onlyOurs(reason, `${name} (${form.name})`, () => test(form));
}

/** Both of {@linkcode onlyOurs} and {@linkcode inEachForm}. */
export function onlyOursInEachForm(reason: string, name: string, test: (form: Form) => Promise<void>): void {
  for (const form of FORMS) onlyOurs(reason, `${name} (${form.name})`, () => test(form));
}
