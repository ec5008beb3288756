/**
 * A record in parts, each a text by a key, of which those are written that have changed: one for each process, one for the
 * specification of each that has not been started, one for each thing of a list, and two for the rest.
 *
 * What an object of a list has in it is looked at once. Whoever changes something makes another object: see same.ts.
 */

import { checkedRecord, type ContainerRecord, type ExecRecord, type ShimRecord } from "./record.ts";
import type { Content } from "./state_file.ts";

/** Lists whose objects have no key of their own; those of the container are called as in its record. */
const LISTS = ["commands", "answers", "events", "unclaimed"] as const;
const CONTAINER_LISTS = ["exits", "starting"] as const;
type ListName = (typeof LISTS | typeof CONTAINER_LISTS)[number];

/** Keys of the parts that there is one of, and kinds of those that there are more of, whose id follows. */
const SHIM = "shim";
const CONTAINER = "container";
const INIT = "init";
const EXEC = "exec";
const SPEC = "spec";

/** Tells which parts of a record are others than before. */
export class Changes {
  readonly #texts = new Map<string, string | undefined>();
  #init: object | undefined;
  #execs: readonly ExecRecord[] = [];
  /** Objects of lists, by their lists' names, each with its number. */
  readonly #lists = new Map<ListName, Map<object, number>>();
  #lastNumber = 0;

  /** The parts that are others than when this was last called: all of them, the first time. Those that are gone are undefined. */
  of({ host: _host, build: _build, container, ...record }: ShimRecord): Map<string, string | undefined> {
    const changed = new Map<string, string | undefined>();
    const { commands, answers, events, unclaimed, ...shim } = record;
    this.#text(changed, SHIM, JSON.stringify(shim));
    const { init, execs = [], exits = [], starting = [], ...rest }: Partial<ContainerRecord> = container ?? {};
    this.#text(changed, CONTAINER, container && JSON.stringify(rest));
    if (init !== this.#init) changed.set(INIT, init && JSON.stringify(init));
    this.#init = init;
    this.#putExecs(changed, execs);
    for (const [name, list] of Object.entries({ commands, answers, events, unclaimed, exits, starting })) {
      this.#put(changed, name as ListName, list);
    }
    return changed;
  }

  #text(changed: Map<string, string | undefined>, key: string, text: string | undefined): void {
    if (this.#texts.get(key) === text) return;
    changed.set(key, text);
    this.#texts.set(key, text);
  }

  #putExecs(changed: Map<string, string | undefined>, execs: readonly ExecRecord[]): void {
    const last = this.#execs;
    this.#execs = execs;
    if (execs === last) return;
    // There may be thousands, and what has changed is one or two, as a rule: all before it and behind it is passed over.
    let [first, end, lastEnd] = [0, execs.length, last.length];
    while (first < Math.min(end, lastEnd) && execs[first] === last[first]) first++;
    for (; first < Math.min(end, lastEnd) && execs[end - 1] === last[lastEnd - 1]; end--) lastEnd--;
    const gone = new Map(last.slice(first, lastEnd).map((each) => [each.id, each]));
    for (const exec of execs.slice(first, end)) {
      const before = gone.get(exec.id);
      gone.delete(exec.id);
      if (exec === before) continue;
      const { id, spec, ...rest } = exec;
      changed.set(`${EXEC} ${id}`, JSON.stringify({ ...rest, id }));
      if (spec !== before?.spec) changed.set(`${SPEC} ${id}`, spec && JSON.stringify(spec));
    }
    for (const [id, { spec }] of gone) {
      changed.set(`${EXEC} ${id}`, undefined);
      if (spec !== undefined) changed.set(`${SPEC} ${id}`, undefined);
    }
  }

  #put(changed: Map<string, string | undefined>, name: ListName, list: readonly object[]): void {
    let numbers = this.#lists.get(name);
    if (numbers === undefined) this.#lists.set(name, numbers = new Map());
    for (const each of list) {
      if (numbers.has(each)) continue;
      const number = ++this.#lastNumber;
      numbers.set(each, number);
      changed.set(`${name} ${number}`, JSON.stringify(each));
    }
    if (numbers.size === list.length) return;
    const rest = new Set(list);
    for (const [each, number] of numbers) {
      if (rest.has(each)) continue;
      numbers.delete(each);
      changed.set(`${name} ${number}`, undefined);
    }
  }
}

/**
 * The record that is in a file in parts.
 *
 * @throws {Error} which says what is wrong with it
 */
export function recordOf({ owner: { host, build }, texts }: Content): ShimRecord {
  const single = new Map<string, object>();
  const execs: object[] = [];
  const lists = Object.fromEntries([...LISTS, ...CONTAINER_LISTS].map((name) => [name, [] as unknown[]]));
  for (const [key, text] of texts) {
    const value = JSON.parse(text);
    const [kind, id] = partsOf(key);
    if (key === SHIM || key === CONTAINER || key === INIT) {
      single.set(key, value);
    } else if (kind === EXEC) {
      const spec = texts.get(`${SPEC} ${id}`);
      execs.push(spec === undefined ? value : { ...value, spec: JSON.parse(spec) });
    } else if (Object.hasOwn(lists, kind)) {
      lists[kind]!.push(value);
    } else if (kind !== SPEC) {
      throw new Error(`it has a part ${JSON.stringify(key)}`);
    }
  }
  const { exits, starting, ...ofShim } = lists;
  const container = single.get(CONTAINER);
  return checkedRecord({
    ...single.get(SHIM),
    ...ofShim,
    ...{ host, build: `${build}` },
    container: container && { ...container, init: single.get(INIT), execs, exits, starting },
  });
}

/** The kind that a key begins with, and the id that follows, which may have spaces in it. */
function partsOf(key: string): [kind: string, id: string] {
  const end = key.indexOf(" ");
  return end === -1 ? [key, ""] : [key.slice(0, end), key.slice(end + 1)];
}
