#!/usr/bin/env bash
# Loses a PostgreSQL database and gets it back, with a stopwatch: how much was lost, and how long it took.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/pitr_drill.sh [--seconds N] [--archive-timeout N] [--work DIRECTORY]

Starts a PostgreSQL of its own with conf/postgres/postgresql.conf, on a socket in a directory that goes away, and then

  1. makes a base backup, and writes rows for N seconds (150, so that the log is archived twice),
  2. kills the server as a power cut would, and deletes its whole data directory,
  3. makes a new one of the base backup and the archive (scripts/pitr.sh restore), starts it, and counts.

Passes if every row up to the last archived moment is there, none is there twice or out of order, less than 5 minutes
are lost (RPO), and it took less than 15 minutes (RTO). --archive-timeout replaces that of the file, in seconds.
As root it runs PostgreSQL as the user postgres. Touches no other database.
TXT
}

seconds=150 archive_timeout='' where=''
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    --archive-timeout) archive_timeout=${2:?--archive-timeout needs a number}; shift 2 ;;
    --work) where=${2:?--work needs a directory}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done
for number in "$seconds" "${archive_timeout:-1}"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || die "$number is not a number of seconds"
done

bin=${PG_BIN:-}
[ -n "$bin" ] || bin=$(dirname "$(command -v postgres || find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | sort -V | tail -n 1)")
[ -x "$bin/postgres" ] || die "postgres is missing: apt-get install postgresql, or set PG_BIN"
PATH="$bin:$PATH"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
settings="$root/conf/postgres/postgresql.conf"
[ -r "$settings" ] || die "there is no $settings"

umask 077
work=$(mktemp -d "${where:-${TMPDIR:-/tmp}}/pitr.XXXXXX")
as=()
if [ "$(id -u)" -eq 0 ]; then
  id postgres >/dev/null 2>&1 || die "PostgreSQL refuses to be root, and there is no user postgres"
  as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
  chown postgres: "$work"
fi
server='' writer=''
cleanup() {
  [ -z "$writer" ] || kill "$writer" 2>/dev/null || true
  # SIGQUIT ends a server with its children at once.
  [ -z "$server" ] || { kill -QUIT "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

export PGHOST="$work" PGPORT=5432 PGUSER=drill PGDATABASE=postgres PGAPPNAME=pitr_drill
as_postgres() { (cd "$work" && "${as[@]}" "$@"); }
start() {
  local options=(-D "$work/data" -c "config_file=$work/postgresql.conf" -c "hba_file=$work/data/pg_hba.conf"
    -c "ident_file=$work/data/pg_ident.conf" -c listen_addresses= -c "unix_socket_directories=$work" -c shared_buffers=32MB)
  [ -z "$archive_timeout" ] || options+=(-c "archive_timeout=${archive_timeout}s")
  # Not in a subshell, so that its process is ours to wait for; fd 9 is nobody's.
  WAL_ARCHIVE="$work/archive" "${as[@]}" "$bin/postgres" "${options[@]}" >>"$work/log" 2>&1 </dev/null &
  server=$!
  local deadline=$((SECONDS + 900))
  # Ready to write, not only to read: recovery has ended.
  until [ "$(psql -XAtqc 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ]; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$work/log" >&2; die "PostgreSQL ended"; }
    [ "$SECONDS" -lt "$deadline" ] || { tail -n 20 "$work/log" >&2; die "PostgreSQL is not ready within 15 minutes"; }
    sleep 0.1
  done
}
now() { date +%s.%N; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f", a - b }'; }

# Where the other user can read them, wherever the repository is.
cp "$settings" "$work/postgresql.conf"
cp "$root/scripts/pitr.sh" "$root/scripts/database.sh" "$work/"
chmod 0644 "$work/postgresql.conf" "$work/pitr.sh" "$work/database.sh"
as_postgres mkdir "$work/archive" "$work/base"
as_postgres "$bin/initdb" -D "$work/data" --username=drill --auth=trust --encoding=UTF8 --locale=C.UTF-8 --data-checksums --no-sync >"$work/initdb" 2>&1 ||
  { cat "$work/initdb" >&2; die "initdb failed"; }
start
psql -Xqc 'CREATE TABLE written (id BIGINT PRIMARY KEY, at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp())'
as_postgres env DATABASE_URL="postgres://drill@/postgres?host=$work&port=5432" bash "$work/pitr.sh" base --to "$work/base"
say "writing for $seconds seconds"
deadline=$((SECONDS + seconds))
# Acknowledged means that psql has returned: only then is the number written down.
write() {
  local id=0
  while [ "$SECONDS" -lt "$deadline" ]; do
    id=$((id + 1))
    psql -Xqc "INSERT INTO written (id) VALUES ($id)" && echo "$id" >"$work/acknowledged"
    sleep 0.1
  done
}
write &
writer=$!
wait "$writer"
writer=''
acknowledged=$(cat "$work/acknowledged")

lost_at=$(now)
kill -QUIT "$server"
wait "$server" || true
server=''
rm -rf "$work/data"
say "the server is gone, and its data with it; $acknowledged rows had been acknowledged"

as_postgres bash "$work/pitr.sh" restore --from "$work/base" --archive "$work/archive" --data "$work/data"
start
back_at=$(now)

IFS='|' read -r rows last at < <(psql -XAtqc "SELECT COUNT(*), COALESCE(MAX(id), 0), COALESCE(EXTRACT(EPOCH FROM MAX(at)), 0) FROM written")
[ "$rows" -gt 0 ] || die "no row came back: nothing was archived in time"
[ "$rows" -eq "$last" ] || die "rows are missing in the middle: $rows of them, up to number $last"
psql -Xqc "INSERT INTO written (id) VALUES ($((acknowledged + 1)))" || die "the new server does not take writes"
rpo=$(minus "$lost_at" "$at")
rto=$(minus "$back_at" "$lost_at")
say "$rows of $acknowledged rows are back, without a gap"
say "RPO: $rpo s of writes lost (bound: 300 s)"
say "RTO: $rto s until writes were taken again (bound: 900 s)"
awk -v rpo="$rpo" -v rto="$rto" 'BEGIN { exit !(rpo < 300 && rto < 900) }' || die "that is too much"
