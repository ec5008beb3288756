/**
 * The folder that all files of a run are in. To be imported before anything of tests/e2e, which then uses it too, instead
 * of one of its own.
 */

/** Whoever runs the bench removes it. The name is short: a socket's path has 107 bytes at most. */
export const folder = Deno.makeTempDirSync({ prefix: "bench-" });

Deno.env.set("E2E_DIR", folder);
