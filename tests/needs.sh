#!/bin/sh
# Says in one line why something that runs containers cannot be run on this machine, and nothing where it can:
#
#     needs.sh WHAT
#
# It is asked before anything is built or installed, so what will be installed may still be missing.
set -eu

if [ "$(id -u)" -ne 0 ]; then
	echo "$1 needs root: it runs real containers"
	exit
fi
# containerd PACKAGE VERSION REVISION
words=$("${CONTAINERD:+$CONTAINERD/}containerd" --version 2>/dev/null) || exit 0
# shellcheck disable=SC2086
set -- "$1" $words
case ${4-} in
[2-9].* | v[2-9].*)
	echo "$1 needs containerd 1.2 to 1.7, and this is ${4#v}: containerd 2 has no runtime v1, only shims of runtime v2," \
		"containerd-shim-runc-v2 for one. CONTAINERD may name a folder with an older containerd and ctr"
	;;
esac
