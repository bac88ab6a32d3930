#!/usr/bin/env bash
# Latency of authentication at the gateway with few keys and with a million. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_auth.sh [OPTIONS]

Starts a PostgreSQL of its own and, for each N, a gateway with N keys in its database, on free ports in a temporary
directory, and asks a `respond` route that wants a key, over HTTPS, with 1000 of them in turn. The gateways are up at the
same time and are asked in turns, in every round. Prints requests per second, p50 and p99 for each N as medians over the
rounds with the least and the greatest, and the ratios to the first N; then once with each key shown for the first time
("new": the database is asked).

The gateways have core 0; wrk and PostgreSQL share core 1.

Options:
  --keys "N N…"   how many keys there are (default "1000 1000000")
  --rounds N      rounds (default 10)
  --seconds N     seconds for each run (default 2)
  --program FILE  the gateway (default: built now, in the profile bench)

Needs PostgreSQL's programs with its extension pgcrypto (Debian: postgresql; PG_BIN says where they are), wrk,
curl and taskset (util-linux). At least two cores, with nothing else running.
TXT
}

sizes="1000 1000000"
rounds=10
seconds=2
program=
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --keys) sizes=$2; shift ;;
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --program) program=$(realpath "$2"); shift ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
for tool in wrk curl taskset psql "$bin/initdb"; do
  command -v "$tool" >/dev/null || { echo "bench_auth.sh: '$tool' is missing; see --help" >&2; exit 1; }
done
if [ -z "$program" ]; then
  cargo build --locked --profile bench --bin wasm-wizard
  program=$(realpath "${CARGO_TARGET_DIR:-target}/release/wasm-wizard")
fi

work=$(mktemp -d)
chmod 755 "$work"
pg=$work/pg
mkdir "$pg"
as=()
if [ "$(id -u)" -eq 0 ]; then
  # PostgreSQL refuses to run as root.
  chown postgres "$pg"
  as=(setpriv --reuid postgres --regid postgres --clear-groups)
