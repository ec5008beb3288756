/** The states of a container's processes, and what each allows. */

import { Code, StatusError } from "../ttrpc/status.ts";

/** Where a process is in its life. A container is where its init process is. */
export type State =
  | "created"
  | "createdCheckpoint"
  | "running"
  | "pausing"
  | "paused"
  | "stopped"
  | "deleted";

/** What can be asked of a process. */
export type Action =
  | "start"
  | "delete"
  | "pause"
  | "resume"
  | "update"
  | "checkpoint"
  | "exec"
  | "kill"
  | "resize";

/** What a state allows. */
export interface Rules {
  /** The states that can come next. */
  readonly next: readonly State[];
  /** What is allowed. */
  readonly allows: readonly Action[];
  /** How the state is called in the sentence that says what it does not allow. */
  readonly phrase: string;
}

/** An init process's states. */
export const INIT: Readonly<Record<State, Rules>> = {
  created: {
    next: ["running", "stopped", "deleted"],
    allows: ["start", "delete", "update", "exec", "kill", "resize"],
    phrase: "a created container",
  },
  createdCheckpoint: {
    next: ["running", "stopped", "deleted"],
    allows: ["start", "delete", "update", "kill", "resize"],
    phrase: "a container that waits to be restored",
  },
  running: {
    next: ["pausing", "stopped"],
    allows: ["pause", "update", "checkpoint", "exec", "kill", "resize"],
    phrase: "a running container",
  },
  pausing: {
    next: ["paused", "running", "stopped"],
    allows: ["update", "kill", "resize"],
    phrase: "a container that is being paused",
  },
  paused: {
    next: ["running", "stopped"],
    allows: ["resume", "update", "checkpoint", "kill", "resize"],
    phrase: "a paused container",
  },
  stopped: {
    next: ["deleted"],
    allows: ["delete", "kill", "resize"],
    phrase: "a stopped container",
  },
  deleted: { next: [], allows: [], phrase: "a deleted container" },
};

/** An exec process's states. */
export const EXEC: Readonly<Partial<Record<State, Rules>>> = {
  created: {
    next: ["running", "stopped", "deleted"],
    allows: ["start", "delete", "kill", "resize"],
    phrase: "a created process",
  },
  running: {
    next: ["stopped"],
    allows: ["kill", "resize"],
    phrase: "a running process",
  },
  stopped: {
    next: ["deleted"],
    allows: ["delete", "kill"],
    phrase: "a stopped process",
  },
  deleted: { next: [], allows: [], phrase: "a deleted process" },
};

/**
 * The state of one process: changes only as its table allows.
 *
 * ```ts
 * import { assertThrows } from "@std/assert";
 * import { StatusError } from "../ttrpc/status.ts";
 *
 * const init = new StateMachine(INIT);
 * init.become("running");
 * init.require("pause");
 * assertThrows(() => init.require("delete"), StatusError, "cannot delete a running container");
 * ```
 */
export class StateMachine {
  readonly #table: Readonly<Partial<Record<State, Rules>>>;
  #state: State;

  /**
   * A process that begins in a state.
   *
   * @param table the states that there are, with what each allows
   */
  constructor(table: Readonly<Partial<Record<State, Rules>>>, initial: State = "created") {
    this.#table = table;
    this.#state = initial;
  }

  /** Where the process is now. */
  get state(): State {
    return this.#state;
  }

  /**
   * Sees to it that the state allows an action.
   *
   * @throws {StatusError} FAILED_PRECONDITION when the state does not allow it; NOT_FOUND of what has been deleted
   */
  require(action: Action): void {
    const rules = this.#rules();
    if (rules.allows.includes(action)) return;
    throw new StatusError(
      this.#state === "deleted" ? Code.NOT_FOUND : Code.FAILED_PRECONDITION,
      `cannot ${action} ${rules.phrase}`,
    );
  }

  /** Whether `state` can come next. */
  canBecome(state: State): boolean {
    return this.#rules().next.includes(state);
  }

  /**
   * Goes on to another state.
   *
   * @throws {StatusError} INTERNAL when the table has no such transition: a mistake of the program
   */
  become(state: State): void {
    if (!this.canBecome(state)) {
      throw new StatusError(Code.INTERNAL, `invalid state transition "${this.#state}" to "${state}"`);
    }
    this.#state = state;
  }

  #rules(): Rules {
    return this.#table[this.#state]!;
  }
}
