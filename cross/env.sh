# shellcheck shell=bash
# Sourced by the scripts beside it: the names and places they share, and cargo's view of the cross compiler.

TARGET=aarch64-unknown-linux-gnu
GNU=aarch64-linux-gnu
# Debian's cross packages put the target's loader and libraries here.
SYSROOT=/usr/$GNU
CROSS_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/weir/cross
# Starts the compiler that setup.sh unpacks where rustup cannot add the target.
UNPACKED_RUSTC=$CROSS_CACHE/rustc

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
fail() { say "$*"; exit 1; }

# Does the toolchain in use have the target's standard library?
host_rustc_has_target() {
    local libdir
    libdir=$(rustc --print target-libdir --target "$TARGET" 2>/dev/null) && compgen -G "$libdir/libstd-*.rlib" >/dev/null
}

# Exports what cargo and the build scripts of C dependencies (ring, zstd-sys, libsqlite3-sys) need.
use_cross_compiler() {
    if [ "${WEIR_CROSS_RUST:-}" != debian ] && host_rustc_has_target; then
        :
    elif [ -x "$UNPACKED_RUSTC" ]; then
        export RUSTC=$UNPACKED_RUSTC
    else
        fail "no Rust standard library for $TARGET: run cross/setup.sh first"
    fi
    command -v "$GNU-gcc" >/dev/null || fail "no $GNU-gcc: run cross/setup.sh first"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$GNU-gcc
    export CC_aarch64_unknown_linux_gnu=$GNU-gcc
    export CXX_aarch64_unknown_linux_gnu=$GNU-g++
    export AR_aarch64_unknown_linux_gnu=$GNU-ar
}

# Exports how cargo runs the target's programs.
use_emulator() {
    command -v qemu-aarch64 >/dev/null || fail "no qemu-aarch64: run cross/setup.sh first"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $SYSROOT"
}
