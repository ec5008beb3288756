/** Which shims of runtime v1 run on this node, of whatever make: by what /proc tells of their processes. */

import { argumentsOf, parentOf } from "../../ffi/process.ts";
import { FLAGS, type Options, parse } from "../cli.ts";
import { descriptorsOf, lifeOf, linkOf, type Listeners, listenersSeenBy, pids, userOf } from "./proc.ts";

/** A shim's process. */
export interface Found {
  /** In the namespace of this process. */
  readonly pid: number;
  /** containerd's, by the flag `-namespace`. */
  readonly namespace: string;
  /** The container's, by its folders' name. */
  readonly id: string;
  /** The bundle's folder. */
  readonly bundle: string | undefined;
  /** Where it is asked, as Deno connects to it: in turn, for an abstract name is not told apart from one that ends otherwise. */
  readonly addresses: readonly string[];
  /** Why it cannot be asked. */
  readonly obstacle: string | undefined;
  /** When it was started, in seconds since the machine was. */
  readonly startedAt: number;
  /** Whether a signal has stopped it. */
  readonly isStopped: boolean;
}

/** A container whose shim has died, and that nobody has cleaned up after. */
export interface Dead {
  /** That the shim had, by the file `shim.pid` of the bundle. */
  readonly pid: number;
  /** containerd's, by the folder that the bundle is in. */
  readonly namespace: string;
  /** The container's, by the bundle's name. */
  readonly id: string;
  /** The bundle's folder. */
  readonly bundle: string;
  /** Where its socket was, by the file `address` of the bundle. */
  readonly address: string;
}

/** What there is on this node. */
export interface Node {
  /** Those that run. */
  readonly shims: readonly Found[];
  /** Those that have died with their containers still to be cleaned up. */
  readonly dead: readonly Dead[];
}

/** Where containerd keeps bundles, unless told otherwise: a folder for each namespace, and in it one for each container. */
const BUNDLES = "/run/containerd/io.containerd.runtime.v1.linux";
/** What containerd writes into a bundle when the shim has been started. */
const ADDRESS_FILE = "address";
const PID_FILE = "shim.pid";
/** The descriptor by which containerd passes the socket. */
const INHERITED = 3;

/** Looks for shims. */
export function findShims(): Node {
  const networks = new Map<string, Listeners>();
  const found = new Map<number, Found & { readonly socket: string | undefined }>();
  const look = (pid: number) => {
    const options = optionsOf(argumentsOf(pid));
    const stat = options && lifeOf(pid);
    if (options === undefined || stat === undefined || stat.state === "Z") return false;
    const { socket, name } = listenerOf(pid, networks);
    // Without a socket it is not one yet, or no more: if that can be seen.
    if (socket === undefined && descriptorsOf(pid) !== undefined) return false;
    found.set(pid, {
      pid,
      namespace: options.namespace,
      id: lastOf(options.workdir),
      bundle: linkOf(pid, "cwd"),
      ...reach(pid, name),
      startedAt: stat.startedAt,
      isStopped: stat.state === "T" || stat.state === "t",
      socket,
    });
    return true;
  };
  pids().forEach(look);
  const bundles = new Set([BUNDLES]);
  for (const { bundle } of found.values()) {
    const root = bundle?.replace(/\/[^/]+\/[^/]+$/, "");
    if (root !== undefined && lastOf(root) === lastOf(BUNDLES)) bundles.add(root);
  }
  // One that has been started meanwhile has had its pid written down.
  const dead = [...bundles].flatMap(deadIn).filter(({ pid }) => !found.has(pid) && !look(pid))
    .filter(({ bundle }) => contentOf(`${bundle}/${ADDRESS_FILE}`) !== undefined);
  const shims = [...found.values()].toSorted((a, b) => a.startedAt - b.startedAt || a.pid - b.pid);
  // A child that is not another program yet looks like the shim itself.
  // A process of a container's may look like a shim: a shim is above it.
  const isOfContainer = ({ pid }: Found) => {
    for (let parent = parentOf(pid); parent; parent = parentOf(parent)) if (found.has(parent)) return true;
    return false;
  };
  const isFirst = ({ socket }: { socket: string | undefined }, i: number) =>
    socket === undefined || shims.findIndex((each) => each.socket === socket) === i;
  return { shims: shims.filter((each, i) => isFirst(each, i) && !isOfContainer(each)), dead };
}

