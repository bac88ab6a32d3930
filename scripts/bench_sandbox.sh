#!/usr/bin/env bash
# Measures the sandbox, and another runtime on the same guests in the same run. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_sandbox.sh [OPTIONS] [PART...]

Runs our figures and the peer's (wasmtime, benches/peers/) in turns and prints, for each figure, the
median over the rounds with the least and the greatest. Parts, in the order they run:

  guest      a fresh guest per request; ours beside wasmtime's two settings
  threads    requests per second on one thread and on two; both
  cpu        guests that only compute; ours beside Wasmer without limits, and wasmtime
  prepare    never-seen modules from bytes to ready; the compilers
  kill       how far guests outlive their deadline
  live       memory of 1,000 guests that are alive at the same time

Without a PART: guest and threads. `all` is every part (about fifteen minutes).

Options:
  --rounds N     rounds (default 3)
  --seconds N    seconds for each guest in each round (default 3)
  --no-peer      ours only
  --profile P    cargo's profile for ours (default bench: the release code with symbols)
  --lines FILE   keep the raw lines: round, figure, value, unit

Needs a Rust toolchain, and what scripts/bench_guests.sh needs. Honours CARGO_TARGET_DIR, and
PEERS_TARGET_DIR for the peer (default: benches/peers/target). The first run compiles both.
TXT
}

rounds=3
seconds=3
peer=yes
profile=bench
lines=
parts=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --no-peer) peer=no ;;
    --profile) profile=$2; shift ;;
    --lines) lines=$2; shift ;;
    all) parts=(guest threads cpu prepare kill live) ;;
    guest | threads | cpu | prepare | kill | live) parts+=("$1") ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ "${#parts[@]}" -gt 0 ] || parts=(guest threads)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
export RUST_BACKTRACE=0
trap 'rm -rf "$work"' EXIT
[ -n "$lines" ] || lines=$work/lines
: >"$lines"

scripts/bench_guests.sh "$work/guests"
cargo bench --locked --no-run --profile "$profile" --bench figures 2>"$work/build" || { cat "$work/build" >&2; exit 1; }
ours=$(sed -n 's/.*Executable.*figures.*(\(.*\))$/\1/p' "$work/build")
if [ "$peer" = yes ]; then
  peers_target=${PEERS_TARGET_DIR:-$PWD/benches/peers/target}
  CARGO_TARGET_DIR=$peers_target cargo build --locked --release --quiet --manifest-path benches/peers/Cargo.toml
  theirs=$peers_target/release/bench-peers
fi

# ours ROUND COMMAND..., theirs ROUND COMMAND...: the program's figures, with the round before each.
run_ours() {
  local round=$1
  shift
  "$ours" "$@" | awk -v round="$round" '{ print round "\t" $0 }' >>"$lines"
}
run_theirs() {
  [ "$peer" = yes ] || return 0
  local round=$1
  shift
  "$theirs" "$work/guests" "$@" | awk -v round="$round" '{ print round "\t" $0 }' >>"$lines"
}

for ((round = 1; round <= rounds; round++)); do
  for part in "${parts[@]}"; do
    echo "round $round of $rounds: $part" >&2
    case "$part" in
      guest | threads)
        run_ours "$round" "$part" "$seconds"
        run_theirs "$round" "$part" "$seconds"
        ;;
      cpu | prepare)
        run_ours "$round" "$part"
        run_theirs "$round" "$part"
        ;;
      kill)
        run_ours "$round" kill 50 100 spin host bulk sleep
        run_ours "$round" kill 5000 5 spin
        ;;
      live)
        # The watchdog, the pool and the signal handlers are a process's own: one process each.
        run_ours "$round" live
        ;;
    esac
  done
done

ratios=
for guest in tiny page echo; do
  for setting in default resident; do
    ratios+="p50 of $guest to wasmtime $setting|guest $guest p50|wasmtime $setting guest $guest p50;"
  done
done
for threads in 1 2; do
  ratios+="threads echo $threads to wasmtime resident|threads echo $threads|wasmtime resident threads echo $threads;"
done
awk -v rounds="$rounds" -v "ratios=${ratios%;}" -f scripts/bench_table.awk "$lines"
