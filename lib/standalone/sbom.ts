/**
 * Lists what is in the executable, beside it: `deno run -A lib/standalone/sbom.ts`, as CycloneDX 1.6 (ECMA-424) has it.
 *
 * There is no time in it and no random number, so the same executable has the same list.
 */
import config from "../../deno.json" with { type: "json" };
import packages from "./tools/package-lock.json" with { type: "json" };

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);
const EXECUTABLE = `${ROOT}bin/containerd-shim`;
const LIST = `${EXECUTABLE}.cdx.json`;

/** The package with the Deno that is copied. */
const DENO = "node_modules/@deno/linux-x64-glibc";

/** What this needs of what `deno info --json` says. */
interface Graph {
  readonly modules: readonly { readonly specifier: string; readonly npmPackage?: string }[];
  readonly npmPackages: Readonly<Record<string, { name: string; version: string; dependencies: readonly string[] }>>;
}

interface Component {
  readonly type: "application" | "library" | "platform";
  readonly name: string;
  readonly version?: string;
  readonly purl?: string;
  readonly hashes?: readonly { readonly alg: string; readonly content: string }[];
}

async function run(args: readonly string[]): Promise<string> {
  const { success, stdout } = await new Deno.Command(Deno.execPath(), { args: [...args], cwd: ROOT, stderr: "inherit" })
    .output();
  if (!success) throw new Error(`deno ${args.join(" ")} failed`);
  return new TextDecoder().decode(stdout);
}

/** A package of npm's; its hash is that of the archive that has been fetched. */
function fromNpm(type: Component["type"], name: string, version: string, integrity: string): Component {
  const [algorithm, digest] = integrity.split("-") as [string, string];
  const purl = `pkg:npm/${name.replace("@", "%40")}@${version}`;
  const alg = algorithm.toUpperCase().replace("SHA", "SHA-");
  return { type, name, version, purl, hashes: [{ alg, content: Uint8Array.fromBase64(digest).toHex() }] };
}

/** The packages that the program's modules are from, and those that they need. */
async function libraries(): Promise<Component[]> {
  const lock = JSON.parse(await Deno.readTextFile(`${ROOT}deno.lock`)).npm as Record<string, { integrity: string }>;
  const { modules, npmPackages } = JSON.parse(await run(["info", "--json", "main.ts"])) as Graph;
  const wanted = new Set<string>();
  const want = (id: string) => {
    if (wanted.has(id)) return;
    wanted.add(id);
    npmPackages[id]!.dependencies.forEach(want);
  };
  for (const { npmPackage } of modules) if (npmPackage !== undefined) want(npmPackage);
  return [...wanted].toSorted().map((id) => {
    const { name, version } = npmPackages[id]!;
    return fromNpm("library", name, version, lock[id]!.integrity);
  });
}

async function main(): Promise<void> {
  const executable = await Deno.readFile(EXECUTABLE);
  const sha256 = new Uint8Array(await crypto.subtle.digest("SHA-256", executable)).toHex();
  const deno = packages.packages[DENO];
  const { v8, typescript } = Deno.version;
  const list = {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: {
      component: {
        type: "application",
        name: "containerd-shim",
        version: config.version,
        hashes: [{ alg: "SHA-256", content: sha256 }],
      } satisfies Component,
    },
    components: [
      fromNpm("platform", "@deno/linux-x64-glibc", deno.version, deno.integrity),
      // Parts of that.
      { type: "library", name: "v8", version: v8 },
      { type: "library", name: "typescript", version: typescript },
      ...await libraries(),
    ] satisfies Component[],
  };
  await Deno.writeTextFile(LIST, JSON.stringify(list, null, 2) + "\n");
}

await main();
