/** What a run of tests has come to, from the report that `deno test` writes, and how that is told in the end. */

/** A test that has been run, or skipped. */
export interface Case {
  /** As `deno test` was given it. */
  readonly file: string;
  /** Not known of a test that a function of another file has registered. */
  readonly line?: number;
  /** How long it has taken, in s. */
  readonly seconds: number;
  readonly name: string;
  readonly isSkipped: boolean;
  /** Why it has failed, with what was seen: undefined when it has not. */
  readonly failure?: string;
}

/** Something that has failed, as it is told. */
export interface Failure {
  /** A test's name, or what else it was. */
  readonly what: string;
  /** file:line and the way, for example. */
  readonly where: string;
  readonly why: string;
  /** The command that does just that again. */
  readonly again: string;
}

/**
 * The tests in a report: JUnit's XML. A step of a test is a test here.
 *
 * @param printed what `deno test` has printed. The report names the file of the function that has registered a test, which
 * may be one that others use; what is printed names theirs
 */
export function readReport(xml: string, printed = ""): Case[] {
  const files = filesOf(printed);
  return [...xml.matchAll(/<testcase ([^>]*)>(.*?)<\/testcase>/gs)].map(([, attributes, body]) => {
    const attribute = (name: string) => unescape(new RegExp(`(?:^| )${name}="([^"]*)"`).exec(attributes!)?.[1] ?? "");
    // A test that could not run, because its file was given up, has an error without a text.
    const failure = /<(?:failure|error) message="([^"]*)"(?:\/|>(.*?)<\/(?:failure|error))>/s.exec(body!);
    const name = attribute("name");
    const registered = attribute("classname").replace(/^\.\//, "");
    const isTests = registered.endsWith("_test.ts");
    const file = isTests ? registered : files.get(name.replace(/ > .*/, "")) ?? registered;
    return {
      file,
      ...file === registered ? { line: Number(attribute("line")) } : {},
      seconds: Number(attribute("time")),
      name,
      isSkipped: body!.includes("<skipped"),
      ...failure ? { failure: unescape(failure[2] ?? failure[1]!) } : {},
    };
  });
}

/** The file of each test, by its name. */
function filesOf(printed: string): Map<string, string> {
  const files = new Map<string, string>();
  let file: string | undefined;
  for (const line of withoutColours(printed).split("\n")) {
    file = /^running \d+ tests? from (?:\.\/)?(.*)$/.exec(line)?.[1] ?? file;
    const name = /^(\S.*?) \.\.\.(?: |$)/.exec(line)?.[1];
    if (file !== undefined && name !== undefined) files.set(name, file);
  }
  return files;
}

// deno-lint-ignore no-control-regex -- colours
const COLOURS = /\x1b\[[0-9;]*m/g;

function withoutColours(printed: string): string {
  return printed.replace(COLOURS, "");
}

/** The files that take longest, with how long, one a line; those of less than so many seconds are not told. */
export function longest(cases: readonly Case[], leastSeconds: number): string {
  const files = new Map<string, number>();
  for (const { file, seconds } of cases) files.set(file, (files.get(file) ?? 0) + seconds);
  return [...files].filter(([, seconds]) => seconds >= leastSeconds).sort(([, a], [, b]) => b - a).map(
    ([file, seconds]) => `${seconds.toFixed(0).padStart(6)} s  ${file}\n`,
  ).join("");
}

/**
 * The failed ones.
 *
 * @param again the command that runs those tests of a file whose names match a pattern
 */
export function failures(
  cases: readonly Case[],
  way: string | undefined,
  again: (file: string, pattern: string) => string,
): Failure[] {
  return cases.filter((each) => each.failure !== undefined).map(({ file, line, name, failure }) => ({
    what: name,
    where: `${file}${line === undefined ? "" : `:${line}`}${way ? ` (${way})` : ""}`,
    why: failure!,
    again: again(file.replace(/#.*/, ""), patternOf(name)),
  }));
}

/** The errors outside of tests, for which files were given up, from what `deno test` prints: its report lacks them. */
export function uncaughtErrors(printed: string): string[] {
  return withoutColours(printed).match(/^\S+ \(uncaught error\)\n.*?(?=\nThis error was not caught from a test)/gms) ??
    [];
}

/** A pattern that a test's name alone matches, between quotes of the shell. */
function patternOf(name: string): string {
  // Of a step, the test's name is what counts.
  return `^${name.replace(/ > .*/, "").replace(/[^A-Za-z0-9 ,;:=<>@%&~/_-]/g, ".")}`;
}

/** All that has failed, one after the other: what, why, and how to try it again. */
export function describe(failures: readonly Failure[]): string {
  return failures.map(({ what, where, why, again }, index) =>
    `${index + 1}) ${what}\n   ${where}\n${why.trimEnd().replace(/^(?=.)/gm, "     ")}\n   again: ${again}\n`
  ).join("\n");
}

const ENTITIES: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

function unescape(text: string): string {
  return text.replace(
    /&(?:#(\d+)|#x([0-9a-f]+)|(\w+));/gi,
    (all, decimal, hex, name) =>
      name ? ENTITIES[name] ?? all : String.fromCodePoint(decimal ? Number(decimal) : parseInt(hex, 16)),
  );
}
