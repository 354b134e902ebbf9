#!/bin/sh
# Make the virtual environment named by the first argument, with the newest Python that will do.
# On Debian and Ubuntu the venv module is a package of its own: root gets it installed, others are
# told the command. Says in one sentence what is missing otherwise.
set -eu
venv=$1

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
}

has_venv() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

package_for() {
    case $1 in
        python3) echo python3-venv ;;
        *) echo "$1-venv" ;;
    esac
}

apt_install() {
    echo "Installing $1 with apt-get ..."
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"; } \
        >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        echo "apt-get could not install $1; its last lines are above." >&2
        exit 1
    fi
    rm -f "$log"
}

need() {
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "$2 Install it with this system's package manager, then run make again." >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "$2 Run: sudo apt-get install $1" >&2
        exit 1
    fi
    apt_install "$1"
}

python=$(find_python)
if [ -z "$python" ]; then
    found=$(python3 -V 2>/dev/null || echo "no python3")
    need python3-venv "Callplex needs Python 3.11 or later; here is $found."
    python=$(find_python)
    if [ -z "$python" ]; then
        echo "This system's own Python is older than 3.11: install Python 3.11 or later, then run make again." >&2
        exit 1
    fi
fi
if ! has_venv "$python"; then
    need "$(package_for "$python")" "$python lacks the venv module."
    if ! has_venv "$python"; then
        echo "$python still lacks the venv module after installing $(package_for "$python")." >&2
        exit 1
    fi
fi
if ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    "$python" -m venv --clear "$venv"
fi
echo "$venv: $("$venv/bin/python" -V)"
