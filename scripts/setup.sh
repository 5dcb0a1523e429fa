#!/bin/bash
# Sets this checkout up on a bare Debian 12 or Ubuntu 24.04: system packages (root or sudo), and .venv with the versions of
# requirements.lock, checked by their hashes. Idempotent; a run that finds nothing to do takes a fraction of a second.
#
#   scripts/setup.sh            what it takes to run and to check
#   scripts/setup.sh --demo     also the S3 server that the demo starts (Ceph)
#   scripts/setup.sh --servers  also the servers that the tests start (Ceph, PostgreSQL; HDFS, with Java; for GCS and Azure what
#                               stands for them), what the tests read, write and format with, and PyTorch, as a program to be run
#   scripts/setup.sh --bench    also what the benchmarks hold us against
#   PYTHON=/path/to/python3     the interpreter, 3.11 or newer      [the one before, else /usr/bin/python3, else python3]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

packages="python3-venv python3-dev gcc libc6-dev pkg-config libfuse3-dev fuse3"
case "${1:-}" in
    --servers) packages="$packages iproute2 fio xfsprogs e2fsprogs linux-libc-dev postgresql stress-ng dbench rsync sqlite3 make s3fs rclone" ;;
    --bench) packages="$packages fio xfsprogs linux-libc-dev s3fs postgresql" ;;
esac

# --- system packages ---------------------------------------------------------------------------
policy=
cleanup() { [ -z "$policy" ] || ${sudo:-} rm -f /usr/sbin/policy-rc.d; }
trap cleanup EXIT
trap 'exit 130' INT TERM
apt_install() { # apt_install LOG PACKAGE...
    local log=$1
    shift
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >"$log" 2>&1
}
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
if command -v dpkg-query >/dev/null; then
    missing=
    have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $packages 2>/dev/null || true)
    for p in $packages; do
        [[ $'\n'$have$'\n' == *$'\n'"$p installed"$'\n'* ]] || missing="$missing $p"
    done
    if [ -n "$missing" ]; then
        [ -z "$sudo" ] || command -v sudo >/dev/null || die "run as root: apt-get install$missing"
        say "installing$missing"
        # No daemon may start by itself while the packages are configured.
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            policy=1
            printf '#!/bin/sh\nexit 101\n' | $sudo tee /usr/sbin/policy-rc.d >/dev/null
            $sudo chmod 755 /usr/sbin/policy-rc.d
        fi
        log=$(mktemp)
        if ! apt_install "$log" $missing; then # the lists of packages may be absent or old
            $sudo apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 || { tail -5 "$log" >&2; die "apt-get update failed"; }
            apt_install "$log" $missing || { tail -20 "$log" >&2; die "apt-get install$missing failed"; }
        fi
        rm -f "$log"
        # A root file system that no init system has run in lacks it, and without it fusermount3 unmounts nothing.
        [ -e /etc/mtab ] || $sudo ln -s ../proc/self/mounts /etc/mtab
    fi
    # fsx and pjdfstest are built by Rust 1.85 or newer, which both distributions have beside their ordinary one.
    if [ "${1:-}" = --servers ] && ! python3 -m tests.servers.tools find-cargo >/dev/null 2>&1; then
        apt_install /dev/null cargo-web || apt_install /dev/null cargo-1.85 || say "no Rust 1.85 can be had: fsx and pjdfstest are not run"
    fi
    # Debian's for CPUs alone (150 MB); the wheels for x86-64 need gigabytes of what a GPU runs. Ubuntu 24.04 has none.
    if [ "${1:-}" = --servers ] && [ ! -d /usr/lib/python3/dist-packages/torch ]; then
        say "installing python3-torch"
        apt_install /dev/null python3-torch || say "no python3-torch can be had: PyTorch is not run"
    fi
else
    say "not a Debian system: install by hand what corresponds to: $packages"
fi
[ -z "${1:-}" ] || python3 tests/servers/ceph.py install

# --- the virtual environment -------------------------------------------------------------------
python=${PYTHON:-}
if [ -z "$python" ] && [ -f .venv/.setup-stamp ]; then
    read -r python _ <.venv/.setup-stamp
    [ -x "$python" ] || python=
fi
if [ -z "$python" ]; then
    python=/usr/bin/python3
    [ -x "$python" ] || python=$(command -v python3) || die "no python3"
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is $version; 3.11 or newer is needed: PYTHON=/path/to/python3"
stamp="$python $version $(cat requirements.lock pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1) $PWD"
# What the tests start of Maven's, npm's and Go's: kept outside of the checkout, so that it is made once for all of them.
servers() {
    [ "$1" = --servers ] || return 0
    .venv/bin/python tests/servers/hdfs.py install || die "the server for HDFS is missing"
    .venv/bin/python -m tests.servers.clouds install || die "the servers for GCS and Azure are missing"
    .venv/bin/python -m tests.servers.tools install || die "what the chart is tested with is missing"
}
if [ -f .venv/.setup-stamp ] && [ "$(cat .venv/.setup-stamp)" = "$stamp" ]; then
    servers "${1:-}"
    exit 0
fi
say "making .venv with Python $version"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"; cleanup' EXIT
# The same interpreter and place: what is installed is brought up to date. Otherwise from scratch.
if [ ! -x .venv/bin/pip ] || ! .venv/bin/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null \
    || [ "$(head -c 2000 .venv/bin/pip | grep -c "$PWD/.venv")" = 0 ]; then
    rm -rf .venv
    "$python" -m venv .venv
fi
rm -f .venv/.setup-stamp
# pyfuse3 is built here, from source. It comes last and without build isolation, so that what builds it is locked too.
awk '/^[a-z0-9]/ { late = /^pyfuse3==/ } { print > (late ? "'"$tmp"'/late" : "'"$tmp"'/first") }' requirements.lock
pip() { .venv/bin/python -m pip --disable-pip-version-check install -q "$@"; }
pip --require-hashes --no-deps -r "$tmp/first" || die "pip failed"
pip --require-hashes --no-deps --no-build-isolation -r "$tmp/late" || die "pyfuse3 could not be built"
pip --no-deps --no-build-isolation -e . || die "pip failed"
echo "$stamp" >.venv/.setup-stamp
servers "${1:-}"
say "ready: .venv/bin/alluxio-like --help"
