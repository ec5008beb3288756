/**
 * Takes Node's names off the global object, before anything else is evaluated.
 *
 * protobufjs looks at `Buffer` and `process` when it is loaded, and Deno would load its Node compatibility at the first
 * look: 27 ms and 4 MB, for what protobufjs does as well without.
 */
const names = globalThis as unknown as Record<string, unknown>;
for (const name of ["Buffer", "process", "global", "setImmediate", "clearImmediate"]) delete names[name];
