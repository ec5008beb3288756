#!/bin/sh
# Prints what CHANGELOG.md says of a version, for its release; fails when it says nothing:
#
#     sh .github/notes.sh 0.1.0
set -eu

notes=$(awk -v version="$1" '
	/^## / { found = index($0, "## [" version "]") == 1; next }
	/^\[.*\]: / { next }
	found
' "$(dirname "$0")/../CHANGELOG.md" | sed -e '/./,$!d')
[ -n "$notes" ] || { echo "CHANGELOG.md has no section for $1" >&2; exit 1; }
printf '%s\n' "$notes"
