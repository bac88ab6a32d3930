#!/bin/sh
# Lays out the root of the image: the program, the libraries it is linked to, and what these need. Runs on Debian.
set -eu

usage() {
  cat <<'TXT'
Usage: docker/root.sh PROGRAM DIRECTORY

Copies PROGRAM to DIRECTORY/usr/bin/wasm-wizard, beside it the shared libraries and the loader it names, the trusted
authorities, the user it runs as, and, for scanners and licences, what Debian says of these packages.
TXT
}

[ $# -eq 2 ] || { usage; exit 2; }
program=$1
root=$2
user=65532

install -D -m 0755 "$program" "$root/usr/bin/wasm-wizard"

# The loader and the libraries, at the very paths that the loader looks at.
ldd "$program" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
  install -D -m 0755 "$library" "$root$library"
  readlink -f "$library" >> "$root/.files"
done

install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/sbin/nologin\nwasm-wizard:x:%s:%s::/var/lib/wasm-wizard:/sbin/nologin\n' "$user" "$user" > "$root/etc/passwd"
printf 'root:x:0:\nwasm-wizard:x:%s:\n' "$user" > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"

# What is mounted over, and what is written to.
mkdir -p "$root/etc/wasm-wizard" "$root/etc/tls" "$root/var/lib/wasm-wizard" "$root/tmp" "$root/proc" "$root/dev" "$root/sys" "$root/run"
chmod 1777 "$root/tmp"
chmod 0700 "$root/var/lib/wasm-wizard"

# Scanners for vulnerabilities read this directory, as in other images without a package manager.
mkdir -p "$root/var/lib/dpkg/status.d"
{
  echo ca-certificates
  while read -r file; do
    # Since /lib is a link to /usr/lib, dpkg may know a file by either name.
    dpkg-query -S "$file" 2>/dev/null || dpkg-query -S "${file#/usr}"
  done < "$root/.files" | sed 's/: .*//'
} | sort -u | while read -r package; do
  name=${package%%:*}
  dpkg-query -s "$package" > "$root/var/lib/dpkg/status.d/$name"
  install -D -m 0644 "/usr/share/doc/$name/copyright" "$root/usr/share/doc/$name/copyright"
done
rm "$root/.files"
