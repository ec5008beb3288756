/** runc on cgroups of version 2; with the default of this machine, whatever that is, the other tests use it. */

import { testRuntime } from "./oci_suite.ts";

testRuntime({ runtime: "runc", cgroups: 2 });
