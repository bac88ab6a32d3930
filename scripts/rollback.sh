#!/usr/bin/env bash
# Goes back to the version that ran before, without a lost request, and sees whether that serves.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/rollback.sh --program FILE --pid PID [--admin URL]
       scripts/rollback.sh --compose FILE --version VERSION
       scripts/rollback.sh --kubernetes NAMESPACE [--deployment NAME] [--revision NUMBER]

       Each also takes [--timeout SECONDS] [--backup-age HOURS] [--without-backup]
       --compose and --kubernetes also take [--without-database-check]

Before: the old version must be there and read the database as it is now, and the newest backup must be younger than HOURS (24).
After: it must serve within SECONDS, or else what ran before runs again.

--program     swaps FILE and FILE.previous (keep the old program under that name when you install a new one: mv, then
              install) and has the running gateway PID start it (SIGUSR2). The old version looks at the database before it takes
              over. If it does not come up (120 s), it is ended, the files are swapped back, and the gateway that runs goes on.
--compose     has the image of VERSION look at the database, starts as many gateways with it as there are, and waits until they
              are healthy (180 s).
--kubernetes  has a pod of the older revision, the newest or NUMBER, look at the database, goes back to it (kubectl rollout
              undo), and waits (900 s). Needs jq.

--without-database-check goes back unseen. For a version that can't be asked, because it is older than `migrate --check`.
One that can't serve does not come up then, and what ran before runs again; with Compose, nobody serves in between.

A version works with the database of the next one, so the schema stays as it is. For data, see scripts/restore.sh. Run
twice, --program goes forward again; the others change nothing the second time.
TXT
}

program='' pid='' admin=http://127.0.0.1:9091 timeout='' compose='' version='' namespace='' deployment=gateway revision=''
hours=24 backup=yes check=yes
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
    --revision) revision=${2:?--revision needs a number}; shift 2 ;;
    --backup-age) hours=${2:?--backup-age needs a number of hours}; shift 2 ;;
    --without-backup) backup=no; shift ;;
    --without-database-check) check=no; shift ;;
    *) usage >&2; exit 2 ;;
  esac
done
[ -z "$program" ] || [ "$check" = yes ] || die "--without-database-check is not for --program: the old version itself looks at the database"
for number in "$hours" "${timeout:-1}" "${revision:-1}" "${pid:-1}"; do
  [[ "$number" =~ ^[1-9][0-9]{0,8}$ ]] || die "$number is not a number"
done

# Whether the backup made then, in seconds since 1970, is young enough. Going back takes no data away, but whoever goes back is
# in trouble already.
fresh() {
  [[ "$1" =~ ^[1-9][0-9]*$ ]] || die "no backup is known: make one, or give --without-backup"
  local age=$((($(date +%s) - $1) / 3600))
  [ "$age" -lt "$hours" ] || die "the newest backup is $age hours old: make one, or give --without-backup"
}

# Exchanges the two files; at every moment there is a program under the name.
swap() {
  ln -f "$program" "$program.swap"
  mv -f "$program.previous" "$program"
  mv -f "$program.swap" "$program.previous"
}
ask() { curl --silent --max-time 5 "$admin$1"; }
# How long the gateway that answers has run, in seconds; nothing where none answers.
uptime_seconds() { ask /health | sed -nE 's/.*"uptime_seconds": ?([0-9]+).*/\1/p' || true; }
runs() { [[ "$(ps -o stat= -p "$1")" =~ ^[^Z] ]]; }
# The process that the gateway has started to take over from it.
successor() { { ps -ww -o pid=,args= --ppid "$pid" || true; } | awk '/ serve --upgrade( |$)/ { print $1 }'; }

# Ends the successor and sees it gone: the gateway waits longer for it than we do, and would still let it take over.
end_successor() {
  local process deadline=$((SECONDS + 10))
  for process in $(successor); do
    kill "$process" || true
    while runs "$process"; do
      [ "$SECONDS" -lt "$deadline" ] || kill -KILL "$process" || true
      sleep 0.1
    done
  done
}

