#!/bin/sh
# Installs what `make test` and `make demo` need and the machine has not: containerd (with ctr and the Go shim), runc,
# crun, and a busybox that is linked statically. No service is started. With nothing to do, it says nothing.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
POLICY=/usr/sbin/policy-rc.d

has() {
  command -v "$1" >/dev/null
}

# A busybox that needs a library of the machine's is of no use in a container.
has_static_busybox() {
  [ -x /bin/busybox ] && ! ldd /bin/busybox 2>&1 | grep -q '=>'
}

missing_packages() {
  { has containerd && has ctr && has containerd-shim; } || echo containerd
  has runc || echo runc
  has crun || echo crun
  has_static_busybox || echo busybox-static
}

packages=$(missing_packages | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "$0: cannot install $packages: only root can; run this as root" >&2
  exit 1
fi
if ! has apt-get; then
  echo "$0: cannot install $packages: there is no apt-get here; install what these packages hold in another way" >&2
  exit 1
fi

log=$(mktemp)
guarded=
clean_up() {
  rm -f "$log"
  [ -z "$guarded" ] || rm -f "$POLICY"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# What a package's scripts would start, stop or restart stays as it is: 101 is "forbidden by policy".
if [ ! -e "$POLICY" ]; then
  guarded=yes
  printf '#!/bin/sh\nexit 101\n' >"$POLICY"
  chmod 755 "$POLICY"
fi

quietly() {
  if ! DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "$0: cannot install $packages: '$*' failed" >&2
    exit 1
  fi
}

echo "Installing $packages"
quietly apt-get -qq -o DPkg::Lock::Timeout=300 update
# shellcheck disable=SC2086 # a list of words
quietly apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends --no-upgrade install $packages

still=$(missing_packages | tr '\n' ' ')
if [ -n "$still" ]; then
  echo "$0: $still: installed, and yet a program is missing: containerd must be 1.x, which has containerd-shim" >&2
  exit 1
fi
