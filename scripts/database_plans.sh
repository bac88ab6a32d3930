#!/usr/bin/env bash
# Fills a throw-away PostgreSQL with a million keys and ten million usage rows, and prints the plans of the queries.
set -euo pipefail

keys=1000000
usage=10000000
out=/dev/stdout
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      cat <<'TXT'
Usage: scripts/database_plans.sh [--keys N] [--usage N] [--out FILE]

Starts a PostgreSQL of its own in a temporary directory, which it removes at the end; applies the migrations, makes N keys
(default 1000000; a user for each ten, an audit row for each) and N usage rows (default 10000000), and prints
EXPLAIN (ANALYZE, BUFFERS) of what the gateway asks. Takes five to ten minutes, 8 GB of disk at most, and PostgreSQL's programs
(package postgresql; PG_BIN says where they are).
TXT
      exit 0
      ;;
    --keys) keys=$2; shift 2 ;;
    --usage) usage=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "database_plans.sh: $1? See --help" >&2; exit 2 ;;
  esac
done
case "$keys$usage" in *[!0-9]*) echo "database_plans.sh: N is a number; see --help" >&2; exit 2 ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
[ -x "$bin/initdb" ] || { echo "database_plans.sh: $bin/initdb is missing: apt-get install postgresql, or set PG_BIN" >&2; exit 1; }

work=$(mktemp -d)
as=()
if [ "$(id -u)" -eq 0 ]; then
  # PostgreSQL refuses to run as root.
  chown postgres "$work"
  as=(setpriv --reuid postgres --regid postgres --clear-groups)
