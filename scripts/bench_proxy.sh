#!/usr/bin/env bash
# Measures what the gateway adds to proxying. See --help.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/bench_proxy.sh [OPTIONS]

Requests per second over TLS through three proxies, one after the other, in every round: the same upstream,
certificate, core and client for all. Prints medians with the least and the greatest, and the ratios.

  gateway    this project: a key-authenticated, rate-limited `proxy` route with the headers, one log line
             per request (JSON, to a file) and metrics that it has by default
  bare       Pingora and nothing else: benches/peers/proxy, about ten lines
  nginx      Debian's, with a log line per request to a file; left out where it is not installed

The proxy has core 0; the client and the upstream share core 1. HTTP/1.1 with keep-alive (wrk, 16 connections),
and HTTP/2 (h2load, 4 connections with 8 streams each).

Options:
  --rounds N     rounds (default 5)
  --seconds N    seconds for each run (default 5)
  --profile P    cargo's profile of the gateway (default bench; dev for trying the script out)
  --lines FILE   keep the raw lines: round, figure, value, unit

Needs a Rust toolchain, curl, openssl, taskset (util-linux), wrk, and h2load (Debian: nghttp2-client). At least two
cores, with nothing else running. Honours CARGO_TARGET_DIR.
TXT
}

rounds=5
seconds=5
profile=bench
lines=
while [ "$#" -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --profile) profile=$2; shift ;;
    --lines) lines=$(realpath -m "$2"); shift ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for tool in wrk h2load taskset curl openssl; do
  command -v "$tool" >/dev/null || { echo "bench_proxy.sh: '$tool' is missing; see --help" >&2; exit 1; }
done
peers=(gateway bare)
if command -v nginx >/dev/null; then peers+=(nginx); else echo "bench_proxy.sh: nginx is not installed and left out" >&2; fi

work=$(mktemp -d)
proxy=
upstream=
end() {
  [ -z "$1" ] && return
  # At once: Pingora by itself would let connections end for five minutes.
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
trap 'end "$proxy"; end "$upstream"; rm -rf "$work"' EXIT
[ -n "$lines" ] || lines=$work/lines
: >"$lines"

# built COMMAND...: runs cargo, and says what it made.
built() {
  "$@" --message-format=json-render-diagnostics 2>"$work/build" >"$work/made" || { cat "$work/build" >&2; exit 1; }
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$work/made" | tail -n 1
}
program=$(built cargo build --locked --profile "$profile" --bin wasm-wizard)
peer_profile=release
[ "$profile" = dev ] && peer_profile=dev
bare=$(built cargo build --locked --profile "$peer_profile" --manifest-path benches/peers/proxy/Cargo.toml)

free_port() {
  local port
  while port=$((20000 + RANDOM % 20000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
chmod 600 "$work/key.pem"
origin=$(free_port)
taskset -c 1 "$bare" upstream "$origin" &
upstream=$!

start_gateway() {
  cat >"$work/gateway.yaml" <<YAML
server:
  threads: 1
  https: [{ address: "127.0.0.1:$port", certificates: [{ cert: $work/cert.pem, key: $work/key.pem }] }]
  http: []
  admin: { address: "127.0.0.1:$(free_port)" }
logging: { format: json }
routes:
  - name: bench
    match: { path: /* }
    auth: key
    limits: { per_minute: 4000000000 }
    proxy: { upstreams: ["http://127.0.0.1:$origin"] }
    headers: { request: { set: { X-From: bench } }, response: { remove: [Server] } }
YAML
  (cd "$work" && exec taskset -c 0 "$program" serve --config gateway.yaml) >"$work/stdout" 2>"$work/log" &
  proxy=$!
  if [ -z "${key:-}" ]; then
    wait_for_port
    key=$(cd "$work" && "$program" keys create --config gateway.yaml --user bench@example.org --tier enterprise)
    key=$(grep -o 'ww_[A-Za-z0-9_-]*' <<<"$key" | head -n 1)
  fi
}

start_bare() {
  taskset -c 0 "$bare" proxy "$port" "$origin" "$work/cert.pem" "$work/key.pem" 2>"$work/log" &
  proxy=$!
}

start_nginx() {
  cat >"$work/nginx.conf" <<CONF
daemon off; master_process off; worker_processes 1; pid $work/nginx.pid; error_log $work/log;
events { worker_connections 1024; }
http {
  access_log $work/access.log; client_body_temp_path $work/b; proxy_temp_path $work/p;
  fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;
  keepalive_requests 100000000;
  upstream origin { server 127.0.0.1:$origin; keepalive 64; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:$port ssl http2;
    ssl_certificate $work/cert.pem; ssl_certificate_key $work/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
    location / {
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host \$host; proxy_set_header X-Forwarded-For \$remote_addr;
      proxy_set_header X-Forwarded-Proto \$scheme; proxy_set_header X-From bench;
      add_header X-Frame-Options DENY; add_header Strict-Transport-Security max-age=31536000;
    }
  }
}
CONF
  taskset -c 0 nginx -p "$work" -c "$work/nginx.conf" 2>>"$work/log" &
  proxy=$!
}

wait_for_port() {
  local tries
  for ((tries = 0; tries < 300; tries++)); do
    curl -sk --max-time 5 -o /dev/null "https://127.0.0.1:$port/" && return
    kill -0 "$proxy" 2>/dev/null || break
    sleep 0.1
  done
  cat "$work/log" >&2
  exit 1
}

wrk_rate() {
  taskset -c 1 wrk -t1 -c16 "-d${1}s" -H "Authorization: Bearer $key" "https://127.0.0.1:$port/x" >"$work/wrk"
  if grep -Eq 'Non-2xx|Socket errors' "$work/wrk"; then cat "$work/wrk" "$work/log" >&2; exit 1; fi
  awk '/^Requests\/sec/ { print $2 }' "$work/wrk"
}

h2_rate() {
  taskset -c 1 h2load -t1 -c4 -m8 -D "$1" --warm-up-time=1 -H "authorization: Bearer $key" \
    "https://127.0.0.1:$port/x" >"$work/h2load"
  grep -q ' 0 failed, 0 errored' "$work/h2load" || { cat "$work/h2load" >&2; exit 1; }
  awk '/^finished in/ { print $4 }' "$work/h2load"
}

for ((round = 1; round <= rounds; round++)); do
  # Another one begins each time, so that none always has the coolest machine.
  for ((i = 0; i < ${#peers[@]}; i++)); do
    name=${peers[$(((i + round) % ${#peers[@]}))]}
    # The first gateway makes the key that all are sent.
    [ "$round" = 1 ] && [ -z "${key:-}" ] && [ "$name" != gateway ] && { port=$(free_port); start_gateway; wait_for_port; end "$proxy"; }
    echo "round $round of $rounds: $name" >&2
    port=$(free_port)
    "start_$name"
    wait_for_port
    wrk_rate 1 >/dev/null
    printf '%s\t%s\t%s\t1/s\n' "$round" "wrk $name" "$(wrk_rate "$seconds")" >>"$lines"
    printf '%s\t%s\t%s\t1/s\n' "$round" "h2 $name" "$(h2_rate "$seconds")" >>"$lines"
    end "$proxy"
    proxy=
    rm -f "$work/log" "$work/access.log" "$work/stdout"
  done
done

ratios=
for tool in wrk h2; do
  for name in "${peers[@]:1}"; do
    ratios+="$tool: gateway to $name|$tool gateway|$tool $name;"
  done
done
awk -v rounds="$rounds" -v "ratios=${ratios%;}" -f scripts/bench_table.awk "$lines"