by_program() {
  [ -n "$pid" ] || die "--pid: give the process of the gateway"
  need curl curl
  need ps procps
  runs "$$" || die "the ps of this machine does not know -p: install procps"
  [ -x "$program.previous" ] || die "there is no $program.previous to go back to"
  kill -0 "$pid" 2>/dev/null || die "there is no process $pid"
  "$program.previous" --version >/dev/null || die "$program.previous does not run here"
  if [ "$backup" = yes ]; then
    local metrics
    metrics=$(ask /metrics || true)
    if grep -qx 'wasmwiz_backup_watched 1' <<<"$metrics"; then
      fresh "$(sed -nE 's/^wasmwiz_backup_last_success_timestamp_seconds ([0-9]+).*/\1/p' <<<"$metrics")"
    else
      say "whether there is a backup is not known: metrics.backup_stamp is not set"
    fi
  fi
  [ -z "$(successor)" ] || die "$pid is handing over already, to $(successor): wait for it, or end it"
  local before began
  before=$(uptime_seconds)
  [ -n "$before" ] || die "$admin does not answer, so whether the previous version serves could not be seen: give --admin"
  say "from $("$program" --version) to $("$program.previous" --version)"
  # Whoever interrupts it finds the files as they were too.
  local interrupted=''
  trap 'interrupted=yes' INT TERM HUP
  swap
  if ! kill -USR2 "$pid"; then
    swap
    die "$pid could not be told to hand over (SIGUSR2): is it this user's? The files are as they were"
  fi
  began=$SECONDS
  # The old process ends once the new one serves.
  while runs "$pid"; do
    if [ -n "$interrupted" ] || [ "$SECONDS" -ge $((began + ${timeout:-120})) ]; then
      # One that is younger than the old process answers: the old one only ends its requests, and the new one must stay.
      local now
      now=$(uptime_seconds)
      if [ -n "$now" ] && [ "$now" -lt $((before + SECONDS - began - 2)) ]; then
        say "the previous version serves; $pid still ends its requests. $program.previous is the one that was rolled back"
        return
      fi
      end_successor
      swap
      [ -n "$(uptime_seconds)" ] || die "the previous version did not come up, and $admin does not answer: start the gateway. The files are as they were"
      [ -z "$interrupted" ] || die "interrupted before the previous version came up. The files are as they were, and $pid goes on"
      die "the previous version did not come up within ${timeout:-120} seconds: its log says why. The files are as they were, and $pid goes on"
    fi
    sleep 0.2
  done
  ask /health | grep -q '"uptime_seconds":' || die "$pid has ended, but $admin does not answer: start the gateway"
  say "the previous version serves; $program.previous is the one that was rolled back"
}

by_compose() {
  [ -n "$version" ] || die "--version: say which to go back to"
  [[ "$version" =~ ^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$ ]] || die "--version: $version is no tag of an image"
  need docker docker.io
  [ -r "$compose" ] || die "there is no file $compose"
  docker image inspect "wasm-wizard:$version" >/dev/null || die "there is no image wasm-wizard:$version here: pull it, or build it from its tag"
  local containers count now
  # What ends is gone from the list, so only what runs is counted.
  containers=$(docker compose --file "$compose" ps --quiet gateway)
  [ -n "$containers" ] || die "no gateway runs: start one with WASM_WIZARD_VERSION=$version"
  count=$(wc -l <<<"$containers")
  now=$(docker inspect --format '{{.Config.Image}}' "${containers%%$'\n'*}")
  if [ "$now" = "wasm-wizard:$version" ]; then
    say "$count gateway(s) have version $version already"
    return
  fi
  [[ "$now" == wasm-wizard:* ]] || die "the gateway's image is $now, which could not be gone forward to again"
  [ "$backup" = no ] || fresh "$(docker compose --file "$compose" exec -T backup cat /backups/last_success || true)"
  [ "$check" = no ] || WASM_WIZARD_VERSION=$version docker compose --file "$compose" run --rm --no-deps -T gateway \
    migrate --check --config /etc/wasm-wizard/wasm-wizard.yaml ||
    die "version $version can't work with the database as it is, $or_else"
  say "from ${now#*:} to $version"
  if ! compose_up "$version" "$count"; then
    compose_up "${now#*:}" "$count" || die "neither $version nor ${now#*:} became healthy: docker compose logs gateway"
    die "version $version did not become healthy; ${now#*:} runs again"
  fi
  say "version $version serves; write WASM_WIZARD_VERSION=$version into .env, so that it stays"
}
readonly or_else='or with this configuration, or is too old to be asked: what it said is above. Nothing was changed; --without-database-check goes on without asking'
compose_up() {
  WASM_WIZARD_VERSION=$1 docker compose --file "$compose" up --detach --no-deps --no-build --scale "gateway=$2" \
    --wait --wait-timeout "${timeout:-180}" gateway
}

cluster() { kubectl --namespace "$namespace" "$@"; }
# The revision that a rollback went back to, so that the next one does not go forward again.
readonly mark=wasm-wizard/rolled-back-to

