use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::block::Fidelity;
use crate::wire::LaneRanges;

const LANE: Class = Class::Normal;

fn now(seconds: u64) -> Now {
    Now { mono_us: seconds * 1_000_000, unix_us: 1_700_000_000_000_000 + seconds as i64 * 1_000_000 }
}

fn hello(epoch: u64, held: &[u64]) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        epoch,
        held_epochs: held.to_vec(),
        software: String::new(),
        service_us: 0,
        answers: true,
    }
}

fn header(lane: Class, epoch: u64, first: u64, last: u64) -> BlockHeader {
    BlockHeader {
        key: BlockKey { lane, epoch: Epoch(epoch), first_seq: first },
        last_seq: last,
        born_us: 0,
        wall_offset_us: None,
        count: (last - first + 1) as u32,
        raw_len: 0,
        fidelity: Fidelity::Full,
    }
}

fn block(session: u64, epoch: u64, first: u64, last: u64) -> Input {
    let stream = LaneStream { lane: LANE, backlog: false };
    Input::Block { session: SessionId(session), stream, header: header(LANE, epoch, first, last), block: Bytes::new() }
}

fn range(epoch: u64, first: u64, last: u64) -> SeqRange {
    SeqRange { key: BlockKey { lane: LANE, epoch: Epoch(epoch), first_seq: first }, last_seq: last }
}

fn ranges(first: u64, last: u64) -> RangeSet {
    let mut ranges = RangeSet::new();
    ranges.insert(first..=last);
    ranges
}

fn say_hello(receiver: &mut Receiver, at: u64, session: u64, hello: Hello, known: Known) -> Vec<Output> {
    receiver.handle(now(at), Input::Hello { session: SessionId(session), hello, known });
    drain(receiver)
}

fn drain(receiver: &mut Receiver) -> Vec<Output> {
    std::iter::from_fn(|| receiver.poll()).collect()
}

fn acked(outputs: &[Output], to: u64) -> Vec<(u64, u32, Vec<u64>)> {
    let acks = outputs.iter().filter_map(|output| match output {
        Output::Send { session, body: Body::Ack(ack) } if session.0 == to => Some(ack),
        _ => None,
    });
    acks.flat_map(|ack| ack.ranges.iter().map(|of| (of.epoch, of.lane, of.bounds.clone()))).collect()
}

fn takes(outputs: &[Output]) -> Vec<(u64, u64)> {
    let stores = outputs.iter().filter_map(|output| match output {
        Output::Store(store) => Some(store.takes.clone()),
        _ => None,
    });
    stores.flatten().collect()
}

fn alerts(outputs: &[Output]) -> Vec<Alert> {
    let alerts = outputs.iter().filter_map(|output| match output {
        Output::Alert(alert) => Some(alert.clone()),
        _ => None,
    });
    alerts.collect()
}

fn closed(outputs: &[Output]) -> Vec<(u64, CloseReason)> {
    let closes = outputs.iter().filter_map(|output| match output {
        Output::Close { session, reason } => Some((session.0, reason.clone())),
        _ => None,
    });
    closes.collect()
}

fn welcomed(outputs: &[Output]) -> Vec<Welcome> {
    let pages = outputs.iter().filter_map(|output| match output {
        Output::Send { body: Body::Welcome(welcome), .. } => Some(welcome.clone()),
        _ => None,
    });
    pages.collect()
}

