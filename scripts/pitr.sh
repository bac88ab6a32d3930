#!/usr/bin/env bash
# Point-in-time recovery of PostgreSQL: base backups, and a data directory made of one and the archived log.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/pitr.sh base --to DIRECTORY [--archive DIRECTORY] [--keep NUMBER]
       scripts/pitr.sh restore --from DIRECTORY --archive DIRECTORY --data DIRECTORY [--until TIME]

base      Copies the running server into DIRECTORY/base-TIME, verified, and keeps the NUMBER (2) newest. With --archive,
          deletes what the oldest of them does not need from the archive. The server is that of BACKUP_DATABASE_URL
          or DATABASE_URL (or either as …_FILE), with a role that may replicate.
restore   Makes the data directory DATA, which must be missing or empty, of the newest base backup in DIRECTORY that
          is older than TIME. Start PostgreSQL on it as its own user: it replays ARCHIVE up to TIME (RFC 3339), or to its
          end, and then serves. Its settings must be such as conf/postgres/postgresql.conf.

Archiving is set up by conf/postgres/postgresql.conf (archive_command). docs/OPERATIONS.md has the whole procedure,
and scripts/pitr_drill.sh shows it.
TXT
}

command=${1:-}
[ $# -eq 0 ] || shift
to='' from='' archive='' data='' until='' keep=2
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --to) to=${2:?--to needs a directory}; shift 2 ;;
    --from) from=${2:?--from needs a directory}; shift 2 ;;
    --archive) archive=${2:?--archive needs a directory}; shift 2 ;;
    --data) data=${2:?--data needs a directory}; shift 2 ;;
    --until) until=${2:?--until needs a time}; shift 2 ;;
    --keep) keep=${2:?--keep needs a number}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done
bases() { find "$1" -maxdepth 1 -type d -name 'base-*' | sort; }
program() {
  local found
  found=$(command -v "$1" || find /usr/lib/postgresql -path "*/bin/$1" 2>/dev/null | sort -V | tail -n 1)
  [ -n "$found" ] || die "$1 is missing: apt-get install postgresql"
  printf '%s' "$found"
}

base() {
  [ -n "$to" ] || { usage >&2; exit 2; }
  [[ "$keep" =~ ^[1-9][0-9]*$ ]] || die "--keep: $keep is not a number of backups"
  use_postgres "$(database_url '')"
  umask 077
  mkdir -p "$to"
  exec 9>"$to/.lock"
  flock -n 9 || die "another base backup to $to is being made"
  find "$to" -maxdepth 1 -name '.part-*' -exec rm -rf {} +
  local name part
  name="base-$(date -u +%Y%m%dT%H%M%SZ)"
  part="$to/.part-$name"
  pg_basebackup --pgdata="$part" --format=plain --wal-method=stream --checkpoint=fast --no-password
  "$(program pg_verifybackup)" --quiet "$part" || die "the copy does not verify"
  mv --no-target-directory "$part" "$to/$name" || { rm -rf "$part"; die "there is a $to/$name of this second already"; }
  say "made and verified $to/$name"
  bases "$to" | head -n "-$keep" | while IFS= read -r old; do
    rm -rf "$old"
    say "deleted $old"
  done
  if [ -n "$archive" ]; then
    local oldest first
    oldest=$(bases "$to" | head -n 1)
    first=$(sed -nE 's/^START WAL LOCATION: .*\(file ([0-9A-F]{24})\)$/\1/p' "$oldest/backup_label")
    [ -n "$first" ] || die "$oldest/backup_label does not say where the log begins"
    "$(program pg_archivecleanup)" "$archive" "$first"
  fi
}

restore() {
  { [ -n "$from" ] && [ -n "$archive" ] && [ -n "$data" ]; } || { usage >&2; exit 2; }
  [ -d "$archive" ] || die "there is no archive $archive"
  archive=$(realpath "$archive")
  case "$archive" in *[\'\"%\\]*) die "the archive's path has a character that PostgreSQL would read otherwise" ;; esac
  if [ -e "$data" ] && [ -n "$(ls -A "$data")" ]; then die "$data is not empty: move it away first"; fi
  local chosen='' made base until_seconds=''
  [ -z "$until" ] || until_seconds=$(date -d "$until" +%s) || die "--until: $until is not a time"
  while IFS= read -r base; do
    made=$(stat -c %Y "$base/backup_manifest")
    if [ -z "$until_seconds" ] || [ "$made" -le "$until_seconds" ]; then chosen=$base; fi
  done < <(bases "$from")
  [ -n "$chosen" ] || die "there is no base backup in $from${until:+ from before $until}"
  "$(program pg_verifybackup)" --quiet "$chosen" || die "$chosen is damaged"
  umask 077
  mkdir -p "$data"
  cp -a "$chosen/." "$data/"
  chmod 0700 "$data"
  # A segment that is only half there has another name, so whatever has this one is whole.
  {
    echo "restore_command = 'cp \"$archive/%f\" \"%p\"'"
    echo "recovery_target_timeline = 'latest'"
    echo "recovery_target_action = 'promote'"
    # Quotation marks can't be in what date prints.
    [ -z "$until" ] || echo "recovery_target_time = '$(date -u -d "$until" '+%Y-%m-%d %H:%M:%S.%6N+00')'"
  } >>"$data/postgresql.auto.conf"
  touch "$data/recovery.signal"
  say "$data is made of $chosen; start PostgreSQL on it"
}

case "$command" in
  -h | --help | '') usage; [ -n "$command" ] || exit 2 ;;
  base) base ;;
  restore) restore ;;
  *) usage >&2; exit 2 ;;
esac
