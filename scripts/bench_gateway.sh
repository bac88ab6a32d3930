#!/usr/bin/env bash
# Measures the gateway over HTTPS on the loopback interface. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_gateway.sh [OPTIONS] [PART...]

Starts a gateway of its own on free ports in a directory of its own, measures it over HTTPS, and
prints, for each figure, the median over the rounds with the least and the greatest. Parts:

  route      requests per second: `execute` with a guest that does nothing, and with the echo command,
             beside `respond`; HTTP/1.1, keep-alive; the gateway on one core, wrk on another
  poll       the same with a wrk that never sleeps, so that no answer has to wake it
  h2         the same over HTTP/2, with h2load
  upload     a never-seen module of 340 KiB each time: from upload to the guest's output
  again      the same bytes each time, beside a stored module with as large a body
  kill       how far answers are behind a deadline of 5 s, one guest at a time
  crowd      latency of /health and of a guest of 20 microseconds under 100 guests that spin to their
             deadline of 5 s

Without a PART: all of them (about six minutes a round).

Options:
  --rounds N     rounds (default 3)
  --seconds N    seconds for each run of wrk and h2load (default 5)
  --profile P    cargo's profile (default bench: the release code with symbols)
  --lines FILE   keep the raw lines: round, figure, value, unit

Needs a Rust toolchain, what scripts/bench_guests.sh needs, curl, taskset and chrt (util-linux), wrk,
and h2load (Debian: nghttp2-client). At least two cores. The client of `crowd` runs at real-time
priority where that is allowed (root), as if it had a machine of its own. Honours CARGO_TARGET_DIR.
TXT
}

rounds=3
seconds=5
profile=bench
lines=
parts=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --profile) profile=$2; shift ;;
    --lines) lines=$(realpath -m "$2"); shift ;;
    route | poll | h2 | upload | again | kill | crowd) parts+=("$1") ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ "${#parts[@]}" -gt 0 ] || parts=(route poll h2 upload again kill crowd)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for tool in wrk h2load taskset chrt curl; do
  command -v "$tool" >/dev/null || { echo "bench_gateway.sh: '$tool' is missing; see --help" >&2; exit 1; }
done

