/** What a build before version 3 of the record has written in a bundle: lib/record/old_file.ts reads it. */

/** The text of the file shim.state. */
export function oldFileOf(record: unknown, version = 2): string {
  const body = JSON.stringify(record);
  // FNV-1a, of UTF-16 code units.
  let hash = 0x811c9dc5;
  for (let i = 0; i < body.length; i++) hash = Math.imul(hash ^ body.charCodeAt(i), 0x01000193);
  return `containerd-shim ${version} ${body.length} ${(hash >>> 0).toString(16)}\n${body}\n`;
}
