//! Acknowledgements against a naive model.

use proptest::prelude::*;

use super::client::*;
use crate::ids::Class;
use crate::mqtt::{Ack, AckQueue, ConnLimits, PubAck};

#[derive(Debug, Clone)]
enum Op {
    Push(Ack),
    /// The lane is safe up to so many more records.
    Safe(usize, u64),
    /// Decide the n-th of those that wait for a decision.
    Resolve(usize, Ack),
    Release,
}

fn ack() -> impl Strategy<Value = Ack> {
    let reasons = prop_oneof![Just(PubAck::Success), Just(PubAck::NoStream), Just(PubAck::PayloadInvalid)];
    prop_oneof![
        reasons.prop_map(Ack::Now),
        (0..4_usize, 0..40_u64).prop_map(|(lane, seq)| Ack::WhenSafe { lane: Class::ALL[lane], seq }),
        Just(Ack::Later),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => ack().prop_map(Op::Push),
        2 => (0..4_usize, 1..15_u64).prop_map(|(lane, more)| Op::Safe(lane, more)),
        2 => (any::<usize>(), ack()).prop_map(|(n, ack)| Op::Resolve(n, ack)),
        2 => Just(Op::Release),
    ]
}

proptest! {
    #[test]
    fn pubacks_leave_in_the_order_of_receipt_and_only_when_safe(ops in proptest::collection::vec(op(), 1..120)) {
        let mut conn = open(ConnLimits::default(), V5);
        let (mut queue, mut safe) = (AckQueue::new(), [0_u64; 4]);
        let (mut model, mut written, mut next_id) = (Vec::<(u64, u16, Ack)>::new(), Vec::new(), 0_u16);
        for op in ops.into_iter().chain([Op::Release]) {
            match op {
                Op::Push(ack) => {
                    next_id += 1;
                    model.push((queue.push(next_id, ack), next_id, ack));
                }
                Op::Safe(lane, more) => safe[lane] += more,
                Op::Resolve(n, ack) => {
                    let mut later: Vec<_> = model.iter_mut().filter(|(_, _, ack)| *ack == Ack::Later).collect();
                    if later.is_empty() {
                        continue;
                    }
                    let at = n % later.len();
                    queue.resolve(later[at].0, ack);
                    later[at].2 = ack;
                }
                Op::Release => {
                    let stays = |(_, _, ack): &(u64, u16, Ack)| match *ack {
                        Ack::Now(_) => false,
                        Ack::WhenSafe { lane, seq } => seq >= safe[lane.index()],
                        Ack::Later => true,
                    };
                    let count = model.iter().position(stays).unwrap_or(model.len());
                    for (ticket, packet_id, ack) in model.drain(..count) {
                        let [high, low] = packet_id.to_be_bytes();
                        match ack {
                            Ack::Now(reason) if reason != PubAck::Success => {
                                written.extend_from_slice(&[0x40, 3, high, low, reason as u8]);
                            }
                            _ => written.extend_from_slice(&[0x40, 2, high, low]),
                        }
                        queue.resolve(ticket, Ack::Now(PubAck::Success));
                    }
                    prop_assert_eq!(queue.release(&safe, &mut conn), count);
                }
            }
            prop_assert_eq!(queue.len(), model.len());
            prop_assert_eq!(queue.front(), model.first().map(|(_, _, ack)| *ack));
        }
        prop_assert_eq!(&written, conn.output());
    }
}

#[test]
fn a_puback_of_3_1_1_never_has_a_reason() {
    let mut conn = open(ConnLimits::default(), V311);
    let mut queue = AckQueue::new();
    queue.push(0x0102, Ack::Now(PubAck::PayloadInvalid));
    assert_eq!(queue.release(&[0; 4], &mut conn), 1);
    assert_eq!(*conn.output(), [0x40, 2, 1, 2]);
    let counters = conn.take_counters();
    assert_eq!((counters.pubacks, counters.pubacks_refused), (1, 1));
}
