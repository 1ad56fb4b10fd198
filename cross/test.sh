#!/usr/bin/env bash
# cross/test.sh [NAME...]: runs tests as aarch64 programs under qemu-user; with names, only the tests that contain one of them.
#
# In it: the pure core, the plumbing, the models on the embedded engine, and the box's own unit tests: all that differs
# with the processor (word sizes, alignment, atomics, SIMD in zstd, ring and rten) or with the kernel's interface.
# Not in it: weir-cloud, weir and the whole-system tests. They start programs of ours as processes, which an emulated
# process cannot do without binfmt_misc, and they measure time, which emulation stretches about tenfold.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh
use_cross_compiler
use_emulator

crates=(weir-logic weir-host weir-infer weir-edge)
skipped=(
    # Starts itself again inside `unshare`; the kernel cannot start the emulated file.
    full_file_system_can_be_emptied_and_filled_again
    # Starts a program that is not there: qemu-user turns vfork into fork, so the error never reaches the parent.
    each_thing_that_is_missing_has_its_own_error
)

# What hangs under emulation must not hang for ever; whole runs take some minutes.
limit_s=${WEIR_CROSS_TIMEOUT_S:-1200}
# Fewer random cases than on the host, which runs them all: here it is the processor that is tested.
export PROPTEST_CASES=${PROPTEST_CASES:-32}

tests=(cargo test --release --locked --target "$TARGET" "${crates[@]/#/-p}" --lib --test it)
# The limit is for what runs, however long this machine takes to compile it.
"${tests[@]}" --no-run
timeout --foreground "$limit_s" "${tests[@]}" -- "${skipped[@]/#/--skip=}" "$@" || {
    status=$?
    [ $status -ne 124 ] || say "the tests did not end within $limit_s s"
    exit $status
}
