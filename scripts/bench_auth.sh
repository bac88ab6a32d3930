#!/usr/bin/env bash
# Latency of authentication at the gateway with few keys and with a million. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_auth.sh [OPTIONS]

Starts a PostgreSQL and a gateway of its own, on free ports in a temporary directory, makes N keys in the database and asks
a `respond` route that wants a key, over HTTPS, with 1000 of them in turn. Prints requests per second, p50 and p99 for
each N, twice: with the keys in memory ("known"), and with each key shown once ("new": the database is asked).

Options:
  --keys "N N…"   how many keys there are (default "1000 1000000")
  --seconds N     seconds for each run (default 5)
  --program FILE  the gateway (default: built now, in the profile bench)

Needs PostgreSQL's programs with its extension pgcrypto (Debian: postgresql; PG_BIN says where they are), wrk and curl.
TXT
}

sizes="1000 1000000"
seconds=5
program=
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --keys) sizes=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --program) program=$(realpath "$2"); shift ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
for tool in wrk curl psql "$bin/initdb"; do
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
gateway=
# shellcheck disable=SC2317,SC2329 # It is called by the trap.
end() {
  if [ -n "$gateway" ]; then
    kill "$gateway" 2>/dev/null || true
    wait "$gateway" 2>/dev/null || true
  fi
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
(cd / && "${as[@]}" "$bin/pg_ctl" -D "$pg/data" -w -l "$pg/log" -o "-p $port -c listen_addresses=127.0.0.1 \
  -c unix_socket_directories=$pg -c fsync=off -c max_wal_size=4GB" start >/dev/null)

salt=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export API_SALT=$salt

# The key with this number: known to the database by its hash alone.
key="'ww_' || substr(md5(i::text) || md5((-i)::text), 1, 43)"

for size in $sizes; do
  database=keys_$size
  sql() { psql -h "$pg" -p "$port" -U postgres -X -q -v ON_ERROR_STOP=1 "$@"; }
  sql -d postgres -c "CREATE DATABASE $database"
  export DATABASE_URL="postgres://postgres@127.0.0.1:$port/$database"
  https=$(free_port)
  {
    printf 'server:\n  https:\n    - address: 127.0.0.1:%s\n      certificates:\n' "$https"
    printf '        - { cert: certs/development.crt, key: certs/development.key, development: true }\n'
    printf '  http: []\n  admin: null\nlogging: { access: false, level: warn }\n'
    printf 'tiers: { enterprise: { per_minute: null, per_day: null } }\n'
    printf 'routes:\n  - { name: bench, match: { path: /bench }, auth: key, respond: { body: "" } }\n'
  } >"$work/gateway.yaml"
  (cd "$work" && "$program" migrate --config gateway.yaml >/dev/null)
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
  (cd "$work" && exec "$program" serve --config gateway.yaml) >"$work/stdout" 2>"$work/log" &
  gateway=$!
  for ((tries = 0; tries < 600; tries++)); do
    curl -sk -o /dev/null --fail "https://127.0.0.1:$https/health/ready" && break
    kill -0 "$gateway" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
  done
  for run in known new; do
    # All of them spread over what there is; new ones are others than those before.
    count=1000 first=1
    if [ "$run" = new ]; then count=$((size < 200000 ? size : 200000)); first=2; fi
    sql -d "$database" -At -c "SELECT $key FROM generate_series($first, $size, GREATEST(1, $size / $count)) i" >"$work/keys"
    cat >"$work/keys.lua" <<LUA
local keys, at = {}, 0
for line in io.lines("$work/keys") do keys[#keys + 1] = line end
function request()
  at = at % #keys + 1
  return wrk.format("GET", "/bench", { ["X-API-Key"] = keys[at] })
end
LUA
    [ "$run" = new ] || wrk -t1 -c8 -d2s -s "$work/keys.lua" "https://127.0.0.1:$https/bench" >/dev/null
    wrk -t1 -c8 "-d${seconds}s" --latency -s "$work/keys.lua" "https://127.0.0.1:$https/bench" >"$work/wrk"
    if grep -Eq 'Non-2xx|Socket errors' "$work/wrk"; then cat "$work/wrk" >&2; exit 1; fi
    awk -v size="$size" -v run="$run" '/^ *50%/ { p50 = $2 } /^ *99%/ { p99 = $2 } /^Requests/ { rate = $2 }
      END { printf "%s keys, %s: %s 1/s, p50 %s, p99 %s\n", size, run, rate, p50, p99 }' "$work/wrk"
  done
  kill "$gateway"
  wait "$gateway" || true
  gateway=
done
