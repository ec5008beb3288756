/** Entries of the journal, as its native protocol has them. */

/** Reads an entry of the journal's as https://systemd.io/JOURNAL_NATIVE_PROTOCOL has it: a field that is there twice is an error. */
export function parseEntry(entry: Uint8Array): Record<string, string> {
  const fields: Record<string, string> = {};
  const text = (bytes: Uint8Array) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  for (let at = 0; at < entry.length;) {
    const line = entry.subarray(at, entry.indexOf(0x0a, at));
    const equals = line.indexOf(0x3d);
    let name, value;
    if (equals >= 0) {
      [name, value] = [text(line.subarray(0, equals)), text(line.subarray(equals + 1))];
      at += line.length + 1;
    } else {
      const start = at + line.length + 1 + 8;
      const length = Number(new DataView(entry.buffer, entry.byteOffset + start - 8).getBigUint64(0, true));
      [name, value] = [text(line), text(entry.subarray(start, start + length))];
      if (entry[start + length] !== 0x0a) throw new Error(`${name} does not end with a newline`);
      at = start + length + 1;
    }
    if (!/^[A-Z][A-Z0-9_]{0,63}$/.test(name) || name in fields) throw new Error(`${name} is no name of a field`);
    fields[name] = value;
  }
  return fields;
}
