/**
 * Makes a Debian package of what is in bin: `deno run -A lib/packaging/deb.ts`, where dpkg-deb(1) is.
 *
 * The package diverts containerd's own /usr/bin/containerd-shim, and puts it back when it is removed: debian/preinst,
 * debian/postrm. The same commit gives the same package.
 */
import { parseArgs } from "@std/cli/parse-args";
import config from "../../deno.json" with { type: "json" };
import { type Commit, commitOf } from "../standalone/commit.ts";

/** How the package is called. */
export const PACKAGE = "containerd-shim-deno";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);
const SCRIPTS = ["preinst", "postinst", "postrm"];

/** What the executable may be linked with, and the packages that have it; how old they may be is what its symbols say. */
const LIBRARIES: Readonly<Record<string, "libc6" | "libgcc-s1">> = {
  "ld-linux-x86-64.so.2": "libc6",
  "libc.so.6": "libc6",
  "libdl.so.2": "libc6",
  "libm.so.6": "libc6",
  "libpthread.so.0": "libc6",
  "librt.so.1": "libc6",
  "libgcc_s.so.1": "libgcc-s1",
};

const DESCRIPTION = `Description: shim of containerd's runtime v1, on Deno
 containerd-shim is the process that containerd's runtime v1
 (io.containerd.runtime.v1.linux, containerd 1.2 to 1.7) starts for each
 container: its parent, which owns its standard streams and its exit status,
 drives runc, and outlives containerd.
 .
 This one is written in TypeScript for Deno. Many containers share one process
 of it, which may die and be upgraded while they run. It takes the place of
 containerd's own /usr/bin/containerd-shim, which is put aside, and is put back
 when this package is removed. The shims of runtime v2 are left alone; from
 containerd 2 on there is nothing else, and this one is never started.
`;

/** Options of {@linkcode makePackage}. */
export interface PackageOptions {
  /** What is packed, when not what `make` leaves. */
  readonly executable?: string;
  /** Of the package, when not what {@linkcode versionOf} says. */
  readonly version?: string;
  /** How dpkg-deb(1) compresses it; smaller takes longer. */
  readonly compression?: "xz" | "gzip" | "none";
  /** The folder that the package is put into. */
  readonly out?: string;
}

/** The package's version: deno.json's, which is the last release's, and where that is not this commit, when and which it is. */
export function versionOf(commit: Commit | undefined): string {
  if (commit === undefined || commit.isTagged(`v${config.version}`)) return `${config.version}-1`;
  const time = new Date(commit.time * 1000).toISOString().replace(/\D/g, "").slice(0, 14);
  const [hash, dirty] = commit.name.split("-");
  return `${config.version}+git${time}.${hash!.slice(0, 8)}${dirty === undefined ? "" : ".dirty"}-1`;
}

