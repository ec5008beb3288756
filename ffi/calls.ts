/**
 * Lists of system calls that a child of this executable makes, for those that may wait: lib/standalone/entry.c has the layout.
 * Where this executable has no such entry, they can be made here.
 */

import * as fds from "./fd.ts";
import { cstring, errno, libc, SystemError } from "./libc.ts";

type Values = [bigint, bigint, bigint, bigint, bigint, bigint];

const c = libc({
  syscall: [["i64", "i64", "i64", "i64", "i64", "i64", "i64"], "i64"],
  fchdir: [["i32"], "i32"],
});

/** By this name the entry takes a list: make_calls of lib/standalone/entry.c. */
export const CALLS_PROGRAM = "containerd-shim-calls";

/** What a list may call. */
export type CallName = "ioctl" | "chdir" | "mount" | "umount2" | "openat";

/** System calls by their numbers: asm/unistd.h. */
const NUMBERS: Readonly<Record<CallName, number>> = Deno.build.arch === "x86_64"
  ? { ioctl: 16, chdir: 80, mount: 165, umount2: 166, openat: 257 }
  : { ioctl: 29, chdir: 49, mount: 40, umount2: 39, openat: 56 };
/** No system call: writes its second argument at the first, as decimal text. */
const DECIMAL = -1;

/** struct step: its size, and where its fields are. */
const STEP_SIZE = 64;
const STEP = { number: 0, flags: 4, arguments: 8, result: 56 } as const;
const ARGUMENTS = 6;
/** Kinds of arguments, two bits of the flags each; and a flag behind them. */
const KIND = { number: 0, address: 1, loaded: 2 } as const;
const KIND_BITS = 2;
const KIND_MASK = 3;
const GOES_ON = 1 << (KIND_BITS * ARGUMENTS);
/** What is the result of a call that has not been made: none that a system call gives. */
const NOT_MADE = -(2n ** 63n);
/** The least result of a system call that is an error. */
const MAX_ERRNO = 4095n;
/** How many bytes a descriptor's decimal number takes at most, with its NUL. */
const DECIMAL_SIZE = 21;
const ALIGNMENT = 8;
/** openat(2): relative to the working directory. */
const AT_FDCWD = -100;

/** Where something is in a list's data, in bytes. */
export interface Place {
  /** From the beginning of the data. */
  readonly at: number;
}

/** An argument: a number, a text or bytes that are given as a pointer, or the result that will be at a place. */
export type Argument = number | bigint | string | { readonly pointer: Place } | { readonly resultAt: Place };

/** Options of {@link CallList.add}. */
export interface CallOptions {
  /** What it is called in an error; a place is that of a text, as it is by then. */
  readonly what: string | readonly (string | Place)[];
  /** Where the result is written, as an int64_t; somewhere, unless given. */
  readonly resultAt?: Place;
  /** Whether the next is made though this one fails. */
  readonly goesOn?: boolean;
}

interface Step extends CallOptions {
  readonly number: number;
  readonly kinds: number;
  readonly values: readonly bigint[];
  readonly resultAt: Place;
}

/** System calls, one after the other, up to the first that fails. */
export class CallList {
  readonly #steps: Step[] = [];
  #data: Uint8Array<ArrayBuffer> = new Uint8Array(0);

  /** Adds a system call; gives where its result will be. */
  add(call: CallName, args: readonly Argument[], options: CallOptions): Place {
    return this.#add(NUMBERS[call], args, options);
  }

  /** Adds openat(2) of a path, close-on-exec. */
  open(path: string | { readonly pointer: Place }, flags: number, options: CallOptions): Place {
    return this.add("openat", [AT_FDCWD, path, flags | fds.O.CLOEXEC], options);
  }

  /** Adds a text that ends with the decimal result at a place, which is known when the list has got so far. */
  numbered(text: string, resultAt: Place): Place {
    const bytes = cstring(text);
    const place = this.put(new Uint8Array(bytes.length - 1 + DECIMAL_SIZE));
    this.#data.set(bytes, place.at);
    const end = { at: place.at + bytes.length - 1 };
    this.#add(DECIMAL, [{ pointer: end }, { resultAt }], { what: "number" });
    return place;
  }

