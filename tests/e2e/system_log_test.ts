/** Errors and warnings reach the system's log, whoever reads the shim's own, and `inspect` has the last of each. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { inModes, SHIM } from "./env.ts";
import { withContainerd } from "./harness.ts";
import { killHost, onlyHosted } from "./host.ts";
import { inspect, inspectAll, inspectOne } from "./inspect.ts";
import { isHolder } from "./proc.ts";
import { type Shim, withShim } from "./shim.ts";
import { connectAs, NOBODY } from "./stranger.ts";
import { parseEntry } from "./journal_entry.ts";
import { type Datagrams, withSystemLogs } from "./system_log.ts";
import { until } from "./until.ts";

const ANOTHER_WAY = "a shim is in a host or it is not";

/** A warning that each shim can be made to write, and its fields but that of the stranger's process. */
const REFUSED = "connection refused: not this shim's user";

async function makeWarn(shim: Shim): Promise<void> {
  await Deno.chmod(shim.socketPath, 0o666);
  assertEquals(await connectAs(shim.socketPath, NOBODY, NOBODY), "refused");
}

/** An error that each shim can be made to write: it does not find the bundle's configuration, which the runtime waits for. */
const UNKNOWN = "cannot tell the container's pid namespace";
const WAITING = (config: string) => `#!/bin/sh\nuntil [ -e ${config} ]; do sleep 0.01; done\nexec runc "$@"\n`;

/** Starts the container, and has its shim write {@linkcode UNKNOWN}; gives what it has written to its own log. */
async function runWithError(shim: Shim): Promise<string> {
  const config = `${shim.bundle}/config.json`;
  const runtime = await shim.makeProgram("waiting-runtime", WAITING(config));
  await Deno.rename(config, `${config}.away`);
  const running = shim.run({}, { runtime });
  let log = "";
  await until("the configuration has been missed", () => (log += shim.unreadLog()).includes(UNKNOWN));
  await Deno.rename(`${config}.away`, config);
  await running;
  return log;
}

/** The line that has come to a log with this message. */
function lineOf(log: Datagrams, message: string): Promise<string> {
  return until(`it has "${message}"`, () => {
    const lines = log.received().map((each) => new TextDecoder().decode(each));
    return lines.find((each) => each.includes(message));
  });
}

/** The entry that has come to a journal with this message. */
function entryOf(log: Datagrams, message: string): Promise<Record<string, string>> {
  return until(
    `it has "${message}"`,
    () => log.received().map(parseEntry).find(({ MESSAGE }) => MESSAGE!.startsWith(message)),
  );
}

inModes(
  ["hosted", "alone"],
  ANOTHER_WAY,
  "errors and warnings go to the journal, with the container's fields and their own, and inspect tells of the last of each",
  () =>
    withSystemLogs(
      ["journal", "syslog"],
      (machine, { journal, syslog }) =>
        withShim({ prefix: machine.prefix, isNamed: true }, async (shim) => {
          const { reports: [before] } = await inspectAll(shim.namespace);
          assertEquals([before!.lastError, before!.lastWarning], [null, null]);
          await makeWarn(shim);
          const { PEER, MESSAGE: told, ...warning } = await entryOf(journal!, REFUSED);
          assertStringIncludes(told!, ` peer=${PEER} `);
          const container = {
            CONTAINER_ID: shim.id,
            CONTAINERD_NAMESPACE: shim.namespace,
            BUNDLE: shim.bundle,
            SHIM_PID: `${shim.pid}`,
          };
          const source = { SYSLOG_IDENTIFIER: "containerd-shim", SYSLOG_FACILITY: "3" };
          assertEquals(warning, { ...container, ...source, PRIORITY: "4", UID: `${NOBODY}`, GID: `${NOBODY}` });

          await runWithError(shim);
          const { MESSAGE, ERROR, ...error } = await entryOf(journal!, UNKNOWN);
          assertMatch(ERROR!, /config\.json/);
          assertStringIncludes(MESSAGE!, `namespace=${shim.namespace}`);
          // A field of the line's that is called as one of the container's has a name of its own.
          const path = `${shim.bundle}/config.json`;
          assertEquals(error, { ...container, ...source, PRIORITY: "3", PATH: path });

          assertEquals([journal!.received().length, syslog!.received().length], [2, 0]);

          const { lastError, lastWarning } = await inspectOne(shim.namespace, shim.id);
          assertEquals([lastError?.message, lastWarning?.message], [UNKNOWN, REFUSED]);
          assertEquals(lastWarning!.fields.map(({ name }) => name), ["peer", "uid", "gid"]);
          assert(Math.abs(Date.now() - Date.parse(lastError!.at)) < 60_000, lastError!.at);
          const { stdout } = await inspect(`${shim.namespace}/${shim.id}`);
          assertMatch(stdout, new RegExp(`^Last error: +[-0-9T:.]+Z, \\d+s ago: ${UNKNOWN} path="`, "m"));
          assertMatch(stdout, new RegExp(`^Last warning: +[-0-9T:.]+Z, \\d+s ago: ${REFUSED} peer="`, "m"));
        }),
    ),
  { isOnlyOurs: true },
);

inModes(
  ["hosted", "alone"],
  ANOTHER_WAY,
  "where there is no journal, errors and warnings go to syslog",
  () =>
    withSystemLogs(
      ["syslog"],
      (machine, { syslog }) =>
        withShim({ prefix: machine.prefix, isNamed: true }, async (shim) => {
          const server = () => isHolder(shim.pid) ? machine.host().pid : shim.pid;
          const head = (priority: number) =>
            `^<${priority}>[A-Z][a-z]{2} [ \\d]\\d \\d\\d:\\d\\d:\\d\\d containerd-shim\\[${server()}\\]: `;
          await makeWarn(shim);
          assertMatch(await lineOf(syslog!, REFUSED), new RegExp(`${head(28)}${REFUSED} gid=${NOBODY} id=c `));
          await runWithError(shim);
          assertMatch(await lineOf(syslog!, UNKNOWN), new RegExp(`${head(27)}${UNKNOWN} error="[^\n]*$`));
        }),
    ),
  { isOnlyOurs: true },
);

