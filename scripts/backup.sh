#!/usr/bin/env bash
# Makes one encrypted archive of the database, the configuration, the certificates and the secrets, and proves that it can be restored.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/backup.sh [--to DIRECTORY] [--config FILE] [--keep DAYS] [--remote REMOTE:PATH]
                         [--include PATH]... [--plain]

Runs beside a running gateway, in its working directory. Writes wasm-wizard-TIME.backup and its .sha256 to DIRECTORY
(data/backups), restores the archive into a scratch database, counts there, deletes archives older than DAYS (7),
and writes the time into DIRECTORY/last_success, which metrics.backup_stamp lets the gateway watch.

  the database   BACKUP_DATABASE_URL or DATABASE_URL (or either as …_FILE), else that of the configuration file.
                 With PostgreSQL the role must be allowed to make a database, for the scratch one.
  the key        BACKUP_KEY_FILE: a file with a passphrase (openssl), or BACKUP_AGE_RECIPIENTS: a file with
                 recipients (age), with BACKUP_AGE_IDENTITY, the identity, to verify. scripts/restore.sh needs the same.
  the secrets    the files that API_SALT_FILE, JWT_SECRET_FILE, ARTIFACT_KEY_FILE, DATABASE_URL_FILE and REDIS_URL_FILE
                 name, the variables themselves, and data/api_salt
  --include      one more file or directory; may be given several times
  --plain        no encryption; then private keys and secrets are left out
  --remote       copies the archive there with rclone, where it is kept until you delete it
TXT
}

to=data/backups config='' keep=7 remote='' plain=no include=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --to) to=${2:?--to needs a directory}; shift 2 ;;
    --config) config=${2:?--config needs a file}; shift 2 ;;
    --keep) keep=${2:?--keep needs a number of days}; shift 2 ;;
    --remote) remote=${2:?--remote needs REMOTE:PATH}; shift 2 ;;
    --include) include+=("${2:?--include needs a path}"); shift 2 ;;
    --plain) plain=yes; shift ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ "$keep" =~ ^[0-9]+$ ]] || die "--keep: $keep is not a number of days"
[ -z "$config" ] || [ -f "$config" ] || die "there is no file $config"

if [ "$plain" = yes ]; then
  method=plain
elif [ -n "${BACKUP_AGE_RECIPIENTS:-}" ]; then
  need age age
  [ -r "$BACKUP_AGE_RECIPIENTS" ] || die "BACKUP_AGE_RECIPIENTS: $BACKUP_AGE_RECIPIENTS can't be read"
  [ -r "${BACKUP_AGE_IDENTITY:-}" ] || die "set BACKUP_AGE_IDENTITY to the identity's file: what is not decrypted once is not known to be a backup"
  method=age
elif [ -n "${BACKUP_KEY_FILE:-}" ]; then
  need openssl openssl
  [ -s "$BACKUP_KEY_FILE" ] || die "BACKUP_KEY_FILE: $BACKUP_KEY_FILE is missing or empty"
  method=openssl
else
  die "there is no key: set BACKUP_KEY_FILE (scripts/generate_secrets.sh makes one) or BACKUP_AGE_RECIPIENTS, or give --plain"
fi

encrypt() {
  case "$method" in
    plain) cat ;;
    age) age --encrypt --recipients-file "$BACKUP_AGE_RECIPIENTS" ;;
    openssl) openssl enc -aes-256-cbc -salt -pbkdf2 -iter 600000 -md sha256 -pass "file:$BACKUP_KEY_FILE" ;;
  esac
}

umask 077
mkdir -p "$to"
# The gateway may be another user, who is to find last_success in it, and cannot read what else is there.
chmod 0711 "$to"
to=$(realpath "$to")
exec 9>"$to/.lock"
flock -n 9 || die "another backup to $to is running"
find "$to" -maxdepth 1 -name '.work.*' -exec rm -rf {} +
work=$(mktemp -d "$to/.work.XXXXXX")
scratch=''
# Called at the end, however it comes.
cleanup() {
  [ -z "$scratch" ] || dropdb --if-exists "$scratch" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
mkdir "$work/content" "$work/content/files"

url=$(database_url "$config")
case "$url" in
  postgres://* | postgresql://*)
    kind=postgres
    need pg_dump postgresql-client
    use_postgres "$url"
    before=$(counts postgres "$PGDATABASE") || die "the database can't be read"
    pg_dump --format=custom --compress=6 --no-owner --file="$work/content/database.dump"
    after=$(counts postgres "$PGDATABASE")
    # Whose it is and who gets in, for a restore where the database is gone.
    belongs="owner $(owner_of "$PGDATABASE")"
    while IFS= read -r role; do belongs+=$'\n'"connect $role"; done < <(connecting_to "$PGDATABASE")
    ;;
  sqlite:*)
    kind=sqlite
    need sqlite3 sqlite3
    file=$(sqlite_file "$url")
    [ -f "$file" ] || die "there is no database $file"
    before=$(counts sqlite "$file") || die "the database can't be read"
    # SQLite's own copy is one moment of a database that is being written to.
    sqlite3 -batch -cmd '.timeout 30000' "$file" ".backup '$work/content/database.sqlite'"
    after=$(counts sqlite "$file")
    ;;
  *) die "the database's URL must begin with sqlite:// or postgres://" ;;
