#!/usr/bin/env bash
# Puts back what backup.sh made: the database, and the files that are missing.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/restore.sh latest|FILE [--from DIRECTORY] [--config FILE]
       scripts/restore.sh --unpack DIRECTORY FILE

Runs in the gateway's working directory, with the gateway stopped. `latest` is the newest archive in DIRECTORY
(data/backups). Nothing is lost: the database that is there is kept under another name, and of the configuration,
certificates and secrets only files that are missing are put back; one that differs is put beside, into
restored-TIME/, for you to compare (from an archive without encryption, all of them). Restoring the same archive twice does the same again.

  the database   as backup.sh finds it. With PostgreSQL the role must be allowed to make databases and to
                 rename this one (its owner, or a superuser). Its owner, who may connect to it, and what the
                 gateways' role may do in it stay as they are; where it is gone, they are as at the backup.
  the key        BACKUP_KEY_FILE, or BACKUP_AGE_IDENTITY, as it was for the backup
  --unpack       only decrypts, checks every file against the manifest, and unpacks into DIRECTORY
TXT
}

from=data/backups config='' unpack='' what=''
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --from) from=${2:?--from needs a directory}; shift 2 ;;
    --config) config=${2:?--config needs a file}; shift 2 ;;
    --unpack) unpack=${2:?--unpack needs a directory}; shift 2 ;;
    -*) usage >&2; exit 2 ;;
    *) [ -z "$what" ] || { usage >&2; exit 2; }; what=$1; shift ;;
  esac
done
[ -n "$what" ] || { usage >&2; exit 2; }

if [ "$what" = latest ]; then
  # The names sort by time.
  archive=$(find "$from" -maxdepth 1 -name 'wasm-wizard-*.backup' 2>/dev/null | sort | tail -n 1)
  [ -n "$archive" ] || die "there is no backup in $from"
else
  archive=$what
fi
[ -r "$archive" ] || die "$archive can't be read"

umask 077
if [ -r "$archive.sha256" ]; then
  read -r expected _ <"$archive.sha256"
  read -r is _ < <(sha256sum "$archive")
  [ "$expected" = "$is" ] || die "$archive is damaged: its SHA-256 is not the one in $archive.sha256"
fi

decrypt() {
  local head
  head=$(head -c 21 "$archive" | tr -d '\0')
  [[ "$archive" != *.plain.backup ]] || head=plain
  case "$head" in
    Salted__*)
      [ -s "${BACKUP_KEY_FILE:-}" ] || die "set BACKUP_KEY_FILE to the file with the passphrase of this backup"
      openssl enc -d -aes-256-cbc -pbkdf2 -iter 600000 -md sha256 -pass "file:$BACKUP_KEY_FILE" -in "$archive"
      ;;
    age-encryption.org*)
      need age age
      [ -r "${BACKUP_AGE_IDENTITY:-}" ] || die "set BACKUP_AGE_IDENTITY to the identity's file"
      age --decrypt --identity "$BACKUP_AGE_IDENTITY" "$archive"
      ;;
    plain) cat "$archive" ;;
    *) die "$archive is not encrypted, as its name says it is" ;;
  esac
}

# Decrypts and unpacks into a directory, and checks that every file there is what was put in.
unpack() {
  decrypt | tar -C "$1" --no-same-owner -xzf - || die "$archive can't be opened: is it the right key?"
  [ -f "$1/MANIFEST" ] || die "$archive is no backup of ours"
  (cd "$1" && sha256sum --quiet --strict --check MANIFEST >&2) || die "$archive is damaged inside"
  local listed there
  listed=$(wc -l <"$1/MANIFEST")
  there=$(find "$1" -type f ! -path "$1/MANIFEST" | wc -l)
  [ "$listed" -eq "$there" ] || die "$archive holds files that its manifest does not list"
}

if [ -n "$unpack" ]; then
  [ -d "$unpack" ] || die "there is no directory $unpack"
  unpack "$unpack"
  say "unpacked into $unpack"
  exit 0
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/wasm-wizard-restore.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
unpack "$work"
field() { sed -n "s/^$1 //p" "$work/BACKUP"; }
[ "$(field format)" = 1 ] || die "$archive has a newer format than this script knows"
kind=$(field kind)
stamp=$(date -u +%Y%m%dT%H%M%SZ)_$$
say "restoring $archive, made $(field made) on $(field host)"

# Files first: the secrets may say where the database is.
missing=0 other=0
while IFS= read -r -d '' file; do
  path="/${file#"$work/files/"}"
  # Anybody can make an archive without encryption: what is in it goes nowhere by itself.
  if [ ! -e "$path" ] && [[ "$archive" != *.plain.backup ]]; then
    mkdir -p "$(dirname "$path")"
    cp -p "$file" "$path"
    missing=$((missing + 1))
  elif [ ! -e "$path" ] || ! cmp -s "$file" "$path"; then
    mkdir -p "restored-$stamp$(dirname "$path")"
    cp -p "$file" "restored-$stamp$path"
    other=$((other + 1))
  fi
