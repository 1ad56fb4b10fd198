#!/usr/bin/env bash
# cross/emulate.sh [--short]: builds the image and runs it as a whole machine in QEMU, with 256 MiB of memory: sensor data over MQTT from
# this host, the reference model, QUIC to a weir-cloud here, an oracle that knows each message, and power cuts. --short is one start
# and 3 cuts; otherwise there are 20, and the faults after them: a wrong configuration, a missing model, an outage, a full data
# partition, a slot that does not start. Prints times, memory and sizes. tests/it/emulate.rs is what runs.
# WEIR_CUTS and WEIR_SEED change the number of cuts and their moments. `cross/setup.sh image` installs what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/env.sh

cuts=20 filter=emulate::
case ${1:-} in
    --short) cuts=3 filter=emulate::the_image_delivers ;;
    '') ;;
    *) fail "unknown: $1 (cross/emulate.sh [--short])" ;;
esac
command -v qemu-system-aarch64 >/dev/null || fail "no qemu-system-aarch64: run 'cross/setup.sh image' first"

target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cross/image.sh "$target_dir/weir.img"
export WEIR_IMAGE=$target_dir/weir.img
export WEIR_FIRMWARE=$CROSS_CACHE/image/usr/share/qemu-efi-aarch64/QEMU_EFI.fd
export WEIR_CUTS=${WEIR_CUTS:-$cuts}
cargo test --locked -p weir-tests --test it "$filter" -- --ignored --nocapture --test-threads 1