  /** Adds data, aligned as an int64_t. */
  put(bytes: Uint8Array): Place {
    const at = this.#data.length;
    const data = new Uint8Array(at + Math.ceil(bytes.length / ALIGNMENT) * ALIGNMENT);
    data.set(this.#data);
    data.set(bytes, at);
    this.#data = data;
    return { at };
  }

  #add(number: number, args: readonly Argument[], { resultAt, ...options }: CallOptions): Place {
    let kinds = 0;
    const values = args.map((each, i) => {
      const { kind, value } = this.#valueOf(each);
      kinds |= kind << (KIND_BITS * i);
      return value;
    });
    const at = resultAt ?? this.put(new Uint8Array(ALIGNMENT));
    new DataView(this.#data.buffer).setBigInt64(at.at, NOT_MADE, true);
    this.#steps.push({ number, kinds, values, resultAt: at, ...options });
    return at;
  }

  #valueOf(argument: Argument): { readonly kind: number; readonly value: bigint } {
    if (typeof argument === "string") return { kind: KIND.address, value: BigInt(this.put(cstring(argument)).at) };
    if (typeof argument !== "object") return { kind: KIND.number, value: BigInt(argument) };
    if ("pointer" in argument) return { kind: KIND.address, value: BigInt(argument.pointer.at) };
    return { kind: KIND.loaded, value: BigInt(argument.resultAt.at) };
  }

  /** Where the data begin. */
  get #start(): number {
    return (this.#steps.length + 1) * STEP_SIZE;
  }

  /** The list as the entry reads it. */
  encode(): Uint8Array<ArrayBuffer> {
    const start = this.#start;
    const bytes = new Uint8Array(start + this.#data.length);
    const view = new DataView(bytes.buffer);
    bytes.set(this.#data, start);
    this.#steps.forEach(({ number, kinds, values, resultAt, goesOn }, i) => {
      const at = i * STEP_SIZE;
      view.setInt32(at + STEP.number, number, true);
      view.setUint32(at + STEP.flags, kinds | (goesOn ? GOES_ON : 0), true);
      values.forEach((value, n) => {
        const offset = kindOf(kinds, n) === KIND.number ? 0n : BigInt(start);
        view.setBigInt64(at + STEP.arguments + n * ALIGNMENT, value + offset, true);
      });
      view.setBigInt64(at + STEP.result, BigInt(start + resultAt.at), true);
    });
    return bytes;
  }

  /**
   * The error of the call that it has stopped at; undefined when it has not, or is not this list.
   *
   * @param bytes the list as it is when it has been run
   */
  failure(bytes: Uint8Array): SystemError | undefined {
    const start = this.#start;
    if (bytes.length < start + this.#data.length) return undefined;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (const { resultAt, goesOn, what } of this.#steps) {
      const result = view.getBigInt64(start + resultAt.at, true);
      if (!isError(result) || goesOn) continue;
      const said = typeof what === "string" ? [what] : what;
      const text = said.map((part) => typeof part === "string" ? part : textAt(bytes, start + part.at)).join("");
      return new SystemError(text, Number(-result));
    }
    return undefined;
  }

  /**
   * Makes the calls here, where no child can: this thread waits, and its process is in another folder meanwhile.
   *
   * @throws {SystemError} of the call that it has stopped at
   */
  make(): void {
    const { syscall, fchdir } = c();
    const bytes = this.encode();
    const view = new DataView(bytes.buffer);
    const base = BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes)));
    const opened = [fds.open(".", fds.O.PATH | fds.O.DIRECTORY)];
    try {
      for (const [i, { number, kinds, goesOn }] of this.#steps.entries()) {
        const values = Array.from({ length: ARGUMENTS }, (_, n) => {
          const value = view.getBigInt64(i * STEP_SIZE + STEP.arguments + n * ALIGNMENT, true);
          const kind = kindOf(kinds, n);
          if (kind === KIND.address) return base + value;
          return kind === KIND.loaded ? view.getBigInt64(Number(value), true) : value;
        }) as Values;
        const resultAt = Number(view.getBigInt64(i * STEP_SIZE + STEP.result, true));
        if (number === DECIMAL) {
          bytes.set(cstring(`${values[1]}`), Number(values[0] - base));
          continue;
        }
        const result = BigInt(syscall(BigInt(number), ...values));
        view.setBigInt64(resultAt, result === -1n ? -BigInt(errno()) : result, true);
        if (result !== -1n && number === NUMBERS.openat) opened.push(Number(result));
        if (result === -1n && !goesOn) break;
      }
    } finally {
      fchdir(opened[0]!);
      opened.forEach(fds.close);
    }
    const failure = this.failure(bytes);
    if (failure !== undefined) throw failure;
  }
}

function kindOf(kinds: number, argument: number): number {
  return kinds >> (KIND_BITS * argument) & KIND_MASK;
}

function isError(result: bigint): boolean {
  return result < 0n && result >= -MAX_ERRNO;
}

function textAt(bytes: Uint8Array, at: number): string {
  return new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)));
}
