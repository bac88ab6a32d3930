#!/usr/bin/env bash
# Stands in for rustc (RUSTC_WRAPPER) where scripts/nightly.sh builds the fuzz targets.
set -euo pipefail

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ] || [ "$#" -eq 0 ]; then
  cat <<'TXT'
Usage: scripts/coverage_rustc.sh RUSTC [ARGUMENTS OF rustc]

Called by cargo: runs the compiler, with LLVM's coverage passes for those crates whose ways a fuzzer should see:
our own, and what parses and makes WebAssembly. With them on all of Wasmer and Pingora, the build takes
hours and the fuzzer learns ways that lead nowhere. Any toolchain has the passes.
TXT
  exit 2
fi

instrumented=' wasm_wizard wasm_wizard_fuzz wasmparser wast wat wasm_smith '
coverage=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  coverage+=("-Cllvm-args=-sanitizer-coverage-$option")
done

crate=
previous=
for argument in "$@"; do
  [ "$previous" = --crate-name ] && crate=$argument
  previous=$argument
done
case "$instrumented" in
  *" ${crate:-none} "*) exec "$@" "${coverage[@]}" ;;
  *) exec "$@" ;;
esac
