# shellcheck shell=bash
# Sourced by run and full: the steps both have, and how they are timed, logged and summed up.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cross/packages.sh

work=$(mktemp -d)
current="" times="" skips="" gated=""
trap finish EXIT

# step NAME COMMAND...: runs one step; the script ends if it fails.
step() {
    local began=$SECONDS
    current=$1
    shift
    printf '\n=== %s\n' "$current"
    "$@"
    times+=$(printf '%6d s  %s' $((SECONDS - began)) "$current")$'\n'
    current=""
}

# A step that cannot run here. It is said at once and again at the end.
skip() {
    printf 'SKIPPED: %s\n' "$*"
    skips+="SKIPPED: $*"$'\n'
}

# Keeps what a test runner says, for the sum at the end.
tested() {
    "$@" 2>&1 | tee -a "$work/tests.log"
}

# Times, skips, and the test runners' summaries added up; also after a failure.
finish() {
    local status=$? sum
    trap - EXIT
    printf '\n=== times\n%s%6d s  in all\n%s' "$times" "$SECONDS" "$skips"
    touch "$work/tests.log"
    sum=$(awk '/^test result: / {
        for (i = 2; i <= NF; i++) {
            if ($i == "passed;") passed += $(i - 1)
            if ($i == "failed;") failed += $(i - 1)
            if ($i == "ignored;") skipped += $(i - 1)
        }
    } END { printf "tests: %d passed, %d failed, %d skipped", passed, failed, skipped }' "$work/tests.log")
    rm -rf "$work"
    if [ $status -ne 0 ]; then
        printf 'FAILED: %s (exit status %d)\n' "${current:-set-up}" "$status"
    elif [ "$gated" ] && [[ $sum == "tests: 0 passed"* ]]; then
        echo "FAILED: no test ran"
        status=1
    fi
    printf '%s\n' "$sum"
    exit "$status"
}

install_tools() {
    command -v cargo >/dev/null || { echo "no cargo: install Rust with rustup first"; return 1; }
    if command -v apt-get >/dev/null; then
        ensure_packages gcc g++ libc6-dev iproute2 mosquitto mosquitto-clients
        python3 -m pip --version >/dev/null 2>&1 || ensure_packages python3 python3-pip
    fi
    { cargo fmt --version && cargo clippy --version; } || rustup component add rustfmt clippy
    cross/setup.sh aarch64
}

format() {
    cargo fmt --all --check
    cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
}

lint() {
    cargo clippy --workspace --all-targets --locked -- -D warnings
    # The fuzz targets are a workspace of their own; here they only have to keep compiling.
    cargo clippy --manifest-path tests/fuzz/Cargo.toml --target-dir "$target_dir" --locked -- -D warnings
}

document() {
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked
}

compile_tests() {
    cargo test --workspace --locked --no-run
}

# The operator's tool gets the native library as a user would; without it the tests of `ort` skip themselves.
fetch_runtime() {
    "$target_dir/debug/weir-under-test" runtime fetch
}

# The first line of README.md that begins with `cargo test` is the command it promises, and the one that counts here.
readme_tests() {
    local command
    command=$(grep -m 1 -E '^cargo test' README.md) || { echo "README.md has no line that begins with 'cargo test'"; return 1; }
    echo "$command"
    tested bash -c "$command"
}

gate() {
    gated=yes
    export CARGO_TERM_COLOR=never
    # Nothing is built twice in a fresh clone, so what incremental builds write is never read.
    [ "${CI:-}" != true ] || export CARGO_INCREMENTAL=0
    target_dir=${CARGO_TARGET_DIR:-$PWD/target}

    step "tools" install_tools
    step "format" format
    step "clippy" lint
    step "documentation" document
    # Its dependencies are those of the tests after it; `.ci/full sizes` builds what is shipped.
    step "aarch64 release build" env CARGO_PROFILE_RELEASE_LTO=thin cross/build.sh weir-edge
    # More kills, seeds and cases are for the native run: under emulation they take twenty times as long and find the same.
    step "aarch64 tests, emulated" tested env -u WEIR_KILLS -u WEIR_SEEDS -u PROPTEST_CASES cross/test.sh
    step "compile tests" compile_tests
    step "native library" fetch_runtime
    step "tests, as in README.md" readme_tests
}
