#!/usr/bin/env bash
# What takes too long for every change: fuzzing, the kill stress, and random guests by the thousand.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/nightly.sh [OPTIONS] [PART...]

Parts, in the order they run; without a PART, all of them:

  kills    guests stopped at random moments, on two threads
  guests   random guests: whatever one does, the next finds what a new instance has
  fuzz     the fuzz targets of fuzz/: bytes, and valid modules, from the upload to the guest's end

Options:
  --kills N      guests stopped on each thread (default 100000)
  --seeds N      random guests (default 100000)
  --seconds N    seconds for each fuzz target (default 3600)
  --fuzz-only T  this fuzz target alone: bytes or modules

Exits 0 if nothing failed. What a fuzzer found is left in fuzz/artifacts/TARGET, what it learned in
fuzz/corpus/TARGET, which the next night goes on from.

Needs what scripts/test.sh needs. The fuzz targets are built by the toolchain in use, in fuzz/target (or
FUZZ_TARGET_DIR), with LLVM's coverage passes for our own code and the parsers (scripts/coverage_rustc.sh).
TXT
}

kills=100000
seeds=100000
seconds=3600
targets=(bytes modules)
parts=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --kills) kills=$2; shift ;;
    --seeds) seeds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --fuzz-only) targets=("$2"); shift ;;
    kills | guests | fuzz) parts+=("$1") ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ "${#parts[@]}" -gt 0 ] || parts=(kills guests fuzz)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
step() { printf '\n== %s\n' "$*"; }

run_kills() {
  step "$kills kills on each of two threads"
  KILL_ROUNDS=$kills cargo test --locked --release --lib sandbox::deadline::tests::thousands
}

run_guests() {
  # Other guests each night, and the same ones all day: a failure names its seed.
  local first
  first=$(date +%Y%m%d)000000
  step "$seeds random guests from seed $first on"
  RESET_SEED_FIRST=$first RESET_SEEDS=$seeds \
    cargo test --locked --release --lib sandbox::instance::tests::random
}

# Any toolchain will do. Not with an address sanitizer: guests run on stacks and in address space of their
# own, with signal handlers that it takes for errors.
build_fuzz() {
  fuzz_target_dir=${FUZZ_TARGET_DIR:-$PWD/fuzz/target}
  RUSTC_WRAPPER=$PWD/scripts/coverage_rustc.sh cargo build --locked --manifest-path fuzz/Cargo.toml \
    --target-dir "$fuzz_target_dir"
}

# Something to begin with: guests that work, as binary and as text; and random bytes enough for modules of
# some size, which the fuzzer would take hours to come to from none.
seed_corpus() {
  mkdir -p "fuzz/corpus/$1" "fuzz/artifacts/$1"
  local guest n
  case "$1" in
    bytes)
      for guest in examples/guests/*.wasm examples/guests/*.wat; do
        cp -n "$guest" "fuzz/corpus/bytes/$(basename "$guest")"
      done
      ;;
    modules)
      for n in $(seq 32); do
        [ -e "fuzz/corpus/modules/seed-$n" ] || head -c $((n * 256)) /dev/urandom > "fuzz/corpus/modules/seed-$n"
      done
      ;;
  esac
}

run_fuzz() {
  step 'building the fuzz targets'
  build_fuzz
  local target
  for target in "${targets[@]}"; do
    step "fuzzing $target for $seconds s"
    seed_corpus "$target"
    # A compile may take its five seconds on a busy machine, and a guest its deadline.
    "$fuzz_target_dir/debug/$target" "fuzz/corpus/$target" "-artifact_prefix=fuzz/artifacts/$target/" \
      "-max_total_time=$seconds" -max_len=65536 -len_control=0 -timeout=120 -rss_limit_mb=4096 -print_final_stats=1
  done
}

for part in "${parts[@]}"; do
  "run_$part"
done
