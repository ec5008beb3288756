/** runc on cgroups of version 2; with the default of this machine, whatever that is, the other tests use it. */

import { modes } from "./modes.ts";
import { testRuntime } from "./oci_suite.ts";

modes(["hosted"], "what an OCI runtime is asked to do does not depend on who its parent is");

testRuntime({ runtime: "runc", cgroups: 2 });
