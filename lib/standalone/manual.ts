/**
 * Writes the manual page, containerd-shim(8), beside the executable: `deno run -A lib/standalone/manual.ts`.
 *
 * Flags and commands are the program's own tables. The language is man(7)'s.
 */
import config from "../../deno.json" with { type: "json" };
import { type Flag, FLAGS } from "../cli.ts";
import { type Command, COMMANDS } from "../commands.ts";
import { commitOf } from "./commit.ts";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);
const PAGE = `${ROOT}bin/containerd-shim.8`;

/** The first line, which `make uninstall` knows the page by. */
const FIRST_LINE = '.\\" Made from the tables of containerd-shim, on Deno, by lib/standalone/manual.ts.';

/** How long a line of the source is at most, as mandoc(1) wants it. */
const WIDTH = 78;

/** A term, and what there is to say of it. */
type Item = readonly [term: string, text: string];

const DESCRIPTION = [
  "`containerd-shim` is what containerd(8) starts for each container of its runtime v1 (`io.containerd.runtime.v1.linux`, containerd 1.2 to 1.7). It is the parent of the container's processes, has their standard streams and their exit statuses, drives the OCI runtime, answers containerd on a Unix socket, and goes on while containerd is away. This one is a drop-in for Go's program of that name, written in TypeScript for Deno.",
  "With flags it is such a shim, and nobody but containerd has a reason to call it so. With the word of a command it is an administrator's tool.",
  "A shim is two processes. The `holder` is the one that containerd starts, and the parent of the container's processes: some kilobytes that do what they are told. The `host` is shared by the holders of one build, user and set of namespaces that have the same cgroups, nice, scheduling policy, CPU affinity, I/O priority and hard limits. It has Deno, and does the work: the API, the streams, the events. It is started by the first holder that finds none, and ends by itself half a minute after its last container. When a host ends in any other way, its holders go on with the next one, and nothing is lost. Where there can be no host, the shim is one process, with a Deno of its own.",
  "Processes that run go on with the executable that they were started from when the file is replaced or removed, and so do the hosts that they start. Containers started from then on use the new one.",
];

const ENVIRONMENT: readonly Item[] = [
  [
    "CONTAINERD_SHIM_GROUP",
    "In containerd's environment: how many containers a host may have, 32 unless set. 1 turns hosts off.",
  ],
  ["NO_COLOR", "Not empty: no colours, where a command would have some."],
];

const FILES: readonly Item[] = [
  ["/etc/containerd/config.toml", "Containerd's configuration, which may name the shim to be started (EXAMPLES)."],
  [
    "/run/containerd-shim/*",
    "The sockets of hosts, each with its lock, and, after SIGUSR1, with its dump, `*.dump`. The folder must be its user's alone (0700), or there are no hosts.",
  ],
  [
    "WORKDIR/shim.stdout.log, WORKDIR/shim.stderr.log",
    "FIFOs: the shim's log. Containerd writes it to its own if told to (`shim_debug = true`), and else throws it away.",
  ],
  [
    "/run/systemd/journal/socket, /dev/log",
    "Where errors and warnings go besides: to the journal, as entries of the identifier containerd-shim with the fields CONTAINER_ID, CONTAINERD_NAMESPACE, BUNDLE and SHIM_PID; where there is none, to syslog(3).",
  ],
  ["BUNDLE/shim.state", "What the next host must know of the container."],
  ["BUNDLE/shim.dump.log", "The last dump of a shim."],
];

const SIGNALS: readonly Item[] = [
  [
    "SIGTERM, SIGINT",
    "To a shim: the container is killed, its mounts are undone, and the shim ends. To a host: it takes no further container, and ends when it has none.",
  ],
  [
    "SIGUSR1",
    "To a shim: says in its log and in shim.dump.log what it is doing: calls in flight, processes, bytes moved, descriptors. To a host: writes that of all of its containers to the file beside its socket.",
  ],
  [
    "SIGKILL",
    "To a host: its holders go on with another. To a shim: the container has nobody any more, and containerd ends it.",
  ],
];

/** Of a shim and of every command that says nothing else. */
const EXITS: readonly Item[] = [
  ["0", "It has done what it was to do."],
  ["1", "It could not, and has said why on standard error."],
  ["2", "The command line is wrong: it has said how, and what could be."],
  ["127", "The executable could not be started: no dynamic linker, or no memory for it."],
];

const NOTES = [
  "On a machine with cgroup v2 alone, containerd takes no container of runtime v1, with any shim: `cgroups: cgroup mountpoint does not exist`. It does when some hierarchy of version 1 is mounted somewhere.",
];

const SEE_ALSO = ["containerd(8)", "containerd-config.toml(5)", "ctr(8)", "journalctl(1)", "runc(8)"];

