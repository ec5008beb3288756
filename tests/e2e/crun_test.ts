/** crun in the place of runc. It refuses a machine that has cgroups of both versions: it is shown one at a time. */

import { modes } from "./modes.ts";
import { testRuntime } from "./oci_suite.ts";

modes(["hosted"], "what an OCI runtime is asked to do does not depend on who its parent is");

testRuntime({ runtime: "crun", cgroups: 1 });
testRuntime({ runtime: "crun", cgroups: 2 });
