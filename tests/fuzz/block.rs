//! Blocks from a disk or a peer that may be damaged in any way: no panic, and no more records than bytes.
//!
//! Input: which layer is attacked, then its bytes.
//! 0: the file as it is. 1: header and frame with a checksum made right. 2: the raw body, sealed by our own codec.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_logic::block::{BlockHeader, Codec, Fidelity, HEADER_LEN, NAME_LEN_MAX, RAW_LEN_MAX};
use weir_logic::ids::{BlockKey, Class, Epoch};

fuzz_target!(|data: &[u8]| {
    let Some((&layer, bytes)) = data.split_first() else { return };
    let mut codec = Codec::default();
    match layer % 3 {
        0 => read(&mut codec, bytes),
        1 => {
            if let Some(block) = with_checksum(bytes) {
                read(&mut codec, &block);
            }
        }
        _ => {
            let key = BlockKey { lane: Class::Normal, epoch: Epoch(1), first_seq: 0 };
            let header = BlockHeader {
                key,
                last_seq: u64::MAX,
                born_us: 0,
                wall_offset_us: None,
                count: 1,
                raw_len: 0,
                fidelity: Fidelity::Thinned,
            };
            let block = codec.seal(&header, bytes);
            let (opened, _) = codec.open(&block).expect("what was sealed opens");
            assert_eq!(opened, BlockHeader { raw_len: bytes.len() as u32, ..header });
            read(&mut codec, &block);
        }
    }
});

fn read(codec: &mut Codec, block: &[u8]) {
    let Ok((header, records)) = codec.open(block) else { return };
    assert!(header.key.first_seq <= header.last_seq && header.count > 0 && header.raw_len as usize <= RAW_LEN_MAX);
    // The shortest record is five bytes; the one item more is an error.
    let records_max = header.raw_len as usize / 5 + 1;
    let (mut count, mut failed) = (0, false);
    for record in records {
        assert!(!failed, "nothing comes after an error");
        count += 1;
        match record {
            Ok(record) => {
                assert!(record.stream.len() <= NAME_LEN_MAX && record.device.len() <= NAME_LEN_MAX);
                assert!(record.payload.len() <= header.raw_len as usize);
            }
            Err(_) => failed = true,
        }
    }
    assert!(count <= records_max, "{count} records in {} bytes", header.raw_len);
}

/// The bytes as a block of our format and version whose lengths and checksum are right, whatever the rest says.
fn with_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut block = bytes.to_vec();
    let body_len = u32::try_from(block.len().checked_sub(HEADER_LEN)?).ok()?;
    block[..3].copy_from_slice(b"WB\x01");
    block[HEADER_LEN - 8..HEADER_LEN - 4].copy_from_slice(&body_len.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&block[..HEADER_LEN - 4]);
    crc.update(&block[HEADER_LEN..]);
    block[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.finalize().to_le_bytes());
    Some(block)
}
