#!/usr/bin/env bash
# Measures what limits that gateways share cost a request. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_limits.sh [OPTIONS]

Latency over HTTPS of admitted requests to a `respond` route with a key and a limit, through a gateway that
counts in its own memory and through one that shares its limits through a Redis on the same machine. Both are up
all the time, and are asked in turns, in every round. Prints the 50th and 99th percentile of each, as medians over
the rounds with the least and the greatest, and the ratios. The bar: with Redis, the 99th percentile is at most 1.2
times that in memory.

The gateways have core 0; wrk, which keeps 4 connections busy, and Redis share core 1.

Options:
  --rounds N     rounds (default 20)
  --seconds N    seconds for each run (default 2)
  --profile P    cargo's profile of the gateway (default bench; dev for trying the script out)
  --program FILE the gateway's program, instead of building it
  --lines FILE   keep the raw lines: round, figure, value, unit

Needs a Rust toolchain, curl, openssl, taskset (util-linux), wrk and redis-server. At least two cores, with nothing
else running. Honours CARGO_TARGET_DIR.
TXT
}

rounds=20
seconds=2
profile=bench
program=
lines=
while [ "$#" -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --profile) profile=$2; shift ;;
    --program) program=$(realpath "$2"); shift ;;
    --lines) lines=$(realpath -m "$2"); shift ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for tool in wrk taskset curl openssl redis-server; do
  command -v "$tool" >/dev/null || { echo "bench_limits.sh: '$tool' is missing; see --help" >&2; exit 1; }
done

work=$(mktemp -d)
gateways=()
redis=
end() {
  [ -z "$1" ] && return
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
finish() {
  local gateway
  for gateway in "${gateways[@]}"; do end "$gateway"; done
  end "$redis"
  rm -rf "$work"
}
trap finish EXIT
[ -n "$lines" ] || lines=$work/lines
: >"$lines"

if [ -z "$program" ]; then
  cargo build --locked --profile "$profile" --bin wasm-wizard 2>"$work/build" || { cat "$work/build" >&2; exit 1; }
  case "$profile" in
    dev) directory=debug ;;
    bench) directory=release ;;
    *) directory=$profile ;;
  esac
  program=$(realpath "${CARGO_TARGET_DIR:-target}/$directory/wasm-wizard")
fi

free_port() {
  local port
  while port=$((20000 + RANDOM % 20000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
chmod 600 "$work/key.pem"
redis_port=$(free_port)
taskset -c 1 redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --dir "$work" >"$work/redis.log" 2>&1 &
redis=$!

declare -A port key

# start NAME REDIS_URL: a gateway, which counts in memory where the URL is empty.
start() {
  local tries home=$work/$1
  port[$1]=$(free_port)
  mkdir "$home"
  cat >"$home/gateway.yaml" <<YAML
server:
  threads: 1
  https: [{ address: "127.0.0.1:${port[$1]}", certificates: [{ cert: $work/cert.pem, key: $work/key.pem }] }]
  http: []
  admin: { address: "127.0.0.1:$(free_port)" }
  upgrade_socket: null
logging: { access: false, level: warn }
routes:
  - name: bench
    match: { path: /x }
    auth: key
    limits: { per_minute: 100000000, per_day: 4000000000 }
    respond: { body: ok }
YAML
  (cd "$home" && REDIS_URL=$2 exec taskset -c 0 "$program" serve --config gateway.yaml) >"$home/stdout" 2>"$home/log" &
  local gateway=$!
  gateways+=("$gateway")
  for ((tries = 0; tries < 300; tries++)); do
    curl -sk -o /dev/null --fail "https://127.0.0.1:${port[$1]}/health/ready" && break
    kill -0 "$gateway" 2>/dev/null || { cat "$home/log" >&2; exit 1; }
    sleep 0.1
  done
  key[$1]=$(cd "$home" && "$program" keys create --config gateway.yaml --user bench@example.org --tier enterprise |
    grep -o 'ww_[A-Za-z0-9_-]*' | head -n 1)
}

# run NAME SECONDS
run() {
  taskset -c 1 wrk -t1 -c4 --latency "-d${2}s" -H "Authorization: Bearer ${key[$1]}" "https://127.0.0.1:${port[$1]}/x" \
    >"$work/wrk"
  if grep -Eq 'Non-2xx|Socket errors' "$work/wrk"; then cat "$work/wrk" "$work/$1/log" >&2; exit 1; fi
}

# percentile P: of the last run, in microseconds.
percentile() {
  awk -v wanted="$1%" '$1 == wanted {
    factor = $2 ~ /us$/ ? 1 : $2 ~ /ms$/ ? 1000 : 1000000
    print $2 * factor
  }' "$work/wrk"
}

start memory ''
start redis "redis://127.0.0.1:$redis_port"
run memory 2
run redis 2
for ((round = 1; round <= rounds; round++)); do
  names=(memory redis)
  # Another one begins each time.
  if ((round % 2 == 0)); then names=(redis memory); fi
  for name in "${names[@]}"; do
    echo "round $round of $rounds: $name" >&2
    run "$name" "$seconds"
    for p in 50 99; do
      printf '%s\t%s\t%s\tus\n' "$round" "p$p $name" "$(percentile "$p")" >>"$lines"
    done
    printf '%s\t%s\t%s\t1/s\n' "$round" "rate $name" "$(awk '/^Requests\/sec/ { print $2 }' "$work/wrk")" >>"$lines"
  done
done

ratios='p50: redis to memory|p50 redis|p50 memory;p99: redis to memory|p99 redis|p99 memory;rate: redis to memory|rate redis|rate memory'
awk -v rounds="$rounds" -v "ratios=$ratios" -f scripts/bench_table.awk "$lines"
