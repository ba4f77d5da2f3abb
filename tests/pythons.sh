#!/usr/bin/env bash
# The tests of losses, golden curves of every method and the command line on the other Pythons we claim, where such
# interpreters are. `make pythons` calls it; `tests/pythons.sh 3.13 2.8.0` takes one Python and one torch. PyPI's torch is
# a CUDA build for them, some gigabytes: a Python whose torch cannot be had in five minutes is left out, with a word.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=  # as in the Makefile
tested="tests/test_losses.py tests/test_golden.py tests/test_cli.py"
failed=0

interpreter() { # of a version, on the path or of pyenv
    for each in "$(command -v "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if "$each" -c '' 2>/dev/null; then echo "$each" && return; fi
    done
}

check() { # version torch
    local python folder why
    python=$(interpreter "$1")
    if [ -z "$python" ]; then echo "Python $1: not here, not tested" && return; fi
    folder=$(mktemp -d)
    grep -v '^torch==' constraints.txt >"$folder/constraints.txt"
    if "$python" -m venv "$folder/venv" &&
        timeout "${INSTALL_SECONDS:-300}" "$folder/venv/bin/pip" install --quiet --no-compile -c "$folder/constraints.txt" "torch==$2" -e '.[dev]' 2>"$folder/log"; then
        "$folder/venv/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
        OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m pytest -n 2 --dist worksteal -m 'not slow and not exhaustive' $tested || failed=1
    else
        why=$(grep -v WARNING "$folder/log" | tail -1)
        echo "Python $1: torch $2 could not be installed, not tested: ${why:-it took too long}"
    fi
    rm -rf "$folder"
}

pinned=$(sed -n 's/^torch==//p' constraints.txt)
for version in ${1:-3.12 3.13}; do
    check "$version" "${2:-$pinned}"
done
exit $failed