fi
# shellcheck disable=SC2317,SC2329 # It is called by the trap.
end() {
  "${as[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap end EXIT

(cd / && "${as[@]}" "$bin/initdb" -D "$work/data" -U postgres --auth=trust --no-sync --locale=C.UTF-8 >/dev/null)
(cd / && "${as[@]}" "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work \
  -c fsync=off -c max_wal_size=8GB -c shared_buffers=512MB -c maintenance_work_mem=256MB" start >/dev/null)
sql() { psql -h "$work" -U postgres -X -q -v ON_ERROR_STOP=1 "$@"; }

for migration in migrations/postgres/*.up.sql; do sql -1 -f "$migration"; done

# A UUIDv7 by time, as the program makes them.
sql -c "
CREATE FUNCTION v7(at TIMESTAMPTZ, n BIGINT) RETURNS UUID LANGUAGE sql IMMUTABLE AS \$\$
  SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
          || substr(md5(n::text), 1, 3) || 'b' || substr(md5(n::text), 4, 15))::uuid
\$\$;
CREATE FUNCTION began() RETURNS TIMESTAMPTZ LANGUAGE sql IMMUTABLE AS \$\$ SELECT TIMESTAMPTZ '2026-01-01Z' \$\$;"

echo "making $keys keys and $usage usage rows" >&2
sql -v keys="$keys" -v usage="$usage" <<'SQL'
INSERT INTO users (id, email, email_key, role, tier, created_at)
SELECT v7(began() + i * interval '1 s', i), 'user' || i || '@example.org', 'user' || i || '@example.org',
       CASE WHEN i = 1 THEN 'admin' ELSE 'user' END, 'free', began() + i * interval '1 s'
FROM generate_series(1, :keys / 10) i;
INSERT INTO api_keys (id, user_id, name, prefix, hash, tier, scopes, created_at, revoked_at)
SELECT v7(began() + i * interval '100 ms', i), v7(began() + (1 + i % (:keys / 10)) * interval '1 s', 1 + i % (:keys / 10)),
       'key', 'ww_' || substr(md5(i::text), 1, 8), sha256(i::text::bytea), 'free', 15, began() + i * interval '100 ms',
       CASE WHEN i % 10 = 0 THEN began() + interval '60 d' END
FROM generate_series(1, :keys) i;
INSERT INTO audit (id, at, actor, user_id, key_id, action, subject_id, after)
SELECT v7(began() + i * interval '100 ms', i), began() + i * interval '100 ms', 'user',
       v7(began() + (1 + i % (:keys / 10)) * interval '1 s', 1 + i % (:keys / 10)),
       v7(began() + i / 100 * 100 * interval '100 ms', i / 100 * 100), 'key.create',
       v7(began() + i * interval '100 ms', i), '{"tier": "free"}'
FROM generate_series(1, :keys) i;
INSERT INTO usage (id, at, user_id, key_id, module, status, wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out, request_id)
SELECT v7(began() + i * interval '1 s', i), began() + i * interval '1 s',
       v7(began() + (1 + i % 10000) * interval '1 s', 1 + i % 10000), NULL, sha256((i % 500)::text::bytea),
       CASE WHEN i % 20 = 0 THEN 'execution_error' ELSE 'success' END, 500, 400, 65536, 100, 200, md5(i::text)
FROM generate_series(1, :usage) i;
INSERT INTO usage_daily
SELECT user_id, (at AT TIME ZONE 'UTC')::date, '00000000-0000-0000-0000-000000000000'::uuid, module, status, count(*), sum(wall_us),
       sum(cpu_us), max(memory_peak_bytes), sum(bytes_in), sum(bytes_out)
FROM usage GROUP BY 1, 2, 3, 4, 5;
VACUUM ANALYZE;
SQL

plan() {
  printf '\n## %s\n\n' "$1"
  sql -At -c "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) $2"
}
# asked NAME STATEMENT TYPES VALUES: as the gateway asks, which has it planned for these values.
asked() {
  printf '\n## %s\n\n' "$1"
  sql -At <<SQL
SET plan_cache_mode = force_custom_plan;
PREPARE asked($3) AS $2;
EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) EXECUTE asked($4);
SQL
}
user="v7(began() + 77 * interval '1 s', 77)"
key="v7(began() + 7700 * interval '100 ms', 7700)"
{
  sql -At -F ' ' -c "SELECT relname, reltuples::bigint, pg_size_pretty(pg_relation_size(oid)) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i') AND reltuples > 0 ORDER BY relname"
  plan "authentication: a key by its hash" "SELECT k.id, k.user_id, k.name, k.prefix, k.tier, k.scopes, k.created_at, k.expires_at,
    k.revoked_at, k.last_used_at, r.new_id, k.hash, u.role, u.disabled_at FROM api_keys k
    LEFT JOIN key_rotations r ON r.old_id = k.id JOIN users u ON u.id = k.user_id WHERE k.hash = sha256('4711'::bytea)"
  plan "a user's keys" "SELECT k.id, r.new_id FROM api_keys k LEFT JOIN key_rotations r ON r.old_id = k.id
    WHERE k.user_id = $user ORDER BY k.id DESC"
  plan "whether a key may still be used" "SELECT 1 FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id =
    v7(began() + 4711 * interval '100 ms', 4711) AND k.revoked_at IS NULL AND u.disabled_at IS NULL"
  plan "a user by email" "SELECT id FROM users WHERE email_key = 'user4711@example.org'"
  plan "users by a part of their email" "SELECT id FROM users WHERE email_key LIKE '%4711%' ORDER BY id DESC LIMIT 20"
  plan "the newest page of all keys" "SELECT k.id, u.email FROM api_keys k LEFT JOIN key_rotations r ON r.old_id = k.id
    JOIN users u ON u.id = k.user_id ORDER BY k.id DESC LIMIT 20"
  plan "how many keys there are" "SELECT COUNT(*) FROM api_keys"
  plan "the newest page of the audit" "SELECT id, action FROM audit WHERE id < 'ffffffff-ffff-ffff-ffff-ffffffffffff' ORDER BY id DESC LIMIT 50"
  asked "the keys of one user, as an admin lists them" "SELECT k.id, u.email FROM api_keys k
    LEFT JOIN key_rotations r ON r.old_id = k.id JOIN users u ON u.id = k.user_id WHERE (\$1 IS NULL OR k.user_id = \$1)
    AND (\$2 IS NULL OR (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > \$2)))
    ORDER BY k.id DESC LIMIT \$3 OFFSET \$4" "uuid, timestamptz, bigint, bigint" "$user, NULL, 20, 0"
  asked "the audit of one user" "SELECT id, action FROM audit WHERE id < \$1 AND id >= \$2 AND user_id = \$3
    AND (\$4 IS NULL OR key_id = \$4) AND (\$5 IS NULL OR subject_id = \$5) AND (\$6 IS NULL OR action = \$6)
    AND (\$7 IS NULL OR at >= \$7) AND (\$8 IS NULL OR at < \$8) ORDER BY id DESC LIMIT \$9" \
    "uuid, uuid, uuid, uuid, uuid, text, timestamptz, timestamptz, bigint" \
    "'ffffffff-ffff-ffff-ffff-ffffffffffff', '00000000-0000-0000-0000-000000000000', $user, NULL, NULL, NULL, NULL, NULL, 50"
  asked "the audit of one key" "SELECT id, action FROM audit WHERE id < \$1 AND id >= \$2 AND (\$3 IS NULL OR user_id = \$3)
    AND key_id = \$4 AND (\$5 IS NULL OR subject_id = \$5) AND (\$6 IS NULL OR action = \$6)
    AND (\$7 IS NULL OR at >= \$7) AND (\$8 IS NULL OR at < \$8) ORDER BY id DESC LIMIT \$9" \
    "uuid, uuid, uuid, uuid, uuid, text, timestamptz, timestamptz, bigint" \
    "'ffffffff-ffff-ffff-ffff-ffffffffffff', '00000000-0000-0000-0000-000000000000', NULL, $key, NULL, NULL, NULL, NULL, 50"
  plan "the audit of one subject" "SELECT id, action FROM audit
    WHERE subject_id = v7(began() + 4711 * interval '100 ms', 4711) ORDER BY id DESC LIMIT 50"
  plan "stopped modules" "SELECT id FROM modules WHERE stopped_at IS NOT NULL"
  plan "a user's newest executions" "SELECT id, status FROM usage WHERE user_id = $user ORDER BY id DESC LIMIT 100"
  plan "everybody's newest executions" "SELECT id, status FROM usage ORDER BY id DESC LIMIT 100"
  plan "a user's month by day" "SELECT day, SUM(executions) FROM usage_daily WHERE user_id = $user
    AND day BETWEEN '2026-02-01' AND '2026-02-28' GROUP BY day"
  plan "everybody's day" "SELECT status, SUM(executions) FROM usage_daily WHERE day = '2026-02-01' GROUP BY status"
  plan "a batch of what is too old" "SELECT id FROM usage WHERE id < v7(began() + interval '10 d', 1) ORDER BY id LIMIT 1000"
} >"$out"