/// What can happen, in small numbers so that it collides.
#[derive(Debug, Clone)]
enum Op {
    Hello { session: u64, epoch: u64, held: Option<u64> },
    Block { session: u64, lane: usize, epoch: u64, first: u64, len: u64 },
    Void { session: u64, lane: usize, epoch: u64, first: u64, len: u64 },
    Ping { session: u64, settled: u64 },
    Commit { which: usize, count: usize },
    Closed { session: u64 },
    CloudRestart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let place = || (0u64..4, 0usize..2, 0u64..3, 0u64..30, 0u64..9);
    let op = prop_oneof![
        3 => (0u64..4, 0u64..3, prop::option::of(0u64..3)).prop_map(|(session, epoch, held)| Op::Hello { session, epoch, held }),
        8 => place().prop_map(|(session, lane, epoch, first, len)| Op::Block { session, lane, epoch, first, len }),
        2 => place().prop_map(|(session, lane, epoch, first, len)| Op::Void { session, lane, epoch, first, len }),
        1 => (0u64..4, 0u64..40).prop_map(|(session, settled)| Op::Ping { session, settled }),
        5 => (0usize..8, 1usize..6).prop_map(|(which, count)| Op::Commit { which, count }),
        1 => (0u64..4).prop_map(|session| Op::Closed { session }),
        1 => Just(Op::CloudRestart),
    ];
    prop::collection::vec(op, 1..80)
}

type Seq = (u64, usize, u64);

/// A cloud by the simplest means: sets of single numbers.
#[derive(Default)]
struct World {
    receiver: Receiver,
    /// Ids of the sessions behind the four names.
    open: BTreeMap<u64, u64>,
    next_id: u64,
    /// Handed to the sink and not committed.
    queue: Vec<SeqRange>,
    handed: BTreeMap<Seq, u32>,
    durable: BTreeSet<Seq>,
    missing: BTreeSet<Seq>,
    /// Epochs that took over or of which something was stored.
    seen: BTreeSet<u64>,
    current: Option<Epoch>,
    /// What each session brought, and was told to be durable.
    brought: BTreeMap<u64, BTreeSet<Seq>>,
    told: BTreeMap<u64, BTreeSet<Seq>>,
}

impl World {
    fn known(&self, epochs: &[Epoch]) -> Known {
        let of = |set: &BTreeSet<Seq>, epoch: u64, lane: usize| {
            let mut ranges = RangeSet::new();
            set.iter().filter(|&&(e, l, _)| (e, l) == (epoch, lane)).for_each(|&(_, _, seq)| ranges.insert(seq..=seq));
            ranges
        };
        let epochs = epochs.iter().filter(|epoch| self.seen.contains(&epoch.0)).map(|&epoch| KnownEpoch {
            epoch,
            durable: [0, 1, 2, 3].map(|lane| of(&self.durable, epoch.0, lane)),
            missing: [0, 1, 2, 3].map(|lane| of(&self.missing, epoch.0, lane)),
        });
        Known { current: self.current, epochs: epochs.collect() }
    }

    fn take_in(&mut self, input: Input) {
        self.receiver.handle(now(1), input);
        while let Some(output) = self.receiver.poll() {
            self.carry_out(output);
        }
    }

