/** crun in the place of runc. It refuses a machine that has cgroups of both versions: it is shown one at a time. */

import { testRuntime } from "./oci_suite.ts";

testRuntime({ runtime: "crun", cgroups: 1 });
testRuntime({ runtime: "crun", cgroups: 2 });
