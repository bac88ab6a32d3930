#!/bin/sh
# Puts an empty file wherever Cargo.toml names one that is not there. With all of them empty, building compiles the
# dependencies alone; that layer of the image then stays until one of them changes.
set -eu

case "${1:-}" in
  -h | --help | '') echo "Usage: docker/stubs.sh DIRECTORY OF Cargo.toml"; exit 0 ;;
esac
cd "$1"

stub() {
  [ -e "$1" ] && return
  mkdir -p "$(dirname "$1")"
  printf '%s\n' "$2" > "$1"
}

mkdir -p src/sandbox migrations
stub src/lib.rs ''
stub src/main.rs 'fn main() {}'
stub tests/all/main.rs 'fn main() {}'
sed -n '/^\[\[bench\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml | while read -r bench; do
  [ -e "benches/$bench/main.rs" ] || stub "benches/$bench.rs" 'fn main() {}'
done
