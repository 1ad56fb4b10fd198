#!/usr/bin/env bash
# cross/image.sh [--compress] [FILE]: a disk image for aarch64 boards that start by UEFI, and for QEMU's `virt`: weir.img in the target
# folder if no file is named, and FILE.xz beside it with --compress. Needs no root. The same checkout, tools and packages make the
# same bytes. `cross/setup.sh image` installs what it needs.
#
#   1  weir-boot    16 MiB  FAT     GRUB, and the note of which slot is good and which on trial
#   2  weir-a       56 MiB  squashfs, read-only: kernel, initramfs, userland, weir-edge, weir-supervisor
#   3  weir-b       56 MiB  the same, so that another can be tried beside the one that works
#   4  weir-config  16 MiB  FAT     what a person puts there: edge.toml, certificates, models, network.conf
#   5  weir-data   128 MiB  ext4    buffer and last good configuration; takes the rest of the card at the first start
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh

compress=
[ "${1:-}" != --compress ] || { compress=yes; shift; }
target_dir=${CARGO_TARGET_DIR:-target}
image=${1:-$target_dir/weir.img}

# Sizes of the partitions in MiB, in their order.
sizes_mib=(16 56 56 16 128)
names=(weir-boot weir-a weir-b weir-config weir-data)
# GPT's types: EFI system, Linux, Microsoft basic data (which desktops show).
types=(C12A7328-F81F-11D2-BA4B-00A0C93EC93B 0FC63DAF-8483-4772-8E79-3D69D8477DE4 0FC63DAF-8483-4772-8E79-3D69D8477DE4
    EBD0A0A2-B9E5-4433-87C0-68B6B72699C7 0FC63DAF-8483-4772-8E79-3D69D8477DE4)
# Random once; they only have to differ from those of other disks, and from each other.
id=5b1e77a2-6c4f-4e0b-9d3a-57454952000
raw_bytes_max=300000000
compressed_bytes_max=100000000

# What the kernel needs before it has a root, and what it loads from there.
disk_modules=(virtio_pci virtio_mmio virtio_blk virtio_scsi sd_mod nvme ahci xhci_pci usb_storage uas sdhci_acpi sdhci_pci squashfs)
root_modules=(ext4 vfat nls_cp437 nls_ascii nls_utf8 virtio_net virtio_rng i6300esb sbsa_gwdt softdog r8169 igb igc e1000e r8152
    smsc95xx cdc_ether cdc_mbim qmi_wwan)
applets=(sh awk basename cat chmod chown cp cut date echo env find grep head hostname init insmod ip kill ln ls lsmod mkdir modprobe mount
    mv ntpd poweroff readlink reboot rm sed sleep sort stat sync tail touch udhcpc umount uname xargs)

for tool in mksquashfs mcopy mkfs.vfat mke2fs sfdisk grub-mkimage grub-editenv depmod cpio; do
    PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || fail "no $tool: run 'cross/setup.sh image' first"
done
PATH=$PATH:/usr/sbin:/sbin

# Debian's kernel, GRUB, firmware for the emulator, and the little userland, unpacked into the user's cache.
assets=$CROSS_CACHE/image
fetch_assets() {
    local work=$CROSS_CACHE/work kernel package
    [ ! -e "$assets/versions" ] || return 0
    command -v apt-get >/dev/null || fail "the image is made of Debian's packages, which are fetched with apt-get"
    say "fetching Debian's kernel, GRUB and userland for arm64"
    rm -rf "$work" "$assets"
    mkdir -p "$work/packages" "$work/root"
    private_apt apt-get update
    kernel=$(private_apt apt-cache depends linux-image-arm64:arm64 | awk '/Depends: linux-image/ { print $2 }')
    (cd "$work/packages" && private_apt apt-get download "${kernel%:*}:arm64" busybox-static:arm64 libc6:arm64 libgcc-s1:arm64 \
        e2fsprogs:arm64 libext2fs2:arm64 libcom-err2:arm64 libblkid1:arm64 libuuid1:arm64 fdisk:arm64 libfdisk1:arm64 \
        libsmartcols1:arm64 libreadline8:arm64 libtinfo6:arm64 util-linux:arm64 grub-efi-arm64-bin:arm64 qemu-efi-aarch64)
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/root"
        dpkg-deb -W --showformat '${Package} ${Version}\n' "$package" >>"$work/root/versions"
    done
    depmod -b "$work/root" "$(ls "$work/root/lib/modules")"
    mv "$work/root" "$assets"
    rm -rf "$work" "$CROSS_CACHE/apt"
}

