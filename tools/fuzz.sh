#!/usr/bin/env bash
# Fuzzes every parser that meets the outside for so many seconds each, on a stable toolchain:
#
#   tools/fuzz.sh [SECONDS [TARGET...]]
#
# Begins from the corpus in the repository. What it finds to be new it keeps in
# tests/fuzz/target/corpus, out of the repository's way; an input that breaks a parser is left in
# tests/fuzz/artifacts, and belongs into tests/fuzz/corpus/TARGET once the parser is mended.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(basename -s .rs tests/fuzz/targets/*.rs)
fi

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is missing: installing it"
    cargo install cargo-fuzz --locked
fi
# Unstable compiler flags are needed for the coverage that steers the fuzzer, and nothing else.
export RUSTC_BOOTSTRAP=1

failed=()
for target in "${targets[@]}"; do
    found=tests/fuzz/target/corpus/$target
    log=tests/fuzz/target/$target.log
    mkdir -p "$found"
    printf '%-16s %s s … ' "$target" "$seconds"
    if cargo fuzz run --fuzz-dir tests/fuzz "$target" -s none \
        "$found" "tests/fuzz/corpus/$target" -- -max_total_time="$seconds" -max_len=16384 \
        -timeout=10 -verbosity=0 -print_final_stats=1 >"$log" 2>&1; then
        echo "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs tried"
    else
        echo "BROKEN"
        grep -v NEW_FUNC "$log" | tail -n 30 >&2
        failed+=("$target")
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "broken: ${failed[*]}; the inputs are in tests/fuzz/artifacts" >&2
    exit 1
fi
echo "${#targets[@]} targets, $seconds s each: nothing found"
