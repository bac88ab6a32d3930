#!/usr/bin/env bash
# Builds the guests of the benchmarks. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_guests.sh [OUT_DIR]

Builds benches/guests/*.c into OUT_DIR/*.wasm and copies the .wat guests there. What is up to date is
left alone. Default: tmp/bench-guests in the target directory.

Needs, from Debian 12: clang lld wasi-libc libclang-rt-14-dev-wasm32
Variables: CLANG (default: clang), WASI_SYSROOT (default: /usr), CARGO_TARGET_DIR.
TXT
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  -*) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
sources=benches/guests
out=${1:-${CARGO_TARGET_DIR:-target}/tmp/bench-guests}
clang=${CLANG:-clang}
sysroot=${WASI_SYSROOT:-/usr}

if ! command -v "$clang" >/dev/null || ! command -v wasm-ld >/dev/null || [ ! -e "$sysroot/lib/wasm32-wasi/libc.a" ]; then
  echo "bench_guests.sh: missing tools; on Debian: apt-get install clang lld wasi-libc libclang-rt-14-dev-wasm32" >&2
  exit 1
fi
mkdir -p "$out"

flags=(--target=wasm32-wasi "--sysroot=$sysroot" -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror
  "-Wl,--gc-sections" "-Wl,--strip-all")

# build NAME SOURCE [FLAGS]: the module NAME from a source, if that or the table's header is newer.
build() {
  local target="$out/$1.wasm" source="$sources/$2"
  shift 2
  if [ "$target" -nt "$source" ] && [ "$target" -nt "$sources/table.h" ] && [ "$target" -nt "${BASH_SOURCE[0]}" ]; then
    return
  fi
  "$clang" "${flags[@]}" -o "$target.new" "$source" "$@"
  chmod 644 "$target.new"
  mv "$target.new" "$target"
}

build echo echo.c
build code code.c
build report report.c -lm -lc-printscan-long-double
for kernel in mix matmul sieve fib; do
  build "cpu_$kernel" cpu.c -nostdlib -Wl,--no-entry "-DKERNEL_${kernel^^}"
done
cp -u "$sources"/*.wat "$out"
