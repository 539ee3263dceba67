# Sourced by the tests that are no Rust: what they need of the machine, checked and fetched.
# Whoever sources it has set `name`, which is told with each failure.
export PYTHONDONTWRITEBYTECODE=1

fail() {
    echo "$name: FAILED: $*" >&2
    exit 1
}

command -v python3 >/dev/null || fail "python3 is missing: install Python 3.11 or newer"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$(python3 --version) is too old: install Python 3.11 or newer"
command -v flock >/dev/null || fail "flock is missing: install util-linux"

# Where what is fetched and made is kept, beside what cargo builds.
target=$(cargo metadata --format-version 1 --no-deps --offline |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
kept=$target/$name
mkdir -p "$kept"

# Prints where the node is: the binary named, or a debug build of this tree.
find_node() {
    if [[ -n ${1:-} ]]; then
        realpath "$1"
    else
        cargo build --quiet --bin hypercache && echo "$target/debug/hypercache"
    fi
}

# Has one of us at a time do the rest of the arguments as a command.
alone() {
    local lock
    exec {lock}>"$kept/lock"
    flock "$lock"
    "$@"
    exec {lock}>&-
}

# Makes the environment of these files of pinned requirements, one for each set of them and each
# Python, and sets `python` to its interpreter.
make_environment() {
    local wanted
    python3 -c 'import venv, ensurepip' 2>/dev/null ||
        fail "python3 has no venv module: install it (on Debian and Ubuntu the package python3-venv)"
    wanted=$({ python3 -VV; cat "$@"; } | sha256sum | cut -c1-16)
    python=$kept/$wanted/bin/python
    if [[ ! -e $kept/$wanted/complete ]]; then
        rm -rf "${kept:?}/$wanted"
        python3 -m venv "$kept/$wanted"
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --only-binary :all: "${@/#/--requirement=}" || fail "its packages cannot be installed"
        touch "$kept/$wanted/complete"
    fi
}