work=$(mktemp -d)
export RUST_BACKTRACE=0
gateway=
finish() {
  if [ -n "$gateway" ]; then
    kill "$gateway" 2>/dev/null || true
    wait "$gateway" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT
[ -n "$lines" ] || lines=$work/lines
: >"$lines"

scripts/bench_guests.sh "$work/guests"
"${CC:-clang}" -O2 -Wall -Wextra -Werror -shared -fPIC -o "$work/poll.so" benches/support/poll.c
cargo bench --locked --no-run --profile "$profile" --bench https 2>"$work/build" || { cat "$work/build" >&2; exit 1; }
client=$(sed -n 's/.*Executable.*https.*(\(.*\))$/\1/p' "$work/build")
# Beside the directory of the benchmarks.
program=$(dirname "$(dirname "$(realpath "$client")")")/wasm-wizard

free_port() {
  local port
  while port=$((20000 + RANDOM % 20000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# route NAME TARGET...: one route for anybody, as YAML.
route() {
  printf '  - name: %s\n    match: { path: /bench/%s }\n    auth: none\n    %s\n' "$1" "$1" "$2"
}

# start THREADS [COMMAND...]: a gateway, started through COMMAND; sets BASE and KEY.
start() {
  local threads=$1 tries
  shift
  https=$(free_port)
  admin=$(free_port)
  {
    printf 'server:\n  threads: %s\n  https:\n    - address: 127.0.0.1:%s\n      certificates:\n' "$threads" "$https"
    printf '        - { cert: certs/development.crt, key: certs/development.key, development: true }\n'
    printf '  http: []\n  admin: { address: "127.0.0.1:%s" }\n' "$admin"
    # A line for each request would measure the terminal or the disk; both routes would write it.
    printf 'logging: { access: false, level: warn }\n'
    # All guests here are those of one caller, who must not get all places.
    printf 'sandbox: { guests_max: 256, guests_per_caller_max: 200 }\n'
    printf 'routes:\n'
    route respond "respond: { body: \"\" }"
    route tiny "execute: { file: $work/guests/tiny.wat }"
    route echo "execute: { file: $work/guests/echo.wasm }"
    route work "execute: { file: $work/guests/work.wat }"
    route spin "execute: { file: $work/guests/spin.wat }"
  } >"$work/gateway.yaml"
  (cd "$work" && exec "$@" "$program" serve --config gateway.yaml) >"$work/stdout" 2>"$work/log" &
  gateway=$!
  BASE=https://127.0.0.1:$https
  for ((tries = 0; tries < 300; tries++)); do
    curl -sk -o /dev/null --fail "$BASE/health/ready" && break
    kill -0 "$gateway" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
  done
  KEY=$(cd "$work" && "$program" keys create --config gateway.yaml --user bench@example.org --tier enterprise)
  export BASE KEY
}

stop() {
  kill "$gateway"
  wait "$gateway" || true
  gateway=
}

note() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$lines"
}

# measure ROUND COMMAND...: the client's figures, with the round before each.
measure() {
  local round=$1
  shift
  "${priority[@]}" "$client" "$@" | awk -v round="$round" '{ print round "\t" $0 }' >>"$lines"
}
priority=()

wrk_rate() {
  taskset -c 1 env "LD_PRELOAD=${3:-}" wrk -t1 -c16 "-d${1}s" "$BASE/bench/$2" >"$work/wrk"
  if grep -Eq 'Non-2xx|Socket errors' "$work/wrk"; then cat "$work/wrk" >&2; exit 1; fi
  awk '/^Requests\/sec/ { print $2 }' "$work/wrk"
}

poll_rate() {
  wrk_rate "$1" "$2" "$work/poll.so"
}

h2_rate() {
  taskset -c 1 h2load -t1 -c4 -m8 -D "$1" --warm-up-time=1 "$BASE/bench/$2" >"$work/h2load"
  grep -q ' 0 failed, 0 errored' "$work/h2load" || { cat "$work/h2load" >&2; exit 1; }
  awk '/^finished in/ { print $4 }' "$work/h2load"
}

# rates ROUND TOOL: the three routes one after the other, on a gateway that has one core.
rates() {
  local round=$1 tool=$2 name
  start 1 taskset -c 0
  for name in respond tiny echo; do "${tool}_rate" 1 "$name" >/dev/null; done
  for name in respond tiny echo; do
    note "$round" "$tool $name" "$("${tool}_rate" "$seconds" "$name")" 1/s
  done
  stop
}

for ((round = 1; round <= rounds; round++)); do
  for part in "${parts[@]}"; do
    echo "round $round of $rounds: $part" >&2
    case "$part" in
      route) rates "$round" wrk ;;
      poll) rates "$round" poll ;;
      h2) rates "$round" h2 ;;
      upload)
        start auto
        # The next worker starts while the next module comes, or before.
        for pause in 0 300; do
          for name in echo report code; do measure "$round" upload "$name" 30 "$pause"; done
        done
        stop
        ;;
      again)
        start auto
        for name in echo report; do measure "$round" again "$name" 100; done
        stop
        ;;
      kill)
        start auto
        measure "$round" kill 5 5000 /bench/spin
        stop
        ;;
      crowd)
        start auto
        priority=()
        if chrt -f 1 true 2>/dev/null; then priority=(chrt -f 1); fi
        measure "$round" crowd 100 5000 /bench/spin /health /bench/work
        priority=()
        stop
        ;;
    esac
  done
done

ratios=
for tool in wrk poll h2; do
  for name in tiny echo; do
    ratios+="$tool: $name to respond|$tool $name|$tool respond;"
  done
done
awk -v rounds="$rounds" -v "ratios=${ratios%;}" -f scripts/bench_table.awk "$lines"
