#!/bin/sh
# Unpacks packages of some Debian, with all that they need, into a folder:
#
#     unpack.sh SUITE FOLDER PACKAGE...
#
# They are below FOLDER/root then, and the packages themselves in FOLDER/apt/archives. Nothing is installed, and what was in the
# folder before is removed.
set -eu

suite=$1
folder=$2
shift 2
packages=$*

# The mirror that this system uses for its own Debian. The archive that security updates come from has no such suite.
mirror_of_system() {
	apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}
mirror=$(mirror_of_system)
# What is configured is not told before its lists are there.
[ -n "$mirror" ] || { apt-get -q update >/dev/null && mirror=$(mirror_of_system); }
[ -n "$mirror" ] || { echo "No Debian mirror is configured" >&2; exit 1; }

rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/root"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$folder/apt/sources.list"
: >"$folder/apt/status"
# apt with a state of its own, in which nothing is installed: so that it fetches all that the packages depend on.
own_apt() {
	apt-get -q \
		-o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- \
		-o Dir::State::lists="$folder/apt/lists" -o Dir::State::status="$folder/apt/status" \
		-o Dir::Cache::archives="$folder/apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
		-o APT::Sandbox::User=root -o APT::Update::Post-Invoke= -o DPkg::Post-Invoke= "$@"
}
log=$folder/log
# Unquoted: a list.
# shellcheck disable=SC2086
if ! { own_apt update && own_apt -y --no-install-recommends --download-only install $packages; } >"$log" 2>&1 </dev/null; then
	cat "$log" >&2
	exit 1
fi
for each in "$folder"/apt/archives/*.deb; do dpkg-deb --extract "$each" "$folder/root"; done
