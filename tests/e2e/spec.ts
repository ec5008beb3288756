/** A container's config.json: the OCI runtime specification. */

/** A namespace that there is already. */
export interface Namespace {
  readonly type: string;
  readonly path: string;
}

/** What tests vary. */
export interface SpecOptions {
  /** The command that the container runs; `sleep 1000` unless given. */
  readonly args?: readonly string[];
  /** Namespaces of its own, or those at a path; pid, ipc, uts and mount of its own unless given. */
  readonly namespaces?: readonly (string | Namespace)[];
  /** Where the root filesystem is mounted by Create, instead of the test's folder of busybox. */
  readonly mountedRoot?: boolean;
  /** Whether the command has a terminal. */
  readonly terminal?: boolean;
}

/** A container that runs as root with the capabilities that tests need, in namespaces of its own but for the network's. */
export function makeSpec(
  { args = ["sleep", "1000"], namespaces = ["pid", "ipc", "uts", "mount"], mountedRoot = false, terminal = false }:
    SpecOptions,
  { cgroup, rootfs }: { readonly cgroup: string; readonly rootfs: string },
): unknown {
  const capabilities = ["CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID"];
  return {
    ociVersion: "1.0.2",
    process: {
      terminal,
      args,
      cwd: "/",
      env: ["PATH=/bin"],
      user: { uid: 0, gid: 0 },
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
    },
    root: { path: mountedRoot ? "rootfs" : rootfs },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755"] },
      {
        destination: "/dev/pts",
        type: "devpts",
        source: "devpts",
        options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
      },
    ],
    linux: {
      cgroupsPath: cgroup,
      namespaces: namespaces.map((each) => typeof each === "string" ? { type: each } : each),
    },
  };
}
