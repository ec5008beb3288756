/**
 * `containerd-shim upgrade`: this build takes over from the hosts of others that run, with their containers, which notice
 * nothing.
 *
 * A host that is asked by this command answers who it is; told to go on, it writes everything down, and sends its holders to a
 * host of this build, which the first of them starts. A holder that finds none there goes back to where it has come from.
 */

import * as fds from "../../ffi/fd.ts";
import { receiveMessage, sendMessage } from "../../ffi/fd_passing.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { Event, Poller } from "../../ffi/poll.ts";
import { after } from "../../ffi/timer.ts";
import { connectToPackets } from "../../ffi/socket.ts";
import { parseCommand, UPGRADE, usageOfCommand } from "../commands.ts";
import { messageOf } from "../errors.ts";
import { canReadVersion, RECORD_VERSION } from "../record/record.ts";
import { type AboutHost, aboutHost, MAX_MESSAGE, ownBuild, PROTOCOL, upgradeRequest } from "./protocol.ts";

/** Where hosts have their sockets: lib/standalone/entry.c. */
const FOLDER = "/run/containerd-shim";
/** How long a host may take to say who it is, and to hand over, in ms. */
const ANSWER_TIMEOUT_MS = 2000;
const MOVE_TIMEOUT_MS = 30_000;

/** Exit codes: all that was to be done has been, and something has not. */
const DONE = 0;
const NOT_ALL = 1;

/**
 * Runs the command.
 *
 * @returns the exit code
 * @throws {Error} when it cannot do anything
 */
export async function run(args: readonly string[], say: (text: string) => void): Promise<number> {
  const options = parseCommand(UPGRADE, args);
  if (options === undefined) {
    say(usageOfCommand(UPGRADE));
    return DONE;
  }
  const build = ownBuild();
  if (build === 0n) throw new Error("this executable has no entry of ours, and so no hosts");
  const poller = await Poller.open(() => {});
  const executable = fds.open("/proc/self/exe", fds.O.RDONLY);
  let isAll = true;
  const sockets = socketsOfHosts();
  if (sockets.length === 0) say("no host runs\n");
  for (const path of sockets) {
    const call = (goes: boolean) =>
      ask(
        poller,
        path,
        upgradeRequest(build, goes),
        goes ? [executable] : [],
        goes ? MOVE_TIMEOUT_MS : ANSWER_TIMEOUT_MS,
      );
    try {
      const about = await call(false);
      const name = `host ${about.pid} with ${about.containers} container${about.containers === 1 ? "" : "s"}`;
      if (about.build === `${build}`) {
        say(`${name} is of this build\n`);
      } else if (!canReadVersion(about.recordVersion)) {
        isAll = false;
        say(
          `${name} stays: it writes version ${about.recordVersion} of its containers' states, ` +
            `and this build reads versions up to ${RECORD_VERSION}\n`,
        );
      } else if (about.protocol !== undefined && about.protocol > PROTOCOL) {
        isAll = false;
        say(
          `${name} stays: its containers' processes speak version ${about.protocol} of the protocol with their host, ` +
            `and this build versions up to ${PROTOCOL}\n`,
        );
      } else if (options.values["dry-run"]) {
        say(`${name} would hand over to this build\n`);
      } else {
        const { moved, stayed } = await call(true);
        isAll &&= stayed === 0;
        say(`${name} has handed over ${moved}${stayed > 0 ? `, and ${stayed} have come back or stayed` : ""}\n`);
      }
    } catch (error) {
      // It has died, and its socket is left.
      if (error instanceof SystemError && error.errno === Errno.ECONNREFUSED) continue;
      isAll = false;
      say(`the host at ${path}: ${messageOf(error)}\n`);
    }
  }
  return isAll ? DONE : NOT_ALL;
}

/** The sockets of hosts, those of hosts that have died among them. */
function socketsOfHosts(): string[] {
  try {
    return Array.from(Deno.readDirSync(FOLDER))
      .filter(({ isSymlink, isDirectory, isFile }) => !isSymlink && !isDirectory && !isFile)
      .map(({ name }) => `${FOLDER}/${name}`).toSorted();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** Says something to a host, and gives what it says to that. */
async function ask(
  poller: Poller,
  path: string,
  request: Uint8Array<ArrayBuffer>,
  descriptors: readonly number[],
  timeoutMs: number,
): Promise<AboutHost> {
  const socket = connectToPackets(path);
  const answered = Promise.withResolvers<void>();
  using _timer = after(poller, timeoutMs, () => answered.reject(new Error(`no answer in ${timeoutMs / 1000} s`)));
  try {
    sendMessage(socket, request, descriptors);
    poller.add(socket, Event.IN | Event.RDHUP, () => answered.resolve());
    await answered.promise;
    const message = receiveMessage(socket, new Uint8Array(MAX_MESSAGE));
    if (message === undefined || message.bytes.length === 0) throw new Error("it has closed the connection");
    return aboutHost(JSON.parse(new TextDecoder().decode(message.bytes)), "the answer");
  } finally {
    poller.remove(socket);
    fds.close(socket);
  }
}
