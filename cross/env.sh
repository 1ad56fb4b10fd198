# shellcheck shell=bash
# Sourced by the scripts beside it: the names and places they share, and cargo's view of the cross compiler.

CROSS_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/weir/cross
# Starts the compiler that setup.sh unpacks where rustup cannot add the target.
UNPACKED_RUSTC=$CROSS_CACHE/rustc
# A C compiler that sees musl's headers instead of glibc's; setup.sh makes it.
MUSL_GCC=$CROSS_CACHE/musl-gcc

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
fail() { say "$*"; exit 1; }

# select_target NAME: what is built for: TARGET as Rust calls it, GNU as the C compiler does, EMULATOR of its programs, and SYSROOT,
# where Debian's cross packages put its loader and libraries.
select_target() {
    case $1 in
        aarch64) TARGET=aarch64-unknown-linux-gnu GNU=aarch64-linux-gnu EMULATOR=qemu-aarch64 ;;
        armv7) TARGET=armv7-unknown-linux-gnueabihf GNU=arm-linux-gnueabihf EMULATOR=qemu-arm ;;
        musl) TARGET=aarch64-unknown-linux-musl GNU=aarch64-linux-gnu EMULATOR=qemu-aarch64 ;;
        *) fail "target '$1' is not known: aarch64, armv7 (both with glibc) or musl (aarch64, static)" ;;
    esac
    TARGET_NAME=$1
    SYSROOT=/usr/$GNU
}
select_target aarch64

# Does the toolchain in use have the target's standard library?
host_rustc_has_target() {
    local libdir
    libdir=$(rustc --print target-libdir --target "$TARGET" 2>/dev/null) && compgen -G "$libdir/libstd-*.rlib" >/dev/null
}

# Has setup.sh unpacked a compiler that has it?
unpacked_rustc_has_target() {
    local libdir
    [ -x "$UNPACKED_RUSTC" ] || return
    libdir=$("$UNPACKED_RUSTC" --print target-libdir --target "$TARGET" 2>/dev/null) && compgen -G "$libdir/libstd-*.rlib" >/dev/null
}

# Exports what cargo and the build scripts of C dependencies (ring, zstd-sys, libsqlite3-sys) need.
use_cross_compiler() {
    local triple=${TARGET//-/_} cc=$GNU-gcc
    if [ "${WEIR_CROSS_RUST:-}" != debian ] && host_rustc_has_target; then
        :
    elif unpacked_rustc_has_target; then
        export RUSTC=$UNPACKED_RUSTC
    else
        fail "no Rust standard library for $TARGET: run 'cross/setup.sh $TARGET_NAME' first"
    fi
    command -v "$GNU-gcc" >/dev/null || fail "no $GNU-gcc: run 'cross/setup.sh $TARGET_NAME' first"
    if [ "$TARGET_NAME" = musl ]; then
        [ -x "$MUSL_GCC" ] || fail "no $MUSL_GCC: run 'cross/setup.sh musl' first"
        cc=$MUSL_GCC
    fi
    # Rust's own start files and libraries come with the target for musl, so the same compiler links for both.
    export "CARGO_TARGET_${triple^^}_LINKER=$GNU-gcc"
    export "CC_$triple=$cc" "CXX_$triple=$GNU-g++" "AR_$triple=$GNU-ar"
}

# Exports how cargo runs the target's programs.
use_emulator() {
    local triple=${TARGET//-/_}
    command -v "$EMULATOR" >/dev/null || fail "no $EMULATOR: run 'cross/setup.sh $TARGET_NAME' first"
    export "CARGO_TARGET_${triple^^}_RUNNER=$EMULATOR -L $SYSROOT"
}

# apt-get or apt-cache with a state of its own that knows arm64 too, so that the system needs no `dpkg --add-architecture`.
private_apt() {
    local tool=$1 sources=() state=$CROSS_CACHE/apt
    shift
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    # Other repositories of this machine may have no arm64.
    if [ -e /etc/apt/sources.list.d/debian.sources ]; then
        sources=(-o Dir::Etc::sourcelist=/etc/apt/sources.list.d/debian.sources -o Dir::Etc::sourceparts=/dev/null)
    fi
    "$tool" -qq -o Dir::State::lists="$state/lists" -o Dir::Cache="$state" "${sources[@]}" -o APT::Architecture=amd64 \
        -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root "$@"
}