    fn hand_over(&mut self, key: BlockKey, last: u64) {
        self.seen.insert(key.epoch.0);
        for seq in key.first_seq..=last {
            *self.handed.entry((key.epoch.0, key.lane.index(), seq)).or_default() += 1;
        }
        self.queue.push(SeqRange { key, last_seq: last });
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Store(store) => {
                for &(first_seq, last) in &store.takes {
                    assert!(store.header.key.first_seq <= first_seq && last <= store.header.last_seq);
                    self.hand_over(BlockKey { first_seq, ..store.header.key }, last);
                }
            }
            Output::StoreVoid(void) => self.hand_over(void.key, void.last_seq),
            Output::Send { session, body: Body::Ack(ack) } => self.tell(session, &ack.ranges),
            Output::Send { session, body: Body::Welcome(welcome) } => self.tell(session, &welcome.have),
            Output::Send { .. } | Output::EpochsClosed { .. } | Output::Alert(Alert::Cloned { .. }) => {}
            Output::Close { session, .. } => self.open.retain(|_, id| *id != session.0),
            Output::EpochOpened { epoch, .. } => {
                self.seen.insert(epoch.0);
                self.current = Some(epoch);
            }
            Output::Alert(Alert::Missing(range)) => {
                for seq in range.key.first_seq..=range.last_seq {
                    let seq = (range.key.epoch.0, range.key.lane.index(), seq);
                    assert!(self.missing.insert(seq), "reported missing twice: {seq:?}");
                    assert!(!self.durable.contains(&seq), "durable, not missing: {seq:?}");
                    assert!(!self.handed.contains_key(&seq), "under way, not missing: {seq:?}");
                }
            }
        }
    }

    fn tell(&mut self, session: SessionId, ranges: &[LaneRanges]) {
        for of in ranges {
            for bounds in of.bounds.chunks(2) {
                for seq in bounds[0]..=bounds[1] {
                    let seq = (of.epoch, of.lane as usize, seq);
                    assert!(self.durable.contains(&seq), "acknowledged before its commit: {seq:?}");
                    self.told.entry(session.0).or_default().insert(seq);
                }
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Hello { session, epoch, held } => {
                if let Some(id) = self.open.remove(&session) {
                    self.take_in(Input::Closed { session: SessionId(id) });
                }
                self.next_id += 1;
                self.open.insert(session, self.next_id);
                let hello = hello(epoch, held.as_slice());
                let known = self.known(&self.receiver.to_load(&hello));
                self.take_in(Input::Hello { session: SessionId(self.next_id), hello, known });
            }
            Op::Block { session, lane, epoch, first, len } => {
                let Some(&id) = self.open.get(&session) else { return };
                let lane = Class::ALL[lane];
                let (stream, header) = (LaneStream { lane, backlog: false }, header(lane, epoch, first, first + len));
                self.brought.entry(id).or_default().extend((first..=first + len).map(|seq| (epoch, lane.index(), seq)));
                self.take_in(Input::Block { session: SessionId(id), stream, header, block: Bytes::new() });
            }
            Op::Void { session, lane, epoch, first, len } => {
                let Some(&id) = self.open.get(&session) else { return };
                self.brought.entry(id).or_default().extend((first..=first + len).map(|seq| (epoch, lane, seq)));
                let void = VoidRange { epoch, lane: lane as u32, first, last: first + len, reason: 1 };
                let body = Body::Voids(crate::wire::Voids { voids: vec![void] });
                self.take_in(Input::Control { session: SessionId(id), body });
            }
            Op::Ping { session, settled } => {
                let Some(&id) = self.open.get(&session) else { return };
                let body = Body::Ping(Ping { nonce: 1, service_us: 0, settled: vec![settled; 4] });
                self.take_in(Input::Control { session: SessionId(id), body });
            }
            Op::Commit { which, count } => {
                let ranges: Vec<_> = (0..count)
                    .map_while(|_| (!self.queue.is_empty()).then(|| self.queue.remove(which % self.queue.len())))
                    .collect();
                self.commit(ranges);
            }
            Op::Closed { session } => {
                if let Some(id) = self.open.remove(&session) {
                    self.take_in(Input::Closed { session: SessionId(id) });
                }
            }
            Op::CloudRestart => {
                for range in std::mem::take(&mut self.queue) {
                    for seq in range.key.first_seq..=range.last_seq {
                        self.handed.remove(&(range.key.epoch.0, range.key.lane.index(), seq));
                    }
                }
                self.open.clear();
                self.receiver = Receiver::new([1; 4]);
            }
        }
    }

    fn commit(&mut self, ranges: Vec<SeqRange>) {
        for range in &ranges {
            let seqs = (range.key.first_seq..=range.last_seq).map(|seq| (range.key.epoch.0, range.key.lane.index(), seq));
            for seq in seqs {
                self.durable.insert(seq);
                self.missing.remove(&seq);
            }
        }
        self.take_in(Input::Committed { ranges });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_number_is_handed_over_once_and_acked_after_its_commit(ops in ops()) {
        let mut world = World { receiver: Receiver::new([1; 4]), ..World::default() };
        for op in &ops {
            world.apply(op);
            prop_assert!(world.handed.values().all(|&times| times == 1), "handed over twice: {:?}", world.handed);
        }
        let rest = std::mem::take(&mut world.queue);
        world.commit(rest);
        prop_assert_eq!(world.receiver.poll(), None);
        prop_assert_eq!(world.handed.keys().copied().collect::<BTreeSet<_>>(), world.durable.clone());
        for id in world.open.values() {
            let told = world.told.get(id).cloned().unwrap_or_default();
            for seq in world.brought.get(id).into_iter().flatten() {
                prop_assert!(told.contains(seq), "session {} was never told of {:?}", id, seq);
            }
            world.receiver.handle(now(2), Input::Closed { session: SessionId(*id) });
        }
        prop_assert!(world.receiver.is_idle());
    }
}

#[test]
fn a_second_copy_waits_for_the_commit_of_the_first() {
    let mut receiver = Receiver::new([1; 4]);
    say_hello(&mut receiver, 0, 1, hello(7, &[]), Known::default());
    say_hello(&mut receiver, 0, 2, hello(7, &[]), Known::default());
    receiver.handle(now(1), block(1, 7, 0, 9));
    assert_eq!(takes(&drain(&mut receiver)), [(0, 9)]);
    receiver.handle(now(1), block(2, 7, 0, 9));
    assert_eq!(drain(&mut receiver), []);
    receiver.handle(now(1), Input::Committed { ranges: vec![range(7, 0, 9)] });
    let outputs = drain(&mut receiver);
    assert_eq!(acked(&outputs, 1), [(7, 2, vec![0, 9])]);
    assert_eq!(acked(&outputs, 2), [(7, 2, vec![0, 9])]);
    receiver.handle(now(1), block(2, 7, 0, 9));
    assert_eq!(acked(&drain(&mut receiver), 2), [(7, 2, vec![0, 9])]);
    assert_eq!((receiver.counters().blocks_pending, receiver.counters().blocks_duplicate), (1, 1));
}

#[test]
fn the_commit_of_a_dead_uplink_is_told_to_the_living_one() {
    let mut receiver = Receiver::new([1; 4]);
    say_hello(&mut receiver, 0, 1, hello(7, &[]), Known::default());
    say_hello(&mut receiver, 0, 2, hello(7, &[]), Known::default());
    receiver.handle(now(1), block(1, 7, 0, 9));
    drain(&mut receiver);
    receiver.handle(now(1), Input::Closed { session: SessionId(1) });
    receiver.handle(now(1), Input::Committed { ranges: vec![range(7, 0, 9)] });
    assert_eq!(acked(&drain(&mut receiver), 2), [(7, 2, vec![0, 9])]);
}

#[test]
fn a_partial_overlap_hands_over_only_what_is_free() {
    let mut receiver = Receiver::new([1; 4]);
    let durable = ranges(3, 5);
    let known = KnownEpoch {
        epoch: Epoch(7),
        durable: [RangeSet::new(), RangeSet::new(), durable, RangeSet::new()],
        missing: Default::default(),
    };
    let outputs = say_hello(&mut receiver, 0, 1, hello(7, &[]), Known { current: Some(Epoch(7)), epochs: vec![known] });
    assert_eq!(welcomed(&outputs)[0].have, [LaneRanges { epoch: 7, lane: 2, bounds: vec![3, 5] }]);
    receiver.handle(now(1), block(1, 7, 8, 9));
    drain(&mut receiver);
    receiver.handle(now(1), block(1, 7, 0, 10));
    assert_eq!(takes(&drain(&mut receiver)), [(0, 2), (6, 7), (10, 10)]);
    receiver.handle(now(1), Input::Committed { ranges: vec![range(7, 0, 2), range(7, 6, 7), range(7, 10, 10)] });
    assert_eq!(acked(&drain(&mut receiver), 1), [], "8 and 9 are not durable yet");
    receiver.handle(now(1), Input::Committed { ranges: vec![range(7, 8, 9)] });
    assert_eq!(acked(&drain(&mut receiver), 1), [(7, 2, vec![0, 10])]);
}

#[test]
fn a_new_epoch_takes_over_at_once_and_a_second_uplink_does_not() {
    let mut receiver = Receiver::new([1; 4]);
    say_hello(&mut receiver, 0, 1, hello(7, &[]), Known::default());
    assert_eq!(closed(&say_hello(&mut receiver, 1, 2, hello(7, &[]), Known::default())), []);
    let outputs = say_hello(&mut receiver, 2, 3, hello(8, &[7]), Known::default());
    let by = CloseReason::Superseded { by: 8 };
    assert_eq!(closed(&outputs), [(1, by.clone()), (2, by)]);
    assert!(outputs.contains(&Output::EpochsClosed { except: vec![Epoch(7), Epoch(8)] }));
    receiver.handle(now(2), block(1, 7, 0, 3));
    assert_eq!(drain(&mut receiver), [], "a block of a closed session is not taken");
    receiver.handle(now(2), block(3, 7, 0, 3));
    assert_eq!(takes(&drain(&mut receiver)), [(0, 3)]);
}

#[test]
fn two_runs_that_keep_replacing_each_other_are_a_cloned_identity() {
    let mut receiver = Receiver::new([1; 4]);
    let seen = |epoch| {
        let known = KnownEpoch { epoch: Epoch(epoch), durable: Default::default(), missing: Default::default() };
        Known { current: None, epochs: vec![known] }
    };
    let mut turns = |from: u64, step: u64| -> usize {
        let mut turn = |at: u64| {
            let epoch = 7 + at % 2;
            alerts(&say_hello(&mut receiver, from + at * step, from + at, hello(epoch, &[]), seen(epoch)))
        };
        (0..6).map(|at| turn(at).len()).sum()
    };
    assert_eq!(turns(0, 31), 0, "twice a minute may be an operator");
    assert_eq!(turns(1_000, 5), 2, "each third return is told");
    assert_eq!(receiver.sessions().count(), 1, "the newest is served");
}

#[test]
fn a_reboot_or_a_restart_of_the_cloud_is_no_clone() {
    let mut receiver = Receiver::new([1; 4]);
    for at in 0..20 {
        assert_eq!(alerts(&say_hello(&mut receiver, at, at, hello(at, &[]), Known::default())), []);
    }
    let mut receiver = Receiver::new([1; 4]);
    let known = KnownEpoch { epoch: Epoch(19), durable: Default::default(), missing: Default::default() };
    let outputs = say_hello(&mut receiver, 30, 1, hello(19, &[]), Known { current: Some(Epoch(19)), epochs: vec![known] });
    assert!(!outputs.iter().any(|output| matches!(output, Output::EpochOpened { .. })));
    assert_eq!(receiver.counters().takeovers, 0);
}

#[test]
fn gaps_below_the_settled_mark_are_missing_until_they_arrive() {
    let mut receiver = Receiver::new([1; 4]);
    say_hello(&mut receiver, 0, 1, hello(7, &[]), Known::default());
    receiver.handle(now(1), block(1, 7, 0, 4));
    receiver.handle(now(1), block(1, 7, 8, 9));
    receiver.handle(now(1), Input::Committed { ranges: vec![range(7, 0, 4)] });
    drain(&mut receiver);
    let ping = |receiver: &mut Receiver, settled| {
        let body = Body::Ping(Ping { nonce: 5, service_us: 0, settled: vec![0, 0, settled, 0] });
        receiver.handle(now(2), Input::Control { session: SessionId(1), body });
        drain(receiver)
    };
    assert_eq!(alerts(&ping(&mut receiver, 5)), []);
    let outputs = ping(&mut receiver, 10);
    assert_eq!(alerts(&outputs), [Alert::Missing(range(7, 5, 7))], "8 and 9 are under way");
    assert!(outputs.contains(&Output::Send { session: SessionId(1), body: Body::Pong(Pong { nonce: 5 }) }));
    assert_eq!(alerts(&ping(&mut receiver, 10)), []);
    receiver.handle(now(3), block(1, 7, 6, 6));
    receiver.handle(now(3), Input::Committed { ranges: vec![range(7, 6, 6)] });
    assert_eq!((receiver.missing(), receiver.counters().seqs_late), (2, 1));
    assert_eq!(alerts(&ping(&mut receiver, 11)), [Alert::Missing(range(7, 10, 10))]);
}

#[test]
fn credits_follow_the_level_and_are_renewed_before_the_lease_ends() {
    let credits = |outputs: &[Output]| -> Vec<u64> {
        let sent = outputs.iter().filter_map(|output| match output {
            Output::Send { body: Body::Credits(credits), .. } => Some(credits.bytes[0]),
            _ => None,
        });
        sent.collect()
    };
    let mut receiver = Receiver::new([8; 4]);
    assert_eq!(credits(&say_hello(&mut receiver, 10, 1, hello(7, &[]), Known::default())), [8]);
    for (at, expected) in [(11, &[][..]), (12, &[]), (13, &[8]), (14, &[]), (16, &[8])] {
        receiver.handle(now(at), Input::Tick);
        assert_eq!(credits(&drain(&mut receiver)), expected, "at {at} s");
    }
    receiver.handle(now(16), Input::CreditLevel { bytes: [0; 4] });
    assert_eq!(credits(&drain(&mut receiver)), [0]);
    receiver.handle(now(16), Input::CreditLevel { bytes: [0; 4] });
    assert!(credits(&drain(&mut receiver)).is_empty());
}

#[test]
fn what_breaks_the_protocol_closes_the_session() {
    let void = |lane, first, last, reason| {
        Body::Voids(crate::wire::Voids { voids: vec![VoidRange { epoch: 7, lane, first, last, reason }] })
    };
    let control = |body| Input::Control { session: SessionId(1), body };
    let wrong_lane = Input::Block {
        session: SessionId(1),
        stream: LaneStream { lane: Class::Bulk, backlog: false },
        header: header(LANE, 7, 0, 1),
        block: Bytes::new(),
    };
    for input in [
        Input::Hello { session: SessionId(1), hello: hello(7, &[]), known: Known::default() },
        control(Body::Hello(hello(7, &[]))),
        block(1, 9, 0, 1),
        block(1, 7, 0, SEQ_MAX + 1),
        wrong_lane,
        control(void(9, 0, 1, 1)),
        control(void(0, 0, 1, 77)),
        control(void(0, 2, 1, 1)),
    ] {
        let mut receiver = Receiver::new([1; 4]);
        say_hello(&mut receiver, 0, 1, hello(7, &[]), Known::default());
        receiver.handle(now(1), input.clone());
        let closes = closed(&drain(&mut receiver));
        assert!(matches!(&closes[..], [(1, reason)] if reason.code() == CloseCode::Protocol), "{input:?}: {closes:?}");
        assert!(receiver.is_idle());
    }
    let mut receiver = Receiver::new([1; 4]);
    receiver.handle(now(0), control(Body::Ping(Ping::default())));
    assert_eq!(closed(&drain(&mut receiver)).len(), 1);
    let newer = Hello { protocol: 9, ..hello(7, &[]) };
    assert_eq!(closed(&say_hello(&mut receiver, 0, 2, newer, Known::default())), [(2, CloseReason::Version { found: 9 })]);
}

#[test]
fn a_ninth_connection_closes_the_oldest() {
    let mut receiver = Receiver::new([1; 4]);
    for id in 0..SESSIONS_MAX as u64 {
        assert_eq!(closed(&say_hello(&mut receiver, 0, id, hello(7, &[]), Known::default())), []);
    }
    let outputs = say_hello(&mut receiver, 0, 99, hello(7, &[]), Known::default());
    assert_eq!(closed(&outputs), [(0, CloseReason::TooManySessions)]);
    assert_eq!(receiver.sessions().count(), SESSIONS_MAX);
}

#[test]
fn long_welcomes_and_acks_come_in_pages_below_the_limit() {
    let mut scattered = RangeSet::new();
    (0..5_000u64).for_each(|n| scattered.insert((1 << 60) + 2 * n..=(1 << 60) + 2 * n));
    let durable = [scattered.clone(), scattered.clone(), RangeSet::new(), scattered];
    let known =
        Known { current: Some(Epoch(7)), epochs: vec![KnownEpoch { epoch: Epoch(7), durable, missing: Default::default() }] };
    let mut receiver = Receiver::new([1; 4]);
    let pages = welcomed(&say_hello(&mut receiver, 0, 1, hello(7, &[]), known));
    assert!(pages.len() > 7);
    assert!(pages.iter().rev().skip(1).all(|page| page.more) && !pages[pages.len() - 1].more);
    let ranges: usize = pages.iter().flat_map(|page| &page.have).map(|of| of.bounds.len() / 2).sum();
    assert_eq!(ranges, 15_000);
    for page in pages {
        let mut bytes = Vec::new();
        crate::wire::encode_control(Body::Welcome(page), &mut bytes);
        assert!(bytes.len() <= crate::wire::CONTROL_LEN_MAX, "{}", bytes.len());
    }
}

#[test]
fn a_block_without_a_trusted_clock_gets_the_best_estimate_of_the_session() {
    let mut receiver = Receiver::new([1; 4]);
    let at = |mono_us, unix_us| Now { mono_us, unix_us };
    let hello = Hello { service_us: 100, ..hello(7, &[]) };
    receiver.handle(at(0, 5_000_400), Input::Hello { session: SessionId(1), hello, known: Known::default() });
    // This ping took 200 us less to get here.
    let ping = Ping { nonce: 0, service_us: 1_000_100, settled: Vec::new() };
    receiver.handle(at(1_000_000, 6_000_200), Input::Control { session: SessionId(1), body: Body::Ping(ping) });
    receiver.handle(at(1_000_000, 6_000_200), block(1, 7, 0, 0));
    let offset = drain(&mut receiver).into_iter().find_map(|output| match output {
        Output::Store(store) => Some(store.wall_offset_us),
        _ => None,
    });
    assert_eq!(offset, Some(5_000_100));
}

#[test]
fn claims_of_all_the_numbers_there_are_break_no_sum() {
    let mut receiver = Receiver::new([1; 4]);
    for epoch in 0..4 {
        say_hello(&mut receiver, epoch, epoch, hello(epoch, &[]), Known::default());
        let body = Body::Ping(Ping { nonce: 0, service_us: 0, settled: vec![u64::MAX; 4] });
        receiver.handle(now(epoch), Input::Control { session: SessionId(epoch), body });
        let void = VoidRange { epoch, lane: 2, first: 0, last: SEQ_MAX, reason: 1 };
        let body = Body::Voids(crate::wire::Voids { voids: vec![void] });
        receiver.handle(now(epoch), Input::Control { session: SessionId(epoch), body });
        receiver.handle(now(epoch), Input::Committed { ranges: vec![range(epoch, 0, SEQ_MAX)] });
        drain(&mut receiver);
    }
    let counters = *receiver.counters();
    assert_eq!((counters.seqs_missing, counters.seqs_durable[2]), (u64::MAX, u64::MAX));
    let mut sum = counters;
    sum.add(&counters);
    assert_eq!((sum.seqs_missing, sum.voids_stored), (u64::MAX, 8));
}
