#!/usr/bin/env bash
# nbd-tester-client, the test client of the NBD project's own server, against Flipside: built from
# Debian's sources of `nbd`, unchanged. Half a minute. Needs gcc, make, libglib2.0-dev.
#
#   tools/nbd_tester.sh [SOURCE]     SOURCE: an unpacked source tree of nbd, instead of Debian's
#
# Not run: what tests nbd-server's configuration (cfgmulti, tree, rotree, dirconfig, inetd, list),
# TLS (tls, tlshuge, tlswrongcert: Flipside has none) and nbd-client (connstatus, nlconnect,
# persist); and integrityhuge, whose requests of up to 48 MiB are longer than the 32 MiB that
# Flipside advertises.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
target=
cleanup() {
  [ -z "$target" ] || { kill "$target" && wait "$target"; } 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# Debian's sources: fetched with lists of their own, so that the system's stay as they are.
fetch() {
  local lists=(
    -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
  )
  local key=/usr/share/keyrings/debian-archive-keyring.gpg
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  echo "deb-src [signed-by=$key] http://deb.debian.org/debian stable main" >"$work/sources.list"
  apt-get "${lists[@]}" update -qq
  (cd "$work" && apt-get "${lists[@]}" source -qq --download-only nbd)
  mkdir "$work/nbd"
  tar xf "$work"/nbd_*.orig.tar.* -C "$work/nbd" --strip-components=1
}

build() {
  if [ $# -gt 0 ]; then cp -r "$1" "$work/nbd"; else fetch; fi
  # No manual pages are wanted, but configure insists on a program that could make them.
  (cd "$work/nbd" && DB2M=true ./configure --without-gnutls --without-libnl) >"$work/log" 2>&1 &&
    make -C "$work/nbd/tests/run" nbd-tester-client >>"$work/log" 2>&1 ||
    { tail -20 "$work/log" >&2; echo "nbd-tester-client does not build" >&2; exit 1; }
}

# serve ARGUMENTS...: until a new target is ready.
serve() {
  if [ -n "$target" ]; then kill "$target" && wait "$target"; fi
  target/debug/flipside serve --listen "unix:$work/nbd.sock" --listen "tcp:127.0.0.1:$port" \
    --control "$work/control.sock" "$@" "$work/disk" >"$work/ready" 2>>"$work/target.log" &
  target=$!
  for _ in $(seq 100); do
    ! grep -q "^ready nbd://" "$work/ready" || return 0
    sleep 0.1
  done
  cat "$work/target.log" >&2
  exit 1
}

failed=0
# check NAME ARGUMENTS...: one test of nbd-tester-client.
check() {
  local name=$1
  shift
  if (cd "$work/nbd/tests/run" && timeout 600 ./nbd-tester-client "$@") >"$work/log" 2>&1; then
    echo "ok      $name"
  else
    failed=1
    echo "FAILED  $name"
    tail -5 "$work/log"
  fi
}

build "$@"
cargo build --quiet
port=$((20000 + $$ % 10000))
truncate -s 512M "$work/disk"
target/debug/flipside format --volume export1=4M --volume large=50M "$work/disk" >/dev/null
version=$(sed -n "s/^PACKAGE_VERSION='\(.*\)'/\1/p" "$work/nbd/configure")
echo "nbd-tester-client of nbd $version"
serve
tcp=(localhost "$port")
check cfg1 -N export1 "${tcp[@]}"
check cfgsize -o -N export1 "${tcp[@]}"
check write -N export1 -w "${tcp[@]}"
check flush -N export1 -w -f "${tcp[@]}"
check unix -N export1 -u "$work/nbd.sock"
check handshake -h -N export1 "${tcp[@]}"
check integrity -N large -i -t integrity-test.tr "${tcp[@]}"
serve --read-only
check rowrite -N export1 -w -F "${tcp[@]}"
exit "$failed"
