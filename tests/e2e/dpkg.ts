/** A machine whose packages are a test's own: what is installed and removed there is seen nowhere else. */

import { makePackage, PACKAGE } from "../../lib/packaging/deb.ts";
import { must, type Result, run } from "./command.ts";
import { newPlace, OUR_EXECUTABLE } from "./env.ts";
import { emptyFolder, type Machine, withMachine } from "./host.ts";
import { removeFolder } from "./leftovers.ts";

export { PACKAGE };

/** Where containerd's own package has its shim, and where ours puts that. */
export const PATH = "/usr/bin/containerd-shim";
export const ASIDE = `${PATH}.go`;

/** What packages change. */
const CHANGED = ["usr", "var", "etc"];

/** How long installing a package may take, in ms. */
const DPKG_PATIENCE_MS = 60_000;

/** An executable that has less of everything than ours, where it is not to be run. */
export const SMALL = "/bin/true";

/** Two versions of our package, of which the second is the higher. */
export const VERSIONS = ["0.0.1-1", "0.0.2-1"] as const;

/** A machine on which packages can be installed. */
export class Packages {
  /** @param folder for files of the test's */
  constructor(readonly machine: Machine, readonly folder: string) {}

  /** Runs a command there. */
  run(...args: string[]): Promise<Result> {
    return run([...this.machine.prefix, ...args], { patienceMs: DPKG_PATIENCE_MS });
  }

  /** Runs a command there that must succeed, and gives what it printed. */
  must(...args: string[]): Promise<string> {
    return must([...this.machine.prefix, ...args], { patienceMs: DPKG_PATIENCE_MS });
  }

  /** dpkg(1), which must succeed. Triggers are for other packages: none is run. */
  dpkg(...args: string[]): Promise<string> {
    return this.must("dpkg", "--no-triggers", ...args);
  }

  /** Makes a version of our package, and gives its path. */
  make(executable: string = OUR_EXECUTABLE, version: string = VERSIONS[0]): Promise<string> {
    return makePackage({ executable, version, compression: "none", out: this.folder });
  }

  /** Makes a package that has nothing but a shim, a script of one line, in the place of containerd's. */
  async makeOther(name: string, version: string, line: string): Promise<string> {
    const tree = `${this.folder}/${name}-${version}`;
    await Deno.mkdir(`${tree}/usr/bin`, { recursive: true });
    await Deno.mkdir(`${tree}/DEBIAN`);
    await Deno.writeTextFile(`${tree}${PATH}`, `#!/bin/sh\n${line}\n`, { mode: 0o755 });
    const maintainer = "Maintainer: nobody <nobody@localhost>";
    const control = [
      `Package: ${name}`,
      `Version: ${version}`,
      "Architecture: amd64",
      maintainer,
      "Description: a test's",
    ];
    await Deno.writeTextFile(`${tree}/DEBIAN/control`, `${control.join("\n")}\n`);
    await must(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, `${tree}.deb`]);
    return `${tree}.deb`;
  }

  /** What dpkg knows a package's state by; empty where it knows nothing of it. */
  async status(name: string = PACKAGE): Promise<string> {
    return (await this.run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name)).stdout;
  }

  /** What has diverted the shim; empty when nothing has. */
  async diverted(): Promise<string> {
    return (await this.must("dpkg-divert", "--listpackage", PATH)).trim();
  }

  /** The hash of a file there; undefined when it is not there. */
  async hash(path: string): Promise<string | undefined> {
    const { code, stdout } = await this.run("sha256sum", path);
    return code === 0 ? stdout.split(" ")[0] : undefined;
  }
}

/** The hash of the executable that a process runs. */
export async function hashOf(pid: number): Promise<string> {
  return (await must(["sha256sum", `/proc/${pid}/exe`])).split(" ")[0]!;
}

/** Runs `test` with a machine that has what this one has installed. */
export async function withPackages(test: (packages: Packages) => Promise<void>): Promise<void> {
  const { folder } = newPlace();
  const layers = `${folder}/layers`;
  // In memory: what the folder is on may be such a layer itself.
  const mounts = [`mkdir ${layers} && mount -t tmpfs none ${layers}`, emptyFolder()];
  for (const name of CHANGED) {
    const [upper, work] = [`${layers}/${name}`, `${layers}/${name}.work`];
    mounts.push(`mkdir ${upper} ${work}`);
    mounts.push(`mount -t overlay -o lowerdir=/${name},upperdir=${upper},workdir=${work} overlay /${name}`);
  }
  // A file of the lower layer, which dpkg could not put back after it has linked it: overlayfs tells the two names apart.
  mounts.push(`cp -a ${PATH} ${PATH}.copy && mv ${PATH}.copy ${PATH}`);
  try {
    await withMachine((machine) => test(new Packages(machine, folder)), mounts.join(" && "));
  } finally {
    await removeFolder(folder);
  }
}
