#!/usr/bin/env bash
# cross/setup.sh [aarch64]: installs what cross/build.sh and cross/test.sh need. Run it again at any time: it only adds what is missing.
#
# Rust's standard library for the target comes from rustup. Where rustup cannot fetch it, a compiler together with the
# libraries for both architectures is unpacked from Debian's packages into the user's cache; nothing that is installed changes.
# WEIR_CROSS_RUST=debian takes the second way at once.
set -euo pipefail
cd "$(dirname "$0")"
. ./env.sh
. ./packages.sh

[ "${1:-aarch64}" = aarch64 ] || fail "architecture '$1' is not known here: only aarch64"

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

# Unpacks Debian's newest Rust, which it keeps for building browsers, with the standard library of both architectures.
unpack_debian_rust() {
    [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || fail "Debian's cross compiler can be unpacked on amd64 only"
    # What Debian's LLVM is linked with.
    ensure_packages libz3-4 libxml2 libedit2
    private_apt apt-get update
    local version short llvm
    version=$(private_apt apt-cache policy rustc-web | awk '/Candidate:/ { print $2 }')
    case $version in
        '' | '(none)') fail "this distribution has no package rustc-web: install the target with 'rustup target add $TARGET'" ;;
    esac
    short=$(cut -d. -f1,2 <<<"$version")
    llvm=$(private_apt apt-cache depends "libstd-rust-web-$short" | awk '/Depends: libllvm/ { print $2; exit }')

    local work=$CROSS_CACHE/work toolchain=$CROSS_CACHE/toolchain package
    rm -rf "$work"
    mkdir -p "$work/packages" "$work/root"
    (cd "$work/packages" && private_apt apt-get download "rustc-web=$version" "libstd-rust-web-$short=$version" \
        "libstd-rust-web-dev=$version" "libstd-rust-web-dev:arm64=$version" "$llvm")
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
    mkdir -p "$work/toolchain/bin" "$work/toolchain/lib"
    mv "$work/root/usr/bin/rustc" "$work/toolchain/bin/"
    mv "$work/root/usr/lib/rustlib" "$work/toolchain/lib/"
    cp -a "$work"/root/usr/lib/x86_64-linux-gnu/*.so* "$work/toolchain/lib/"
    rm -rf "$toolchain"
    mv "$work/toolchain" "$toolchain"
    rm -rf "$work" "$CROSS_CACHE/apt"

    cat >"$UNPACKED_RUSTC" <<SCRIPT
#!/bin/sh
LD_LIBRARY_PATH='$toolchain/lib' exec '$toolchain/bin/rustc' "\$@"
SCRIPT
    chmod +x "$UNPACKED_RUSTC"
    "$UNPACKED_RUSTC" --version >/dev/null || fail "the unpacked compiler does not start"
}

if command -v apt-get >/dev/null; then
    ensure_packages gcc libc6-dev gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
else
    say "no apt-get here: install a C and C++ cross compiler named $GNU-gcc and $GNU-g++, and qemu-aarch64"
fi

if [ "${WEIR_CROSS_RUST:-}" != debian ] && ! host_rustc_has_target && command -v rustup >/dev/null; then
    timeout 300 rustup target add "$TARGET" || say "rustup cannot add $TARGET here; trying Debian's packages"
fi
if { [ "${WEIR_CROSS_RUST:-}" = debian ] || ! host_rustc_has_target; } && ! "$UNPACKED_RUSTC" --version >/dev/null 2>&1; then
    unpack_debian_rust
fi

use_cross_compiler
use_emulator
say "ready: $("${RUSTC:-rustc}" --version), $("$GNU-gcc" --version | head -n 1), $(qemu-aarch64 --version | head -n 1)"
