# Sourced by scripts/try, test and check: makes the environment, runs parts and counts what failed. bash 3.2 (macOS).
# Indexes, mirrors and proxies are whatever pip and uv are set to on this machine.

CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
failed=""

say() { printf '%s\n' "scripts/${0##*/}: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# use_env EXTRAS: .venv with mlxmtp from this checkout in it; EXTRAS is "" or "[dev]". Quick when nothing changed.
use_env() {
    local extras=$1 want
    want="$PWD $(cksum <pyproject.toml)"
    if [ -x .venv/bin/mlxmtp ]; then
        # What is enough for the tests is enough for everything.
        if stamped "$extras" "$want" || stamped "[dev]" "$want"; then return 0; fi
    fi
    if [ "$(uname -s) $(uname -m)" = "Darwin x86_64" ]; then
        die "MLX needs Apple silicon; this is an Intel Mac, or a shell under Rosetta (then: arch -arm64 $0)"
    fi
    rm -f .venv/.installed*
    install_with_uv "$extras" || install_with_pip "$extras" || die "could not install; the reason stands above"
    use_openblas
    hint_compiler
    printf '%s' "$want" >".venv/.installed$extras"
}

stamped() { [ "$(cat ".venv/.installed$1" 2>/dev/null)" = "$2" ]; }

install_with_uv() {
    # The second test is for shims: a uv that is found but belongs to a Python that is not selected.
    { command -v uv && uv --version; } >/dev/null 2>&1 || return 1
    say "installing into .venv with uv"
    if [ ! -x .venv/bin/python ]; then
        rm -rf .venv
        uv venv --quiet --python '>=3.11' .venv || return 1
    fi
    uv pip install --quiet --python .venv/bin/python -e ".$1" && return 0
    say "uv could not; trying pip, which may be set up differently"
    return 1
}

install_with_pip() {
    local python
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || die "needs Python 3.11 or newer (or uv, which brings its own)"
        rm -rf .venv
        "$python" -m venv .venv || die "$python cannot make environments; on Debian and Ubuntu: apt install python3-venv"
    fi
    say "installing into .venv with pip, about a minute"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$1"
}

# A Python that is new enough and, on a Mac, not an Intel one (which would run, but find no mlx).
find_python() {
    local name ok='import sys, os; sys.exit(sys.version_info < (3, 11) or (sys.platform, os.uname().machine) == ("darwin", "x86_64"))'
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if ! opens_a_window "$name" && "$name" -c "$ok" >/dev/null 2>&1; then
            printf '%s' "$name"
            return 0
        fi
    done
    return 1
}

# Without Apple's developer tools /usr/bin/python3 is a stub, which opens a window that asks to install them.
opens_a_window() {
    [ "$(uname -s) $(command -v "$1")" = "Darwin /usr/bin/python3" ] && ! xcode-select -p >/dev/null 2>&1
}

# On Linux mlx's CPU backend multiplies several times faster with OpenBLAS; a Debian package where this user may install one.
use_openblas() {
    [ "$(uname -s)" = Linux ] || return 0
    if openblas_in_place; then return 0; fi
    if command -v apt-get >/dev/null 2>&1 && as_root true; then
        say "installing the Debian package libopenblas0 (faster matrix products on the CPU)"
        apt_get install || { apt_get update && apt_get install; }
    fi
    openblas_in_place || say "$(.venv/bin/python -c 'from mlxmtp.models import blas; print(blas.load().hint)')"
}

openblas_in_place() {
    .venv/bin/python -c 'import sys; from mlxmtp.models import blas; sys.exit(not blas.load().active)'
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@" 2>/dev/null
    fi
}

apt_get() {
    local what=""
    if [ "$1" = install ]; then what="-y --no-install-recommends libopenblas0"; fi
    # Short waits: without a network this is a nicety that has to give up soon. $what is several words.
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 \
        -o DPkg::Lock::Timeout=60 "$1" $what >/dev/null 2>&1 </dev/null
}

hint_compiler() {
    if [ "$(uname -s)" = Linux ] && ! command -v g++ >/dev/null 2>&1; then
        say "no g++ here: mlx cannot build fused kernels for the CPU, so the same code runs unfused and slower (apt install g++)"
    fi
}

# run_checks PYTEST OPTIONS...: every part runs, whatever happened before it; the last line names what failed.
run_checks() {
    part lint .venv/bin/ruff check
    part format .venv/bin/ruff format --check
    part types .venv/bin/mypy
    # A file is one process's: its tests share what is expensive to make. More processes than four need more memory than time.
    part tests .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
    if [ "${0##*/}" = test ] && [ $# = 0 ]; then  # once more where the device decides how things are computed
        part "tests as on a GPU" .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
            --as-gpu -q -m "not slow" tests/models/test_networks.py tests/decode/test_rounds.py \
            tests/decode/test_turns.py tests/engine/test_kept.py
    fi
    [ -z "$failed" ] || die "FAILED: $failed"
    say "all passed"
}

part() {
    local name=$1
    shift
    say "$name: $*"
    "$@" || failed="$failed${failed:+, }$name"
}
