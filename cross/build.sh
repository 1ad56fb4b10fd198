#!/usr/bin/env bash
# cross/build.sh [--CARGO-FLAG...] [CRATE...]: release build for aarch64, of weir-edge if no crate is named; says how large each
# binary is and which glibc it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh
use_cross_compiler

flags=()
while [[ ${1:-} == --* ]]; do
    flags+=("$1")
    shift
done
[ $# -gt 0 ] || set -- weir-edge
packages=()
for crate in "$@"; do
    packages+=(-p "$crate")
done
# The box's binary must stay below 10 MB; the profile's "thin" links faster and is for everything else.
export CARGO_PROFILE_RELEASE_LTO=${CARGO_PROFILE_RELEASE_LTO:-fat}
cargo build --release --locked --target "$TARGET" "${flags[@]}" "${packages[@]}"

out=${CARGO_TARGET_DIR:-target}/$TARGET/release
for crate in "$@"; do
    # A binary has the name of its crate; a crate without one is a library.
    [ -f "$out/$crate" ] || continue
    glibc=$("$GNU-objdump" -T "$out/$crate" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
    printf '%s: %s bytes, needs %s\n' "$out/$crate" "$(stat -c %s "$out/$crate")" "${glibc/GLIBC_/glibc }"
done
