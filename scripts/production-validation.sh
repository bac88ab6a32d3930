#!/usr/bin/env bash
# Looks at a production deployment, from its files to its ports, for what should not be.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/production-validation.sh [--config FILE] [--secrets DIRECTORY] [--url URL] [--admin URL] [--ca FILE]
                                        [--program FILE] [--days N]

Each part is looked at where it is given: --config the configuration (with the environment of the gateway), --secrets
the directory of secrets, --url the public address, --admin the admin listener. Prints a line for each check: ok, FAILED, or
skipped with the reason. Exits with 1 if any fails, with 2 if nothing was given to look at.
--program is the gateway's (wasm-wizard), --days how long certificates must last at least (14). With a key (API_KEY_FILE or
API_KEY) the rate limit's headers are looked at too. Changes nothing.
TXT
}

config='' secrets='' url='' admin='' ca='' program=wasm-wizard days=14
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --config) config=${2:?--config needs a file}; shift 2 ;;
    --secrets) secrets=${2:?--secrets needs a directory}; shift 2 ;;
    --url) url=${2:?--url needs a URL}; url=${url%/}; shift 2 ;;
    --admin) admin=${2:?--admin needs a URL}; admin=${admin%/}; shift 2 ;;
    --ca) ca=${2:?--ca needs a file}; shift 2 ;;
    --program) program=${2:?--program needs a file}; shift 2 ;;
    --days) days=${2:?--days needs a number}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ "$days" =~ ^[0-9]+$ ]] || die "--days: $days is not a number"
[ -n "$config$secrets$url$admin" ] || { usage >&2; exit 2; }
need curl curl
need openssl openssl

umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/validation.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
failed=0
passed() { echo "ok      $1"; }
failure() { echo "FAILED  $1: $2"; failed=$((failed + 1)); }
skipped() { echo "skipped $1: $2"; }
check() { # WHAT WHY-NOT CONDITION…
  local what=$1 why=$2
  shift 2
  if "$@" >/dev/null; then passed "$what"; else failure "$what" "$why"; fi
}
mode() { stat -c %a "$1"; }
# Nobody but the owner gets anything.
private() { [[ "$(mode "$1")" == *00 ]]; }
not_writable() { [ $((0$(mode "$1") & 022)) -eq 0 ]; }

configuration() {
  [ -f "$config" ] || { failure configuration "there is no file $config"; return; }
  check 'configuration: only its owner writes it' "mode $(mode "$config"): chmod go-w" not_writable "$config"
  if command -v "$program" >/dev/null; then
    if "$program" check --config "$config" >"$work/check" 2>&1; then
      passed 'configuration: valid'
      "$program" check --print --config "$config" >"$work/effective" 2>/dev/null || true
      local environment
      environment=$(sed -nE 's/^environment: *//p' "$work/effective")
      check 'configuration: environment' "it is $environment, not production" test "$environment" = production
      check 'configuration: database' 'production needs PostgreSQL' grep -qE 'url: .?postgres' "$work/effective"
    else
      failure 'configuration: valid' "$(head -n 3 "$work/check" | tr '\n' ' ')"
    fi
  else
    skipped 'configuration: valid' "there is no program $program"
  fi
  local key
  while IFS= read -r key; do
    [ -e "$key" ] || { failure "private key $key" 'it is not there'; continue; }
    check "private key $key" "mode $(mode "$key"): chmod 0600" private "$key"
  done < <(sed -nE "s/.*\\bkey: *[\"']?([^ \"'#,}]+\\.(key|pem))[\"']?.*/\\1/p" "$config")
  if grep -qE '^[^#]*(salt|password|secret|key): *["'\'']?[A-Za-z0-9+/_-]{24,}["'\'']? *(#.*)?$' "$config"; then
    failure 'configuration: no secrets' 'it seems to hold one; put it into a file and name that in a variable (…_FILE)'
  else
    passed 'configuration: no secrets'
  fi
}

secret_files() {
  [ -d "$secrets" ] || { failure secrets "there is no directory $secrets"; return; }
  check 'secrets: directory' "mode $(mode "$secrets"): chmod 0700" private "$secrets"
  local file name
  for file in "$secrets"/*; do
    [ -f "$file" ] || continue
    name=${file##*/}
    check "secrets: $name is private" "mode $(mode "$file"): chmod 0600" private "$file"
    case "$name" in
      api_salt | jwt_secret | artifact_key | *_password | backup_key)
        check "secrets: $name is long" 'less than 32 characters: scripts/generate_secrets.sh makes good ones' \
          test "$(wc -c <"$file")" -ge 32
        ;;
    esac
  done
  [ -s "$secrets/api_salt" ] || failure 'secrets: api_salt' 'it is missing or empty'
  # Files with the same content, of those that must differ.
  local twice
  twice=$(find "$secrets" -maxdepth 1 -type f -size +31c -exec sha256sum {} + | sort | uniq -w 64 --all-repeated | awk '{print $2}' | tr '\n' ' ')
  check 'secrets: all differ' "the same content: $twice" test -z "$twice"
  if git -C "$secrets" rev-parse >/dev/null 2>&1; then
    check 'secrets: not in git' 'git knows files in it' test -z "$(git -C "$secrets" ls-files -- . 2>/dev/null)"
  fi
}

options=(--silent --show-error --max-time 60)
[ -z "$ca" ] || options+=(--cacert "$ca")
status=000
ask() {
  status=$(curl "${options[@]}" --dump-header "$work/head" --output "$work/body" --write-out '%{http_code}' "$@" 2>"$work/error") || status=000
}
has() { grep -qi "^$1: *$2" "$work/head"; }

