#!/usr/bin/env bash
# cross/package-test.sh [amd64|arm64]: builds the package twice, in two versions, and in a Debian root file system of its own installs,
# starts, upgrades, removes and purges it. amd64 runs under systemd, arm64 under qemu-user and without one, as a program that is told
# what the unit would tell it. Needs root; all happens in namespaces, and nothing of this machine changes.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh
. cross/packages.sh

arch=${1:-amd64}
case $arch in
    amd64 | arm64) ;;
    *) fail "the package of '$arch' is not tested: amd64 or arm64" ;;
esac
[ "$(id -u)" = 0 ] || fail "run this as root: it makes a root file system"
ensure_packages mmdebstrap arch-test
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
root_tar=$CROSS_CACHE/debian-$arch.tar
qemu=$CROSS_CACHE/qemu-user-static/usr/bin/qemu-aarch64-static

# QEMU that needs no libraries, so that it starts in another root. Unpacked, not installed.
fetch_static_qemu() {
    [ ! -x "$qemu" ] || return 0
    local work=$CROSS_CACHE/work
    rm -rf "$work"
    mkdir -p "$work"
    private_apt apt-get update
    (cd "$work" && private_apt apt-get download qemu-user-static:amd64)
    dpkg-deb -x "$work"/*.deb "$CROSS_CACHE/qemu-user-static"
    rm -rf "$work"
}

# Runs a command where arm64 programs start: in a user namespace, which has a binfmt_misc of its own (since Linux 6.7). All users are
# mapped, because packages make users, so the map is written from here and the command waits for it.
with_arm64() {
    local gate child
    gate=$(mktemp -d)
    mkfifo "$gate/go"
    # shellcheck disable=SC2016 # for the inner shell
    unshare --user bash -c '
        read -r _ <"$0/go"
        exec unshare --mount --pid --fork --kill-child bash -c "
            mount -t proc proc /proc && mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
            printf %s \"\$0\" >/proc/sys/fs/binfmt_misc/register
            exec \"\$@\"" "$@"' "$gate" "$binfmt" "$@" </dev/null &
    child=$!
    until [ "$(readlink "/proc/$child/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.05; done
    echo "0 0 65536" >"/proc/$child/uid_map"
    echo "0 0 65536" >"/proc/$child/gid_map"
    echo go >"$gate/go"
    rm -rf "$gate"
    wait $child
}
# What the kernel knows 64-bit ARM programs by, in the words of binfmt_misc; F opens QEMU now, so that other roots need none.
binfmt=':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
binfmt+=':\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$qemu:F"

make_root() {
    [ ! -e "$root_tar" ] || return 0
    local include=adduser,init-system-helpers,util-linux,procps bootstrap=(mmdebstrap --quiet --variant=minbase --architectures="$arch")
    [ "$arch" = arm64 ] || include+=,systemd,systemd-sysv,curl
    bootstrap+=(--include="$include" bookworm "${root_tar%.tar}.new.tar")
    if [ "$arch" = arm64 ]; then with_arm64 "${bootstrap[@]}" --mode=root; else "${bootstrap[@]}"; fi
    mv "${root_tar%.tar}.new.tar" "$root_tar"
}

[ "$arch" = amd64 ] || fetch_static_qemu
make_root
for version in 0.1.0 0.1.1; do
    WEIR_PACKAGE_VERSION=$version cross/package.sh "$arch"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
tar -xf "$root_tar" -C "$work/root"
mkdir "$work/root/packages"
cp "$target_dir"/debian/weir-edge_0.1.[01]_"$arch".deb cross/package/scenario.sh "$work/root/packages/"

if [ "$arch" = arm64 ]; then
    # shellcheck disable=SC2016 # for the inner shell
    with_arm64 bash -c '
        mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" && mount -t tmpfs run "$1/run"
        ip link set lo up 2>/dev/null || true
        exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C bash /packages/scenario.sh' _ "$work/root"
else
    # systemd as the first process of a machine of namespaces; the scenario is its only service, and says how it went in a file.
    cat >"$work/root/etc/systemd/system/scenario.service" <<'UNIT'
[Service]
Type=oneshot
Environment=LC_ALL=C
StandardOutput=append:/packages/output
StandardError=inherit
ExecStart=/bin/bash /packages/scenario.sh
ExecStopPost=/bin/sh -c 'echo "$SERVICE_RESULT" >/packages/result'
ExecStopPost=/bin/systemctl --force --force poweroff
TimeoutStartSec=180
UNIT
    mkdir -p "$work/root/etc/systemd/system/multi-user.target.wants"
    ln -sf ../scenario.service "$work/root/etc/systemd/system/multi-user.target.wants/scenario.service"
    rm -f "$work/root/etc/systemd/system/getty.target.wants/"*
    # A group of its own, that systemd can take for the whole tree.
    group=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)/weir-package-$$
    mkdir "$group"
    trap 'find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; rm -rf "$work"' EXIT
    # shellcheck disable=SC2016 # for the inner shell
    (echo "$BASHPID" >"$group/cgroup.procs" && exec timeout 240 unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup bash -c '
        mount --make-rprivate / && mount --bind "$1" "$1" && cd "$1"
        mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs tmp
        mount -t tmpfs -o mode=0755 dev dev && mkdir dev/pts dev/shm && mount -t devpts -o ptmxmode=0666 devpts dev/pts && ln -s pts/ptmx dev/ptmx
        for node in null zero full random urandom tty; do : >dev/$node && mount --bind /dev/$node dev/$node; done
        umount sys/fs/cgroup 2>/dev/null; mount -t cgroup2 cgroup2 sys/fs/cgroup
        ip link set lo up
        # Not only chroot: what systemd does for ProtectSystem needs a root that is a mount.
        pivot_root . media
        exec chroot . env -i container=weir-test PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c "umount -l /media && exec /lib/systemd/systemd \
            --system --unit=multi-user.target"' _ "$work/root") </dev/null >"$work/console" 2>&1 || true
    cat "$work/root/packages/output" 2>/dev/null || cat "$work/console"
    [ "$(cat "$work/root/packages/result" 2>/dev/null)" = success ] || { tail -n 20 "$work/console" >&2; fail "the scenario failed"; }
fi
say "the $arch package was installed, started, upgraded, removed and purged"
