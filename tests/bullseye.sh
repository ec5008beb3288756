#!/bin/sh
# Unpacks the C library of Debian 11 (bullseye) into a folder: glibc 2.31, which Ubuntu 20.04 has too.
#
#     bullseye.sh FOLDER
#
# FOLDER/lib has the libraries, and a loader that takes them from /mnt: there they are to be mounted, for a program that names
# the loader there as its interpreter. So that program alone has them, and what it starts has the system's own.
set -eu

folder=$(realpath -m "$1")
[ ! -e "$folder/lib" ] || exit 0

sh "$(dirname "$0")/unpack.sh" bullseye "$folder" libc6 libgcc-s1
libraries=$folder/root/lib/x86_64-linux-gnu
# The folder that it looks in, and its list of libraries; each is replaced by a path that is as long.
perl -0pi -e 's{/lib/x86_64-linux-gnu/}{"/mnt" . "/" x 18}ge; s{/etc/ld\.so\.cache}{/mnt/ld.so.cache}g' \
	"$(realpath "$libraries/ld-linux-x86-64.so.2")"
rm -rf "$folder/apt"
# Last: what is there is whole.
ln -s root/lib/x86_64-linux-gnu "$folder/lib"
