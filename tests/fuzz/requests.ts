/** Requests of each method, as they should be. */

import type { Seeded } from "../e2e/seeded.ts";
import type { Json } from "./json.ts";
import { anyField, bytesField, encodeFields, type Field, numberField, textField } from "./protobuf.ts";

/** The container's id. */
export const INIT = "c";

/** Ids of the execs that come and go. */
export const EXECS: readonly string[] = ["f0", "f1", "f2", "f3", "shim", "init"];

/** A folder of the shim's machine that only the fuzzer uses, and its FIFOs there. */
export const PLACE = "/mnt";
export const FIFOS: readonly string[] = ["0", "1", "2"].map((each) => `${PLACE}/fifo-${each}`);

/** A file there that is made when an exec's output goes to it. */
export const LOG_FILE = `${PLACE}/log`;

/** Where a checkpoint may be put: nowhere. */
export const NO_FOLDER = "/dev/null/checkpoint";

/** Where the output of an exec may go; all of it is there, or may be made there, or is nowhere. */
export const TARGETS: readonly string[] = [
  ...["", `file://${LOG_FILE}`, `file://${PLACE}`, `binary://${PLACE}/nothing?a=b`, "binary:", "file:", "fifo://x"],
  ...[...FIFOS, PLACE, `${PLACE}/nothing`, "relative", "..", "http://[", `${PLACE}/fifo-1\0`, "x".repeat(5000)],
];

const PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/** What an Any says that it is, and is not. */
const URLS: readonly string[] = [
  "",
  "/",
  "x",
  "containerd.linux.runc.CreateOptions",
  "\0",
  "type.googleapis.com/google",
];

const encoder = new TextEncoder();

/** An OCI process that ends soon, or is ended when the fuzzer looks after its execs. */
export function processSpec(random: Seeded): Json {
  const capabilities = ["CAP_KILL", "CAP_CHOWN"];
  return {
    args: random.pick([["true"], ["sh", "-c", "exit 3"], ["nothing"], ["sleep", "1000"], ["echo", "x"]]),
    cwd: "/",
    env: ["PATH=/bin"],
    user: { uid: 0, gid: 0, additionalGids: [1] },
    ...random.oneIn(2) ? {} : {
      terminal: false,
      consoleSize: { height: 24, width: 80 },
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: [{ type: "RLIMIT_NOFILE", hard: 1024, soft: 1024 }],
      noNewPrivileges: true,
      oomScoreAdj: 100,
    },
  };
}

/** What a container may use: nothing that it would notice. */
export function resources(): Json {
  return { cpu: { shares: 1024 }, devices: null, network: {} };
}

export function process(spec: Uint8Array, random: Seeded): Field {
  return anyField(6, random.oneIn(4) ? random.pick(URLS) : PROCESS_URL, spec);
}

export function update(spec: Uint8Array, random: Seeded): Field {
  return anyField(1, random.oneIn(4) ? random.pick(URLS) : RESOURCES_URL, spec);
}

function json(value: Json): Uint8Array {
  return encoder.encode(JSON.stringify(value));
}

function id(random: Seeded): Field {
  return textField(1, random.oneIn(6) ? INIT : random.pick(EXECS));
}

/** The fields of an Exec but for its spec. */
export function exec(random: Seeded): Field[] {
  const isPlain = random.oneIn(2);
  return [
    textField(1, random.pick(EXECS)),
    ...random.oneIn(6) ? [numberField(2, 1)] : [],
    ...isPlain ? [] : [3, 4, 5].map((number) => textField(number, random.pick(TARGETS))),
  ];
}

/** Fields of options for CRIU; those that would end the container are missing. */
function checkpointOptions(): Uint8Array {
  return encodeFields([numberField(2, 1), numberField(5, 1), textField(6, "network"), textField(7, "soft")]);
}

/** A method, how often it is called, and the fields of its request. */
type Method = readonly [weight: number, readonly [name: string, request: (random: Seeded) => Field[]]];

/** The methods of the service. Those are rare that have the OCI runtime started, which takes a thousand times as long. */
export const METHODS: readonly Method[] = [
  [120, ["State", (random) => [id(random)]]],
  [80, ["Create", (random) => [
    textField(1, random.pick([INIT, "d"])),
    textField(2, PLACE),
    textField(3, "runc"),
    bytesField(4, encodeFields([textField(1, "tmpfs"), textField(2, "none"), textField(4, "ro")])),
    ...[6, 7, 8].map((number) => textField(number, random.pick(TARGETS))),
    textField(9, random.pick(["", NO_FOLDER])),
    anyField(11, "containerd.linux.runc.CreateOptions", encodeFields([numberField(1, 1), textField(13, NO_FOLDER)])),
  ]]],
  [6, ["Start", (random) => [id(random)]]],
  // The container runs: it is not deleted.
  [50, ["Delete", () => []]],
  [80, ["DeleteProcess", (random) => [id(random)]]],
  [1, ["ListPids", () => [textField(1, INIT)]]],
  [30, ["Pause", () => []]],
  [40, ["Resume", () => []]],
  [6, ["Checkpoint", (random) => [
    textField(1, random.pick(["", "", "", NO_FOLDER])),
    anyField(2, "containerd.linux.runc.CheckpointOptions", checkpointOptions()),
  ]]],
  [80, [
    "Kill",
    (random) => [
      textField(1, random.oneIn(30) ? INIT : random.pick(EXECS)),
      numberField(2, random.pick([9, 15, 0, 1, 64, 65])),
      numberField(3, random.below(2)),
    ],
  ]],
  [120, ["Exec", (random) => [...exec(random), process(json(processSpec(random)), random)]]],
  [80, [
    "ResizePty",
    (random) => [id(random), numberField(2, random.below(70_000)), numberField(3, random.below(200))],
  ]],
  [80, ["CloseIO", (random) => [id(random), numberField(2, 1)]]],
  [50, ["ShimInfo", () => []]],
  [1, ["Update", (random) => [update(json(resources()), random)]]],
  [60, ["Wait", (random) => [id(random)]]],
];

/** Methods and services that there are not. */
export const UNKNOWN: readonly string[] = [
  "",
  "state",
  "State ",
  "Shutdown",
  "Stats",
  "Connect",
  "__proto__",
  "constructor",
  "get",
];
export const UNKNOWN_SERVICES: readonly string[] = [
  "",
  "Shim",
  "containerd.task.v2.Task",
  "__proto__",
  "grpc.health.v1.Health",
];