inModes(
  ["hosted", "alone"],
  ANOTHER_WAY,
  "where there is neither, and where nobody reads what there is, the shim goes on",
  async () => {
    await withSystemLogs([], (machine) =>
      withShim({ prefix: machine.prefix }, async (shim) => {
        await makeWarn(shim);
        assertMatch(await runWithError(shim), new RegExp(`${REFUSED}[^]*${UNKNOWN}`));
      }));
    await withSystemLogs(["journal"], (machine, { journal }) =>
      withShim({ prefix: machine.prefix }, async (shim) => {
        journal!.fill();
        await makeWarn(shim);
        await runWithError(shim);
        assertEquals((await shim.state()).pid > 0, true);
        // What comes when there is room again is written.
        assertEquals(journal!.received().some((each) => each.length > 1), false);
        await makeWarn(shim);
        await until("there is the next", () => journal!.received().some((each) => each.length > 1));
      }));
  },
  { isOnlyOurs: true },
);

inModes(
  ["hosted", "alone"],
  ANOTHER_WAY,
  "an error at a shim's end is in the journal when it has ended",
  () =>
    withSystemLogs(
      ["journal"],
      (machine, { journal }) =>
        withShim({ prefix: machine.prefix, endsItself: true }, async (shim) => {
          const runtime = await shim.makeProgram(
            "unkilling-runtime",
            `#!/bin/sh\ncase " $* " in *" kill "*) echo no >&2; exit 1;; *) exec runc "$@";; esac\n`,
          );
          await shim.run({}, { runtime });
          assertEquals(await shim.end("SIGTERM"), 0);
          const entries = journal!.received().map(parseEntry);
          assert(entries.some(({ MESSAGE }) => MESSAGE!.startsWith("failed to kill the container")), "it is not there");
        }),
    ),
  { isOnlyOurs: true },
);

inModes(
  ["alone"],
  "it is a shim by itself that cannot start",
  "a shim that cannot start says why in the journal",
  () =>
    withSystemLogs(["journal"], async (machine, { journal }) => {
      const { code } = await new Deno.Command(machine.prefix[0], {
        args: [...machine.prefix.slice(1), "/usr/bin/env", SHIM.path, "-namespace", "n", "-workdir", "/nowhere/c"],
        stderr: "null",
      }).output();
      assertEquals(code, 1);
      const { MESSAGE, CONTAINERD_NAMESPACE, ERROR, PRIORITY } = await entryOf(journal!, "the shim cannot start");
      assertStringIncludes(MESSAGE!, "/nowhere/c/shim.stdout.log");
      assertStringIncludes(ERROR!, "/nowhere/c/shim.stdout.log");
      assertEquals([CONTAINERD_NAMESPACE, PRIORITY], ["n", "3"]);
    }),
  { isOnlyOurs: true },
);

onlyHosted(
  "the death of a host is in the journal, once for each container, and what was wrong before is known after it",
  () =>
    withSystemLogs(
      ["journal"],
      (machine, { journal }) =>
        withShim({ prefix: machine.prefix, isNamed: true }, async (shim) => {
          await runWithError(shim);
          const { pid } = await killHost(machine);
          await shim.shimPid();
          const { MESSAGE, ...death } = await entryOf(journal!, "the host of this shim has died");
          assertEquals([death.HOST, death.TIMES, death.CONTAINER_ID], [`${pid}`, "1", shim.id]);
          assertStringIncludes(MESSAGE!, "signal 9");
          const { lastError, lastWarning } = await inspectOne(shim.namespace, shim.id);
          assertEquals([lastError?.message, lastWarning?.message], [
            UNKNOWN,
            "the host of this shim has died, and another goes on",
          ]);
        }),
    ),
);

inModes(
  ["hosted"],
  "where a shim lives is nothing to its log's reader",
  "under a containerd that throws the shims' logs away, a warning is in the journal, and a dump in the bundle",
  () =>
    withSystemLogs(["journal"], (machine, { journal }) =>
      withContainerd(async (containerd) => {
        const id = containerd.newId();
        await containerd.runDetached(id, ["/bin/sleep", "1000"]);
        const shim = containerd.shimOf(id);
        const dump = `${machine.root}${containerd.bundles}/${id}/shim.dump.log`;
        Deno.kill(shim, "SIGUSR1");
        await until("the dump is there", () => {
          try {
            return Deno.readTextFileSync(dump).includes("END dump");
          } catch {
            return false;
          }
        });
        const address = (await inspectOne(containerd.namespace, id)).socket!.replace(/^\/proc\/\d+\/root/, "");
        for (const folder of ["/run/containerd", "/run/containerd/s"]) {
          await Deno.chmod(`${machine.root}${folder}`, 0o711);
        }
        await Deno.chmod(`${machine.root}${address}`, 0o666);
        assertEquals(await connectAs(address, NOBODY, NOBODY, machine), "refused");
        const { CONTAINER_ID, CONTAINERD_NAMESPACE } = await entryOf(journal!, REFUSED);
        assertEquals([CONTAINER_ID, CONTAINERD_NAMESPACE], [id, containerd.namespace]);
        await containerd.end(id);
      }, { prefix: machine.prefix, shimDebug: false })),
  { isOnlyOurs: true },
);
