/** What a descriptor is, where it may be one of /dev/null. */

/**
 * A command of the shell's that says what a descriptor is, of which `$fd` is the link in /proc: /dev/null also where that is the
 * root of a mount of its own (ffi/null.ts), whose path is not told from that of the root folder.
 */
export const NULL_OR_LINK = `case $(stat -L -c "%F %t:%T" "$fd" 2>/dev/null) in ` +
  `"character special file 1:3") echo /dev/null;; *) readlink "$fd";; esac`;
