#!/usr/bin/env bash
# cross/build.sh [--target aarch64|armv7|musl] [--CARGO-FLAG...] [CRATE...]: release build for a box, for aarch64 and of weir-edge if
# nothing else is named; says how large each binary is and which glibc it needs. `musl` is aarch64 too, in one static file.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh

flags=()
while [[ ${1:-} == --* ]]; do
    if [ "$1" = --target ]; then
        [ $# -ge 2 ] || fail "--target needs a name: aarch64, armv7 or musl"
        select_target "$2"
        shift 2
    else
        flags+=("$1")
        shift
    fi
done
use_cross_compiler
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
    glibc=$("$GNU-objdump" -T "$out/$crate" 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1) || true
    if "$GNU-readelf" -l "$out/$crate" | grep -q 'INTERP'; then needs="needs ${glibc/GLIBC_/glibc }"; else needs="static"; fi
    printf '%s: %s bytes, %s\n' "$out/$crate" "$(stat -c %s "$out/$crate")" "$needs"
done
