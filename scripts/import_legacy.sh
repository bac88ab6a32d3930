#!/usr/bin/env bash
# Copies users, keys, tiers and modules of the earlier service (Actix behind nginx, on PostgreSQL) into the gateway's database.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/import_legacy.sh [--config FILE] [--program FILE] [--only-export FILE]

Reads the database of the earlier service, LEGACY_DATABASE_URL (or in the file LEGACY_DATABASE_URL_FILE), in one moment, changes
nothing there, and gives it to `wasm-wizard import`, which runs with the gateway's own configuration and environment (API_SALT,
DATABASE_URL …), and may do so beside a running gateway. Ids stay, and keys go on working. Run it again as often as you like:
what is there stays, what is new is added.

Prints the limits of the earlier tiers as `tiers:` for the configuration, and what was taken over. Rows that can't be
are named, and the exit code is then 1. --only-export writes the rows to FILE (mode 0600) and imports nothing.
docs/MIGRATING.md has the whole procedure.
TXT
}

config='' program=wasm-wizard export=''
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --config) config=${2:?--config needs a file}; shift 2 ;;
    --program) program=${2:?--program needs a file}; shift 2 ;;
    --only-export) export=${2:?--only-export needs a file}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done
need psql postgresql-client
command -v "$program" >/dev/null || [ -n "$export" ] || die "there is no program $program: give --program"
url=$(secret LEGACY_DATABASE_URL)
[ -n "$url" ] || die "set LEGACY_DATABASE_URL_FILE to a file with the URL of the earlier service's database"

umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/import-legacy.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# In a subshell, so that the gateway's program does not see the other database in its environment.
(
  use_postgres "$url"
  # Columns that came with later versions of the earlier service.
  expires=$(sql "$PGDATABASE" "SELECT COUNT(*) FROM information_schema.columns WHERE table_name = 'api_keys' AND column_name = 'expires_at'")
  modules=$(sql "$PGDATABASE" "SELECT COUNT(*) FROM information_schema.tables WHERE table_name = 'wasm_modules'")
  if [ "$expires" = 0 ]; then expires=NULL; else expires=k.expires_at; fi
  {
    # One snapshot for all, and few rows in memory at a time.
    echo 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;'
    echo "SELECT json_build_object('user', json_build_object('id', id, 'email', email, 'created_at', created_at)) FROM users ORDER BY created_at, id;"
    echo "SELECT json_build_object('key', json_build_object('id', k.id, 'user_id', k.user_id, 'sha256', k.key_hash, 'tier', t.name,
            'created_at', k.created_at, 'expires_at', $expires, 'revoked_at', CASE WHEN k.is_active THEN NULL ELSE k.updated_at END))
          FROM api_keys k JOIN subscription_tiers t ON t.id = k.tier_id ORDER BY k.created_at, k.id;"
    if [ "$modules" != 0 ]; then
      echo "SELECT json_build_object('module', json_build_object('id', id, 'user_id', user_id, 'name', name, 'description', description,
              'wasm', encode(wasm_data, 'base64'), 'sha256', sha256_hash, 'is_public', is_public, 'uploaded_at', upload_time,
              'last_executed_at', last_executed, 'execution_count', execution_count))
            FROM wasm_modules ORDER BY upload_time, id;"
    fi
    echo 'COMMIT;'
  } >"$work/query"
  psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --set FETCH_COUNT=20 --file "$work/query" >"$work/rows"
  psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 >"$work/tiers" <<'SQL'
SELECT format(E'  %s:\n    per_minute: %s\n    per_day: %s\n    memory_max: %sMiB\n    execution_timeout: %ss',
              lower(name), max_executions_per_minute, max_executions_per_day, max_memory_mb, max_execution_time_seconds)
FROM subscription_tiers WHERE lower(name) IN ('free', 'basic', 'pro', 'enterprise') ORDER BY max_executions_per_minute;
SQL
)
say "the limits of the earlier tiers, for the configuration:"
echo 'tiers:'
cat "$work/tiers"
if [ -n "$export" ]; then
  mv "$work/rows" "$export"
  say "wrote $export"
  exit 0
fi
arguments=(import "$work/rows")
[ -z "$config" ] || arguments=(--config "$config" "${arguments[@]}")
"$program" "${arguments[@]}"
