#!/bin/sh
# Makes an Ubuntu runner of GitHub's a machine for the tests, as root.
set -eu

# Docker's containerd may be one that has no runtime v1 any more; Ubuntu's is 1.7.
apt-get -q update
apt-get -qy purge docker-ce docker-ce-cli containerd.io
apt-get -qy install --no-install-recommends gcc libc6-dev make
# containerd's runtime v1 wants some hierarchy of cgroup v1.
mkdir -p /run/cgroup-v1
mount -t cgroup -o none,name=systemd none /run/cgroup-v1
# It is root who builds, and asks git which commit this is.
git config --global --add safe.directory "$PWD"
