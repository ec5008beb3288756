/**
 * The C library: symbols, errno and strings. All of its calls, and all layouts of the kernel's, are in this folder, which knows
 * nothing of what they are made for; a descriptor is the caller's, unless a comment says otherwise.
 *
 * `Deno.dlopen` compiles a trampoline for each function (0.2 ms apiece), which a process that lives for one container
 * never earns back, of most. So functions are taken as addresses and called through `Deno.UnsafeFnPointer`: 0.01 ms each to
 * bind, 2 µs instead of 0.3 µs to call. One that is called often gets its trampoline in the end.
 */

const LIBRARY = "libc.so.6";
/** After how many calls a function has a trampoline compiled: what these calls have lost is about what that costs. */
const OFTEN = 100;

/** What a function takes and gives. */
export type Signature = readonly [parameters: readonly Deno.NativeType[], result: Deno.NativeResultType];

/** Functions that are bound: called as if they were ours. */
export type Bound<T extends Record<string, Signature>> = {
  readonly [K in keyof T]: Deno.UnsafeFnPointer<
    { parameters: T[K][0]; result: T[K][1] }
  >["call"];
};

/**
 * Binds functions of the C library, all at the first use of any of them.
 *
 * @throws {TypeError} at first use, when the library has no such symbol
 */
export function libc<const T extends Record<string, Signature>>(signatures: T): () => Bound<T> {
  let bound: Bound<T> | undefined;
  return () => bound ??= bind(signatures);
}

function bind<T extends Record<string, Signature>>(signatures: T): Bound<T> {
  const statics: Record<string, Deno.ForeignStatic<"pointer">> = {};
  for (const name in signatures) statics[name] = { type: "pointer" };
  const addresses = Deno.dlopen(LIBRARY, statics)
    .symbols as unknown as Record<
      string,
      Deno.PointerObject<Deno.ForeignFunction>
    >;
  const functions: Record<string, unknown> = {};
  for (const name in signatures) {
    const [parameters, result] = signatures[name]!;
    const pointer = new Deno.UnsafeFnPointer(addresses[name]!, { parameters, result } as Deno.ForeignFunction);
    functions[name] = counted(name, signatures[name]!, pointer.call.bind(pointer) as Call, (call) => {
      functions[name] = call;
    });
  }
  return functions as Bound<T>;
}

type Call = (...args: unknown[]) => unknown;

/** A function that has itself replaced when it is called often. */
function counted(name: string, [parameters, result]: Signature, call: Call, replace: (call: Call) => void): Call {
  let calls = 0;
  return (...args) => {
    // Before the call, whose errno is to be left alone.
    if (++calls === OFTEN) {
      const { symbols } = Deno.dlopen(LIBRARY, { [name]: { parameters, result } as Deno.ForeignFunction });
      replace(symbols[name] as Call);
    }
    return call(...args);
  };
}

/** What the C library says of the calling thread's last failure: errno(3), by name. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  EBADF: 9,
  ECHILD: 10,
  EAGAIN: 11,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EMFILE: 24,
  ENOTTY: 25,
  EPIPE: 32,
  ENOSYS: 38,
  ELOOP: 40,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ECONNREFUSED: 111,
} as const;

const c = libc({ __errno_location: [[], "pointer"] });
const strings = libc({ strerror: [["i32"], "pointer"] });
let errnoCell: Int32Array | undefined;

/** errno of the last failed call on the main thread (the only one that JavaScript runs on). */
export function errno(): number {
  // A view of errno's own memory: reading it makes no call that could change it.
  errnoCell ??= new Int32Array(Deno.UnsafePointerView.getArrayBuffer(c().__errno_location()!, 4));
  return errnoCell[0]!;
}

/** A failed call of the C library. */
export class SystemError extends Error {
  /** Tells it from other errors by name. */
  override readonly name = "SystemError";
  /** The function that failed. */
  readonly call: string;
  /** errno(3). */
  readonly errno: number;

  /**
   * What a call has left in errno, as a sentence.
   *
   * @param subject what the call was made on, for the sentence: a path, a pid
   */
  constructor(call: string, errno: number, subject?: string | number) {
    super(`${call}${subject === undefined ? "" : ` ${subject}`}: ${describeErrno(errno)}`);
    this.call = call;
    this.errno = errno;
  }
}

function describeErrno(errno: number): string {
  const text = strings().strerror(errno);
  return text === null ? `error ${errno}` : Deno.UnsafePointerView.getCString(text).toLowerCase();
}

/**
 * The result of a call that says -1 when it fails.
 *
 * @throws {SystemError} when it did
 */
export function check(result: number, call: string, subject?: string | number): number {
  if (result === -1) throw new SystemError(call, errno(), subject);
  return result;
}

const encoder = new TextEncoder();

/**
 * A NUL-terminated copy of a string.
 *
 * @throws {TypeError} when the string itself has a NUL, which C would end it at
 */
export function cstring(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) {
    throw new TypeError(`${JSON.stringify(text)} has a NUL byte in it`);
  }
  return encoder.encode(text + "\0");
}
