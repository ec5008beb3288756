/**
 * What one container makes the kernel wait for is not waited for by the others of its host: a file system that does not answer, or
 * is slow to be unmounted. And what a host had begun when it was killed is not done twice. CALLS_MOMENTS says when it is killed, in
 * ms after the call, with a comma between them.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import type { containerd } from "../../lib/api/mod.js";
import { must } from "./command.ts";
import { endContainer, type Machine, withHosted, withHostedShims } from "./host.ts";
import { loopsBelow } from "./leftovers.ts";
import { modes } from "./modes.ts";
import { isAlive, parseMountInfo } from "./proc.ts";
import { type Shim, Status } from "./shim.ts";
import { later, replaceHost } from "./takeover.ts";
import { pause, until, within } from "./until.ts";

modes(["hosted"], "alone, there is nobody else to be held up, and no host that dies");

type Mounts = containerd.types.IMount[];

/** What is mounted where the container's root is, as another process sees it. */
function mountedAtRoot(shim: Shim, pid: number = shim.pid): string[] {
  const mounts = parseMountInfo(Deno.readTextFileSync(`/proc/${pid}/mountinfo`));
  return mounts.map(({ path }) => path).filter((path) => path === `${shim.bundle}/rootfs`);
}

/** Runs a command on a machine. */
function on(machine: Machine, ...args: string[]): Promise<string> {
  return must([...machine.prefix, ...args] as [string, ...string[]]);
}

/** Makes an ext4 filesystem of the test's folder of busybox, or of nothing. */
async function makeExt4(path: string, size: string, folder?: string): Promise<void> {
  await must(["mke2fs", "-q", "-t", "ext4", ...folder === undefined ? [] : ["-d", folder], path, size]);
}

/** Fails unless another container's shim answers, and does what it is told to. */
async function assertServes(shim: Shim): Promise<void> {
  assertEquals((await shim.state()).status, Status.RUNNING);
  await shim.exec("another", ["true"]);
  await shim.startProcess("another");
  assertEquals((await shim.wait("another")).status, 0);
  await shim.deleteProcess("another");
}

Deno.test("while the root filesystem of a container is slow to be unmounted, others of its host are served", () =>
  withHostedShims([{ mountedRoot: true }, {}], async ([shim, other], machine) => {
    await other!.run();
    // A filesystem in a file on another, which is frozen: what is written to the one waits for the other.
    const disk = `${shim!.folder}/disk`;
    await Deno.mkdir(disk);
    await makeExt4(`${shim!.folder}/outer`, "16M");
    await using cleanup = new AsyncDisposableStack();
    await on(machine, "mount", "-o", "loop", `${shim!.folder}/outer`, disk);
    cleanup.defer(() => on(machine, "umount", disk).then(() => {}));
    const image = `${disk}/image`;
    await makeExt4(`${shim!.folder}/inner`, "8M", shim!.rootfs);
    await on(machine, "mv", `${shim!.folder}/inner`, image);
    await shim!.create({}, { rootfs: [{ type: "ext4", source: image, options: ["loop"] }] });
    assertEquals(mountedAtRoot(shim!).length, 1);

    await on(machine, "fsfreeze", "--freeze", disk);
    let deleting: Promise<unknown>;
    let isDeleted = false;
    try {
      deleting = later(shim!.delete().then(() => isDeleted = true));
      await until("it is being unmounted", () => mountedAtRoot(shim!).length === 0);
      await assertServes(other!);
      assert(!isDeleted, "the root filesystem was not slow to be unmounted");
      // Nor is it waited for by the next host.
      await replaceHost(machine);
      await assertServes(other!);
      assert(!isDeleted, "Delete is answered before the root filesystem has been unmounted");
    } finally {
      await on(machine, "fsfreeze", "--unfreeze", disk);
    }
    await deleting;
    await until("its device is free", () => loopsBelow(disk).length === 0);
    await endContainer(other!);
  }));

/** A file system whose server answers nothing, fuse(4); until its input ends. */
const SILENT_SERVER = `
  use Fcntl;
  sysopen my $fuse, "/dev/fuse", O_RDWR or die "/dev/fuse: $!";
  my $options = "fd=" . fileno($fuse) . ",rootmode=40000,user_id=0,group_id=0";
  my @mount = ("silent", $ARGV[0], "fuse", 0, $options);
  syscall(165, @mount) == 0 or die "mount: $!";
  syswrite STDOUT, "mounted\\n";
  <STDIN>;
`;

