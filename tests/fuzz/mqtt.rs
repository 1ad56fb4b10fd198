//! MQTT from a client nobody trusts: no panic, bounded memory, and the same events wherever the stream is cut.
//!
//! Input: in-flight limit, how the stream begins (high 4 bits) and number of cuts (low 4 bits), that many lengths used in
//! turn, then the client's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_logic::ids::Epoch;
use weir_logic::mqtt::{ConnLimits, Connection, Event, Flow, Next, Pause, PubAck, UserIndex};

/// Most bytes of one read, as the connection asks for.
const READ_LEN_MAX: usize = 64 * 1024;
/// Longest single answer: a CONNACK or DISCONNECT with its reason and an assigned client id.
const ANSWER_LEN_MAX: usize = 1000;

/// CONNECT of a client named `c`, so that the packets behind it need not wait for one to be guessed.
const CONNECT_V311: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c";
const CONNECT_V5: &[u8] = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01c";

fuzz_target!(|data: &[u8]| {
    let Some((&[inflight, how], rest)) = data.split_first_chunk() else { return };
    let Some((lengths, sent)) = rest.split_at_checked(usize::from(how & 0x0f)) else { return };
    let begin: &[u8] = match how >> 4 {
        0 => &[],
        1 => CONNECT_V311,
        _ => CONNECT_V5,
    };
    let stream = &[begin, sent].concat()[..];
    if stream.len() > READ_LEN_MAX {
        return;
    }
    let limits = ConnLimits {
        inflight_max: u16::from(inflight),
        packet_len_max: 4096,
        connect_len_max: 1024,
        output_len_max: 64,
        ..ConnLimits::default()
    };
    let whole = drive(limits, std::iter::once(stream));
    let cut = drive(limits, pieces(stream, lengths));
    assert_eq!(whole, cut, "cutting the stream changed what it means");
});

/// Cuts `stream` into pieces of these lengths, in turn; into single bytes if there are none.
fn pieces<'a>(mut stream: &'a [u8], lengths: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let len = lengths.next().map_or(1, |&len| usize::from(len).max(1)).min(stream.len());
        let (piece, rest) = stream.split_at(len);
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Does what a shell does: lets the client in, acknowledges when the limit is reached, takes the output away.
fn drive<'a>(limits: ConnLimits, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut connection = Connection::new(limits, Epoch(1), 1, 0);
    let (mut events, mut unacknowledged) = (Vec::new(), Vec::new());
    'stream: for piece in pieces {
        let mut bytes = piece;
        loop {
            let next = connection.read(0, bytes, |event| {
                if let Event::Publish(publish) = &event
                    && publish.qos == 1
                {
                    unacknowledged.push(publish.packet_id);
                }
                events.push(format!("{event:?}"));
                Flow::Continue
            });
            assert!(connection.held_len() <= limits.packet_len_max as usize + READ_LEN_MAX);
            assert!(connection.output().len() <= limits.output_len_max + ANSWER_LEN_MAX);
            match next {
                Next::Read => break,
                Next::Close => break 'stream,
                Next::Pause(Pause::Auth) => connection.authenticated(0, Ok(UserIndex(0))),
                Next::Pause(Pause::Inflight) => {
                    unacknowledged.drain(..).for_each(|packet_id| connection.ack(packet_id, PubAck::Success));
                }
                Next::Pause(Pause::Output) => connection.output().clear(),
                Next::Pause(pause @ (Pause::Caller | Pause::Rate { .. })) => panic!("nobody asked for {pause:?}"),
            }
            bytes = &[];
        }
    }
    connection.lost();
    assert_eq!(connection.held_len(), 0, "a closed connection keeps nothing");
    events.push(format!("will: {:?}", connection.take_will()));
    events
}
