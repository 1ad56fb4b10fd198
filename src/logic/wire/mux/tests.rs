use proptest::prelude::*;

use super::*;
use crate::wire::take_block;

fn stream(at: usize) -> LaneStream {
    lane_of(at as u8).expect("a lane")
}

/// Something that happens to a connection's writer.
#[derive(Debug, Clone)]
enum Step {
    Control(Vec<u8>),
    Block(usize, usize),
    Frame,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..40_000).prop_map(Step::Control),
        (0..LANES, 64usize..60_000).prop_map(|(at, len)| Step::Block(at, len)),
        Just(Step::Frame),
        Just(Step::Frame),
    ];
    prop::collection::vec(step, 1..40)
}

/// All frames in bytes that are read in parts.
fn frames(bytes: &[u8], part_len: usize) -> Vec<Frame> {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(part_len) {
        buffer.extend_from_slice(part);
        while let Some(frame) = take_frame(&mut buffer).expect("our own frame") {
            frames.push(frame);
        }
    }
    assert!(buffer.is_empty());
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_stream_arrives_as_it_was_pushed_however_it_is_cut(steps in steps(), part_len in 1usize..50_000) {
        let (mut mux, mut wire, mut frame) = (Mux::default(), Vec::new(), Vec::new());
        let (mut control, mut blocks, mut ended) = (Vec::new(), vec![Vec::new(); LANES], [0; LANES]);
        let mut write = |mux: &mut Mux| {
            let filled = mux.next_frame(&mut frame);
            assert!(frame.len() <= FRAME_LEN_MAX && (filled.is_none() == frame.is_empty()));
            wire.extend_from_slice(&frame);
            if let Some(Filled::Lane { stream, ended_bytes }) = filled {
                ended[index(stream)] += ended_bytes;
            }
            filled.is_some()
        };
        for (nth, step) in steps.into_iter().enumerate() {
            match step {
                Step::Control(bytes) => {
                    mux.push_control(&bytes);
                    control.extend_from_slice(&bytes);
                }
                Step::Block(at, len) => {
                    let block = Bytes::from(vec![nth as u8; len]);
                    mux.push_block(stream(at), block.clone());
                    blocks[at].push(block);
                }
                Step::Frame => {
                    write(&mut mux);
                }
            }
        }
        while write(&mut mux) {}
        prop_assert!(mux.is_empty());
        let (mut control_got, mut lanes_got) = (Vec::new(), vec![BytesMut::new(); LANES]);
        for frame in frames(&wire, part_len) {
            match frame {
                Frame::Control(bytes) => control_got.extend_from_slice(&bytes),
                Frame::Lane { stream, bytes } => lanes_got[index(stream)].extend_from_slice(&bytes),
                other => panic!("{other:?} was never written"),
            }
        }
        prop_assert_eq!(control_got, control);
        for (at, mut got) in lanes_got.into_iter().enumerate() {
            let taken: Vec<Bytes> = std::iter::from_fn(|| take_block(&mut got).expect("our own block")).collect();
            prop_assert_eq!(ended[at], taken.iter().map(|block| block.len() as u64).sum::<u64>());
            prop_assert_eq!(&taken, &blocks[at]);
            prop_assert!(got.is_empty());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_no_frame_is_too_long(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = take_frame(&mut buffer) {
            if let Frame::Control(bytes) | Frame::Lane { bytes, .. } = frame {
                prop_assert!((1..=BODY_LEN_MAX).contains(&bytes.len()));
            }
        }
    }

    #[test]
    fn openings_and_closes_come_back_as_they_were(token in any::<[u8; 16]>(), bulk in any::<bool>(), code in any::<u32>(), reason in ".{0,400}") {
        let half = if bulk { Half::Bulk } else { Half::Control };
        let opening = Opening { half, token: Token(token) };
        prop_assert_eq!(frames(&opening.to_frame(), 3), [Frame::Opening(opening)]);
        let Frame::Close { code: code_got, reason: reason_got } = &frames(&close_frame(code, &reason), 5)[0] else {
            panic!("a close");
        };
        prop_assert_eq!(*code_got, code);
        prop_assert!(reason.starts_with(reason_got.as_str()) && (reason_got.len() > REASON_LEN_MAX - 4 || *reason_got == reason));
    }
}

#[test]
fn what_is_urgent_waits_for_one_frame_and_others_take_turns() {
    let mut mux = Mux::default();
    let mut frame = Vec::new();
    let block = |len: usize| Bytes::from(vec![0; len]);
    let (high, bulk) = (stream(2), stream(7));
    mux.push_block(bulk, block(50_000));
    mux.push_block(high, block(50_000));
    let mut next = |mux: &mut Mux| mux.next_frame(&mut frame);
    let lane = |stream| Some(Filled::Lane { stream, ended_bytes: 0 });
    assert_eq!([next(&mut mux), next(&mut mux), next(&mut mux)], [lane(high), lane(bulk), lane(high)]);
    mux.push_block(stream(1), block(100));
    mux.push_block(stream(0), block(200));
    mux.push_block(stream(0), block(300));
    mux.push_control(&[0; 20_000]);
    let critical = |backlog, ended_bytes| Filled::Lane { stream: LaneStream { lane: Class::Critical, backlog }, ended_bytes };
    let filled: Vec<Filled> = std::iter::from_fn(|| next(&mut mux)).take(4).collect();
    assert_eq!(filled, [Filled::Control, Filled::Control, critical(false, 500), critical(true, 100)]);
    assert_eq!(next(&mut mux), lane(bulk), "turns go on where they were");
}

#[test]
fn limits_and_kinds_are_checked_as_soon_as_the_head_is_there() {
    let head = |channel: u8, len: u32| {
        let [a, b, c, _] = len.to_le_bytes();
        BytesMut::from(&[channel, a, b, c][..])
    };
    for channel in [0, 7, CHANNEL_CONTROL] {
        assert_eq!(take_frame(&mut head(channel, BODY_LEN_MAX as u32)), Ok(None));
        for len in [0, BODY_LEN_MAX as u32 + 1, 0xff_ffff] {
            assert_eq!(take_frame(&mut head(channel, len)), Err(FrameError::FrameLength { len: len as usize }));
        }
    }
    for (channel, len) in [(CHANNEL_OPENING, 19), (CHANNEL_OPENING, 21), (CHANNEL_CLOSE, 3), (CHANNEL_CLOSE, 1_029)] {
        assert!(matches!(take_frame(&mut head(channel, len)), Err(FrameError::FrameLength { .. })), "{channel} {len}");
    }
    for channel in [8, 9, 0x13, 0xff] {
        assert_eq!(take_frame(&mut head(channel, 1)), Err(FrameError::Channel { channel }));
    }
    let mut newer = Opening { half: Half::Bulk, token: Token([7; 16]) }.to_frame();
    newer[6] = 2;
    assert_eq!(take_frame(&mut BytesMut::from(&newer[..])), Err(FrameError::Opening));
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let reason = "ü".repeat(REASON_LEN_MAX);
    let frame = close_frame(3, &reason);
    assert!(frame.len() <= HEAD_LEN + 4 + REASON_LEN_MAX);
    assert!(matches!(&frames(&frame, 1)[0], Frame::Close { code: 3, reason } if reason.chars().count() == REASON_LEN_MAX / 2));
}
