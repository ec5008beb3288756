/** Containers that print numbered lines, and finding out whether each line has come once, and in order. */

const NEWLINE = 0x0a;
const DIGIT_0 = 0x30;

/** How much of a file is read at a time, in bytes. */
const READ_SIZE = 1 << 20;

/** How many lines one burst of {@linkcode bursting} has: more than a pipe holds. */
const BURST = 12_000;

/** What both of the following do: print lines from 1 on until there is the file `end`, then how many these were. */
function numbering(step: string, end: string, status: number): string {
  return `i=0; while ! [ -e '${end}' ]; do ${step}; done; echo end $i; echo end $i >&2; exit ${status}`;
}

/** A shell's script that prints some lines ten times a second, on both streams, until there is the file `end`. */
export function numbered(end: string, status: number): string {
  const lines = "for each in 1 2 3 4 5; do echo $((i += 1)); echo $i >&2; done";
  return numbering(`${lines}; sleep 0.1`, end, status);
}

/** A shell's script that prints lines as fast as it can, in bursts, on both streams at once, until there is the file `end`. */
export function bursting(end: string, status: number): string {
  const burst = `seq $((i + 1)) $((i + ${BURST}))`;
  return numbering(`${burst} & ${burst} >&2; wait; i=$((i + ${BURST})); sleep 0.3`, end, status);
}

/** Reads what one of these scripts has printed on one of its streams. */
export class NumberedLines {
  /** The number that the next line must have, and how many digits that has. */
  #next = 1;
  #width = 1;
  /** Of the line that has begun: its number so far, how many digits that has had, and itself where it is no number. */
  #value = 0;
  #digits = 0;
  #text: string | undefined;
  #hasEnded = false;

  /**
   * Takes what comes next.
   *
   * @throws {Error} when a line is not the next one
   */
  take(bytes: Uint8Array): void {
    for (const byte of bytes) {
      const digit = byte - DIGIT_0;
      if (byte === NEWLINE) this.#takeLine();
      else if (this.#text !== undefined) this.#text += String.fromCharCode(byte);
      else if (digit >= 0 && digit <= 9) {
        this.#value = this.#value * 10 + digit;
        this.#digits++;
      } else this.#text = `${this.#soFar()}${String.fromCharCode(byte)}`;
    }
  }

  /** The line that has begun. */
  #soFar(): string {
    return this.#text ?? (this.#digits > 0 ? `${this.#value}`.padStart(this.#digits, "0") : "");
  }

  #takeLine(): void {
    const last = this.#next - 1;
    if (this.#text === undefined && !this.#hasEnded && this.#value === this.#next && this.#digits === this.#width) {
      this.#next++;
      this.#width = `${this.#next}`.length;
    } else if (this.#text === `end ${last}` && !this.#hasEnded) {
      this.#hasEnded = true;
    } else {
      const after = this.#hasEnded ? `the end, after ${last} lines,` : `line ${last}`;
      throw new Error(`after ${after} comes ${JSON.stringify(this.#soFar())}`);
    }
    this.#value = this.#digits = 0;
    this.#text = undefined;
  }

  /**
   * Says that nothing else comes.
   *
   * @returns how many lines there have been
   * @throws {Error} when some are missing
   */
  end(): number {
    const rest = this.#soFar();
    if (rest !== "") {
      throw new Error(`the last line, after ${this.#next - 1} others, is cut off: ${JSON.stringify(rest)}`);
    }
    if (!this.#hasEnded) throw new Error(`the lines end with ${this.#next - 1}, and it is not the last`);
    return this.#next - 1;
  }
}

/**
 * Reads a file with what one of these scripts has printed on one of its streams.
 *
 * @returns how many lines it has
 * @throws {Error} when these are not all, each once and in order
 */
export async function countNumbered(path: string): Promise<number> {
  const lines = new NumberedLines();
  using file = await Deno.open(path);
  const buffer = new Uint8Array(READ_SIZE);
  try {
    for (let count = await file.read(buffer); count !== null; count = await file.read(buffer)) {
      lines.take(buffer.subarray(0, count));
    }
    return lines.end();
  } catch (cause) {
    throw new Error(`${path}: ${(cause as Error).message}`, { cause });
  }
}
