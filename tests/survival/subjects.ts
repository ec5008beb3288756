/** The shims that are compared. */

import { type Form, SHIM } from "../e2e/env.ts";
import { RUNTIME } from "../e2e/harness.ts";

/** A shim, as containerd is told of it. */
export interface Subject {
  /** As it stands on the command line. */
  readonly name: string;
  /** As it stands above its column. */
  readonly head: string;
  /** What runtime v1 is configured to start. */
  readonly form: Form;
  /** The runtime that `ctr run` asks for. */
  readonly runtime: string;
  /** Whether its containers share a process. */
  readonly hasHosts: boolean;
}

/** This project's, or the one that SHIM names. */
export const OURS: Subject = { name: "ours", head: "this shim", form: SHIM, runtime: RUNTIME, hasHosts: true };

/** Debian's for runtime v1. */
const GO: Subject = {
  name: "go",
  head: "Go shim",
  form: { name: "containerd-shim", path: "/usr/bin/containerd-shim" },
  runtime: RUNTIME,
  hasHosts: false,
};

/** Debian's for runtime v2, which containerd finds by the runtime's name. */
const V2: Subject = { ...GO, name: "v2", head: "runc-v2", runtime: "io.containerd.runc.v2" };

/** All of them, in the order of their columns. */
export const SUBJECTS: readonly Subject[] = [OURS, GO, V2];