/** What a shim has been started with; undefined for what is none. */
function optionsOf(args: readonly string[]): Options | undefined {
  // What comes before is the program's name, and what it may be run by.
  const first = args.findIndex((each) => FLAG.test(each));
  if (first < 1) return undefined;
  try {
    const options = parse(args.slice(first));
    return options?.namespace && options.workdir && options.address ? options : undefined;
  } catch {
    return undefined;
  }
}

/** A flag of a shim. */
const FLAG = new RegExp(`^--?(${FLAGS.map(({ name }) => name).join("|")})(=|$)`, "s");

/** The socket that a process listens on, by its inode and name. */
function listenerOf(pid: number, networks: Map<string, Listeners>): { socket?: string; name?: string } {
  const network = linkOf(pid, "ns/net") ?? "";
  let listeners = networks.get(network);
  // It may have been made since.
  if (listeners === undefined) networks.set(network, listeners = listenersSeenBy(pid));
  const found = (fd: number) => {
    const socket = /^socket:\[(\d+)\]$/.exec(linkOf(pid, `fd/${fd}`) ?? "")?.[1];
    const name = socket && listeners!.get(socket);
    return name === undefined ? undefined : { socket: socket!, name };
  };
  const others = () => descriptorsOf(pid)?.values().map(found).find((each) => each !== undefined);
  return found(INHERITED) ?? others() ?? {};
}

/** How a shim is reached whose socket has this name. */
function reach(pid: number, name: string | undefined): Pick<Found, "addresses" | "obstacle"> {
  const user = userOf(pid);
  if (user !== Deno.uid()) {
    return { addresses: [], obstacle: `it is user ${user}'s, and answers nobody else` };
  }
  if (name === undefined) return { addresses: [], obstacle: "its socket is not known" };
  if (name.startsWith("@")) {
    const isHere = linkOf(pid, "ns/net") === Deno.readLinkSync("/proc/self/ns/net");
    if (!isHere) return { addresses: [], obstacle: "its socket is in another network namespace" };
    const address = `\0${name.slice(1)}`;
    // A NUL at the end, which Go's net package used to count, is written so too.
    return { addresses: name.endsWith("@") ? [`${address.slice(0, -1)}\0`, address] : [address], obstacle: undefined };
  }
  const isHere = linkOf(pid, "ns/mnt") === Deno.readLinkSync("/proc/self/ns/mnt");
  const folder = name.startsWith("/") ? "root" : "cwd/";
  return { addresses: [isHere && folder === "root" ? name : `/proc/${pid}/${folder}${name}`], obstacle: undefined };
}

/** Containers that have been given a shim, which need not be dead. */
function deadIn(bundles: string): Dead[] {
  return namesIn(bundles).flatMap((namespace) =>
    namesIn(`${bundles}/${namespace}`).flatMap((id) => {
      const bundle = `${bundles}/${namespace}/${id}`;
      const pid = Number(contentOf(`${bundle}/${PID_FILE}`));
      const address = contentOf(`${bundle}/${ADDRESS_FILE}`);
      return pid > 0 && address !== undefined ? [{ pid, namespace, id, bundle, address }] : [];
    })
  );
}

function namesIn(folder: string): string[] {
  try {
    return Array.from(Deno.readDirSync(folder)).filter(({ isDirectory }) => isDirectory).map(({ name }) => name);
  } catch {
    return [];
  }
}

function contentOf(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch {
    return undefined;
  }
}

/** The last component of a path. */
function lastOf(path: string): string {
  return path.replace(/\/+$/, "").replace(/^.*\//s, "");
}
