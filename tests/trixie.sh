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

sh "$(dirname "$0")/unpack.sh" trixie "$folder" "$@"

libraries=$(find "$folder/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd: -)
loader=$(find "$folder/root" -name 'ld-linux-*.so.*' | head -n 1)
for each; do
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
