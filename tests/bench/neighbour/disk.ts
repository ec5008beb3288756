/** Disks in files, mounted where only the bench and its children see them, that can be frozen. */

import * as fds from "../../../ffi/fd.ts";
import { pipe } from "../../../ffi/pipe.ts";
import { FREEZE, makeDisk } from "../../e2e/disk.ts";
import { mountsBelow } from "../../e2e/proc.ts";
import { until } from "../../e2e/until.ts";
import { type Child, runToEnd, spawn } from "../children.ts";
import { folder } from "../folder.ts";
import { detach } from "../hosts.ts";
import type { Removable } from "../owned.ts";

let disks = 0;

/** What thaws each disk that is frozen. */
const frozen = new Set<Freezer>();

/** A process that freezes a file system, and thaws it when the other end of its input has gone: also when the bench is killed. */
class Freezer {
  readonly #process: Child;
  readonly #input: number;

  constructor(path: string, flag: string) {
    const { read, write } = pipe();
    this.#input = write;
    this.#process = spawn({ args: ["sh", "-c", FREEZE, path, flag], descriptors: [read, null, 2] });
    fds.close(read);
    frozen.add(this);
  }

  async end(): Promise<void> {
    if (!frozen.delete(this)) return;
    fds.close(this.#input);
    await this.#process.status;
  }
}

/** A disk. */
export class Disk implements Removable {
  /** Where it is mounted. */
  readonly path: string;
  readonly #flag: string;
  #freezer: Freezer | undefined;

  private constructor(path: string) {
    this.path = path;
    this.#flag = `${path}.frozen`;
  }

  /** Makes one that is empty. */
  static async make(mebibytes: number): Promise<Disk> {
    const disk = new Disk(`${folder}/disk-${++disks}`);
    await runToEnd(["sh", "-c", makeDisk(`${disk.path}.image`, disk.path, mebibytes)]);
    return disk;
  }

  /** Has whoever writes to it wait. */
  async freeze(): Promise<void> {
    this.#freezer = new Freezer(this.path, this.#flag);
    await until("it is frozen", () => Deno.statSync(this.#flag).isFile);
  }

  /** Has those go on. */
  async thaw(): Promise<void> {
    await this.#freezer?.end();
  }

  async remove(): Promise<void> {
    await this.thaw();
    if (mountsBelow(this.path).length > 0) detach(this.path);
  }
}

/** Thaws all disks. Until then nothing that has written to one can be ended, not even by SIGKILL. */
export async function thawAll(): Promise<void> {
  await Promise.all([...frozen].map((each) => each.end()));
}

/** Takes away all that is still mounted in the bench's folder, whoever has mounted it. */
export function detachAll(): void {
  for (const path of mountsBelow(folder).reverse()) detach(path);
}