public() {
  ask "$url/health"
  check 'health' "status $status $(head -c 200 "$work/error")" test "$status" = 200
  check 'headers: X-Content-Type-Options' 'is not nosniff' has x-content-type-options nosniff
  check 'headers: X-Frame-Options' 'is missing' has x-frame-options '[A-Z]'
  check 'headers: Content-Security-Policy' 'is missing' has content-security-policy '[a-z]'
  check 'headers: Referrer-Policy' 'is missing' has referrer-policy '[a-z]'
  check 'headers: no word on the software' 'Server says which' test -z "$(grep -iE '^server: .*[0-9]' "$work/head" || true)"
  ask "$url/metrics"
  check 'metrics are not public' "the public listener shows them (status $status)" test "$status" != 200
  ask "$url/api/wasm/modules"
  check 'the API wants a key' "status $status" test "$status" = 401
  head -c 70000 /dev/zero | tr '\0' a >"$work/long"
  printf 'X-Long: %s\n' "$(<"$work/long")" >"$work/header"
  ask --header "@$work/header" "$url/health"
  check 'limits: a head of 70 kB is refused' "status $status" test "$status" -ge 400 -o "$status" = 000
  ask --http1.1 --request POST --header 'Content-Type: application/json' --header 'Content-Length: 99999999999' \
    --header 'Expect: 100-continue' --data-binary x "$url/api/auth/keys"
  check 'limits: a body of 100 GB is refused' "status $status" test "$status" -ge 400
  local key
  key=$(secret API_KEY)
  if [ -n "$key" ]; then
    printf 'Authorization: Bearer %s\n' "$key" >"$work/header"
    ask --header "@$work/header" "$url/api/wasm/modules"
    if has x-ratelimit-limit '[0-9]'; then
      passed 'limits: the rate limit is told'
    else
      skipped 'limits: the rate limit is told' "status $status, and the tier of the key has no limit; use one of another tier"
    fi
  else
    skipped 'limits: the rate limit is told' 'set API_KEY_FILE'
  fi
  if [[ "$url" == https://* ]]; then tls; else failure TLS "$url is not https"; fi
}

tls() {
  local rest=${url#https://} host port
  rest=${rest%%/*}
  host=${rest%:*}
  port=${rest##*:}
  [ "$port" != "$rest" ] || port=443
  has strict-transport-security 'max-age=' || true
  ask "$url/health/live"
  check 'TLS: certificate is trusted and names the host' "$(head -c 200 "$work/error")" test "$status" = 200
  check 'TLS: Strict-Transport-Security' 'is missing' has strict-transport-security max-age=
  local version
  for version in 1.0 1.1; do
    if curl "${options[@]}" --tls-max "$version" --output /dev/null "$url/health/live" 2>/dev/null; then
      failure "TLS: $version is refused" 'it is spoken'
    else
      passed "TLS: $version is refused"
    fi
  done
  for version in 1.2 1.3; do
    check "TLS: $version is spoken" 'it is not' curl "${options[@]}" "--tlsv$version" --tls-max "$version" --output /dev/null "$url/health/live"
  done
  if openssl s_client -connect "$host:$port" -servername "$host" </dev/null 2>/dev/null | openssl x509 >"$work/certificate" 2>/dev/null; then
    check "TLS: the certificate lasts $days days" "it ends on $(openssl x509 -in "$work/certificate" -noout -enddate | cut -d= -f2)" \
      openssl x509 -in "$work/certificate" -noout -checkend $((days * 86400))
    check 'TLS: no development certificate' 'it was made by the gateway itself' \
      test -z "$(openssl x509 -in "$work/certificate" -noout -subject | grep -i 'development' || true)"
  else
    failure 'TLS: certificate' 'none was shown'
  fi
  # What belongs behind the gateway must not be beside it.
  if [ "$host" = localhost ] || [[ "$host" == 127.* ]] || [ "$host" = '[::1]' ]; then
    skipped 'ports: only those of the gateway' "$host is not what others see"
    return
  fi
  local behind
  for behind in 5432 6379 9090 9091 9093 3000; do
    if timeout 3 bash -c "exec 3<>/dev/tcp/$host/$behind" 2>/dev/null; then
      failure "ports: $behind is closed" 'it accepts connections from here'
    else
      passed "ports: $behind is closed"
    fi
  done
}

admin_listener() {
  ask "$admin/health"
  check 'admin: health' "status $status" test "$status" = 200
  check 'admin: no configuration was refused' 'a newer one was; /health says why' test -z "$(grep -o '"refused"' "$work/body" || true)"
  ask "$admin/metrics"
  check 'admin: metrics' "status $status" grep -q '^wasmwiz_build_info' "$work/body"
  check 'admin: the database answers' 'wasmwiz_database_up is 0' grep -qx 'wasmwiz_database_up 1' "$work/body"
  if grep -qx 'wasmwiz_backup_watched 1' "$work/body"; then
    local made
    made=$(sed -nE 's/^wasmwiz_backup_last_success_timestamp_seconds ([0-9]+).*/\1/p' "$work/body")
    check 'admin: a backup of the last day' 'scripts/backup.sh' test $(($(date +%s) - made)) -lt 86400
  else
    failure 'admin: backups are watched' 'set metrics.backup_stamp'
  fi
}

[ -z "$config" ] || configuration
[ -z "$secrets" ] || secret_files
[ -z "$url" ] || public
[ -z "$admin" ] || admin_listener
if [ "$failed" -gt 0 ]; then
  echo "production-validation.sh: $failed check(s) failed"
  exit 1
fi
echo 'production-validation.sh: no check failed'