/** Escapes what means something to roff, and makes bold what is in backquotes. */
function escaped(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replace(/`([^`]*)`/g, "\\fB$1\\fR")
    .replace(/^(['.])/, "\\&$1");
}

/** A paragraph: each sentence on lines of its own, none too long. */
function filled(text: string): string[] {
  const sentences = text.split(/(?<=[.:?]) (?=[A-Z])/);
  return sentences.flatMap((sentence) => {
    const lines: string[] = [];
    let line = "";
    for (const word of escaped(sentence).split(" ")) {
      if (line !== "" && line.length + 1 + word.length > WIDTH) {
        lines.push(line);
        line = "";
      }
      line += line === "" ? word : ` ${word}`;
    }
    return [...lines, line].map((each) => each.replace(/^(['.])/, "\\&$1"));
  });
}

function paragraphs(texts: readonly string[]): string[] {
  return texts.flatMap((text, i) => [...i > 0 ? [".PP"] : [], ...filled(text)]);
}

function listed(items: readonly Item[]): string[] {
  return items.flatMap(([term, text]) => [".TP", `.B ${escaped(term)}`, ...filled(text)]);
}

function option({ name, type }: Flag, of = name): string {
  return `\\fB\\-${escaped(of)}\\fR${type === "string" ? " \\fIvalue\\fR" : ""}`;
}

function options(flags: readonly Flag[]): string[] {
  return flags.flatMap((flag) => {
    const names = [flag.name, ...flag.alias === undefined ? [] : [flag.alias]].map((each) => option(flag, each));
    const initial = flag.default === "" || flag.default === false ? "" : ` (\`${flag.default}\` unless given)`;
    const text = `${flag.help[0]!.toUpperCase()}${flag.help.slice(1)}${initial}.`;
    return [".TP", names.join(", "), ...filled(text)];
  });
}

function synopsis({ name, operands, flags }: Command): string {
  return [
    `.B containerd\\-shim ${escaped(name)}`,
    ...flags.map((flag) => `[${option(flag)}]`),
    ...operands === "" ? [] : [`\\fI${escaped(operands)}\\fR`],
  ].join("\n");
}

function command(of: Command): string[] {
  return [
    ".SS " + escaped(of.name),
    synopsis(of),
    ".PP",
    ...paragraphs([of.summary, ...of.description]),
    ...options(of.flags),
    ...of.exits === undefined ? [] : [".PP", "Exit status:", ...listed(of.exits)],
  ];
}

/**
 * The page's source.
 *
 * @param date of what it describes, as YYYY-MM-DD
 */
export function manual(date: string): string {
  const lines = [
    FIRST_LINE,
    `.TH CONTAINERD\\-SHIM 8 ${date} "containerd\\-shim ${config.version}" "System Administration"`,
    ".SH NAME",
    "containerd\\-shim \\- process of a container of containerd's runtime v1",
    ".SH SYNOPSIS",
    ".B containerd\\-shim",
    "[\\fIflags\\fR]",
    ...COMMANDS.flatMap((each) => [".br", synopsis(each)]),
    ".SH DESCRIPTION",
    ...paragraphs(DESCRIPTION),
    ".SH OPTIONS",
    "Of a shim.",
    "A flag may be written with one dash or two, and its value after a space or",
    "\\(lq=\\(rq; the last of several counts.",
    "\\fB\\-help\\fR, also of a command, lists the flags.",
    ...options(FLAGS),
    ".SH COMMANDS",
    ...COMMANDS.flatMap(command),
    ".SH EXIT STATUS",
    ...listed(EXITS),
    ".SH ENVIRONMENT",
    ...listed(ENVIRONMENT),
    ".SH FILES",
    ...listed(FILES),
    ".SH SIGNALS",
    ...listed(SIGNALS),
    ".PP",
    "All other signals that do not tell of a fault of the process's own are ignored.",
    ".SH NOTES",
    ...paragraphs(NOTES),
    ".SH EXAMPLES",
    "Have containerd start this shim, wherever it is, in its configuration, where",
    "the first line stands once, and without which the table is passed over:",
    ".PP",
    ".nf",
    "version = 2",
    "",
    '[plugins."io.containerd.runtime.v1.linux"]',
    '  shim = "/usr/local/bin/containerd\\-shim"',
    ".fi",
    ".PP",
    "After an upgrade, move the hosts that run to the new executable, with their",
    "containers:",
    ".PP",
    ".nf",
    "containerd\\-shim upgrade \\-dry\\-run",
    "containerd\\-shim upgrade",
    ".fi",
    ".SH SEE ALSO",
    SEE_ALSO.map((each) => `.BR ${escaped(each).replace("(", " (")}`).join(" ,\n"),
  ];
  return `${lines.join("\n")}\n`;
}

/** What the page is of when nobody knows the commit. */
const NO_DATE = "1970-01-01";

if (import.meta.main) {
  const commit = await commitOf(ROOT);
  const date = commit === undefined ? NO_DATE : new Date(commit.time * 1000).toISOString().slice(0, NO_DATE.length);
  await Deno.writeTextFile(PAGE, manual(date));
}
