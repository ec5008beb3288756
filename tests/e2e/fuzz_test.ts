/** What nobody should send to a shim, for a few seconds; `make fuzz` does it for longer. */

import { fuzz } from "../fuzz/fuzz.ts";
import { IS_ASKED_FOR, optionsOfEnvironment } from "../fuzz/options.ts";
import { onlyOurs, WAY } from "./env.ts";
import { modes } from "./modes.ts";

modes(["hosted", "alone"], "what a request does to processes and files is done by others in each");

const NAME = "whatever is sent to a shim, its container goes on, and it answers everybody else";
const test = () => fuzz(optionsOfEnvironment());

if (IS_ASKED_FOR) Deno.test(NAME, test);
else if (WAY !== "mixed") onlyOurs("an Exec without a spec ends it", NAME, test);
