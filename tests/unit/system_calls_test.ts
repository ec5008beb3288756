/** Lists of system calls, made here: a child makes them in the same way, as tests/e2e/shim_rootfs_test.ts sees. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { CallList } from "../../ffi/calls.ts";
import { O } from "../../ffi/fd.ts";
import { Errno, SystemError } from "../../ffi/libc.ts";
import { canConfigure } from "../../ffi/loop.ts";

/** What this process has open. */
function openFiles(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

/** A folder of a test's own. */
function withFolder(test: (folder: string) => void): void {
  const folder = Deno.makeTempDirSync();
  try {
    test(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Adds what makes a file, as a call that can be seen to have been made. */
function addFile(list: CallList, path: string): void {
  list.open(path, O.CREAT | O.WRONLY, { what: `open ${path}` });
}

Deno.test("a list of calls stops at the first that fails, and its error names that", () =>
  withFolder((folder) => {
    const list = new CallList();
    addFile(list, `${folder}/first`);
    list.open(`${folder}/missing`, O.RDONLY, { what: ["open ", list.put(new TextEncoder().encode("a text\0"))] });
    addFile(list, `${folder}/last`);
    const error = assertThrows(() => list.make(), SystemError, "open a text: no such file or directory");
    assertEquals(error.errno, Errno.ENOENT);
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["first"]);
  }));

Deno.test("it goes on where that is wanted, and leaves neither descriptors nor another working directory", () =>
  withFolder((folder) => {
    const [before, cwd] = [openFiles(), Deno.cwd()];
    const list = new CallList();
    list.open(`${folder}/missing`, O.RDONLY, { what: "open", goesOn: true });
    list.add("chdir", [folder], { what: "chdir" });
    addFile(list, "relative");
    list.make();
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["relative"]);
    assertEquals([openFiles(), Deno.cwd()], [before, cwd]);
  }));

Deno.test("a result is an argument of what comes after it, as a number or as text", () =>
  withFolder((folder) => {
    const list = new CallList();
    const fd = list.open(folder, O.PATH | O.DIRECTORY, { what: "open" });
    const path = list.numbered("/proc/self/fd/", fd);
    list.add("chdir", [{ pointer: path }], { what: ["chdir to ", path] });
    addFile(list, "there");
    // FIOCLEX, ioctl(2), which an O_PATH descriptor refuses.
    list.add("ioctl", [{ resultAt: fd }, 0x5451], { what: ["ioctl of ", path] });
    const error = assertThrows(() => list.make(), SystemError);
    assert(/^ioctl of \/proc\/self\/fd\/\d+: bad file descriptor$/.test(error.message), error.message);
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["there"]);
  }));

Deno.test("what has not been made, or is another list, has no error", () => {
  const list = new CallList();
  addFile(list, "/missing/file");
  assertEquals(list.failure(list.encode()), undefined);
  assertEquals(list.failure(new Uint8Array(0)), undefined);
});

Deno.test("LOOP_CONFIGURE is for Linux 5.8 and later", () => {
  const releases = ["4.19.0-27-amd64", "5.7.19", "5.8.0", "5.10.0-35-amd64", "6.1.0", "10.0"];
  assertEquals(releases.map(canConfigure), [false, false, true, true, true, true]);
});
