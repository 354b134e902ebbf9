#!/bin/sh
# Installs the SIP peers that `make test-sip` calls: with apt when run by root, else says what is missing.
set -u
missing=""
for pair in sipp:sip-tester baresip:baresip-core kamailio:kamailio sox:sox; do
    PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing$missing ..."
    # Services of these packages are not wanted, only their programs.
    # shellcheck disable=SC2086
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
        exit 0
    fi
    echo "apt-get could not install$missing."
fi
echo "Tests that need them are skipped; install with:  apt-get install$missing"
