#!/usr/bin/env bash
# cross/package.sh [amd64|arm64|armhf]...: Debian packages of weir-edge, for arm64 if none is named, in the target folder under debian/. Each
# holds the program, a hardened systemd unit, and /etc/weir/edge.toml with every key. Same checkout and tools, same bytes.
# WEIR_PACKAGE_VERSION replaces the version, which is the workspace's.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh

target_dir=${CARGO_TARGET_DIR:-target}
version=${WEIR_PACKAGE_VERSION:-$(sed -n '/^\[workspace.package\]/,/^$/ s/^version = "\(.*\)"/\1/p' Cargo.toml)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1767225600)}
export SOURCE_DATE_EPOCH

# package ARCHITECTURE BINARY OBJDUMP
package() {
    local arch=$1 binary=$2 objdump=$3 work glibc file=$target_dir/debian/weir-edge_${version}_$1.deb
    work=$(mktemp -d)
    chmod 0755 "$work"
    glibc=$("$objdump" -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
    install -D -m 0755 "$binary" "$work/usr/bin/weir-edge"
    install -D -m 0644 config/edge.toml "$work/etc/weir/edge.toml"
    install -D -m 0644 cross/package/weir-edge.service "$work/lib/systemd/system/weir-edge.service"
    install -D -m 0644 README.md "$work/usr/share/doc/weir-edge/README.md"
    { printf 'Weir is under the Apache License 2.0.\n\n' && cat LICENSE; } >"$work/usr/share/doc/weir-edge/copyright"
    mkdir "$work/DEBIAN"
    cat >"$work/DEBIAN/control" <<CONTROL
Package: weir-edge
Version: $version
Architecture: $arch
Maintainer: The Weir maintainers <maintainers@weir.example>
Depends: libc6 (>= ${glibc#GLIBC_}), libgcc-s1, adduser, init-system-helpers
Section: net
Priority: optional
Installed-Size: $(du -sk --apparent-size "$work" | cut -f 1)
Description: runtime on an edge box for sensor streams over MQTT
 Takes MQTT messages in, runs ONNX models on them, keeps what matters in a
 durable buffer, and delivers it over QUIC, each record exactly once.
CONTROL
    echo /etc/weir/edge.toml >"$work/DEBIAN/conffiles"
    install -m 0755 cross/package/{postinst,prerm,postrm} "$work/DEBIAN/"
    find "$work" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    mkdir -p "$target_dir/debian"
    dpkg-deb --root-owner-group -Zxz --build "$work" "$file" >/dev/null
    rm -rf "$work"
    printf '%s: %s bytes, needs glibc %s\n' "$file" "$(stat -c %s "$file")" "${glibc#GLIBC_}"
}

[ $# -gt 0 ] || set -- arm64
for arch in "$@"; do
    case $arch in
        amd64)
            cargo build --release --locked -p weir-edge
            package amd64 "$target_dir/release/weir-edge" objdump
            ;;
        arm64 | armhf)
            name=aarch64
            [ "$arch" = arm64 ] || name=armv7
            cross/build.sh --target $name weir-edge
            select_target $name
            package "$arch" "$target_dir/$TARGET/release/weir-edge" "$GNU-objdump"
            ;;
        *) fail "architecture '$arch' is not known: amd64, arm64 or armhf" ;;
    esac
done