by_kubernetes() {
  need kubectl kubectl
  need jq jq
  work=$(mktemp -d "${TMPDIR:-/tmp}/rollback.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cluster get "deployment/$deployment" --output json >"$work/deployment"
  cluster get replicasets --output json >"$work/replicasets"
  local key='deployment.kubernetes.io/revision' current
  current=$(jq -r --arg key "$key" '.metadata.annotations[$key] // empty' "$work/deployment")
  [ -n "$current" ] || die "$deployment has no revision yet"
  if [ -z "$revision" ] && [ "$(jq -r --arg mark "$mark" '.metadata.annotations[$mark] // empty' "$work/deployment")" = "$current" ]; then
    say "revision $current is one that was gone back to already; give --revision to go elsewhere"
    return
  fi
  jq --arg key "$key" --arg current "$current" --arg wanted "$revision" --slurpfile deployment "$work/deployment" '
    [.items[] | select(any(.metadata.ownerReferences[]?; .uid == $deployment[0].metadata.uid))
      | . + { revision: (.metadata.annotations[$key] // "0" | tonumber) }
      | select(if $wanted == "" then .revision < ($current | tonumber) else .revision == ($wanted | tonumber) end)]
    | max_by(.revision) // empty' "$work/replicasets" >"$work/target"
  [ -s "$work/target" ] || die "there is no revision ${revision:-before $current} of $deployment: kubectl rollout history deployment/$deployment"
  revision=$(jq -r .revision "$work/target")
  if [ "$revision" = "$current" ]; then
    say "revision $current runs already"
    return
  fi
  if [ "$backup" = yes ]; then
    local made
    made=$(cluster get cronjob/backup --output 'jsonpath={.status.lastSuccessfulTime}' || true)
    fresh "$([ -z "$made" ] || date -d "$made" +%s)"
  fi
  [ "$check" = no ] || look_at_database
  say "from revision $current, $(image_of "$work/deployment"), to $revision, $(image_of "$work/target")"
  cluster rollout undo "deployment/$deployment" --to-revision="$revision"
  if ! cluster rollout status "deployment/$deployment" --timeout="${timeout:-900}s"; then
    # New pods replace old ones only when they are ready, so these still serve.
    cluster rollout undo "deployment/$deployment" --to-revision="$current"
    die "revision $revision did not become ready; $current goes on"
  fi
  current=$(cluster get "deployment/$deployment" --output json | jq -r --arg key "$key" '.metadata.annotations[$key]')
  cluster annotate --overwrite "deployment/$deployment" "$mark=$current"
  say "the older revision serves, now as $current; put its image into your overlay, so that it stays"
}
image_of() { jq -r '.spec.template.spec.containers[0].image' "$1"; }

# A pod like those of the older revision, with their secrets and their configuration, that says whether it could serve. Its labels are
# those of the migration, which may reach the database; no Service and no ReplicaSet takes it for theirs.
look_at_database() {
  local pod=rollback-check phase='' deadline
  jq --arg name "$pod" '{
    apiVersion: "v1", kind: "Pod",
    metadata: { name: $name, labels: { "app.kubernetes.io/name": "wasm-wizard", "app.kubernetes.io/component": "migrate" } },
    spec: (.spec.template.spec
      | del(.topologySpreadConstraints, .affinity)
      | .restartPolicy = "Never" | .activeDeadlineSeconds = 300
      | .containers = [.containers[0]
        | del(.livenessProbe, .readinessProbe, .startupProbe, .lifecycle, .ports)
        | .resources = { requests: { cpu: "100m", memory: "128Mi" }, limits: { memory: "512Mi" } }
        | .args = ["migrate", "--check"] + [.args[]? | select(. != "serve")]])
  }' "$work/target" >"$work/pod"
  cluster delete pod "$pod" --ignore-not-found
  trap 'cluster delete pod rollback-check --ignore-not-found --wait=false >/dev/null || true; rm -rf "$work"' EXIT
  cluster create --filename "$work/pod"
  deadline=$((SECONDS + 300))
  while [ "$SECONDS" -lt "$deadline" ]; do
    phase=$(cluster get pod "$pod" --output 'jsonpath={.status.phase}')
    case "$phase" in Succeeded | Failed) break ;; esac
    sleep 2
  done
  cluster logs "$pod" || true
  [ "$phase" = Succeeded ] || die "revision $revision can't work with the database as it is (its pod: ${phase:-unknown}), $or_else"
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