/** Makes the package, and gives its path. */
export async function makePackage(options: PackageOptions = {}): Promise<string> {
  const { executable = `${ROOT}bin/containerd-shim`, compression = "xz", out = `${ROOT}bin` } = options;
  const commit = await commitOf(ROOT);
  const { version = versionOf(commit) } = options;
  const folder = await Deno.makeTempDir({ prefix: "containerd-shim-" });
  try {
    const tree = `${folder}/tree`;
    const documents = `usr/share/doc/${PACKAGE}`;
    const put = async (path: string, content: string | Uint8Array<ArrayBuffer>, mode = 0o644) => {
      await Deno.mkdir(`${tree}/${path}`.replace(/[^/]*$/, ""), { recursive: true });
      await Deno.writeFile(`${tree}/${path}`, typeof content === "string" ? encode(content) : content);
      await Deno.chmod(`${tree}/${path}`, mode);
    };
    const copy = async (from: string, path: string, mode?: number) => put(path, await Deno.readFile(from), mode);
    await copy(executable, "usr/bin/containerd-shim", 0o755);
    await put(
      "usr/share/man/man8/containerd-shim.8.gz",
      await gzip(await Deno.readFile(`${ROOT}bin/containerd-shim.8`)),
    );
    await copy(`${ROOT}lib/packaging/debian/copyright`, `${documents}/copyright`);
    await copy(`${ROOT}lib/packaging/debian/lintian-overrides`, `usr/share/lintian/overrides/${PACKAGE}`);
    await copy(`${ROOT}bin/containerd-shim.cdx.json`, `${documents}/containerd-shim.cdx.json`);
    await copy(`${ROOT}README.md`, `${documents}/README.md`);
    const changes = await Deno.readFile(`${ROOT}CHANGELOG.md`).catch(() => undefined);
    if (changes !== undefined) await put(`${documents}/changelog.gz`, await gzip(changes));
    await put(`${documents}/changelog.Debian.gz`, await gzip(encode(changelog(version, commit))));

    const sums = await run(["sh", "-c", "find usr -type f | LC_ALL=C sort | xargs md5sum"], { cwd: tree });
    const size = Number((await run(["du", "-sk", "--apparent-size", "usr"], { cwd: tree })).split("\t")[0]);
    for (const script of SCRIPTS) await copy(`${ROOT}lib/packaging/debian/${script}`, `DEBIAN/${script}`, 0o755);
    await put("DEBIAN/md5sums", sums);
    await put("DEBIAN/control", control(version, commit, size, await dependencies(executable)));

    await run(["chmod", "-R", "u=rwX,go=rX", tree]);
    const made = `${folder}/made.deb`;
    await run(["dpkg-deb", "--root-owner-group", `-Z${compression}`, "--build", tree, made], {
      // No file is younger than the commit: the same commit, the same package.
      env: commit === undefined ? {} : { SOURCE_DATE_EPOCH: `${commit.time}` },
    });
    const path = `${out}/${PACKAGE}_${version}_amd64.deb`;
    await Deno.copyFile(made, path);
    return path;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function encode(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

/** As `gzip -9n` does it: without a name and a time. */
async function gzip(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const child = new Deno.Command("gzip", { args: ["-9n"], stdin: "piped", stdout: "piped" }).spawn();
  const [{ stdout, success }] = await Promise.all([child.output(), new Blob([bytes]).stream().pipeTo(child.stdin)]);
  if (!success) throw new Error("gzip failed");
  return stdout;
}

async function run(
  args: readonly [string, ...string[]],
  options: { readonly cwd?: string; readonly env?: Record<string, string> } = {},
): Promise<string> {
  const [program, ...rest] = args;
  const { success, stdout } = await new Deno.Command(program, { args: rest, stderr: "inherit", ...options }).output();
  if (!success) throw new Error(`${args.join(" ")} failed`);
  return new TextDecoder().decode(stdout);
}

/** What the executable is linked with, as Depends has it. */
async function dependencies(executable: string): Promise<string> {
  const shell = async (line: string) => (await run(["sh", "-c", line, executable])).trimEnd().split("\n");
  // With the entry in it readelf(1) finds the names of libraries, and not the table of symbols' versions.
  const wanted = await shell('readelf -d "$0" 2>/dev/null | sed -n "s/.*(NEEDED).*\\[\\(.*\\)\\]/\\1/p"');
  const packages = new Set(wanted.map((library) => {
    const found = LIBRARIES[library];
    if (found === undefined) throw new Error(`Cannot say which package has "${library}"`);
    return found;
  }));
  /** The newest version of a library that symbols are wanted of. */
  const newest = async (library: string) =>
    (await shell(`grep -ao '${library}_[0-9.]*[0-9]' "$0" | sed 's/.*_//' | sort -uV`)).at(-1)!;
  const symbols = { libc6: "GLIBC", "libgcc-s1": "GCC" };
  const wants = [...packages].toSorted().map(async (name) => `${name} (>= ${await newest(symbols[name])})`);
  return (await Promise.all(wants)).join(", ");
}

/** Who answers for the package: as Debian's tools are told it, or who made the commit. */
function maintainer(commit: Commit | undefined): string {
  const { DEBFULLNAME, DEBEMAIL } = Deno.env.toObject();
  if (DEBFULLNAME && DEBEMAIL) return `${DEBFULLNAME} <${DEBEMAIL}>`;
  return commit?.author ?? "The authors of containerd-shim <root@localhost>";
}

function control(version: string, commit: Commit | undefined, size: number, depends: string): string {
  return `Package: ${PACKAGE}
Version: ${version}
Architecture: amd64
Maintainer: ${maintainer(commit)}
Installed-Size: ${size}
Depends: ${depends}
Recommends: containerd | containerd.io
Enhances: containerd, containerd.io
Section: admin
Priority: optional
${DESCRIPTION}`;
}

function changelog(version: string, commit: Commit | undefined): string {
  const date = new Date((commit?.time ?? 0) * 1000).toUTCString().replace("GMT", "+0000");
  const what = commit === undefined ? "a source without a history" : `commit ${commit.name}`;
  return `${PACKAGE} (${version}) unstable; urgency=medium

  * Made of ${what}.

 -- ${maintainer(commit)}  ${date}
`;
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["executable", "version", "compression", "out"],
    unknown(argument: string) {
      throw new Error(`Cannot make a package with ${argument}: there is no such flag`);
    },
  });
  console.log(await makePackage(flags as PackageOptions));
}
