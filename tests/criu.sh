#!/bin/sh
# Prints the path of a CRIU that works on this machine: the system's own, or else the next Debian's, which is unpacked into
# a folder:
#
#     criu.sh FOLDER
#
# When there is none, says why in one line, and fails.
set -eu

folder=$(realpath -m "$1")
here=$(dirname "$0")
PATH=$PATH:/usr/sbin:/sbin
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 1' HUP INT TERM

fail() {
	echo "$1: $(grep -m 1 -E '^[EW]: |Error' "$log" || grep -m 1 . "$log" || echo "it does not say why")" >&2
	exit 1
}

# CRIU has it keep packets away while it dumps a network namespace.
if ! command -v iptables-restore >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	{ apt-get -qq update && apt-get -qq -y -o DPkg::Lock::Timeout=60 install --no-install-recommends iptables; } \
		>"$log" 2>&1 </dev/null || fail "iptables cannot be installed"
fi
for criu in "$(command -v criu || :)" "$folder/criu"; do
	[ ! -x "$criu" ] || ! "$criu" check >"$log" 2>&1 </dev/null || { echo "$criu"; exit; }
done
sh "$here/trixie.sh" "$folder" criu >"$log" 2>&1 || fail "CRIU cannot be installed"
"$folder/criu" check >"$log" 2>&1 </dev/null || fail "CRIU does not work here"
echo "$folder/criu"
