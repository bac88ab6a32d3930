#!/usr/bin/env bash
# A minute after a deployment: does it answer, run a module, and refuse what it must?
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/smoke_test.sh URL [--ca FILE] [--module FILE]

Asks a running gateway, from outside, for what must work: health, refusals, headers, TLS; and with a key (API_KEY, or in the
file API_KEY_FILE) one-shot execution, and a stored module from upload to deletion. What it makes it deletes.
Prints one line for each check and exits with 1 if any fails. --ca names the authority of the certificate, else
the system's are trusted; --module another module than examples/guests/echo.wasm, which must echo its input.
TXT
}

url='' ca=''
module=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/examples/guests/echo.wasm
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --ca) ca=${2:?--ca needs a file}; shift 2 ;;
    --module) module=${2:?--module needs a file}; shift 2 ;;
    -*) usage >&2; exit 2 ;;
    *) [ -z "$url" ] || { usage >&2; exit 2; }; url=${1%/}; shift ;;
  esac
done
[ -n "$url" ] || { usage >&2; exit 2; }
need curl curl

umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/smoke-test.XXXXXX")
module_id=''
key=$(secret API_KEY)
printf 'Authorization: Bearer %s\n' "$key" >"$work/header"
options=(--silent --show-error --max-time 60)
[ -z "$ca" ] || options+=(--cacert "$ca")
cleanup() {
  [ -z "$module_id" ] || curl "${options[@]}" --header "@$work/header" --request DELETE "$url/api/wasm/modules/$module_id" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

failed=0
check() { # WHAT CONDITION…
  local what=$1
  shift
  if "$@"; then
    echo "ok      $what"
  else
    echo "FAILED  $what (status $status): $(head -c 300 "$work/body" | tr -d '\n')"
    failed=$((failed + 1))
  fi
}
# Asks, and keeps status, head and body.
status=000
ask() {
  status=$(curl "${options[@]}" --dump-header "$work/head" --output "$work/body" --write-out '%{http_code}' "$@" 2>"$work/error") || {
    status=000
    cp "$work/error" "$work/body"
  }
}
with_key() { ask --header "@$work/header" "$@"; }
is() { [[ "$status" == "$1"* ]]; }
says() { is "$1" && grep -q -- "$2" "$work/body"; }
has() { grep -qi "^$1: *$2" "$work/head"; }

ask "$url/health"
check 'health' says 200 '"status":"\(healthy\|degraded\)"'
for path in /health/live /health/ready /healthz /readyz; do
  ask "$url$path"
  check "health: $path" is 200
done
check 'every answer has an id' has x-request-id '[^ ]'
check 'headers: no sniffing of types' has x-content-type-options nosniff
check 'headers: no framing' has x-frame-options DENY
if [[ "$url" == https://* ]]; then check 'headers: HTTPS only' has strict-transport-security max-age; fi
ask --request TRACE "$url/health"
check 'TRACE is refused' test "$status" -ge 400
ask "$url/api/wasm/modules"
check 'without a key: 401' says 401 '"code":"unauthorized"'
printf 'Authorization: Bearer ww_this-is-no-key\n' >"$work/wrong"
ask --header "@$work/wrong" "$url/api/wasm/modules"
check 'with a wrong key: 401' says 401 '"code"'
ask "$url/api/this/is/not/there"
check 'an unknown path of the API: 404' says 404 '"code":"not_found"'
if [[ "$url" == https://* ]]; then
  refused() { ! curl "${options[@]}" --tls-max "$1" --output /dev/null "$url/health/live" 2>/dev/null; }
  for old in 1.0 1.1; do check "TLS $old is refused" refused "$old"; done
fi

if [ -n "$key" ]; then
  with_key --form "wasm=@$module" --form input=smoke "$url/api/wasm/execute"
  check 'execute: one-shot' says 200 '"output":"smoke"'
  with_key --form "wasm=@$module" --form name=smoke-test "$url/api/wasm/upload"
  check 'upload' says 201 '"sha256_hash"'
  module_id=$(sed -nE 's/.*"id":"([^"]*)".*/\1/p' "$work/body")
  with_key "$url/api/wasm/modules?limit=100"
  check 'list' says 200 "$module_id"
  with_key --header 'Content-Type: application/octet-stream' --data-binary again "$url/api/wasm/modules/$module_id/execute"
  check 'execute: stored' says 200 '"output":"again"'
  with_key --request DELETE "$url/api/wasm/modules/$module_id"
  check 'delete' is 204
  [ "$status" != 204 ] || module_id=''
  printf 'not a module' >"$work/junk"
  with_key --form "wasm=@$work/junk" "$url/api/wasm/execute"
  check 'what is no module is refused' says 4 '"code"'
else
  echo 'skipped execution: set API_KEY_FILE'
fi
if [ "$failed" -gt 0 ]; then
  echo "smoke_test.sh: $failed check(s) failed"
  exit 1
fi
echo 'smoke_test.sh: all is well'
