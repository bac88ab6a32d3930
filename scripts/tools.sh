#!/usr/bin/env bash
# Puts the programs of scripts/requirements.txt into a virtual environment below the target directory.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/tools.sh

Installs the checking programs that the tests need (scripts/requirements.txt, each with its hash) into
target/tools-venv, and prints the directory they are in. Does nothing when that has been done for this very file.
Honours CARGO_TARGET_DIR. Needs python3 with venv (Debian: python3-venv).
TXT
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  '') ;;
  *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
venv=$(cd "$target" && pwd)/tools-venv
wanted=scripts/requirements.txt
stamp=$venv/requirements.txt

# The stamp is written last: an installation that was cut off is begun anew.
if ! cmp -s "$wanted" "$stamp"; then
  rm -rf "$venv"
  if ! python3 -m venv "$venv" >&2; then
    echo "scripts/tools.sh: python3 can't make a virtual environment; run: apt-get install python3-venv" >&2
    exit 1
  fi
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$wanted" >&2
  cp "$wanted" "$stamp"
fi
echo "$venv/bin"
