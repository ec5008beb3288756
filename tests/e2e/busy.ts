/** A machine whose CPUs have something else to do. */

/** Runs `test` while as many processes compute without end as there are CPUs. */
export async function whileBusy(test: () => Promise<void>): Promise<void> {
  const spinning = Array.from(
    { length: navigator.hardwareConcurrency },
    () => new Deno.Command("sh", { args: ["-c", "while :; do :; done"], stdin: "null" }).spawn(),
  );
  try {
    await test();
  } finally {
    for (const each of spinning) each.kill("SIGKILL");
    for (const each of spinning) await each.status;
  }
}
