/** How much is measured: by the whole bench, which takes its time, and by the quick one. */

const MIB = 1 << 20;

/** How much is measured. */
export interface Extent {
  readonly rounds: number;
  /** Rounds before those that count. */
  readonly warmUps: number;
  /** What a container writes in one sample, in bytes: in large pieces, in small ones, and both to a terminal. */
  readonly bytes: {
    readonly large: number;
    readonly small: number;
    readonly terminalLarge: number;
    readonly terminalSmall: number;
  };
  /** What the memory is looked at after. */
  readonly work: {
    readonly execs: number;
    readonly bytes: number;
    /** How often that is done, each time with new shims. */
    readonly times: number;
  };
  /** How long idle shims are watched, and how long they have done nothing before, in ms. */
  readonly idleMs: number;
  readonly idleAfterMs: number;
  /** What is measured again while so many shims of the same kind are alive. */
  readonly crowds: readonly CrowdExtent[];
  readonly host: HostExtent;
  /** How many calls there are of each method while another container has some trouble. */
  readonly neighbourCalls: number;
}

/** What is measured in a host. */
export interface HostExtent {
  /** Whether nothing is measured that has nothing to do with hosts. */
  readonly isOnly: boolean;
  /** Whether a round in a host has all that one by itself has. */
  readonly isWhole: boolean;
  /** How many idle containers the memory of all processes is looked at with, the fewest first; and how often. */
  readonly sizes: readonly number[];
  readonly times: number;
  /** How often State is measured while others write, and with how many calls; 0 times where it is not. */
  readonly flood: { readonly times: number; readonly calls: number };
}

/** What is measured in a crowd. */
export interface CrowdExtent {
  /** How many shims are alive, the measured one among them. */
  readonly alive: number;
  readonly rounds: number;
  /** Whether only the calls are measured that change nothing. */
  readonly callsAlone: boolean;
}

/** What RESULTS.md has: half an hour or more. */
export const FULL: Extent = {
  rounds: 10,
  warmUps: 2,
  bytes: { large: 1024 * MIB, small: 64 * MIB, terminalLarge: 64 * MIB, terminalSmall: 16 * MIB },
  work: { execs: 100, bytes: 1024 * MIB, times: 3 },
  idleMs: 60_000,
  idleAfterMs: 25_000,
  crowds: [{ alive: 50, rounds: 5, callsAlone: false }, { alive: 200, rounds: 5, callsAlone: false }],
  host: { isOnly: false, isWhole: true, sizes: [1, 8, 32, 200], times: 2, flood: { times: 5, calls: 200 } },
  neighbourCalls: 500,
};

/** One or two minutes, to see whether something is badly wrong. */
export const QUICK: Extent = {
  rounds: 5,
  warmUps: 1,
  bytes: { large: 256 * MIB, small: 8 * MIB, terminalLarge: 16 * MIB, terminalSmall: 4 * MIB },
  work: { execs: 100, bytes: 256 * MIB, times: 1 },
  idleMs: 5_000,
  idleAfterMs: 3_000,
  crowds: [{ alive: 16, rounds: 3, callsAlone: true }],
  host: { isOnly: false, isWhole: false, sizes: [8], times: 1, flood: { times: 0, calls: 0 } },
  neighbourCalls: 200,
};

/** What is left when only what is in a host is asked for, and what that is compared with. */
export function onlyHosts(extent: Extent): Extent {
  return { ...extent, work: { ...extent.work, times: 0 }, crowds: [], host: { ...extent.host, isOnly: true } };
}
