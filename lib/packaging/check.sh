#!/bin/sh
# Has lintian(1), which is installed if it is missing, look at the package that is in bin: fails on errors.
set -eu

cd "$(dirname "$0")/../.."
command -v lintian >/dev/null || {
	apt-get -q update
	DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends lintian
}
# As root only where that is all there is, as in a container.
lintian --fail-on error --info --display-info --allow-root "$(ls -t bin/*.deb | head -n 1)"