esac
say "$kind: users, keys, modules, contents: $after"

# Puts a copy of a file into the archive, under the path it has here.
put() {
  [ -e "$1" ] || return 0
  local absolute
  absolute=$(realpath -s "$1")
  mkdir -p "$work/content/files$(dirname "$absolute")"
  cp -RLp "$1" "$work/content/files$absolute"
}
[ -z "$config" ] || put "$config"
# The files that lines like `cert: certs/site.crt` of the configuration name, and those of variables.
named() {
  [ -z "$config" ] || sed -nE "s/.*\\b($1): *[\"']?([^ \"'#,}]+)[\"']?.*/\\2/p" "$config"
}
while IFS= read -r path; do [ -z "$path" ] || put "$path"; done < <(named 'cert|ca|ocsp'; echo "${TLS_CERT_PATH:-}")
if [ "$method" != plain ]; then
  while IFS= read -r path; do [ -z "$path" ] || put "$path"; done < <(named key; echo "${TLS_KEY_PATH:-}")
  for name in API_SALT JWT_SECRET ARTIFACT_KEY DATABASE_URL REDIS_URL; do
    file_name="${name}_FILE"
    if [ -n "${!file_name:-}" ]; then
      put "${!file_name}"
    elif [ -n "${!name:-}" ]; then
      mkdir -p "$work/content/variables"
      printf '%s' "${!name}" >"$work/content/variables/$name"
    fi
  done
  put data/api_salt
fi
for path in "${include[@]}"; do
  [ -e "$path" ] || die "--include: there is no $path"
  put "$path"
done

cat >"$work/content/BACKUP" <<TXT
format 1
kind $kind
made $(date -u +%Y-%m-%dT%H:%M:%SZ)
host $(uname -n)
directory $PWD
counts $after
${belongs:-}
TXT
(cd "$work/content" && find . -type f ! -name MANIFEST -print0 | sort -z | xargs -0 sha256sum >"$work/MANIFEST")
mv "$work/MANIFEST" "$work/content/MANIFEST"

name="wasm-wizard-$(date -u +%Y%m%dT%H%M%SZ).backup"
[ "$method" != plain ] || name="${name%.backup}.plain.backup"
tar -C "$work/content" -cf - . | gzip -6 | encrypt >"$work/$name"
(cd "$work" && sha256sum "$name" >"$name.sha256")

# The proof: from the archive itself, into a database of its own.
mkdir "$work/again"
say "verifying $name"
"$(dirname "${BASH_SOURCE[0]}")/restore.sh" --unpack "$work/again" "$work/$name" >/dev/null
case "$kind" in
  postgres)
    scratch="wasm_wizard_verify_$$_$(date +%s)"
    createdb --template=template0 "$scratch" ||
      die "no scratch database can be made: give the role CREATEDB, or set BACKUP_DATABASE_URL_FILE to one that may"
    pg_restore --exit-on-error --no-owner --no-privileges --dbname="$scratch" "$work/again/database.dump"
    found=$(counts postgres "$scratch")
    bad=$(sql "$scratch" 'SELECT COUNT(*) FROM module_blobs WHERE sha256(wasm) <> hash')
    [ "$bad" = 0 ] || die "$bad stored modules are damaged in the database"
    ;;
  sqlite)
    found=$(counts sqlite "$work/again/database.sqlite")
    for pragma in integrity_check foreign_key_check; do
      answer=$(sqlite3 -batch "$work/again/database.sqlite" "PRAGMA $pragma")
      [ -z "$answer" ] || [ "$answer" = ok ] || die "the database is damaged: $pragma: $answer"
    done
    ;;
esac
# Others write meanwhile, so each count is one between before and after.
read -ra low <<<"$before"
read -ra high <<<"$after"
read -ra is <<<"$found"
for at in 0 1 2 3; do
  if [ "${low[at]}" -gt "${high[at]}" ]; then least=${high[at]} most=${low[at]}; else least=${low[at]} most=${high[at]}; fi
  { [ "${is[at]}" -ge "$least" ] && [ "${is[at]}" -le "$most" ]; } ||
    die "the archive does not hold what the database held: $found instead of $before to $after"
done

mv "$work/$name.sha256" "$to/$name.sha256"
mv "$work/$name" "$to/$name"
if [ -n "$remote" ]; then
  need rclone rclone
  rclone copyto "$to/$name" "$remote/$name"
  rclone copyto "$to/$name.sha256" "$remote/$name.sha256"
  say "copied to $remote"
fi
# The newest stays, however old it is.
find "$to" -maxdepth 1 -name 'wasm-wizard-*.backup' ! -name "$name" -mmin "+$((keep * 24 * 60))" -print |
  while IFS= read -r old; do
    rm -f "$old" "$old.sha256"
    say "deleted $old, older than $keep days"
  done
date +%s >"$work/stamp"
chmod 0644 "$work/stamp"
mv "$work/stamp" "$to/last_success"
say "made and verified $to/$name ($(stat -c %s "$to/$name") bytes)"