fi
gateways=()
# shellcheck disable=SC2317,SC2329 # It is called by the trap.
end() {
  local gateway
  for gateway in "${gateways[@]}"; do
    kill "$gateway" 2>/dev/null || true
    wait "$gateway" 2>/dev/null || true
  done
  "${as[@]}" "$bin/pg_ctl" -D "$pg/data" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap end EXIT

free_port() {
  local port
  while port=$((20000 + RANDOM % 20000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

port=$(free_port)
(cd / && "${as[@]}" "$bin/initdb" -D "$pg/data" -U postgres --auth=trust --no-sync --locale=C.UTF-8 >/dev/null)
(cd / && "${as[@]}" taskset -c 1 "$bin/pg_ctl" -D "$pg/data" -w -l "$pg/log" -o "-p $port -c listen_addresses=127.0.0.1 \
  -c unix_socket_directories=$pg -c fsync=off -c max_wal_size=4GB" start >/dev/null)

salt=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export API_SALT=$salt

# The key with this number: known to the database by its hash alone.
key="'ww_' || substr(md5(i::text) || md5((-i)::text), 1, 43)"

sql() { psql -h "$pg" -p "$port" -U postgres -X -q -v ON_ERROR_STOP=1 "$@"; }
declare -A https

# start N: a gateway with that many keys.
start() {
  local size=$1 home=$work/$1 database=keys_$1 tries
  mkdir "$home"
  sql -d postgres -c "CREATE DATABASE $database"
  export DATABASE_URL="postgres://postgres@127.0.0.1:$port/$database"
  https[$size]=$(free_port)
  {
    printf 'server:\n  https:\n    - address: 127.0.0.1:%s\n      certificates:\n' "${https[$size]}"
    printf '        - { cert: certs/development.crt, key: certs/development.key, development: true }\n'
    printf '  http: []\n  admin: null\nlogging: { access: false, level: warn }\n'
    printf 'tiers: { enterprise: { per_minute: null, per_day: null } }\n'
    printf 'routes:\n  - { name: bench, match: { path: /bench }, auth: key, respond: { body: "" } }\n'
  } >"$home/gateway.yaml"
  (cd "$home" && "$program" migrate --config gateway.yaml >/dev/null)
  sql -d "$database" -v size="$size" -v salt="$salt" <<SQL
CREATE EXTENSION pgcrypto;
INSERT INTO users (id, email, email_key, role, tier, created_at)
VALUES ('01980000-0000-7000-8000-000000000000', 'bench@example.org', 'bench@example.org', 'user', 'enterprise', now());
INSERT INTO api_keys (id, user_id, name, prefix, hash, tier, scopes, created_at)
SELECT gen_random_uuid(), '01980000-0000-7000-8000-000000000000', 'bench', 'ww_', hmac(convert_to($key, 'UTF8'),
       convert_to(:'salt', 'UTF8'), 'sha256'), 'enterprise', 15, now()
FROM generate_series(1, :size) i;
VACUUM ANALYZE api_keys;
SQL
  (cd "$home" && exec taskset -c 0 "$program" serve --config gateway.yaml) >"$home/stdout" 2>"$home/log" &
  local gateway=$!
  gateways+=("$gateway")
  for ((tries = 0; tries < 600; tries++)); do
    curl -sk -o /dev/null --fail "https://127.0.0.1:${https[$size]}/health/ready" && break
    kill -0 "$gateway" 2>/dev/null || { cat "$home/log" >&2; exit 1; }
    sleep 0.1
  done
}

# keys N COUNT FIRST: a script for wrk that shows COUNT of them in turn, spread over what there is.
keys() {
  sql -d "keys_$1" -At -c "SELECT $key FROM generate_series($3, $1, GREATEST(1, $1 / $2)) i" >"$work/$1/keys"
  cat >"$work/$1/keys.lua" <<LUA
local keys, at = {}, 0
for line in io.lines("$work/$1/keys") do keys[#keys + 1] = line end
function request()
  at = at % #keys + 1
  return wrk.format("GET", "/bench", { ["X-API-Key"] = keys[at] })
end
LUA
}

# run N SECONDS
run() {
  taskset -c 1 wrk -t1 -c4 "-d${2}s" --latency -s "$work/$1/keys.lua" "https://127.0.0.1:${https[$1]}/bench" >"$work/wrk"
  if grep -Eq 'Non-2xx|Socket errors' "$work/wrk"; then cat "$work/wrk" "$work/$1/log" >&2; exit 1; fi
}

# told ROUND FIGURE: lines of the last run.
told() {
  awk -v round="$1" -v figure="$2" '
    function us(time) { return time * (time ~ /us$/ ? 1 : time ~ /ms$/ ? 1000 : 1000000) }
    $1 == "50%" || $1 == "99%" { printf "%s\tp%d %s\t%s\tus\n", round, $1, figure, us($2) }
    /^Requests\/sec/ { printf "%s\trate %s\t%s\t1/s\n", round, figure, $2 }' "$work/wrk" >>"$work/lines"
}

for size in $sizes; do
  echo "making $size keys" >&2
  start "$size"
  keys "$size" 1000 1
  run "$size" 2
done
ratios=
first=${sizes%% *}
for size in $sizes; do
  [ "$size" = "$first" ] && continue
  for figure in p50 p99 rate; do ratios="$ratios;$figure: $size keys to $first|$figure $size keys|$figure $first keys"; done
done
for ((round = 1; round <= rounds; round++)); do
  order=$sizes
  # Another one begins each time.
  if ((round % 2 == 0)); then order=$(tr ' ' '\n' <<<"$sizes" | tac | tr '\n' ' '); fi
  for size in $order; do
    echo "round $round of $rounds: $size keys" >&2
    run "$size" "$seconds"
    told "$round" "$size keys"
  done
done
for size in $sizes; do
  # Others than those before.
  keys "$size" $((size < 200000 ? size : 200000)) 2
  run "$size" "$seconds"
  told 1 "$size keys, new"
done
awk -v rounds="$rounds" -v "ratios=${ratios#;}" -f scripts/bench_table.awk "$work/lines"
