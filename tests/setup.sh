#!/bin/sh
# Installs what the tests and the demonstration run: containerd, OCI runtimes, and something for containers to run.
# Says nothing when all of it is there, and starts no service.
#
#     setup.sh [--without-docker]
#
# Docker is for tests alone.
set -eu

missing=
# wants PACKAGE PROGRAM...
wants() {
	package=$1
	shift
	for program; do
		command -v "$program" >/dev/null || { missing="$missing $package"; return; }
	done
}
# /usr/sbin, where runc is, is not in every root's PATH.
PATH=$PATH:/usr/sbin:/sbin
wants containerd containerd ctr
wants runc runc
wants crun crun
wants perl-base perl
wants man-db man
wants git git
wants mount mount umount
wants e2fsprogs mke2fs
wants fuse-overlayfs fuse-overlayfs
wants fuse3 mount.fuse3
# has PACKAGE: for a program that another package, or no package, may have in another make
has() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ] || missing="$missing $1"
}
# The package named busybox has a program of the same name that does not run in an empty folder.
has busybox-static
# The Docker of a later Debian, and of Ubuntu, has no runtime v1. `docker top` runs ps.
if [ "${1-}" != --without-docker ] && grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release; then
	has docker.io
	wants procps ps
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "Cannot install$missing: not root" >&2
	exit 1
fi

# A package may start its service when it is installed: invoke-rc.d(8) asks this file first.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
restore() {
	rm -f "$log"
	[ -z "${made_policy-}" ] || rm -f "$policy"
}
trap restore EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
	made_policy=yes
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
# Unquoted: a list.
# shellcheck disable=SC2086
if ! { apt-get -q update && apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
	cat "$log" >&2
	exit 1
fi
# Nor does it start at the next boot, where it would change the machine's network.
case $missing in *docker.io*)
	! command -v systemctl >/dev/null || systemctl --quiet disable docker.service docker.socket >/dev/null 2>&1 || :
	;;
esac
# What has been installed may be a containerd that has no runtime v1: make has asked when there was none yet.
obstacle=$(sh "$(dirname "$0")/needs.sh" "what was to be run")
[ -z "$obstacle" ] || { echo "$obstacle" >&2; exit 1; }
