/** Rows of the table, and the steps that fill them. */

/** A row of the table. */
export interface Row {
  readonly name: string;
  readonly unit: string;
  /** Whether more is better; less is, unless given. */
  readonly moreIsBetter?: boolean;
  /** How many digits its numbers have behind the point; 2 unless given. */
  readonly digits?: number;
  /** Whether it is only in the table of what is in a host. */
  readonly isOfHost?: boolean;
}

/** A part of a round with a subject. Those after it go on from where it leaves that. */
export interface Step<T> {
  readonly rows: readonly Row[];
  /** How often it is done in each round; once unless given. */
  readonly times?: number;
  /** Whether those after it need it; it is done then also when its rows are not asked for. */
  readonly isNeeded?: boolean;
  /** Gives a sample for each of the rows. */
  measure(subject: T): Promise<readonly number[]>;
}

/** Which rows are asked for. */
export type Wanted = (row: Row) => boolean;

/** In ms. */
export async function timed(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

let ids = 0;

/** A name for a process that no other has. */
export function newId(): string {
  return `e${++ids}`;
}
