#!/bin/sh
# Unpacks programs of the next Debian (trixie) into a folder, beside the system's own, with all that they need:
#
#     trixie.sh FOLDER PACKAGE...
#
# Each program of the packages is then FOLDER/PROGRAM: the program itself where it runs with this system's libraries, and
# otherwise a script that starts it with those of its own Debian. What is there already is left as it is.
set -eu

# apt takes relative paths as relative to its own folders.
folder=$(realpath -m "$1")
shift
packages=$*
[ "$(cat "$folder/.packages" 2>/dev/null)" != "$packages" ] || exit 0

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
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$folder/apt/sources.list"
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

libraries=$(find "$folder/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd: -)
loader=$(find "$folder/root" -name 'ld-linux-*.so.*' | head -n 1)
for each in $packages; do
	dpkg-deb --contents "$folder"/apt/archives/"$each"_*.deb | awk '$1 ~ /^-.*x/ && $6 ~ "/s?bin/" { print $6 }' |
		while read -r path; do
			program=$folder/root/${path#./}
			if "$program" --version >/dev/null 2>&1 </dev/null; then
				ln -s "$program" "$folder/${path##*/}"
				continue
			fi
			printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$loader" "$libraries" "$program" >"$folder/${path##*/}"
			chmod 755 "$folder/${path##*/}"
		done
done
rm -rf "$folder/apt"
echo "$packages" >"$folder/.packages"