done < <(find "$work/files" -type f -print0 2>/dev/null)
say "$missing missing files put back"
[ "$other" = 0 ] || say "$other files differ from what is there; theirs are in restored-$stamp/"
if [ -d "$work/variables" ]; then
  mkdir -p "restored-$stamp"
  cp -Rp "$work/variables" "restored-$stamp/"
  say "secrets that were variables are in restored-$stamp/variables/"
fi

url=$(database_url "$config")
case "$kind:$url" in
  postgres:postgres*)
    need pg_restore postgresql-client
    use_postgres "$url"
    name=$PGDATABASE
    exists=$(sql postgres "SELECT COUNT(*) FROM pg_database WHERE datname = $(literal "$name")")
    if [ "$exists" != 0 ]; then
      owner=$(owner_of "$name")
      connecting=$(connecting_to "$name")
    else
      owner=$(field owner)
      connecting=$(field connect)
      if [ -z "$owner" ] || ! has_role "$owner"; then
        say "the tables will be ${PGUSER:-yours}'s: ${owner:-the backup does not say whose they were}${owner:+ is no role here}"
        owner=${PGUSER:-$(id -un)}
      fi
    fi
    new="${name}_new_$stamp"
    createdb --maintenance-db=postgres --template=template0 --owner="$owner" "$new"
    closed=''
    # What fails halfway leaves nothing behind, and the old database where it was.
    undo() {
      [ -z "$closed" ] || sql postgres "ALTER DATABASE $(quoted "$closed") WITH ALLOW_CONNECTIONS true" || true
      dropdb --maintenance-db=postgres --if-exists "$new" 2>/dev/null || true
      rm -rf "$work"
    }
    trap undo EXIT
    # Anybody may connect to a new database. Only a backup of before owners were noted leaves open whether that was so.
    if { [ "$exists" != 0 ] || [ -n "$(field owner)" ]; } && ! grep -qx PUBLIC <<<"$connecting"; then
      sql postgres "REVOKE ALL ON DATABASE $(quoted "$new") FROM PUBLIC"
    fi
    pg_restore --exit-on-error --no-owner --no-privileges --role="$owner" --dbname="$new" "$work/database.dump"
    # The rights of other roles by themselves: those that are no roles here get none, and that is no reason to stop.
    pg_restore --list "$work/database.dump" | grep -E '^[0-9]+; [0-9]+ [0-9]+ (DEFAULT )?ACL ' >"$work/rights" || true
    if [ -s "$work/rights" ] &&
      ! pg_restore --use-list="$work/rights" --no-owner --role="$owner" --dbname="$new" "$work/database.dump" 2>"$work/refused"; then
      grep 'ERROR' "$work/refused" | sort -u >&2 || true
      say "not all rights could be given: run wasm-wizard migrate --service-role ROLE before gateways start"
    fi
    while IFS= read -r role; do
      if [ -n "$role" ] && [ "$role" != PUBLIC ] && has_role "$role"; then
        sql postgres "GRANT CONNECT ON DATABASE $(quoted "$new") TO $(quoted "$role")"
      fi
    done <<<"$connecting"
    found=$(counts postgres "$new")
    if [ "$exists" != 0 ]; then
      # Gateways connect again at once; they get in when the new one is there.
      closed=$name
      sql postgres "ALTER DATABASE $(quoted "$name") WITH ALLOW_CONNECTIONS false"
      sql postgres "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $(literal "$name") AND pid <> pg_backend_pid()" >/dev/null
      sql postgres "ALTER DATABASE $(quoted "$name") RENAME TO $(quoted "${name}_before_$stamp")"
      closed="${name}_before_$stamp"
      say "what was there is now the database ${name}_before_$stamp; drop it when it is not needed"
    fi
    sql postgres "ALTER DATABASE $(quoted "$new") RENAME TO $(quoted "$name")"
    ;;
  sqlite:sqlite:*)
    need sqlite3 sqlite3
    file=$(sqlite_file "$url")
    mkdir -p "$(dirname "$file")"
    if [ -e "$file" ]; then
      # Leaves the write-ahead log for one file; refused while anybody else has it open.
      answer=$(sqlite3 -batch "$file" 'PRAGMA journal_mode = DELETE' 2>&1) || true
      case "$answer" in
        delete) ;;
        *locked*) die "$file is in use: stop the gateway first" ;;
        *) say "the database that is there can't be read ($answer); it is kept as it is" ;;
      esac
      for part in '' -wal -shm; do
        [ ! -e "$file$part" ] || mv "$file$part" "$file.before-$stamp$part"
      done
      say "what was there is now $file.before-$stamp"
    fi
    cp "$work/database.sqlite" "$file.part"
    sync "$file.part"
    mv "$file.part" "$file"
    found=$(counts sqlite "$file")
    ;;
  *) die "the backup is of $kind, and the database to restore to is not; set DATABASE_URL or DATABASE_URL_FILE" ;;
esac
[ "$found" = "$(field counts)" ] || say "users, keys, modules, contents: $(field counts) when the backup began"
say "restored: users, keys, modules, contents: $found"
say "run wasm-wizard migrate if the gateway is newer than the backup (with --service-role where it has a role of its own), and start it"
