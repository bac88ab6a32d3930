#!/usr/bin/env bash
# Writes what the program consists of: a CycloneDX 1.6 list of components (SBOM).
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/sbom.sh [--target TRIPLE] > wasm-wizard.cdx.json

Lists every crate that is part of the program, or takes part in building it, as Cargo.lock has them for the target (by
default x86_64-unknown-linux-gnu): name, version, licence, checksum, and who depends on whom. Dependencies of the tests
alone are left out. The same tree gives the same bytes. Needs cargo and jq.
TXT
}

target=x86_64-unknown-linux-gnu
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --target) target=${2:?--target needs a value}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for need in cargo jq; do
  command -v "$need" >/dev/null || { echo "scripts/sbom.sh: '$need' is missing (Debian: apt-get install $need)" >&2; exit 1; }
done

cargo metadata --format-version 1 --locked --filter-platform "$target" |
  jq --rawfile lock Cargo.lock '
# Cargo.lock has the checksum of each package: blocks of name, version, source, checksum.
($lock | split("[[package]]")
  | map(capture("name = \"(?<n>[^\"]+)\"\nversion = \"(?<v>[^\"]+)\"(.|\n)*checksum = \"(?<c>[0-9a-f]{64})\"")? // empty)
  | map({key: "\(.n)@\(.v)", value: .c}) | from_entries) as $checksums
| (.packages | map({key: .id, value: .}) | from_entries) as $packages
| .resolve.root as $root
# Whom a package depends on, tests aside.
| (.resolve.nodes | map({key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind != "dev")) | .pkg]}) | from_entries) as $graph
| def reach: . as $seen | ([$seen[] as $p | $graph[$p][]] + $seen | unique) | if length == ($seen | length) then . else reach end;
  def purl: "pkg:cargo/\(.name)@\(.version)";
  def component:
    . as $p | { type: "library", "bom-ref": purl, name, version, purl: purl }
    + (if .description then {description: (.description | gsub("\\s+"; " ") | sub("^ "; "") | sub(" $"; ""))} else {} end)
    + (if .license then {licenses: [{expression: (.license | gsub("/"; " OR "))}]}
       elif .license_file then {licenses: [{license: {name: "see the package (\(.license_file | split("/") | last))"}}]}
       else {} end)
    + ($checksums["\(.name)@\(.version)"] | if . then {hashes: [{alg: "SHA-256", content: .}]} else {} end);
  ([$root] | reach) as $used
| {
    "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: {
      component: ($packages[$root] | component | .type = "application"),
      properties: [{name: "target", value: $target}]
    },
    components: [$used[] | select(. != $root) | $packages[.] | component] | sort_by(."bom-ref"),
    dependencies: [$used[] | {ref: ($packages[.] | purl), dependsOn: [$graph[.][] | $packages[.] | purl] | unique}] | sort_by(.ref)
  }' --arg target "$target"
