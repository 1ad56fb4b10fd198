use proptest::prelude::*;

use super::*;

fn record<'a>(source: u32, device: &'a str, at_us: u64, payload: &'a [u8]) -> NewRecord<'a> {
    NewRecord { source, stream: "pumps", device, kind: RecordKind::Raw, service_time: false, at_us, payload }
}

fn read(codec: &mut Codec, block: &[u8]) -> Vec<(u64, String, u64, Vec<u8>)> {
    let (_, records) = codec.open(block).expect("our own block opens");
    records
        .map(|r| r.expect("our own records read"))
        .map(|r| (r.seq, r.device.to_owned(), r.at_us, r.payload.to_vec()))
        .collect()
}

proptest! {
    #[test]
    fn chunks_and_the_sealed_block_hold_the_same_records(
        first in 0u64..1 << 40,
        pushes in prop::collection::vec((0u32..5, 0u64..1 << 50, prop::collection::vec(any::<u8>(), 0..40), prop::bool::weighted(0.2)), 1..60),
    ) {
        let (mut staging, mut codec) = (Staging::new(first), Codec::default());
        let (mut expected, mut from_chunks) = (Vec::new(), Vec::new());
        let cut = |staging: &mut Staging, codec: &mut Codec, from_chunks: &mut Vec<_>| {
            if let Some((header, block)) = staging.cut(Class::High, Epoch(7), Some(-5), codec) {
                assert_eq!(BlockHeader::parse(&block), Ok(header));
                from_chunks.extend(read(codec, &block));
            }
        };
        for (source, at_us, payload, do_cut) in pushes {
            let device = format!("d{source}");
            let seq = staging.push(&record(source, &device, at_us, &payload));
            expected.push((seq, device, at_us, payload));
            if do_cut {
                cut(&mut staging, &mut codec, &mut from_chunks);
            }
        }
        cut(&mut staging, &mut codec, &mut from_chunks);
        let (header, block) = staging.seal(Class::High, Epoch(7), None, &mut codec).expect("not empty");
        prop_assert_eq!(header.key.first_seq, first);
        prop_assert_eq!(header.last_seq, first + expected.len() as u64 - 1);
        prop_assert_eq!(header.wall_offset_us, None);
        prop_assert_eq!(&read(&mut codec, &block), &expected);
        prop_assert_eq!(&from_chunks, &expected);
        prop_assert!(staging.is_empty() && staging.first_seq() == staging.next_seq());
    }

    #[test]
    fn arbitrary_bodies_never_panic(raw in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0x10), Just(0x52), any::<u8>()], 0..200)) {
        let mut codec = Codec::default();
        let header = BlockHeader {
            key: BlockKey { lane: Class::Bulk, epoch: Epoch(1), first_seq: 0 },
            last_seq: 0, born_us: 0, wall_offset_us: None, count: 1, raw_len: 0, fidelity: Fidelity::Full,
        };
        let block = codec.seal(&header, &raw);
        let (_, records) = codec.open(&block).expect("the frame itself is sound");
        prop_assert!(records.count() <= raw.len());
    }

    #[test]
    fn a_flipped_bit_is_noticed(at in 0usize..64 + 20, bit in 0u8..8) {
        let (mut staging, mut codec) = (Staging::new(0), Codec::default());
        staging.push(&record(0, "a", 1, b"hello hello hello hello"));
        let (_, block) = staging.seal(Class::Normal, Epoch(1), None, &mut codec).expect("not empty");
        let mut bytes = block.to_vec();
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 1 << bit;
        prop_assert!(BlockHeader::parse(&bytes).is_err());
    }

    #[test]
    fn arbitrary_blocks_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Codec::default().open(&bytes).is_err());
    }
}

#[test]
fn a_newer_format_says_so() {
    let (mut staging, mut codec) = (Staging::new(0), Codec::default());
    staging.push(&record(0, "", 1, b"x"));
    let mut bytes = staging.seal(Class::Normal, Epoch(1), None, &mut codec).expect("not empty").1.to_vec();
    bytes[2] = 9;
    let err = BlockHeader::parse(&bytes).expect_err("newer");
    assert!(err.to_string().contains("upgrade"), "{err}");
}