# copy_modules FOLDER NAME...: kernel modules and all that they need.
copy_modules() {
    local into=$1 name files
    shift
    for name in "$@"; do
        files=$(modprobe -d "$assets" -S "$kernel" --show-depends "$name") || fail "this kernel has no module $name"
        awk '$1 == "insmod" { print $2 }' <<<"$files"
    done | awk '!seen[$0]++' | while read -r file; do
        "copy_module_to_$into" "$file"
    done
}

# In the initramfs they are loaded in the order of their names.
copy_module_to_initramfs() {
    local count
    count=$(find "$work/initramfs/lib/modules" -name '*.ko' | wc -l)
    cp "$1" "$work/initramfs/lib/modules/$(printf '%03d' "$count")-$(basename "$1")"
}

copy_module_to_root() {
    local path=${1#"$assets"/}
    install -D -m 0644 "$1" "$work/root/$path"
}

make_initramfs() {
    mkdir -p "$work"/initramfs/{bin,dev,proc,sys,root,lib/modules}
    cp "$assets/bin/busybox" "$work/initramfs/bin/"
    ln -s busybox "$work/initramfs/bin/sh"
    copy_modules initramfs "${disk_modules[@]}"
    install -m 0755 cross/image/initramfs-init "$work/initramfs/init"
    settle_times "$work/initramfs"
    (cd "$work/initramfs" && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) | gzip -9n >"$work/initrd.gz"
}

make_root() {
    local root=$work/root applet file
    mkdir -p "$root"/{bin,boot,data,dev,etc/weir,lib/aarch64-linux-gnu,proc,run,sbin,sys,tmp,usr/bin,usr/lib/weir,usr/sbin,var/lib}
    cp "$assets/bin/busybox" "$root/bin/"
    for applet in "${applets[@]}"; do ln -s busybox "$root/bin/$applet"; done
    # The kernel calls modprobe by this path when a file system or a sum is asked for.
    for applet in init modprobe; do ln -s ../bin/busybox "$root/sbin/$applet"; done
    cp "$assets/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1" "$root/lib/"
    for file in c m gcc_s; do cp -L "$assets"/lib/aarch64-linux-gnu/lib$file.so.[16] "$root/lib/aarch64-linux-gnu/"; done
    for file in sbin/e2fsck sbin/resize2fs sbin/sfdisk usr/bin/resizepart; do
        cp "$assets/$file" "$root/sbin/"
        "$GNU-readelf" -d "$assets/$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
    done | sort -u | while read -r file; do
        [ -e "$root/lib/$file" ] || [ -e "$root/lib/aarch64-linux-gnu/$file" ] ||
            cp -L "$(find "$assets/lib" "$assets/usr/lib/aarch64-linux-gnu" -name "$file" | head -n 1)" "$root/lib/aarch64-linux-gnu/"
    done
    copy_modules root "${disk_modules[@]}" "${root_modules[@]}"
    cp "$assets/lib/modules/$kernel"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$kernel/"
    depmod -b "$root" "$kernel"

    install -m 0755 "$binaries/weir-edge" "$binaries/weir-supervisor" "$root/usr/bin/"
    install -m 0755 cross/image/{boot,network,dhcp,clock} "$root/usr/lib/weir/"
    install -m 0644 cross/image/inittab "$root/etc/"
    install -m 0644 cross/image/edge.toml "$root/etc/weir/"
    ln -s /data/state "$root/var/lib/weir"
    ln -s /run/resolv.conf "$root/etc/resolv.conf"
    printf 'root:x:0:0::/:/bin/false\nweir:x:990:990::/data/state:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nweir:x:990:\n' >"$root/etc/group"
    printf '127.0.0.1 localhost weir\n::1 localhost\n' >"$root/etc/hosts"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
    printf 'version=%s\nkernel=%s\nbuilt=%s\n' "$version" "$kernel" "$SOURCE_DATE_EPOCH" >"$root/etc/weir-release"
    cp "$assets/boot/vmlinuz-$kernel" "$root/boot/vmlinuz"
    cp "$work/initrd.gz" "$root/boot/"
    # GRUB of Debian 12 reads squashfs with gzip and xz; xz takes it half a minute on an emulated machine.
    settle_times "$root"
    mksquashfs "$root" "$work/slot" -comp gzip -all-root -noappend -no-xattrs -quiet -no-progress >/dev/null
}

make_boot() {
    mkdir -p "$work"/esp/{EFI/BOOT,weir}
    grub-mkimage -O arm64-efi -d "$assets/usr/lib/grub/arm64-efi" -p /weir -c cross/image/grub-early.cfg -o "$work/esp/EFI/BOOT/BOOTAA64.EFI" \
        part_gpt fat squash4 gzio search search_fs_file configfile normal linux echo test regexp loadenv sleep reboot boot
    cp cross/image/grub.cfg "$work/esp/weir/"
    grub-editenv "$work/esp/weir/grubenv" create
    grub-editenv "$work/esp/weir/grubenv" set good=a trial=
    fat_partition 0 57454901 "$work/esp"
}

make_config() {
    mkdir -p "$work/config"
    cat >"$work/config/README.TXT" <<'TEXT'
Put here what this box runs with, and start it: edge.toml, and beside it the certificates, keys and models that it names by
relative paths. `weir check edge.toml` finds mistakes before. network.conf may give the box a static address:

    interface = eth0
    address = 192.168.8.20/24
    gateway = 192.168.8.1
    dns = 192.168.8.1
    ntp = 192.168.8.1

Without it the box asks by DHCP. What is here stays here: the box copies it, and looks again at each start.
TEXT
    fat_partition 3 57454904 "$work/config"
}

# fat_partition INDEX SERIAL FOLDER
fat_partition() {
    local file=$work/part$1
    truncate -s "${sizes_mib[$1]}M" "$file"
    mkfs.vfat --invariant -F 16 -i "$2" -n "$(tr a-z A-Z <<<"${names[$1]}")" "$file" >/dev/null
    settle_times "$3"
    (cd "$3" && TZ=UTC mcopy -smQ -i "$file" ./* ::)
}

make_data() {
    mkdir -p "$work/data"
    truncate -s "${sizes_mib[4]}M" "$work/part4"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -F -t ext4 -L weir-data -m 0 -U "${id}5" -E "hash_seed=${id}6,root_owner=0:0" "$work/part4"
}

settle_times() { find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }

make_disk() {
    local at_mib=1 part table
    table="label: gpt"$'\n'"label-id: ${id}0"$'\n'
    for part in 0 1 2 3 4; do
        table+="start=${at_mib}MiB, size=${sizes_mib[$part]}MiB, type=${types[$part]}, uuid=${id}$((part + 1)), name=${names[$part]}"$'\n'
        at_mib=$((at_mib + sizes_mib[part]))
    done
    truncate -s "$((at_mib + 1))M" "$work/disk"
    sfdisk -q "$work/disk" <<<"$table"
    at_mib=1
    for part in 0 1 2 3 4; do
        dd if="$work/part$part" of="$work/disk" bs=1M seek=$at_mib conv=notrunc,sparse status=none
        at_mib=$((at_mib + sizes_mib[part]))
    done
    mkdir -p "$(dirname "$image")"
    mv "$work/disk" "$image"
}

# limit NAME FILE BYTES: says how large a file is, and fails if it is larger.
limit() {
    local bytes
    bytes=$(stat -c %s "$2")
    printf '%-34s %12d bytes, at most %d\n' "$1" "$bytes" "$3"
    [ "$bytes" -le "$3" ] || fail "$1 is too large"
}

fetch_assets
kernel=$(ls "$assets/lib/modules")
# One after the other, so that weir-edge is the one that cross/build.sh makes for itself.
cross/build.sh weir-edge
cross/build.sh weir-supervisor
binaries=$target_dir/$TARGET/release
version=$(git describe --always --dirty 2>/dev/null || echo unknown)
# The time in the image is that of what it is made from.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1767225600)}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make_initramfs
make_root
make_boot
make_config
make_data
for part in 1 2; do
    limit "slot ${names[$part]}" "$work/slot" $((sizes_mib[part] << 20))
    cp "$work/slot" "$work/part$part"
done
make_disk
limit "$image" "$image" $raw_bytes_max
if [ "$compress" ]; then
    xz -T 0 -k -f "$image"
    limit "$image.xz" "$image.xz" $compressed_bytes_max
fi
sha256sum "$image"
