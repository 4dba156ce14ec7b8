#!/usr/bin/env bash
# The main job, shown: a disk is formatted, served, loaded, its target killed in the midst of
# writes, served again, and the volume is found exactly at a commit point.
#
# Works on a loop device where it may attach one, else on a file. Leaves nothing behind.
# FLIPSIDE_DEMO_DIR names the directory for the disk's file; by default /dev/shm or $TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

DEVICE_MIB=1024 # sparse
VOLUME_MIB=256
ROOM_MIB=900 # what the demo may really fill
WRITE_SECONDS=2
READY_SECONDS=30

build=${CARGO_TARGET_DIR:-target}/release
flipside=$build/flipside
stamper=$build/examples/stamper
directory='' device='' is_loop='' target='' writer=''

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() {
  printf 'demo: %s\n' "$*" >&2
  if [ -s "$directory/log" ]; then sed 's/^/  target: /' "$directory/log" >&2; fi
  exit 1
}

clean_up() {
  local status=$?
  trap - EXIT INT TERM HUP
  for process in $writer $target; do
    kill -KILL "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  if [ -n "$is_loop" ]; then losetup --detach "$device" || status=1; fi
  if [ -n "$directory" ]; then rm -rf -- "$directory"; fi
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The directory in which the disk's file has room.
choose_directory() {
  local parent free
  for parent in "${FLIPSIDE_DEMO_DIR:-/dev/shm}" "${TMPDIR:-/tmp}"; do
    [ -d "$parent" ] && [ -w "$parent" ] || continue
    free=$(df --output=avail --block-size=1M "$parent" | tail -n 1)
    if [ "$free" -ge "$ROOM_MIB" ]; then
      mktemp -d --tmpdir="$parent" --suffix=-flipside-demo
      return
    fi
  done
  return 1
}

# The file as a loop device past the page cache, where that is allowed.
attach() {
  losetup --find --show --direct-io=on "$1" 2>/dev/null || losetup --find --show "$1" 2>/dev/null
}

# Starts the target and waits until the volume can be used.
serve() {
  : >"$directory/ready"
  "$flipside" serve --listen "unix:$directory/nbd.sock" --control "$directory/control.sock" \
    "$device" >"$directory/ready" 2>>"$directory/log" &
  target=$!
  local deadline=$((SECONDS + READY_SECONDS))
  until grep '^ready ' "$directory/ready"; do
    kill -0 "$target" 2>/dev/null || fail 'the target ended'
    [ "$SECONDS" -lt "$deadline" ] || fail "the target was not ready within $READY_SECONDS s"
    sleep 0.02
  done
}

status() { "$flipside" status --json --control "$directory/control.sock" >"$directory/$1"; }

# Bytes that the kernel has counted as written to the device; 0 where it does not count.
device_written() {
  local counts=(0 0 0 0 0 0 0)
  if [ -n "$is_loop" ]; then read -r -a counts <"/sys/block/${device##*/}/stat"; fi
  echo "$((counts[6] * 512))"
}

step 'Building'
cargo build --release --bin flipside --example stamper

directory=$(choose_directory) || fail "no $ROOM_MIB MiB free in /dev/shm or ${TMPDIR:-/tmp}"
device=$directory/disk
truncate -s "${DEVICE_MIB}M" "$device"
if attached=$(attach "$device"); then
  device=$attached is_loop=yes
  step "Formatting a disk of $DEVICE_MIB MiB: $device, a loop device"
else
  step "Formatting a disk of $DEVICE_MIB MiB: $device, a file (loop devices are not allowed here)"
fi
"$flipside" format --volume "vol0=${VOLUME_MIB}M" "$device"

step 'Serving it'
serve

step "Loading it with fio (bench/fio/demo.fio)"
status before.json
written=$(device_written)
FLIPSIDE_URI="nbd+unix:///vol0?socket=$directory/nbd.sock" fio --output="$directory/fio.json" \
  --output-format=json --eta=always --eta-newline=1 bench/fio/demo.fio |
  sed -un 's/[ \r]*$//; s/.*\r//; s/\[eta.*//; s/^Jobs: .*): /  /p'
echo
"$flipside" commit --control "$directory/control.sock" >/dev/null
status after.json
written=$(($(device_written) - written))

step "Writing stamped blocks, and after $WRITE_SECONDS s: kill -9"
"$stamper" write --socket "$directory/nbd.sock" --known "$directory/known.json" &
writer=$!
sleep "$WRITE_SECONDS"
kill -0 "$writer" 2>/dev/null || fail 'the writer ended before the kill'
kill -KILL "$target"
wait "$target" 2>/dev/null || true
target=''
wait "$writer" || fail 'the writer found something wrong'
writer=''

step 'Serving it again, and reading every block back'
serve
"$stamper" verify --socket "$directory/nbd.sock" --known "$directory/known.json" ||
  fail 'the volume is not what it must be'
status recovered.json
kill -TERM "$target"
wait "$target" || fail 'the target did not end well'
target=''

step 'In figures'
python3 tools/demo_table.py "$directory" "$written"
