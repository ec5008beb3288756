/** The test's end of a process's terminal. */

import type { Reader } from "./fifo.ts";
import type { Shim } from "./shim.ts";

/** A process with a terminal: where its input is to be opened, and what it prints. */
export interface OnTerminal {
  readonly stdin: string;
  readonly output: Reader;
}

/** Creates the container with a terminal. */
export async function createWithTerminal(shim: Shim): Promise<OnTerminal> {
  const { stdin, stdout } = await shim.fifos();
  const [output] = await Promise.all([shim.read(stdout), shim.create({ stdin, stdout, terminal: true })]);
  return { stdin, output };
}

/** Registers another process of the container with a terminal; `startProcess` opens its output. */
export async function addWithTerminal(shim: Shim, id: string, args: readonly string[]): Promise<OnTerminal["stdin"]> {
  const { stdin, stdout } = await shim.fifos(id);
  await shim.exec(id, args, { stdin, stdout, terminal: true });
  return stdin;
}

/** Registers another process of the container with a terminal, and starts it. */
export async function execOnTerminal(shim: Shim, id: string, args: readonly string[]): Promise<OnTerminal> {
  const stdin = await addWithTerminal(shim, id, args);
  return { stdin, output: await startOnTerminal(shim, id) };
}

/** Starts a process that {@linkcode addWithTerminal} has registered, and opens its output. */
export async function startOnTerminal(shim: Shim, id: string): Promise<Reader> {
  const [output] = await Promise.all([shim.read(`${shim.folder}/${id}-1`), shim.startProcess(id)]);
  return output;
}
