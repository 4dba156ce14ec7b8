#!/usr/bin/env bash
# Which lines of the journal, the unit, the formats and the transactions are executed by the tests
# that need no more than a few minutes under a debugger:
#
#   tools/coverage.sh [TEST...]
#
# TEST is `lib` or a file of tests/ without its ending. cargo-tarpaulin stops at each line once
# (ptrace), so that the toolchain's own coverage tools are not wanted. What it found stays in
# target/coverage, a file a test; the table is of all that is there: remove it to begin anew.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    tests=(
        lib sim grouped atomic global repair exhaustive claim_13 volumes grants ownership flags_move
        nvram fuzz_corpus
    )
fi
if ! cargo tarpaulin --version >/dev/null 2>&1; then
    echo "cargo-tarpaulin is missing: installing it"
    cargo install cargo-tarpaulin --locked
fi

# The compiler flags that tarpaulin wants are for our own code: with them for every dependency, all
# of those would be built again. So the cargo that it finds takes them away, and a wrapper of the
# compiler, which cargo uses for this workspace alone, has its own.
shims=$PWD/target/coverage/bin
mkdir -p "$shims"
cat >"$shims/cargo" <<END
#!/bin/sh
unset CARGO_ENCODED_RUSTFLAGS
exec $(command -v cargo) "\$@"
END
cat >"$shims/compile" <<'END'
#!/bin/sh
exec "$@" -Cdebuginfo=2 -Clink-dead-code
END
chmod +x "$shims"/*
export RUSTC_WORKSPACE_WRAPPER=$shims/compile
# Few seeds and crashes; and code that is not optimised, whose lines are all still there.
export FLIPSIDE_SEEDS=${FLIPSIDE_SEEDS:-100} FLIPSIDE_ROUNDS=${FLIPSIDE_ROUNDS:-1}
export CARGO_PROFILE_DEV_OPT_LEVEL=0

for test in "${tests[@]}"; do
    out=target/coverage/$test
    mkdir -p "$out"
    what=(--test "$test") only=()
    [ "$test" != lib ] || what=(--lib) only=(journal:: unit:: format:: txn::)
    printf '%-12s ' "$test"
    if PATH=$shims:$PATH taskset -c 0 cargo-tarpaulin tarpaulin --engine ptrace --skip-clean \
        --avoid-cfg-tarpaulin --follow-exec --implicit-test-threads --timeout 600 \
        --include-files 'src/journal/*' 'src/unit/*' 'src/format/*' 'src/txn/*' \
        --exclude-files '*_tests.rs' \
        "${what[@]}" --out Json --output-dir "$out" -- "${only[@]}" --test-threads=1 \
        >"$out/log" 2>&1; then
        tail -n 1 "$out/log"
    else
        echo "failed: see $out/log" >&2
        exit 1
    fi
done
python3 tools/coverage_table.py target/coverage
