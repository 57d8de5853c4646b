#!/bin/sh
# Makes or refreshes the virtual environment: environment.sh VENV EXTRA   (EXTRA: demo, test or dev)
#
# The Makefile calls it when pyproject.toml, constraints.txt or this file is newer than the environment's stamp. It needs a
# Python of at least 3.11 with its venv module, and names the package to install where one is missing. PYTHON=... picks
# the interpreter. Run from the repository root.
set -eu

venv=$1
extra=$2

fail() {
    printf 'noded: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

recent_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

rmdir -- "$venv" 2>/dev/null || true # an empty folder is in nobody's way

# One whose Python is gone (system upgrade) or that was made elsewhere (moved or copied folder: its scripts and the link to
# this project name the old place) is made again, not repaired.
here=$(pwd -P)
if [ -e "$venv" ] && ! { "$venv/bin/pip" --version && [ "$(cat "$venv/.made-in")" = "$here" ]; } >/dev/null 2>&1; then
    [ -e "$venv/pyvenv.cfg" ] || fail "$venv exists and is not a virtual environment; nothing was changed" \
        "move it away, or choose another place:  make VENV=path ..."
    echo "noded: the environment in $venv does not fit here any more; making it again"
    rm -rf -- "$venv"
fi

if [ ! -e "$venv" ]; then
    python=${PYTHON:-}
    if [ -n "$python" ]; then
        recent_enough "$python" || fail "PYTHON=$python is not a Python of version 3.11 or newer"
    else
        for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
            if recent_enough "$candidate"; then
                python=$candidate
                break
            fi
        done
        [ -n "$python" ] || fail "this needs Python 3.11 or newer (found: $(python3 --version 2>/dev/null || echo none))" \
            "Debian 12, Ubuntu 24.04 and newer:  sudo apt-get install python3 python3-venv" \
            "Ubuntu 22.04:                       sudo apt-get install python3.11 python3.11-venv"
    fi
    # Debian ships venv without ensurepip: `python3 -m venv` then ends in a stack trace and a half-made folder.
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || {
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        fail "$python cannot make virtual environments: the package python3-venv is missing" \
            "install it:  sudo apt-get install python3-venv     (for a second Python: $package)" \
            "then run the same command again"
    }
    echo "noded: making the environment in $venv (the first time fetches torch and its friends: several hundred MB)"
    "$python" -m venv "$venv"
    echo "$here" >"$venv/.made-in"
fi

# Through the environment, so that the pins hold inside the isolated build of this project as well. A path relative to
# here, because pip splits these variables at spaces.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
quiet=--quiet
[ -t 1 ] && quiet=
# Another index for torch alone (CPU builds, for a machine with no GPU): only that package may come from there.
if [ -n "${TORCH_INDEX:-}" ]; then
    # shellcheck disable=SC2086  # an empty $quiet must vanish
    "$venv/bin/python" -m pip install $quiet --no-deps --index-url "$TORCH_INDEX" torch ||
        fail "torch could not be installed from TORCH_INDEX=$TORCH_INDEX; pip's message above says why"
fi
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install $quiet -e ".[$extra]" ||
    fail "the set-up did not finish; pip's message above says why" \
        "it goes on where it stopped: run the same command again (behind a mirror: set PIP_INDEX_URL)"

# dev holds test holds demo: the wider set-up serves the narrower commands too.
case $extra in
    dev) stamps='demo test dev' ;;
    test) stamps='demo test' ;;
    *) stamps=$extra ;;
esac
for stamp in $stamps; do : >"$venv/.stamp-$stamp"; done
