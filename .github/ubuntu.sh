#!/bin/sh
# Makes an Ubuntu runner of GitHub's a machine for the tests, as root.
set -eu

# Docker's containerd has no runtime v1 any more, nor has what Ubuntu installs unless told otherwise; what came with a release
# stays in its archive.
apt-get -q update
apt-get -qy purge docker-ce docker-ce-cli containerd.io
version=$(apt-cache madison containerd | awk '{ print $3 }' | grep '^1\.' | sort -V | tail -n 1)
[ -n "$version" ] || { echo "There is no containerd 1.x to be installed" >&2; exit 1; }
apt-get -qy install --no-install-recommends "containerd=$version" gcc libc6-dev make
# containerd's runtime v1 wants some hierarchy of cgroup v1.
mkdir -p /run/cgroup-v1
mount -t cgroup -o none,name=systemd none /run/cgroup-v1
# It is root who builds, and asks git which commit this is.
git config --global --add safe.directory "$PWD"
