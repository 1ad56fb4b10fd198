//! Frames from a peer that got past TLS: no panic, limits before allocation, and the same frames wherever they are cut.
//!
//! Input: what is read (low 3 bits) and the cut in 32nds (the rest), then the stream's bytes.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use weir_logic::block::{BLOCK_LEN_MAX, HEADER_LEN};
use weir_logic::wire::mux::{FRAME_LEN_MAX, Frame, take_frame};
use weir_logic::wire::{CONTROL_LEN_MAX, Control, FrameError, LaneStream, encode_control, take_block, take_control};

fuzz_target!(|data: &[u8]| {
    let Some((&how, stream)) = data.split_first() else { return };
    let cut = stream.len() * usize::from(how >> 3) / 32;
    match how & 0x07 {
        0 => lane_stream(stream),
        1 => {
            for block in same_when_cut(stream, cut, take_block) {
                assert!((HEADER_LEN..=BLOCK_LEN_MAX).contains(&block.len()));
            }
        }
        2 => {
            for control in same_when_cut(stream, cut, take_control) {
                written_again(control);
            }
        }
        3 => {
            for frame in same_when_cut(stream, cut, take_frame) {
                if let Frame::Control(bytes) | Frame::Lane { bytes, .. } = frame {
                    assert!((1..FRAME_LEN_MAX).contains(&bytes.len()));
                }
            }
        }
        // A message without its length: the fuzzer need not keep one in step.
        _ => {
            let mut framed = (stream.len() as u32).to_le_bytes().to_vec();
            framed.extend_from_slice(stream);
            if let Ok(Some(control)) = take_control(&mut BytesMut::from(&framed[..])) {
                written_again(control);
            }
        }
    }
});

fn lane_stream(stream: &[u8]) {
    if let Some(head) = stream.first_chunk::<{ LaneStream::LEN }>()
        && let Ok(lane) = LaneStream::from_bytes(*head)
    {
        assert_eq!(lane.to_bytes(), *head);
    }
}

/// Takes all frames from the whole stream, and from its two parts; returns them.
fn same_when_cut<T: std::fmt::Debug + PartialEq>(
    stream: &[u8],
    cut: usize,
    take: fn(&mut BytesMut) -> Result<Option<T>, FrameError>,
) -> Vec<T> {
    let (whole, whole_end) = frames(&[stream], take);
    let (parts, parts_end) = frames(&[&stream[..cut], &stream[cut..]], take);
    assert_eq!((&whole, whole_end), (&parts, parts_end), "cutting the stream changed its frames");
    whole
}

/// The frames, and the error or the bytes left at the end.
fn frames<T>(parts: &[&[u8]], take: fn(&mut BytesMut) -> Result<Option<T>, FrameError>) -> (Vec<T>, Result<Bytes, FrameError>) {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            match take(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(err) => return (frames, Err(err)),
            }
        }
    }
    (frames, Ok(buffer.freeze()))
}

/// What was understood, written by us and read again, is the same.
fn written_again(control: Control) {
    let Some(body) = control.body else { return };
    let mut bytes = Vec::new();
    encode_control(body.clone(), &mut bytes);
    assert!(bytes.len() <= 4 + CONTROL_LEN_MAX);
    let again = take_control(&mut BytesMut::from(&bytes[..])).expect("our own message").expect("a whole one");
    assert_eq!(again.body, Some(body));
}
