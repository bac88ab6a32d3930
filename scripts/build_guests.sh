#!/usr/bin/env bash
# Builds the example guests that are written in C. See --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/build_guests.sh [OUT_DIR]

Builds examples/guests/*.c into OUT_DIR/*.wasm. Without OUT_DIR the .wasm files beside the sources,
which are kept in the repository, are replaced. The .wat guests need no build.

Needs, from Debian 12: clang lld wasi-libc libclang-rt-14-dev-wasm32
Variables: CLANG (default: clang) and WASI_SYSROOT (default: /usr).
TEXT
}

fail() {
    printf 'build_guests.sh: %s\n' "$1" >&2
    exit 1
}

case "${1-}" in
-h | --help)
    usage
    exit 0
    ;;
-*)
    usage >&2
    exit 2
    ;;
esac
if [ "$#" -gt 1 ]; then
    usage >&2
    exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sources="$root/examples/guests"
out=${1:-$sources}
clang=${CLANG:-clang}
sysroot=${WASI_SYSROOT:-/usr}
# Small enough to be kept in the repository and to load at once.
bytes_max=65535

missing=()
command -v "$clang" >/dev/null || missing+=(clang)
command -v wasm-ld >/dev/null || missing+=(lld)
[ -e "$sysroot/lib/wasm32-wasi/libc.a" ] || missing+=(wasi-libc)
if command -v "$clang" >/dev/null; then
    builtins=$("$clang" --target=wasm32-wasi -print-libgcc-file-name)
    if [ ! -e "$builtins" ]; then
        major=$("$clang" -dumpversion)
        missing+=("libclang-rt-${major%%.*}-dev-wasm32")
    fi
fi
if [ "${#missing[@]}" -gt 0 ]; then
    fail "missing tools; install them with: apt-get install ${missing[*]}"
fi

# -Oz and the two -f switches with --gc-sections keep only the code that runs. The stack comes
# first in memory, so that an overflow traps instead of overwriting data; 32 KiB are plenty.
flags=(
    --target=wasm32-wasi
    "--sysroot=$sysroot"
    -std=c11 -Oz -Wall -Wextra -Werror
    -ffunction-sections -fdata-sections
    "-Wl,--gc-sections" "-Wl,--strip-all"
    "-Wl,--stack-first" "-Wl,-z,stack-size=32768"
)

mkdir -p "$out"
for source in "$sources"/*.c; do
    name=$(basename "$source" .c)
    target="$out/$name.wasm"
    "$clang" "${flags[@]}" -o "$target.new" "$source"
    # A linked module is not a program to the shell.
    chmod 644 "$target.new"
    bytes=$(wc -c <"$target.new")
    if [ "$bytes" -gt "$bytes_max" ]; then
        rm -f "$target.new"
        fail "$name.wasm has $bytes bytes; at most $bytes_max are wanted"
    fi
    mv "$target.new" "$target"
    printf '%8d  %s\n' "$bytes" "$target"
done