/** Has a file system on a machine, while the test runs, that does not answer. */
async function withSilentFolder(machine: Machine, folder: string, test: () => Promise<void>): Promise<void> {
  await Deno.mkdir(folder);
  const [program, ...args] = [...machine.prefix, "perl", "-e", SILENT_SERVER, folder];
  const server = new Deno.Command(program!, { args, stdin: "piped", stdout: "piped" }).spawn();
  const reader = server.stdout.getReader();
  try {
    assert(!(await within("the server", reader.read())).done, "it is not mounted");
    await test();
  } finally {
    await reader.cancel();
    await server.stdin.close();
    await server.status;
    await on(machine, "umount", "-l", folder);
  }
}

for (
  const [what, create] of [
    ["mount is of", (shim: Shim, path: string) => shim.create({}, { rootfs: [...bind(shim), ...bind(shim, path)] })],
    ["input is on", (shim: Shim, path: string) => shim.create({ stdin: path }, { rootfs: bind(shim) })],
    ["output is on", (shim: Shim, path: string) => shim.create({ stdout: path }, { rootfs: bind(shim) })],
  ] as const
) {
  Deno.test(`while Create waits, whose ${what} a server that does not answer, others of its host are served`, () =>
    withHostedShims([{ mountedRoot: true, endsItself: true }, {}], async ([shim, other], machine) => {
      await other!.run();
      const folder = `${shim!.folder}/silent`;
      await withSilentFolder(machine, folder, async () => {
        let isCreated = false;
        const creating = later(create(shim!, `${folder}/file`).finally(() => isCreated = true));
        // Whatever it does meanwhile, this comes after it.
        for (let i = 0; i < 3; i++) await assertServes(other!);
        assert(!isCreated, "the server has answered");
        if (what === "mount is of") {
          // The next host waits for what has been begun, and mounts nothing again.
          await replaceHost(machine);
          await assertServes(other!);
          const waiting = shim!.children().filter(({ comm }) => comm === "shim-calls");
          assertEquals([mountedAtRoot(shim!).length, waiting.length, isCreated], [1, 1, false]);
        }
        // And it can be given up.
        shim!.signal("SIGKILL");
        await assertRejects(() => creating);
        await until("its process has ended", () => !isAlive(shim!.pid));
        await until("nothing is mounted", () => mountedAtRoot(shim!, machine.host().pid).length === 0);
        await assertServes(other!);
      });
      await endContainer(other!);
    }));
}

/** A folder as the root filesystem: the test's of busybox, unless given. */
function bind(shim: Shim, source = shim.rootfs): Mounts {
  return [{ type: "bind", source, options: ["rbind"] }];
}

/** In how many ms after the call the host is killed: from when it is sent to when the runtime is at it. */
const MOMENTS_MS = (Deno.env.get("CALLS_MOMENTS") ?? "0,1,2,3,5,8").split(",").map(Number);

for (const kind of ["an overlay", "a loop device"] as const) {
  Deno.test(`a host that is killed when it creates a container on ${kind} has it mounted once, and no device left`, () =>
    withHosted({ mountedRoot: true }, async (shim, machine) => {
      const image = `${shim.folder}/image`;
      const [upper, work] = [`${shim.folder}/upper`, `${shim.folder}/overlay`];
      for (const each of [upper, work]) await Deno.mkdir(each);
      await makeExt4(image, "8M", shim.rootfs);
      const rootfs = kind === "an overlay"
        ? [{
          type: "overlay",
          source: "overlay",
          options: [`lowerdir=${shim.rootfs}`, `upperdir=${upper}`, `workdir=${work}`],
        }]
        : [{ type: "ext4", source: image, options: ["loop"] }];
      for (const ms of MOMENTS_MS) {
        const creating = later(shim.create({}, { rootfs }));
        await pause(ms);
        await replaceHost(machine);
        await creating;
        assertEquals(mountedAtRoot(shim).length, 1, `mounts of a host that was killed after ${ms} ms`);
        const devices = kind === "an overlay" ? 0 : 1;
        await until(`there is no other device, ${ms} ms`, () => loopsBelow(shim.folder).length === devices);
        await shim.delete();
        assertEquals(mountedAtRoot(shim).length, 0);
        await until("its device is free", () => loopsBelow(shim.folder).length === 0);
      }
    }));
}
