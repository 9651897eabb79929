#!/usr/bin/env bash
# Sets up what a command needs and runs it. Needs Python 3.11+ and nothing else.
#   ./run.sh demo     the main job for real, on an embedded PostgreSQL
#   ./run.sh test     every test; groups that need more install it first
#   ./run.sh check    formatting, lint and types
#   ./run.sh headrace ARGS…   the command itself, from this checkout
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
venv=${HEADRACE_VENV:-$here/.venv}
cache=${HEADRACE_CACHE:-$here/.cache}
python=$venv/bin/python

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "run.sh: no Python 3.11 or newer found on the PATH; install one and try again" >&2
    exit 1
}

make_venv() {
    [ -x "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    local base
    base=$(find_python)
    echo "run.sh: making a virtual environment with $("$base" --version)" >&2
    rm -rf "$venv"
    "$base" -m venv "$venv" 2>/dev/null && return
    # Debian's python3 comes without ensurepip: make the environment bare and let an outer pip fill it.
    rm -rf "$venv"
    "$base" -m venv --without-pip "$venv"
    "$base" -m pip --python "$python" install --quiet pip || {
        echo "run.sh: $base can make no virtual environment with pip; install its venv module (Debian: apt-get install python3-venv)" >&2
        exit 1
    }
}

# install NAME: the pinned packages of requirements/NAME.txt, once for each version of that file.
install() {
    local name=$1 stamp
    make_venv
    stamp=$venv/.installed-$name-$(cksum <"requirements/$name.txt" | tr -d ' ')
    [ -e "$stamp" ] && return
    echo "run.sh: installing requirements/$name.txt" >&2
    "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location -r "requirements/$name.txt"
    # This checkout itself, so that the environment's `headrace` is it.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    touch "$stamp"
}

missing=0
not_run() { # GROUP WHY
    echo "not run: $1: $2"
    missing=1
}

# The group that needs Spark: Java 17+ and, for its jars, Maven.
spark_group() {
    if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq default-jre-headless maven) >/dev/null 2>&1 || true
        fi
    fi
    command -v java >/dev/null || { not_run spark "no Java on the PATH, and it could not be installed"; return 0; }
    command -v mvn >/dev/null || { not_run spark "no Maven on the PATH, and it could not be installed"; return 0; }
    PYTHON=$python bash tests/spark/install.sh "$cache/spark" || { not_run spark "Spark and its Iceberg runtime could not be installed"; return 0; }
    HEADRACE_SPARK=$cache/spark "$python" -m pytest -q -m spark "$@"
}

case "${1:-}" in
demo)
    shift
    install run
    exec "$python" -m headrace demo "$@"
    ;;
headrace)
    shift
    install run
    exec "$python" -m headrace "$@"
    ;;
check)
    install run
    install test
    "$python" -m ruff format --check .
    "$python" -m ruff check .
    "$python" -m mypy
    ;;
test)
    shift
    install run
    install test
    "$python" -m ruff format --check .
    "$python" -m ruff check .
    "$python" -m mypy
    "$python" -m pytest -q -m "not slow and not spark" "$@"
    "$python" -m pytest -q -m "slow and not spark" "$@"
    spark_group "$@"
    if [ "$missing" = 1 ] && [ "${CI:-}" = true ]; then
        echo "run.sh: in CI every group must run" >&2
        exit 1
    fi
    ;;
*)
    sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//'
    exit 2
    ;;
esac
