#!/bin/sh
# Installs what `make` has left in bin, or takes it away again: install.sh install|uninstall, with PREFIX, and DESTDIR for a
# packager. A file that is somebody else's is neither replaced nor removed.
set -eu

cd "$(dirname "$0")/../.."
root=${DESTDIR-}${PREFIX:-/usr/local}
executable=$root/bin/containerd-shim
page=$root/share/man/man8/containerd-shim.8
documents=$root/share/doc/containerd-shim

# Whether an executable is some build of this project: our entry code has this word, and no other program has it.
is_our_executable() { [ -f "$1" ] && [ ! -L "$1" ] && grep -qaF CONTAINERD_SHIM_ENTERED= "$1"; }

# The page says so in its first line.
is_our_page() { [ -f "$1" ] && [ ! -L "$1" ] && head -n 1 "$1" | grep -q 'Made from the tables of containerd-shim, on Deno'; }

is_there() { [ -e "$1" ] || [ -L "$1" ]; }

# The package that a file has been installed by, if by any: to be asked only of the machine itself.
package_of() {
	[ -z "${DESTDIR-}" ] && command -v dpkg-query >/dev/null || return 0
	by=$(dpkg-divert --listpackage "$1")
	case $by in
	LOCAL) ;; # the administrator has put the package's aside
	"") dpkg-query -S "$1" 2>/dev/null | sed 's/: .*//' ;;
	*) echo "$by" ;;
	esac
}

refuse() {
	echo "$@" >&2
	exit 1
}

# Puts a file in the place of another in one step. Processes that run go on with the one that they have.
put() {
	mkdir -p "$(dirname "$3")"
	temporary=$3.new.$$
	trap 'rm -f "$temporary"' EXIT
	trap 'exit 1' HUP INT TERM
	install -m "$1" "$2" "$temporary"
	mv -f "$temporary" "$3"
	trap - EXIT HUP INT TERM
}

case ${1-} in
install)
	[ -e bin/containerd-shim ] && [ -e bin/containerd-shim.8 ] || refuse "There is nothing to install: run make first."
	package=$(package_of "$executable")
	if is_there "$executable" && { [ -n "$package" ] || ! is_our_executable "$executable"; }; then
		refuse "$executable is not replaced: it is $([ -n "$package" ] && echo "package $package's" || echo "not this project's").
Build a package that puts it aside, and puts it back when it is removed:
    make deb
or put it aside yourself:
    dpkg-divert --local --add --rename --divert $executable.go $executable
or install this one elsewhere, and name it in containerd's configuration (README.md):
    make install PREFIX=/usr/local"
	fi
	if is_there "$page" && ! is_our_page "$page"; then refuse "$page is not replaced: it is not this project's."; fi
	put 755 bin/containerd-shim "$executable"
	put 644 bin/containerd-shim.8 "$page"
	for document in LICENSE README.md CHANGELOG.md bin/containerd-shim.cdx.json; do
		[ ! -e "$document" ] || put 644 "$document" "$documents/$(basename "$document")"
	done
	echo "Installed $executable: containers that are started from now on use it, where containerd finds it first."
	;;
uninstall)
	package=$(package_of "$executable")
	[ -z "$package" ] || refuse "$executable is not removed: it is package $package's."
	if is_our_executable "$executable"; then
		rm "$executable"
		echo "Removed $executable: containers that run keep the shims that they have."
	elif is_there "$executable"; then
		echo "$executable is not removed: it is not this project's." >&2
	fi
	if is_our_page "$page"; then
		rm "$page"
	elif is_there "$page"; then
		echo "$page is not removed: it is not this project's." >&2
	fi
	for document in LICENSE README.md CHANGELOG.md containerd-shim.cdx.json; do rm -f "$documents/$document"; done
	if [ -d "$documents" ] && ! rmdir "$documents" 2>/dev/null; then
		echo "$documents is left: there are other files in it." >&2
	fi
	if [ -z "${DESTDIR-}" ] && command -v dpkg-divert >/dev/null; then
		aside=$(dpkg-divert --truename "$executable")
		[ "$aside" = "$executable" ] || echo "What was there is still aside, as $aside. To put it back:
    dpkg-divert --rename --remove $executable"
	fi
	;;
*) refuse "usage: $0 install|uninstall" ;;
esac
