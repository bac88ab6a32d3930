#!/usr/bin/env bash
# Goes back to the version that ran before, without a lost request, and sees whether that serves.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/rollback.sh --program FILE --pid PID [--admin URL] [--timeout SECONDS]
       scripts/rollback.sh --compose FILE --version VERSION
       scripts/rollback.sh --kubernetes NAMESPACE [--deployment NAME]

--program     swaps FILE and FILE.previous (keep the old program under that name when you install a new one: mv, then
              install) and has the running gateway PID start it (SIGUSR2). If the old version does not come up within
              SECONDS (120), the files are swapped back and the gateway that runs goes on.
--compose     starts the gateways with the image of VERSION, and waits until they are healthy
--kubernetes  kubectl rollout undo of the Deployment (gateway), and waits

A version works with the database of the next one, so the schema stays as it is. For data, see scripts/restore.sh. Run
twice, --program goes forward again; the others change nothing the second time, or go back once more (Kubernetes).
TXT
}

program='' pid='' admin=http://127.0.0.1:9091 timeout=120 compose='' version='' namespace='' deployment=gateway
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --program) program=${2:?--program needs a file}; shift 2 ;;
    --pid) pid=${2:?--pid needs a number}; shift 2 ;;
    --admin) admin=${2:?--admin needs a URL}; admin=${admin%/}; shift 2 ;;
    --timeout) timeout=${2:?--timeout needs a number}; shift 2 ;;
    --compose) compose=${2:?--compose needs a file}; shift 2 ;;
    --version) version=${2:?--version needs a version}; shift 2 ;;
    --kubernetes) namespace=${2:?--kubernetes needs a namespace}; shift 2 ;;
    --deployment) deployment=${2:?--deployment needs a name}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done

# Exchanges the two files; at every moment there is a program under the name.
swap() {
  ln -f "$program" "$program.swap"
  mv -f "$program.previous" "$program"
  mv -f "$program.swap" "$program.previous"
}
uptime_of() { curl --silent --max-time 5 "$admin/health" | sed -nE 's/.*"uptime_seconds":([0-9]+).*/\1/p'; }

by_program() {
  [[ "$pid" =~ ^[1-9][0-9]*$ ]] || die "--pid: give the process of the gateway"
  [[ "$timeout" =~ ^[1-9][0-9]*$ ]] || die "--timeout: $timeout is not a number"
  need curl curl
  [ -x "$program.previous" ] || die "there is no $program.previous to go back to"
  kill -0 "$pid" 2>/dev/null || die "there is no process $pid"
  "$program.previous" --version >/dev/null || die "$program.previous does not run here"
  say "from $("$program" --version) to $("$program.previous" --version)"
  swap
  kill -USR2 "$pid"
  # The old process ends once the new one serves.
  local deadline=$((SECONDS + timeout))
  while kill -0 "$pid" 2>/dev/null && [[ "$(ps -o stat= -p "$pid")" != Z* ]]; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      swap
      die "the previous version did not come up within $timeout seconds: its log says why. The files are as they were, and $pid goes on"
    fi
    sleep 0.2
  done
  [ -n "$(uptime_of)" ] || die "$pid has ended, but $admin does not answer: start the gateway"
  say "the previous version serves; $program.previous is the one that was rolled back"
}

by_compose() {
  [ -n "$version" ] || die "--version: say which to go back to"
  docker image inspect "wasm-wizard:$version" >/dev/null || die "there is no image wasm-wizard:$version here"
  WASM_WIZARD_VERSION=$version docker compose -f "$compose" up --detach --no-deps --no-build --wait gateway
  say "version $version serves; write WASM_WIZARD_VERSION=$version into .env, so that it stays"
}

by_kubernetes() {
  need kubectl kubectl
  kubectl --namespace "$namespace" rollout undo "deployment/$deployment"
  kubectl --namespace "$namespace" rollout status "deployment/$deployment" --timeout=10m
}

if [ -n "$program" ]; then
  by_program
elif [ -n "$compose" ]; then
  by_compose
elif [ -n "$namespace" ]; then
  by_kubernetes
else
  usage >&2
  exit 2
fi
