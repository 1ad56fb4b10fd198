#!/usr/bin/env bash
# cross/setup.sh [aarch64|armv7|musl|image]: installs what cross/build.sh and cross/test.sh need for a target, aarch64 if none is named, or
# what cross/image.sh and cross/emulate.sh need besides. Run it again at any time: it only adds what is missing.
#
# Rust's standard library for the target comes from rustup. Where rustup cannot fetch it, a compiler together with the
# libraries for both architectures is unpacked from Debian's packages into the user's cache; nothing that is installed changes.
# WEIR_CROSS_RUST=debian takes the second way at once.
set -euo pipefail
cd "$(dirname "$0")"
. ./env.sh
. ./packages.sh

# QEMU's whole machines. Debian 12's can be too old to be installed beside parts of a newer QEMU that are there already; nothing is
# removed for it, and the one of Debian's backports taken.
install_machine_emulator() {
    ! command -v qemu-system-aarch64 >/dev/null || return 0
    local options=(-qq -o DPkg::Lock::Timeout=600 -y --no-install-recommends --no-remove)
    as_root apt-get -qq -o DPkg::Lock::Timeout=600 update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install qemu-system-arm >/dev/null 2>&1 && return 0
    local state
    state=$(mktemp -d)
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    sed 's/^Suites: .*-security$/Suites: bookworm-security/; s/^Suites: bookworm .*/Suites: bookworm bookworm-updates bookworm-backports/' \
        /etc/apt/sources.list.d/debian.sources >"$state/debian.sources"
    options+=(-o Dir::Etc::sourcelist="$state/debian.sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$state/lists"
        -o Dir::Cache="$state" -o APT::Sandbox::User=root)
    as_root apt-get "${options[@]}" update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" -t bookworm-backports install qemu-system-arm >/dev/null
    rm -rf "$state"
}

if [ "${1:-}" = image ]; then
    command -v apt-get >/dev/null || fail "no apt-get here: install qemu-system-aarch64, mksquashfs, mtools, mkfs.vfat, mke2fs, sfdisk, grub-mkimage and depmod"
    ensure_packages squashfs-tools mtools dosfstools e2fsprogs fdisk grub-common kmod cpio xz-utils
    install_machine_emulator
    say "ready: $(qemu-system-aarch64 --version | head -n 1)"
    exit
fi
select_target "${1:-aarch64}"

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
    case $TARGET_NAME in
        armv7) ensure_packages gcc libc6-dev gcc-arm-linux-gnueabihf g++-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user ;;
        *) ensure_packages gcc libc6-dev gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user ;;
    esac
else
    say "no apt-get here: install a C and C++ cross compiler named $GNU-gcc and $GNU-g++, and $EMULATOR"
fi

# musl's headers, for the C in ring and zstd-sys; its libraries come with Rust's target.
unpack_musl_headers() {
    local work=$CROSS_CACHE/work headers=$CROSS_CACHE/musl
    rm -rf "$work" "$headers"
    mkdir -p "$work" "$headers"
    private_apt apt-get update
    (cd "$work" && private_apt apt-get download musl-dev:arm64)
    dpkg-deb -x "$work"/musl-dev_*.deb "$headers"
    rm -rf "$work"
    # glibc's headers must not be found, nor functions of it that _FORTIFY_SOURCE would call; atomics in line, as libgcc is not linked.
    cat >"$MUSL_GCC" <<SCRIPT
#!/bin/sh
exec $GNU-gcc -nostdinc -isystem '$headers/usr/include/aarch64-linux-musl' -isystem "\$($GNU-gcc -print-file-name=include)" \\
    -U_FORTIFY_SOURCE -mno-outline-atomics "\$@"
SCRIPT
    chmod +x "$MUSL_GCC"
}

if [ "${WEIR_CROSS_RUST:-}" != debian ] && ! host_rustc_has_target && command -v rustup >/dev/null; then
    timeout 300 rustup target add "$TARGET" || say "rustup cannot add $TARGET here; trying Debian's packages"
fi
if { [ "${WEIR_CROSS_RUST:-}" = debian ] || ! host_rustc_has_target; } && ! unpacked_rustc_has_target; then
    # Debian packs Rust's library for its own architectures, and for the box's that is this one.
    [ "$TARGET_NAME" = aarch64 ] || fail "the target $TARGET comes from rustup only: 'rustup target add $TARGET' must work"
    unpack_debian_rust
fi
if [ "$TARGET_NAME" = musl ] && [ ! -x "$MUSL_GCC" ]; then
    unpack_musl_headers
fi

use_cross_compiler
use_emulator
say "ready: $("${RUSTC:-rustc}" --version) for $TARGET, $("$GNU-gcc" --version | head -n 1), $("$EMULATOR" --version | head -n 1)"
