# Installs requirements.lock into .venv. Every script sources this file.
#
# On a fresh machine it installs everything. When the stamp in .venv says that the lock file has
# not changed, it only computes one checksum. Everything goes into the checkout, except system
# packages, which it installs only as root.

cd "$(dirname "$0")/.."

say() { echo "set-up: $*" >&2; }

is_root() { [ "$(id -u)" -eq 0 ]; }

install_packages() {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2
}

make_venv() {
    python=${PYTHON:-python3}
    rm -rf .venv
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        is_root || { say "\`$python -m venv\` fails: run apt-get install python3-venv"; exit 1; }
        say "installing python3-venv"
        rm -rf .venv
        install_packages python3 python3-venv
        "$python" -m venv .venv
    fi
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        say "Python 3.11 or newer is needed, and $python is $(.venv/bin/python -V)"
        rm -rf .venv
        exit 1
    }
}

set_up() {
    # A second script that starts meanwhile waits here, and then finds everything installed.
    exec 9<requirements.lock
    if command -v flock >/dev/null; then flock 9; fi
    stamp=$(cksum <requirements.lock)
    if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ] || ! .venv/bin/python -c '' 2>/dev/null; then
        .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
        say "installing requirements.lock into .venv"
        .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.lock
        echo "$stamp" >.venv/stamp
    fi
    exec 9<&-
}

set_up
