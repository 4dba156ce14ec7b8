#!/usr/bin/env bash
# Installs what building, testing, the demo and the benchmark need, from the distribution's
# packages. Quick where everything is there already. Where it may not install, it lists what is
# missing.
set -euo pipefail

# command:package
needs=(
  cc:gcc
  fio:fio
  nbdinfo:libnbd-bin
  nbdcopy:libnbd-bin
  nbdfuse:libnbd-bin
  nbdsh:libnbd-bin
  nbdkit:nbdkit
  nbd-client:nbd-client
  qemu-nbd:qemu-utils
  qemu-io:qemu-utils
  fusermount3:fuse3
  mkfs.ext4:e2fsprogs
  mkfs.xfs:xfsprogs
  losetup:mount
  valgrind:valgrind
  blkid:util-linux
  fstrim:util-linux
  python3:python3
)

# `setup.sh bench`: what `make bench` compares with and counts with, too.
if [ "${1:-}" = bench ]; then
  needs+=(nbd-server:nbd-server mkfs.btrfs:btrfs-progs perf:linux-perf)
fi

# `setup.sh soak`: the databases that lose their power in `make soak`, too.
if [ "${1:-}" = soak ]; then
  needs+=(sqlite3:sqlite3 pg_lsclusters:postgresql)
fi

PATH=$PATH:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done

# nbdsh is libnbd's module in the system's Python.
[ -x /usr/bin/python3 ] && /usr/bin/python3 -c 'import nbd' 2>/dev/null || missing+=(python3-libnbd)

if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t packages < <(printf '%s\n' "${missing[@]}" | sort -u)
  echo "setup: needed and not there: ${packages[*]}"
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
      echo "setup: not allowed to install; as root, run: apt-get install ${packages[*]}" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  if ! command -v apt-get >/dev/null; then
    echo "setup: this system has no apt-get; install the packages above by its own means" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
  echo "setup: Rust is not there; install the toolchain that Cargo.toml names (rust-version)" >&2
  exit 1
fi
for component in fmt clippy; do
  if ! cargo "$component" --version >/dev/null 2>&1; then
    echo "setup: cargo $component is not there; add it to the Rust toolchain" >&2
    exit 1
  fi
done
echo "setup: everything is there"
