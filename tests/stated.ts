/** In which modes a file of end-to-end tests runs, from its text: see e2e/modes.ts. */

import type { Way } from "./e2e/env.ts";

/** What states modes: of what follows, or of one test; the second is that of a test about hosts. */
const STATEMENT = /^ *(?:modes|inModes)\(\s*\[((?:\s*"\w+",?)+)\s*\]/gm;
const HOSTED = /^ *onlyHosted\(/m;

/** What registers tests in the modes that have been stated before it. */
const REGISTRATION =
  /^ *(?:Deno\.test(?:\.\w+)?|onlyOurs|inEachForm|onlyOursInEachForm|criuTest|testRuntime|onLoops)\(/m;

/** The modes in which a file registers any test. */
export function statedModes(source: string): Set<Way> {
  const stated = [...source.matchAll(STATEMENT)].flatMap(([, list]) => [...list!.matchAll(/\w+/g)].map(([way]) => way));
  return new Set([...stated as Way[], ...HOSTED.test(source) ? ["hosted" as const] : []]);
}

/** What is wrong with what a file states, if anything is. */
export function flawOfStatements(source: string): string | undefined {
  const calls = source.match(/^ *(?:modes|inModes)\(/gm)?.length ?? 0;
  if (calls > [...source.matchAll(STATEMENT)].length) return "modes are not written as literals";
  const first = source.search(/^modes\(/m);
  const registered = source.search(REGISTRATION);
  if (registered >= 0 && (first < 0 || registered < first)) return "a test is registered before modes(…) is called";
  return statedModes(source).size === 0 ? "it runs in no mode" : undefined;
}
