/**
 * protobufjs as the generated code uses it: int64 fields are numbers. Besides the messages, this folder has nothing but what makes
 * them fit for use.
 *
 * Every int64 on this wire is a time (seconds, or nanoseconds of a timeout), where the 53 bits of a number are enough;
 * the `long` package, which protobufjs would otherwise load, compiles WebAssembly at start and is left out of the bundle.
 */
import "./globals.ts";
import protobuf from "protobufjs/minimal";

(protobuf.util as { Long: unknown }).Long = null;
protobuf.configure();

export default protobuf;
