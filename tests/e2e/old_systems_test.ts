/** Systems that are older than those that the executable is made on. */

import { assert, assertMatch } from "@std/assert";
import { must } from "./command.ts";
import { type Form, inModes, OUR_EXECUTABLE, REPOSITORY, WAY } from "./env.ts";
import { assertHolder, emptyFolder, withMachine } from "./host.ts";
import { withShim } from "./shim.ts";
import { assertServes, REPEATING } from "./whole.ts";

/** Where Debian 11's C library is, and how long it may take to come there, in ms. */
const BULLSEYE = `${REPOSITORY}/build/bullseye`;
const INSTALL_MS = 120_000;
/** What our executable names as its interpreter, and where {@linkcode BULLSEYE} is mounted. */
const INTERPRETER = "/lib64/ld-linux-x86-64.so.2";
const OLD_INTERPRETER = "/mnt/ld-linux-x86-64.so.2";

/** Makes a copy of our executable that has Debian 11's C library, where that is mounted. */
async function withOldLibrary(folder: string): Promise<Form> {
  const path = `${folder}/containerd-shim`;
  await Deno.copyFile(OUR_EXECUTABLE, path);
  using file = await Deno.open(path, { read: true, write: true });
  const bytes = new Uint8Array(4096);
  await file.read(bytes);
  const at = new TextDecoder("latin1").decode(bytes).indexOf(`${INTERPRETER}\0`);
  assert(at > 0, `there is no ${INTERPRETER} at the beginning of ${OUR_EXECUTABLE}`);
  await file.seek(at, Deno.SeekMode.Start);
  await file.write(new TextEncoder().encode(OLD_INTERPRETER.padEnd(INTERPRETER.length, "\0")));
  return { name: "glibc 2.31", path };
}

inModes(
  ["alone", "hosted"],
  "each process is either by itself or has a host",
  "with glibc 2.31, which Debian 11 and Ubuntu 20.04 have, a shim does all that it does",
  async () => {
    await must(["sh", `${REPOSITORY}/tests/bullseye.sh`, BULLSEYE], { patienceMs: INSTALL_MS });
    const folder = await Deno.makeTempDir();
    try {
      const shim = await withOldLibrary(folder);
      await withMachine(async (machine) => {
        assertMatch(await must([...machine.prefix, shim.path, "-version"]), /^glibc +2\.31$/m);
        await withShim({ ...REPEATING, prefix: machine.prefix, shim }, async (each) => {
          assertHolder(each.pid, WAY === "hosted");
          const served = WAY === "hosted" ? machine.host().pid : each.pid;
          assertMatch(await Deno.readTextFile(`/proc/${served}/maps`), /libc-2\.31\.so$/m);
          await assertServes(each);
        });
      }, `${emptyFolder()} && mount --bind '${BULLSEYE}/lib' /mnt`);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);
