#!/bin/sh
# Prove `make demo` and `make test` on a machine that has nothing: a fresh Debian root made with
# debootstrap. As root:
#
#   sh tests/long/clean_root.sh bookworm /var/tmp/root [make target ...]
#
# The root gets make and, on request (WITH=python3), what else it should begin with. The committed state
# of this repository is cloned into it; this machine's resolver, certificates and PIP_CERT/PIP_INDEX_URL
# are lent to it, so that it reaches the same registries. Remove the folder afterwards.
set -eu
suite=$1 root=$2
shift 2
[ $# -gt 0 ] || set -- demo test
repository=$(cd "$(dirname "$0")/../.." && pwd)

if [ ! -e "$root/etc/debian_version" ]; then
    debootstrap --variant=minbase --include="make,ca-certificates${WITH:+,$WITH}" "$suite" "$root" >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" >&2; exit 1; }
fi
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# Every installed Debian knows this name; debootstrap leaves it to the installer.
echo "127.0.0.1 localhost" >"$root/etc/hosts"
rm -rf "$root/callplex"
git clone -q "file://$repository" "$root/callplex"

# The mounts live in a namespace of their own and go with it.
exec unshare --mount --fork sh -eu -c '
    root=$1
    shift
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    for target; do
        echo "== make $target"
        began=$(date +%s)
        chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
            ${PIP_CERT:+PIP_CERT="$PIP_CERT"} ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
            make -C /callplex "$target"
        echo "== make $target: $(($(date +%s) - began)) s"
    done
' sh "$root" "$@"
