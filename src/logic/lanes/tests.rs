use proptest::prelude::*;

use super::*;
use crate::block::RecordKind;
use crate::payload::{OpaqueFormat, PayloadFormat};
use crate::plan::Plan;
use crate::policy::{StreamFidelity, StreamPolicy};
use crate::price::{Ladder, Lateness, Level, Prices, StreamValue, Wait};
use crate::ranges::RangeSet;
use crate::store::{CommitRequest, StoreError};

mod backlog;
mod relief;

const SECOND: u64 = 1_000_000;
const CREDITS: PerClass<u64> = [1 << 30; 4];
const LIMITS: LanesLimits = LanesLimits { memory_bytes: 1 << 20, block_target_bytes: 4_096, early_commit_bytes_per_day: 0 };

fn policy(durability: Durability) -> LanePolicy {
    LanePolicy { durability, cap_bytes: 1 << 30, overflow: Overflow::Evict, ttl_us: None, share: 4 }
}

fn lanes(policies: PerClass<LanePolicy>) -> Lanes {
    Lanes::new(0, Epoch(9), policies, LIMITS, Found::default(), thinner())
}

fn all(durability: Durability) -> Lanes {
    lanes([policy(durability); 4])
}

fn thinner() -> Thinner {
    Thinner::new(&[], 0)
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(byte).collect()
}

fn push(lanes: &mut Lanes, now_us: u64, class: Class, len: usize) -> u64 {
    let payload = noise(now_us ^ lanes.counters(class).records, len);
    let record = NewRecord {
        source: 0,
        stream: "s",
        device: "d",
        kind: RecordKind::Raw,
        service_time: false,
        at_us: now_us,
        payload: &payload,
    };
    lanes.push(now_us, class, 0, &record)
}

/// Sends all there is and says what; loads are answered at once with what is on disk.
fn send(lanes: &mut Lanes, now_us: u64, disk: &BTreeMap<BlockKey, Bytes>) -> Vec<(Flow, BlockKey, Bytes)> {
    let mut sent = Vec::new();
    while let Some(outgoing) = lanes.outgoing(now_us, &[Some(CREDITS)], &one_way()) {
        match outgoing {
            Outgoing::Send { flow, key, block, .. } => {
                lanes.written(0, flow, block.len() as u64);
                sent.push((flow, key, block));
            }
            Outgoing::Load { key } => lanes.loaded(now_us, key, disk.get(&key).cloned()),
        }
    }
    sent
}

fn ack(lanes: &mut Lanes, now_us: u64, block: &Bytes) {
    let header = BlockHeader::parse(block).expect("our own block");
    lanes.ack(now_us, 0, header.key.lane, header.key.epoch, header.key.first_seq..=header.last_seq);
}

/// Carries out a transaction on a map that stands for the disk.
fn write(disk: &mut BTreeMap<BlockKey, Bytes>, request: &CommitRequest) {
    for range in &request.deletes {
        let last = BlockKey { first_seq: range.last_seq, ..range.key };
        let gone: Vec<_> = disk.range(range.key..=last).map(|(&key, _)| key).collect();
        gone.iter().for_each(|key| drop(disk.remove(key)));
    }
    disk.extend(request.puts.iter().map(|put| (put.header.key, put.block.clone())));
}

/// Times of all transactions until `until_us`, which all work at once.
fn commits(lanes: &mut Lanes, mut now_us: u64, until_us: u64, disk: &mut BTreeMap<BlockKey, Bytes>) -> Vec<u64> {
    let mut times = Vec::new();
    while now_us <= until_us {
        lanes.tick(now_us);
        if let Some(request) = lanes.commit(now_us) {
            times.push(now_us);
            write(disk, &request);
            lanes.committed(now_us, request.ticket, Ok(()));
        }
        now_us = lanes.deadline_us().max(now_us + 1);
    }
    times
}

fn held(lanes: &Lanes) -> Vec<Held> {
    let blocks = lanes.lanes.iter().flat_map(|lane| lane.blocks.values());
    blocks.filter(|block| block.disk == Disk::Stored).map(|block| Held { header: block.header, len: block.len }).collect()
}

/// What is kept twice must agree.
fn check(lanes: &Lanes) {
    for lane in &lanes.lanes {
        let sum = |of: &dyn Fn(&Block) -> bool| lane.blocks.values().filter(|b| of(b)).map(|b| u64::from(b.len)).sum::<u64>();
        assert_eq!(lane.bytes, sum(&|_| true));
        assert_eq!(lane.memory_bytes, sum(&|block| block.bytes.is_some()));
        assert_eq!(lane.cached_bytes, sum(&|block| block.bytes.is_some() && block.disk == Disk::Stored));
        assert_eq!(lane.under_way_bytes(0), sum(&|block| matches!(block.send, Send::UnderWay(_))));
        let set = |of: &dyn Fn(&Block) -> bool| {
            lane.blocks.iter().filter(|(_, block)| of(block)).map(|(&at, _)| at).collect::<BTreeSet<_>>()
        };
        assert_eq!(lane.rewrites, set(&|block| block.disk == Disk::Rewriting));
        assert_eq!(lane.rewrite_bytes, sum(&|block| block.disk == Disk::Rewriting));
        for coarseness in [Coarseness::Whole, Coarseness::Quarter] {
            let expected = set(&|block| lane.thins() && block.coarseness == coarseness);
            assert_eq!(lane.thinnable[coarseness as usize], expected);
        }
        assert_eq!(lane.to_write, set(&|block| block.disk == Disk::Absent));
        // A block that was read and waits for its turn may be in neither queue.
        let queued = set(&|block| block.send == Send::Queued);
        assert!(lane.live.is_disjoint(&lane.backlog) && lane.live.union(&lane.backlog).all(|at| queued.contains(at)));
        assert!(queued.len() - lane.live.len() - lane.backlog.len() <= 1);
        assert!(lane.live.iter().all(|at| lane.blocks[at].bytes.is_some()));
        // Only what is being rewritten is in memory and yet backlog.
        let cached = |at: &Position| lane.blocks[at].bytes.is_some() && lane.blocks[at].disk == Disk::Stored;
        assert!(!lane.backlog.iter().any(cached));
        assert!(lane.blocks.values().all(|block| block.bytes.is_some() || block.disk == Disk::Stored));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Push(usize, usize),
    Wait(u64),
    Send,
    Ack(usize),
    Commit(Option<StoreError>),
    Uplink(bool),
    Lost,
    Load(bool),
    Relieve,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0usize..4, 0usize..1_500).prop_map(|(class, len)| Op::Push(class, len)),
        3 => (1u64..400_000).prop_map(Op::Wait),
        3 => Just(Op::Send),
        3 => (0usize..8).prop_map(Op::Ack),
        3 => prop_oneof![3 => Just(None), 1 => Just(Some(StoreError::Full))].prop_map(Op::Commit),
        2 => any::<bool>().prop_map(Op::Uplink),
        1 => Just(Op::Lost),
        2 => any::<bool>().prop_map(Op::Load),
        3 => Just(Op::Relieve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Every number pushed is at any time in exactly one place, safe only if it is on disk or acknowledged or given up for good.
    #[test]
    fn numbers_are_neither_lost_nor_safe_too_soon(ops in prop::collection::vec(op(), 1..150), caps in prop::option::of(500u64..8_000), ttl in prop::option::of(300_000u64..3_000_000), thins in any::<bool>()) {
        use Durability::{Disk, Memory, Through};
        let policies = [Disk, Through, Through, Memory].map(|durability| LanePolicy {
            durability,
            cap_bytes: caps.unwrap_or(1 << 30),
            overflow: if thins { Overflow::Thin } else { Overflow::Evict },
            ttl_us: ttl,
            share: 4,
        });
        let mut lanes = Lanes::new(0, Epoch(9), policies, LanesLimits { memory_bytes: 20_000, ..LIMITS }, Found::default(), Thinner::new(&[named("s")], 0));
        let (mut now_us, mut disk, mut voids) = (1_000, BTreeMap::new(), BTreeMap::new());
        let (mut pushed, mut sent, mut loads) = ([0u64; 4], Vec::<Bytes>::new(), Vec::new());
        let mut acked: PerClass<RangeSet> = Default::default();
        let mut running: Option<CommitRequest> = None;
        let mut came_us: PerClass<Vec<u64>> = Default::default();
        for op in ops {
            match op {
                Op::Push(class, len) => {
                    prop_assert_eq!(push(&mut lanes, now_us, Class::ALL[class], len), pushed[class]);
                    pushed[class] += 1;
                    came_us[class].push(now_us);
                }
                Op::Wait(us) => now_us += us,
                Op::Send => {
                    while let Some(outgoing) = lanes.outgoing(now_us, &[Some([3_000; 4])], &one_way()) {
                        match outgoing {
                            Outgoing::Send { block, flow, .. } => {
                                lanes.written(0, flow, block.len() as u64);
                                sent.push(block);
                            }
                            Outgoing::Load { key } => loads.push(key),
                        }
                        prop_assert!(lanes.lanes.iter().all(|lane| lane.under_way_bytes(0) <= 3_000 + 5_000));
                    }
                }
                Op::Ack(at) if at < sent.len() => {
                    let block = sent.swap_remove(at);
                    let header = BlockHeader::parse(&block).expect("our own block");
                    acked[header.key.lane.index()].insert(header.key.first_seq..=header.last_seq);
                    ack(&mut lanes, now_us, &block);
                }
                Op::Ack(_) => {}
                Op::Commit(error) => match (running.take(), error) {
                    (None, _) => running = lanes.commit(now_us),
                    (Some(request), Some(error)) => lanes.committed(now_us, request.ticket, Err(error)),
                    (Some(request), None) => {
                        write(&mut disk, &request);
                        voids.retain(|key, _| !request.voids_acked.contains(key));
                        voids.extend(request.voids.iter().map(|void| (void.key, *void)));
                        lanes.committed(now_us, request.ticket, Ok(()));
                    }
                },
                Op::Uplink(up) => lanes.set_uplink_up(now_us, up),
                Op::Lost => lanes.session_lost(0),
                Op::Relieve => loads.extend(lanes.relieve(now_us, &one_way())),
                Op::Load(works) => {
                    for key in std::mem::take(&mut loads) {
                        if works { lanes.loaded(now_us, key, disk.get(&key).cloned()) } else { lanes.load_failed(now_us, key) }
                    }
                }
            }
            lanes.tick(now_us);
            check(&lanes);
            prop_assert!(lanes.deadline_us() <= now_us + SECOND);
            for void in lanes.voids.values().filter(|void| void.reason == VoidReason::Expired) {
                let youngest_us = came_us[void.key.lane.index()][void.last_seq as usize];
                prop_assert!(youngest_us + ttl.unwrap_or(u64::MAX) <= now_us, "{:?} expired after {} us", void, now_us - youngest_us);
            }
            for class in Class::ALL {
                let (at, lane) = (class.index(), &lanes.lanes[class.index()]);
                let mut places = acked[at].clone();
                let on_record = voids.values().filter(|void| void.key.lane == class);
                on_record.for_each(|void| places.insert(void.key.first_seq..=void.last_seq));
                let mut safe = places.clone();
                for (key, block) in disk.iter().filter(|(key, _)| key.lane == class) {
                    safe.insert(key.first_seq..=BlockHeader::parse(block).expect("our own block").last_seq);
                }
                if class != Class::Bulk {
                    let end = lanes.safe()[at];
                    // What was on disk and acknowledged or given up since may be gone from it.
                    lanes.voids.values().filter(|void| void.key.lane == class).for_each(|void| safe.insert(void.key.first_seq..=void.last_seq));
                    prop_assert!(end == 0 || safe.covers(0..=end - 1), "{:?} safe below {}, but only {:?} is", class, end, safe);
                }
                lanes.voids.values().filter(|void| void.key.lane == class).for_each(|void| places.insert(void.key.first_seq..=void.last_seq));
                lane.blocks.values().for_each(|block| places.insert(block.header.key.first_seq..=block.header.last_seq));
                if lane.staging.next_seq() > lane.staging.first_seq() {
                    places.insert(lane.staging.first_seq()..=lane.staging.next_seq() - 1);
                }
                prop_assert!(pushed[at] == 0 || places.covers(0..=pushed[at] - 1), "{:?} of {} is {:?}", class, pushed[at], places);
                prop_assert!(lanes.settled()[at] <= pushed[at]);
                let count = lanes.counters(class);
                let gone = count.acked + count.thinned + count.evicted + count.expired + count.corrupt;
                prop_assert_eq!(lanes.status(class).records + gone, pushed[at], "each record has one fate");
                prop_assert!(thins || count.thinned == 0);
            }
        }
    }
}

/// Bytes by stream that a saturated link takes of lanes that always have more; each step it takes 16 KiB.
fn saturate(
    steps: u64,
    lanes: &mut Lanes,
    mut feed: impl FnMut(&mut Lanes, u64),
    disk: &mut BTreeMap<BlockKey, Bytes>,
) -> BTreeMap<(usize, bool), u64> {
    let (mut sent, mut bytes, mut under_way) = (std::collections::VecDeque::new(), BTreeMap::new(), 0);
    for step in 1..steps {
        let now_us = step * 10_000;
        feed(lanes, now_us);
        while let Some(outgoing) = lanes.outgoing(now_us, &[Some(CREDITS)], &one_way()) {
            match outgoing {
                Outgoing::Send { flow, block, .. } => {
                    under_way += block.len();
                    sent.push_back((flow, block));
                }
                Outgoing::Load { key } => lanes.loaded(now_us, key, disk.get(&key).cloned()),
            }
        }
        let mut room = 16_384usize;
        while let Some((flow, block)) = sent.pop_front_if(|(_, block)| block.len() <= room) {
            room -= block.len();
            under_way -= block.len();
            *bytes.entry((flow.lane.index(), flow.backlog)).or_default() += block.len() as u64;
            lanes.written(0, flow, block.len() as u64);
            ack(lanes, now_us, &block);
        }
        assert!(under_way <= 64 * 1024 + 8_192, "{under_way} bytes are out of our hands");
    }
    bytes
}

#[test]
fn saturated_lanes_get_their_shares() {
    let share = |share| LanePolicy { share, ..policy(Durability::Memory) };
    let mut lanes = lanes([share(16), share(8), share(4), share(1)]);
    lanes.set_uplink_up(0, true);
    let feed = |lanes: &mut Lanes, now_us| {
        for class in [Class::Normal, Class::Bulk] {
            while lanes.status(class).memory_bytes < 100_000 {
                push(lanes, now_us, class, 1_000);
            }
        }
    };
    let bytes = saturate(4_000, &mut lanes, feed, &mut BTreeMap::new());
    let ratio = bytes[&(2, false)] as f64 / bytes[&(3, false)] as f64;
    assert!((3.7..4.3).contains(&ratio), "normal to bulk is {ratio}");
}

#[test]
fn a_backlog_gets_half_of_what_live_data_gets() {
    let mut before = all(Durability::Disk);
    let mut disk = BTreeMap::new();
    for step in 0..12_000 {
        push(&mut before, step * 5_000, Class::Normal, 2_000);
        if step % 100 == 0 {
            commits(&mut before, step * 5_000, step * 5_000, &mut disk);
        }
    }
    commits(&mut before, 60 * SECOND, 65 * SECOND, &mut disk);
    let held = held(&before);
    assert!(held.len() > 1_000, "{} blocks", held.len());
    let mut lanes = Lanes::new(
        70 * SECOND,
        Epoch(10),
        [policy(Durability::Memory); 4],
        LIMITS,
        Found { held: &held, ..Found::default() },
        thinner(),
    );
    lanes.set_uplink_up(0, true);
    let feed = |lanes: &mut Lanes, now_us| {
        while lanes.lanes[2].memory_len() < 100_000 {
            push(lanes, now_us, Class::Normal, 1_000);
        }
    };
    let bytes = saturate(1_000, &mut lanes, feed, &mut disk);
    let total: u64 = disk.values().map(|block| block.len() as u64).sum();
    assert!(bytes[&(2, true)] < total, "the backlog outlasts the test");
    let ratio = bytes[&(2, false)] as f64 / bytes[&(2, true)] as f64;
    assert!((1.8..2.2).contains(&ratio), "live to backlog is {ratio}");
}

#[test]
fn critical_goes_before_everything_and_is_not_held_up_by_it() {
    let mut lanes = all(Durability::Memory);
    lanes.set_uplink_up(0, true);
    for _ in 0..300 {
        push(&mut lanes, SECOND, Class::Normal, 1_000);
    }
    let mut last = None;
    while let Some(outgoing) = lanes.outgoing(2 * SECOND, &[Some(CREDITS)], &one_way()) {
        last = Some(outgoing);
    }
    assert!(matches!(last, Some(Outgoing::Send { flow: Flow { lane: Class::Normal, .. }, .. })), "the shell has all it may");
    push(&mut lanes, 2 * SECOND, Class::Critical, 10);
    let next = lanes.outgoing(2 * SECOND, &[Some(CREDITS)], &one_way());
    assert!(matches!(next, Some(Outgoing::Send { flow: Flow { lane: Class::Critical, .. }, .. })), "{next:?}");
}

#[test]
fn age_is_counted_over_restarts() {
    let mut before = all(Durability::Disk);
    let mut disk = BTreeMap::new();
    push(&mut before, 5 * SECOND, Class::High, 100);
    commits(&mut before, 5 * SECOND, 7 * SECOND, &mut disk);
    before.seal(7 * SECOND, Class::High);
    push(&mut before, 9 * SECOND, Class::High, 100);
    commits(&mut before, 9 * SECOND, 11 * SECOND, &mut disk);
    before.seal(11 * SECOND, Class::High);
    push(&mut before, 11 * SECOND, Class::High, 1);
    commits(&mut before, 11 * SECOND, 13 * SECOND, &mut disk);
    let held = held(&before);
    assert_eq!(held.iter().map(|held| held.header.born_us).collect::<Vec<_>>(), [5 * SECOND, 9 * SECOND]);
    let policies = [LanePolicy { ttl_us: Some(20 * SECOND), ..policy(Durability::Disk) }; 4];
    let mut after = Lanes::new(20 * SECOND, Epoch(10), policies, LIMITS, Found { held: &held, ..Found::default() }, thinner());
    // 20 s and a sixteenth of them.
    for (now_s, expired) in [(25, 0), (26, 0), (27, 1), (30, 1), (31, 2)] {
        after.tick(now_s * SECOND);
        assert_eq!(after.counters(Class::High).expired, expired, "after {now_s} s");
    }
    let voids = after.take_voids_to_send();
    assert_eq!(voids.len(), 1, "neighbours are one void: {voids:?}");
    assert_eq!((voids[0].key.epoch, voids[0].key.first_seq, voids[0].last_seq), (Epoch(9), 0, 1));
}

#[test]
fn in_an_outage_records_expire_at_their_ttl_and_not_with_the_oldest_beside_them() {
    // One a second, far from filling a block.
    let ttl_us = 60 * SECOND;
    let mut lanes = lanes([LanePolicy { ttl_us: Some(ttl_us), ..policy(Durability::Disk) }; 4]);
    let (mut disk, mut most) = (BTreeMap::new(), 0);
    for second in 1..400 {
        push(&mut lanes, second * SECOND, Class::Normal, 10);
        commits(&mut lanes, second * SECOND, (second + 1) * SECOND - 1, &mut disk);
        let expired = lanes.counters(Class::Normal).expired;
        assert!(expired <= second.saturating_sub(60), "{expired} of {second} records expired");
        assert!(expired + 1 >= second.saturating_sub(60 + 8), "only {expired} of {second} records expired");
        most = most.max(lanes.status(Class::Normal).blocks);
    }
    assert!((10..=18).contains(&most), "{most} blocks hold a minute's records");
    check(&lanes);
}

#[test]
fn the_oldest_are_evicted_first_and_become_one_void() {
    let mut before = all(Durability::Disk);
    let mut disk = BTreeMap::new();
    for step in 0..40 {
        push(&mut before, step * 1_000, Class::Normal, 1_000);
    }
    commits(&mut before, SECOND, 3 * SECOND, &mut disk);
    let held = held(&before);
    let old_bytes: u64 = held.iter().map(|held| u64::from(held.len)).sum();
    let policies = [LanePolicy { cap_bytes: old_bytes, ..policy(Durability::Disk) }; 4];
    let mut after = Lanes::new(4 * SECOND, Epoch(3), policies, LIMITS, Found { held: &held, ..Found::default() }, thinner());
    for step in 0..20 {
        push(&mut after, 4 * SECOND + step, Class::Normal, 1_000);
    }
    commits(&mut after, 5 * SECOND, 12 * SECOND, &mut disk);
    let voids = after.take_voids_to_send();
    let lane = &after.lanes[2];
    assert!(lane.bytes <= old_bytes && lane.bytes > old_bytes * 3 / 4);
    assert_eq!(voids.len(), 1, "{voids:?}");
    assert_eq!((voids[0].key.epoch, voids[0].key.first_seq, voids[0].reason), (Epoch(9), 0, VoidReason::Evicted));
    let first = lane.blocks.values().next().expect("not all is gone").header.key;
    assert_eq!((first.epoch, first.first_seq), (Epoch(9), voids[0].last_seq + 1), "everything before the first that is left");
    assert!(
        !disk.keys().any(|key| key.epoch == Epoch(9) && key.first_seq <= voids[0].last_seq),
        "and it is gone from the disk"
    );
    assert_eq!(after.counters(Class::Normal).evicted, voids[0].last_seq + 1);
}

#[test]
fn a_record_given_up_before_it_was_safe_is_acknowledged_only_when_its_void_is_on_record() {
    let mut policies = [policy(Durability::Disk); 4];
    policies[2].cap_bytes = 5_000;
    let mut lanes = lanes(policies);
    for _ in 0..20 {
        push(&mut lanes, SECOND, Class::Normal, 1_000);
    }
    let request = lanes.commit(3 * SECOND).expect("due");
    lanes.committed(3 * SECOND, request.ticket, Err(StoreError::Full));
    lanes.tick(4 * SECOND);
    assert!(lanes.counters(Class::Normal).evicted > 0);
    assert_eq!(lanes.safe()[2], 0);
    let retried = lanes.commit(5 * SECOND).expect("due again");
    assert_eq!(retried.voids.len(), 1);
    lanes.committed(5 * SECOND, retried.ticket, Ok(()));
    assert!(lanes.safe()[2] > retried.voids[0].last_seq);
}

#[test]
fn through_writes_late_blocks_and_no_sooner() {
    // Ack times in us, and when a block without an ack is written after its first record.
    for (ack_us, wait_us) in [(20_000, 250_000), (300_000, 600_000), (1_700_000, 2_000_000)] {
        let mut lanes = all(Durability::Through);
        lanes.set_uplink_up(0, true);
        let (mut now_us, mut disk) = (10 * SECOND, BTreeMap::new());
        for _ in 0..80 {
            push(&mut lanes, now_us, Class::Normal, 100);
            let sent = send(&mut lanes, now_us + 10_000, &disk);
            assert_eq!(sent.len(), 1);
            now_us += ack_us;
            ack(&mut lanes, now_us, &sent[0].2);
            now_us += 3 * SECOND;
        }
        push(&mut lanes, now_us, Class::Normal, 100);
        assert_eq!(send(&mut lanes, now_us + 10_000, &disk).len(), 1);
        let at = commits(&mut lanes, now_us + 10_000, now_us + 5 * SECOND, &mut disk);
        assert_eq!(at.len(), 1, "{at:?}");
        assert_eq!(at[0] - now_us, wait_us, "with acks after {ack_us} us");
        assert_eq!(lanes.safe()[2], 81);
    }
}

#[test]
fn through_writes_what_cannot_be_sent_for_want_of_credit() {
    let mut lanes = all(Durability::Through);
    lanes.set_uplink_up(0, true);
    let mut disk = BTreeMap::new();
    let mut times = Vec::new();
    for step in 0..1_000 {
        let now_us = SECOND + step * 10_000;
        push(&mut lanes, now_us, Class::Normal, 100);
        assert_eq!(lanes.outgoing(now_us, &[Some([0; 4])], &one_way()), None);
        times.extend(commits(&mut lanes, now_us, now_us + 9_999, &mut disk));
    }
    assert!((8..=11).contains(&times.len()), "{} commits in 10 s", times.len());
    assert!(lanes.safe()[2] > 790, "{} of 1,000 are safe", lanes.safe()[2]);
    assert_eq!(lanes.send_due_us(SECOND, &[Some([0; 4])], &one_way()), u64::MAX, "and nobody is woken in vain");
}

#[test]
fn memory_is_written_only_when_memory_runs_out() {
    let mut lanes = all(Durability::Memory);
    let mut disk = BTreeMap::new();
    let mut now_us = SECOND;
    while lanes.memory_bytes() <= LIMITS.memory_bytes / 2 - 6_000 {
        push(&mut lanes, now_us, Class::Bulk, 1_000);
        now_us += 1_000;
        assert!(commits(&mut lanes, now_us, now_us, &mut disk).is_empty());
    }
    for _ in 0..2_000 {
        push(&mut lanes, now_us, Class::Bulk, 1_000);
        now_us += 1_000;
        commits(&mut lanes, now_us, now_us, &mut disk);
        assert!(!lanes.is_full());
    }
    assert!(disk.len() > 300, "{} blocks on disk", disk.len());
    lanes.set_uplink_up(now_us, true);
    let mut seqs = RangeSet::new();
    for _ in 0..1_000 {
        now_us += SECOND;
        for (_, _, block) in send(&mut lanes, now_us, &disk) {
            let header = BlockHeader::parse(&block).expect("our own block");
            seqs.insert(header.key.first_seq..=header.last_seq);
            ack(&mut lanes, now_us, &block);
        }
    }
    assert_eq!((seqs.range_count(), seqs.len()), (1, lanes.counters(Class::Bulk).records));
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged_and_recovers() {
    let mut lanes = all(Durability::Disk);
    let mut disk = BTreeMap::new();
    for step in 0..30 {
        push(&mut lanes, SECOND + step, Class::Normal, 1_000);
    }
    commits(&mut lanes, 2 * SECOND, 3 * SECOND, &mut disk);
    assert_eq!(lanes.safe()[2], 30);
    let mut now_us = 4 * SECOND;
    for _ in 0..20 {
        push(&mut lanes, now_us, Class::Normal, 1_000);
        if let Some(request) = lanes.commit(now_us) {
            lanes.committed(now_us, request.ticket, Err(StoreError::Full));
        }
        now_us += SECOND;
    }
    assert!(lanes.disk_full() && lanes.commit_failures() >= 15);
    assert_eq!(lanes.safe()[2], 30, "nothing new is safe");
    check(&lanes);
    // The uplink empties it: what the cloud has needs no writing, and removals get through first.
    lanes.set_uplink_up(now_us, true);
    for (_, _, block) in send(&mut lanes, now_us, &disk) {
        ack(&mut lanes, now_us, &block);
    }
    assert_eq!(lanes.safe()[2], 50);
    now_us += SECOND;
    let request = lanes.commit(now_us).expect("tried again");
    assert_eq!((request.puts.len(), request.deletes.is_empty()), (0, false), "{request:?}");
    write(&mut disk, &request);
    lanes.committed(now_us, request.ticket, Ok(()));
    commits(&mut lanes, now_us, now_us + 10 * SECOND, &mut disk);
    assert!(disk.is_empty() && !lanes.disk_full());
}

#[test]
fn a_retried_transaction_drops_no_later_removal() {
    let mut lanes = all(Durability::Disk);
    let mut disk = BTreeMap::new();
    for _ in 0..10 {
        push(&mut lanes, SECOND, Class::Normal, 1_000);
    }
    lanes.seal(SECOND, Class::Normal);
    let request = lanes.commit(3 * SECOND).expect("due");
    assert!(!request.puts.is_empty());
    // The blocks are acknowledged while they are written, and again before the retry.
    lanes.set_uplink_up(3 * SECOND, true);
    let sent = send(&mut lanes, 3 * SECOND, &disk);
    let (first, rest) = sent.split_first().expect("sent");
    ack(&mut lanes, 3 * SECOND, &first.2);
    lanes.committed(4 * SECOND, request.ticket, Err(StoreError::Io("broken".to_owned())));
    for (_, _, block) in rest {
        push(&mut lanes, 4 * SECOND, Class::Normal, 10);
        ack(&mut lanes, 4 * SECOND, block);
    }
    commits(&mut lanes, 5 * SECOND, 20 * SECOND, &mut disk);
    let left: Vec<u64> = disk.keys().map(|key| key.first_seq).collect();
    assert!(left.iter().all(|&seq| seq >= 10), "acknowledged blocks are left on disk: {left:?}");
    assert_eq!(lanes.safe()[2], lanes.counters(Class::Normal).records);
}

#[test]
fn a_run_of_which_only_voids_are_left_is_named_and_forgotten_when_they_are_acknowledged() {
    let key = BlockKey { lane: Class::Normal, epoch: Epoch(4), first_seq: 10 };
    let void = Void { key, last_seq: 19, reason: VoidReason::Expired };
    let mut lanes =
        Lanes::new(0, Epoch(9), [policy(Durability::Disk); 4], LIMITS, Found { voids: &[void], ..Found::default() }, thinner());
    assert_eq!(lanes.held_epochs(), [Epoch(4)]);
    assert_eq!(lanes.take_voids_to_send(), [void]);
    lanes.ack(SECOND, 0, Class::Normal, Epoch(4), 10..=19);
    assert_eq!((lanes.void_count(), lanes.held_epochs()), (0, vec![]));
    let request = lanes.commit(SECOND + TIDY_WAIT_US).expect("the disk may forget it");
    assert_eq!(request.voids_acked, [key]);
}

#[test]
fn queues_do_not_grow_with_the_length_of_an_outage() {
    let mut lanes = all(Durability::Through);
    let mut disk = BTreeMap::new();
    for step in 0..2_000 {
        push(&mut lanes, step * 100_000, Class::Normal, 2_000);
        commits(&mut lanes, step * 100_000, step * 100_000, &mut disk);
    }
    let lane = &lanes.lanes[2];
    assert!(
        lane.blocks.len() > 400 && lane.live.len() + lane.to_write.len() < 10,
        "{} {}",
        lane.live.len(),
        lane.to_write.len()
    );
}

#[test]
fn a_damaged_block_is_voided_up_to_the_next_sound_one_and_removed() {
    let (mut before, mut disk) = (all(Durability::Disk), BTreeMap::new());
    // Three blocks of two records each, every one in a transaction of its own.
    for at in 0..3 {
        for _ in 0..2 {
            push(&mut before, at * 10 * SECOND, Class::Normal, 3_000);
        }
        commits(&mut before, at * 10 * SECOND, (at * 10 + 5) * SECOND, &mut disk);
    }
    let (mut held, key) = (held(&before), |first_seq| BlockKey { lane: Class::Normal, epoch: Epoch(9), first_seq });
    assert_eq!(held.iter().map(|held| held.header.key.first_seq).collect::<Vec<_>>(), [0, 2, 4]);
    held.retain(|held| held.header.key.first_seq == 2);
    let damaged = [key(0), key(4), BlockKey { epoch: Epoch(5), ..key(7) }, key(3)];
    let found = Found { held: &held, damaged: &damaged, ..Found::default() };
    let mut after = Lanes::new(60 * SECOND, Epoch(10), [policy(Durability::Disk); 4], LIMITS, found, thinner());
    assert_eq!(after.held_epochs(), [Epoch(9), Epoch(5)]);
    let mut voids = after.take_voids_to_send();
    voids.sort_by_key(|void| void.key);
    let void = |key, last_seq| Void { key, last_seq, reason: VoidReason::Corrupt };
    // What a sound block has is no loss, whatever lies under a key inside it.
    assert_eq!(voids, [void(damaged[2], 7), void(key(0), 1), void(key(4), 4)]);
    assert_eq!(after.counters(Class::Normal).corrupt, 4);
    commits(&mut after, 60 * SECOND, 70 * SECOND, &mut disk);
    assert_eq!(disk.keys().copied().collect::<Vec<_>>(), [key(2)]);
    check(&after);
}

/// A plan by which stream 0 is held, stream 1 is thinned to a quarter, and stream 2 is sent as it is.
/// Everything goes by the only uplink.
fn one_way() -> Plan {
    Plan { uplinks: std::array::from_fn(|_| vec![0]), ..Plan::default() }
}

fn priced() -> Plan {
    let lateness = Lateness { d0_us: 1_000 * SECOND, d1_us: None, u1: 1.0 };
    let value = |weight, ladder| Some(StreamValue { weight, ladder, lateness, is_exempt: false });
    let values = [value(0.5, Ladder::RAW), value(1.0, Ladder::TELEMETRY.down_to(Level::Thin4)), None];
    Plan { lambda: 1.0, prices: Prices::flat(1.0), values: values.into(), weighs: true, ..one_way() }
}

fn push_of(lanes: &mut Lanes, now_us: u64, class: Class, stream: u16, len: usize) {
    let payload = noise(now_us ^ lanes.counters(class).records, len);
    let record = NewRecord {
        source: stream.into(),
        stream: ["held", "thin", "free"][usize::from(stream)],
        device: "d",
        kind: RecordKind::Raw,
        service_time: false,
        at_us: now_us,
        payload: &payload,
    };
    lanes.push(now_us, class, stream, &record);
}

fn named(name: &str) -> StreamPolicy {
    StreamPolicy {
        name: name.into(),
        filters: Vec::new(),
        class: Class::Normal,
        fidelity: StreamFidelity::Raw,
        format: PayloadFormat::Opaque(OpaqueFormat {}),
        aggregate: None,
        keep: None,
        model: None,
        ack_record: false,
        zones: Vec::new(),
        value: None,
        offload: None,
        truth: None,
    }
}

#[test]
fn what_is_worth_less_than_its_bytes_is_thinned_when_it_is_sent_and_kept_whole_until_it_is_acknowledged() {
    let thinner = Thinner::new(&["held", "thin", "free"].map(named), 0);
    let mut lanes = Lanes::new(0, Epoch(9), [policy(Durability::Through); 4], LIMITS, Found::default(), thinner);
    lanes.set_uplink_up(0, true);
    let plan = priced();
    assert_eq!(plan.level(1, Wait::of_age(0)), Some(Level::Thin4));
    for _ in 0..16 {
        push_of(&mut lanes, 0, Class::Normal, 1, 100);
        push_of(&mut lanes, 0, Class::Normal, 2, 100);
    }
    let waiting = lanes.waiting(SECOND, 3, |_| None);
    assert_eq!(waiting.iter().map(|c| (c.stream, c.wait.age_us)).collect::<Vec<_>>(), [(1, SECOND), (2, SECOND)]);
    let Some(Outgoing::Send { flow, block, .. }) = lanes.outgoing(SECOND, &[Some(CREDITS)], &plan) else { panic!("a block") };
    lanes.written(0, flow, block.len() as u64);
    let mut codec = Codec::default();
    let (header, records) = codec.open(&block).expect("our own block");
    let streams: Vec<String> = records.map(|record| record.expect("whole").stream.to_owned()).collect();
    assert_eq!((streams.iter().filter(|s| *s == "thin").count(), streams.iter().filter(|s| *s == "free").count()), (4, 16));
    assert_eq!((header.key.first_seq, header.last_seq), (0, 31));
    assert_eq!(lanes.under_way_bytes(0).iter().sum::<u64>(), block.len() as u64);
    check_under_way(&lanes);
    // A lost session costs nothing: what was thinned is still there whole, and may be sent finer.
    lanes.session_lost(0);
    assert_eq!(lanes.under_way_bytes(0), [0; 4]);
    let Some(Outgoing::Send { block, .. }) = lanes.outgoing(SECOND, &[Some(CREDITS)], &one_way()) else { panic!("a block") };
    assert_eq!(BlockHeader::parse(&block).expect("our own block").count, 32);
    lanes.session_lost(0);
    let Some(Outgoing::Send { block, .. }) = lanes.outgoing(SECOND, &[Some(CREDITS)], &plan) else { panic!("a block") };
    ack(&mut lanes, 2 * SECOND, &block);
    let counters = lanes.counters(Class::Normal);
    assert_eq!((counters.acked, counters.thinned, counters.records), (20, 12, 32));
    assert_eq!(lanes.take_acked(), [Acked { uplink: 0, bytes: block.len() as u64, sent_us: SECOND }]);
    assert_eq!(lanes.safe()[Class::Normal.index()], 32);
}

#[test]
fn what_a_busy_cloud_gets_is_thinned_although_nothing_has_a_price() {
    let thinner = Thinner::new(&["held", "thin", "free"].map(named), 0);
    let mut lanes = Lanes::new(0, Epoch(9), [policy(Durability::Through); 4], LIMITS, Found::default(), thinner);
    lanes.set_uplink_up(0, true);
    let entry = |_| crate::plan::StreamPlan {
        fidelity: StreamFidelity::Raw,
        level: Some(Level::Raw),
        lane: Class::Normal,
        placement: crate::plan::Placement::None,
        placed: crate::plan::Placed::NotAsked,
        learned: None,
        reason: crate::plan::Reason::Policy { asked: StreamFidelity::Raw },
    };
    let plan =
        Plan { lambda: 0.0, prices: Prices::flat(0.0), steps: [0, 1, 2, 2], streams: (0..3).map(entry).collect(), ..priced() };
    for _ in 0..16 {
        push_of(&mut lanes, 0, Class::Normal, 1, 100);
        push_of(&mut lanes, 0, Class::Normal, 2, 100);
    }
    let Some(Outgoing::Send { block, .. }) = lanes.outgoing(SECOND, &[Some(CREDITS)], &plan) else { panic!("a block") };
    let mut codec = Codec::default();
    let (_, records) = codec.open(&block).expect("our own block");
    let streams: Vec<String> = records.map(|record| record.expect("whole").stream.to_owned()).collect();
    assert_eq!((streams.iter().filter(|s| *s == "thin").count(), streams.iter().filter(|s| *s == "free").count()), (4, 16));
}

#[test]
fn what_waits_for_credit_does_not_wait_for_the_uplink() {
    let mut lanes = all(Durability::Through);
    lanes.set_uplink_up(0, true);
    push(&mut lanes, 0, Class::Bulk, 100);
    lanes.seal(0, Class::Bulk);
    let is_waiting = |lanes: &Lanes, credits| lanes.is_waiting(&[credits], &one_way());
    assert!(is_waiting(&lanes, Some(CREDITS)) && is_waiting(&lanes, None), "for the uplink");
    assert!(!is_waiting(&lanes, Some([1 << 20, 1 << 20, 1 << 20, 0])), "for the cloud");
}

#[test]
fn what_is_held_is_sent_only_when_nothing_else_is() {
    let thinner = Thinner::new(&["held", "thin", "free"].map(named), 0);
    let mut lanes = Lanes::new(0, Epoch(9), [policy(Durability::Through); 4], LIMITS, Found::default(), thinner);
    lanes.set_uplink_up(0, true);
    push_of(&mut lanes, 0, Class::High, 0, 100);
    push_of(&mut lanes, 0, Class::Bulk, 2, 100);
    push_of(&mut lanes, 0, Class::Critical, 0, 100);
    let mut order = Vec::new();
    while let Some(Outgoing::Send { flow, .. }) = lanes.outgoing(SECOND, &[Some(CREDITS)], &priced()) {
        order.push(flow.lane);
    }
    assert_eq!(order, [Class::Critical, Class::Bulk, Class::High]);
}

fn check_under_way(lanes: &Lanes) {
    for lane in &lanes.lanes {
        let sent = |block: &Block| if let Send::UnderWay(under_way) = block.send { u64::from(under_way.len) } else { 0 };
        assert_eq!(lane.under_way_bytes(0), lane.blocks.values().map(sent).sum::<u64>());
    }
}

#[test]
fn voids_become_one_across_what_the_cloud_has_and_never_across_what_is_held() {
    let mut lanes = all(Durability::Disk);
    lanes.set_uplink_up(0, true);
    for _ in 0..50 {
        push(&mut lanes, SECOND, Class::Normal, 1_000);
        lanes.seal(SECOND, Class::Normal);
    }
    lanes.ack(SECOND, 0, Class::Normal, Epoch(9), 10..=19);
    for position in (0..10).chain(20..30).chain(40..50) {
        lanes.give_up(2 * SECOND, Class::Normal, (0, position), VoidReason::Evicted);
    }
    let ranges: Vec<_> = lanes.voids.values().map(|void| (void.key.first_seq, void.last_seq)).collect();
    assert_eq!(ranges, [(0, 29), (40, 49)]);
    check(&lanes);
}

#[test]
fn voids_have_a_limit_beyond_which_neighbours_share_the_later_reason() {
    let mut lanes = all(Durability::Disk);
    for turn in 0..3 * VOIDS_COUNT_MAX as u64 {
        push(&mut lanes, SECOND, Class::Normal, 1);
        lanes.seal(SECOND, Class::Normal);
        let reason = if turn % 2 == 0 { VoidReason::Evicted } else { VoidReason::Expired };
        lanes.give_up(SECOND, Class::Normal, (0, turn), reason);
    }
    assert_eq!(lanes.void_count(), VOIDS_COUNT_MAX);
    assert_eq!(lanes.voids_relabelled(), 2 * VOIDS_COUNT_MAX as u64);
    let covered: RangeSet = lanes.voids.values().fold(RangeSet::new(), |mut all, void| {
        all.insert(void.key.first_seq..=void.last_seq);
        all
    });
    assert_eq!((covered.range_count(), covered.len()), (1, 3 * VOIDS_COUNT_MAX as u64), "all are told, each once");
}

#[test]
fn no_more_runs_are_held_than_a_hello_can_name() {
    let surplus = 10;
    let header = |run: u64| BlockHeader {
        key: BlockKey { lane: Class::High, epoch: Epoch(u64::MAX - run), first_seq: 0 },
        last_seq: 1,
        born_us: run,
        wall_offset_us: None,
        count: 2,
        raw_len: 10,
        fidelity: crate::block::Fidelity::Full,
    };
    let runs = (HELD_EPOCHS_MAX + surplus) as u64;
    let held: Vec<Held> = (0..runs).map(|run| Held { header: header(run), len: 100 }).collect();
    let found = Found { held: &held, ..Found::default() };
    let mut lanes = Lanes::new(SECOND, Epoch(9), [policy(Durability::Disk); 4], LIMITS, found, thinner());
    let named = lanes.held_epochs();
    assert_eq!((named.len(), named[0]), (HELD_EPOCHS_MAX, Epoch(u64::MAX - surplus as u64)), "the oldest are gone");
    assert_eq!(lanes.counters(Class::High).evicted, 2 * surplus as u64);
    let removed = lanes.commit(10 * SECOND).expect("the disk may forget them").deletes;
    assert_eq!(removed.len(), surplus);
    check(&lanes);
    // What names them all is a message that can be sent.
    let mut session = crate::uplink::Session::new(
        0,
        crate::uplink::SessionLimits { ping_us: 1, silence_us: 10, connect_us: 10, backoff_us: (1, 2) },
        1,
    );
    session.tick(0, Default::default);
    session.connected(0, lanes.epoch(), &named, "test");
    let written = std::iter::from_fn(|| session.poll()).find_map(|output| match output {
        crate::uplink::SessionOutput::Write(bytes) => Some(bytes.len()),
        _ => None,
    });
    assert!(written.is_some_and(|len| len <= crate::wire::CONTROL_LEN_MAX), "{written:?}");
}

/// Uplinks that blocks of `high` leave by now.
fn leave_by(lanes: &mut Lanes, now_us: u64, plan: &Plan) -> Vec<u8> {
    push(lanes, now_us, Class::High, 100);
    let ways = [Some(CREDITS); 2];
    let sent = std::iter::from_fn(|| lanes.outgoing(now_us + SECOND, &ways, plan));
    let uplink = |outgoing| if let Outgoing::Send { uplink, .. } = outgoing { Some(uplink) } else { None };
    sent.filter_map(uplink).collect()
}

#[test]
fn one_block_goes_by_the_uplink_on_trial_too_and_none_once_the_trial_is_over() {
    let (mut lanes, plan) = (all(Durability::Disk), one_way());
    lanes.begin_trial(1);
    assert_eq!(leave_by(&mut lanes, 0, &plan), [0, 1]);
    assert_eq!(leave_by(&mut lanes, 2 * SECOND, &plan), [0], "one is enough");
    lanes.begin_trial(1);
    lanes.end_trial(0);
    lanes.end_trial(1);
    assert_eq!(leave_by(&mut lanes, 4 * SECOND, &plan), [0]);
}

#[test]
fn a_critical_block_goes_by_two_uplinks_and_the_loss_of_either_repeats_nothing() {
    let plan = Plan { uplinks: std::array::from_fn(|_| vec![0, 1]), critical_copies: 2, ..Plan::default() };
    let mut lanes = all(Durability::Disk);
    let seq = push(&mut lanes, 0, Class::Critical, 100);
    let ways = [Some(CREDITS); 2];
    let sent: Vec<Outgoing> = std::iter::from_fn(|| lanes.outgoing(SECOND, &ways, &plan)).collect();
    assert!(matches!(&sent[..], [Outgoing::Send { uplink: 0, .. }, Outgoing::Send { uplink: 1, .. }]), "{sent:?}");
    lanes.session_lost(0);
    assert_eq!(lanes.outgoing(SECOND, &[None, Some(CREDITS)], &plan), None, "the other has it");
    assert_eq!((lanes.under_way_bytes(0), lanes.counters(Class::Critical).repeated_blocks), ([0; 4], 0));
    lanes.ack(2 * SECOND, 1, Class::Critical, Epoch(9), seq..=seq);
    assert_eq!((lanes.under_way_bytes(1), lanes.status(Class::Critical).records), ([0; 4], 0));
}

/// Whether critical blocks leave from the backlog, in order: one that was written in an outage of so long, and a new one.
fn critical_after_an_outage(outage_us: u64) -> Vec<bool> {
    let (mut lanes, mut disk) = (all(Durability::Disk), BTreeMap::new());
    lanes.set_uplink_up(0, false);
    // More than a block.
    push(&mut lanes, 0, Class::Critical, 5_000);
    assert_eq!(commits(&mut lanes, 0, 2 * SECOND, &mut disk).len(), 1);
    lanes.set_uplink_up(outage_us, true);
    push(&mut lanes, outage_us, Class::Critical, 100);
    let sent = send(&mut lanes, outage_us + SECOND, &disk);
    sent.iter().map(|(flow, ..)| flow.backlog).collect()
}

#[test]
fn critical_records_go_oldest_first_but_an_old_backlog_holds_up_nothing() {
    assert_eq!(critical_after_an_outage(10 * SECOND), [true, false]);
    assert_eq!(critical_after_an_outage(1_000 * SECOND), [false, true]);
}

#[test]
fn what_thinned_blocks_take_is_learned() {
    let thinner = Thinner::new(&["held", "thin", "free"].map(named), 0);
    let mut lanes = Lanes::new(0, Epoch(9), [policy(Durability::Through); 4], LIMITS, Found::default(), thinner);
    lanes.set_uplink_up(0, true);
    let plan = priced();
    assert_eq!(lanes.bytes_per_planned(), 1.0, "until then the ladder is believed");
    for second in 1..200 {
        for _ in 0..50 {
            push_of(&mut lanes, second * SECOND, Class::Normal, 1, 40);
        }
        while let Some(Outgoing::Send { flow, block, .. }) = lanes.outgoing(second * SECOND + 50_000, &[Some(CREDITS)], &plan) {
            lanes.written(0, flow, block.len() as u64);
            ack(&mut lanes, second * SECOND + 60_000, &block);
        }
    }
    // Heads of records and blocks come on top of a quarter of small records.
    let ratio = lanes.bytes_per_planned();
    assert!((1.02..3.0).contains(&ratio), "{ratio}");
}

#[test]
fn blocks_are_small_where_the_uplink_is_slow_and_critical_ones_everywhere() {
    let limits = LanesLimits { memory_bytes: 16 << 20, block_target_bytes: 128 << 10, ..LIMITS };
    let mut lanes = Lanes::new(0, Epoch(9), [policy(Durability::Through); 4], limits, Found::default(), thinner());
    let last_raw_kib = |lanes: &mut Lanes, class: Class| {
        for at in 0..400 {
            push(lanes, at, class, 1_000);
        }
        let (_, block) = lanes.lanes[class.index()].blocks.last_key_value().expect("400 kB are several blocks");
        block.header.raw_len >> 10
    };
    assert_eq!((last_raw_kib(&mut lanes, Class::Critical), last_raw_kib(&mut lanes, Class::High)), (16, 128));
    // What waits is to last 3 s at least, so a block takes half a second.
    lanes.foresee(SECOND, &[0.0, 80_000.0], 3 * SECOND);
    assert_eq!((last_raw_kib(&mut lanes, Class::Critical), last_raw_kib(&mut lanes, Class::High)), (16, 39));
    lanes.foresee(SECOND, &[1_000.0], 3 * SECOND);
    assert_eq!(last_raw_kib(&mut lanes, Class::High), 16, "smaller ones are not worth their heads");
    lanes.foresee(SECOND, &[1e9], 3 * SECOND);
    assert_eq!(last_raw_kib(&mut lanes, Class::High), 128);
    lanes.foresee(SECOND, &[0.0], 3 * SECOND);
    assert_eq!(last_raw_kib(&mut lanes, Class::High), 128, "nothing is known of the uplink");
}

fn packet_id(fingerprint: Option<u64>) -> PacketIdChange {
    PacketIdChange { session: "site/box".into(), packet_id: 7, fingerprint }
}

#[test]
fn a_record_that_is_bound_to_a_packet_id_is_written_with_it_and_sent_only_then() {
    let mut lanes = all(Durability::Through);
    lanes.set_uplink_up(0, true);
    let disk = BTreeMap::new();
    push(&mut lanes, 10, Class::High, 100);
    let seq = push(&mut lanes, 20, Class::High, 100);
    let change = lanes.bind(20, Class::High, seq, 100, packet_id(Some(5)));
    push(&mut lanes, 30, Class::Normal, 100);
    let sent = send(&mut lanes, SECOND / 2, &disk);
    assert!(sent.iter().all(|(flow, ..)| flow.lane == Class::Normal) && sent.len() == 1, "other lanes do not wait: {sent:?}");
    let due_us = lanes.deadline_us();
    assert!(due_us <= 20 + SECOND, "it is written although the uplink is up: {due_us}");
    let request = lanes.commit(20 + SECOND).expect("it is due");
    assert_eq!(request.packet_ids, [packet_id(Some(5))]);
    assert!(request.puts.iter().any(|put| (put.header.key.first_seq..=put.header.last_seq).contains(&seq)), "one transaction");
    assert!(send(&mut lanes, 2 * SECOND, &disk).is_empty(), "not before it is on disk");
    assert!(lanes.packet_ids_committed() < change);
    lanes.committed(2 * SECOND, request.ticket, Ok(()));
    assert_eq!(lanes.packet_ids_committed(), change);
    assert_eq!(lanes.safe()[Class::High.index()], seq + 1);
    assert_eq!(send(&mut lanes, 3 * SECOND, &disk).len(), 1);
    check(&lanes);
}

#[test]
fn while_the_disk_fails_nothing_is_held_back_for_it() {
    let mut lanes = all(Durability::Through);
    lanes.set_uplink_up(0, true);
    let seq = push(&mut lanes, 10, Class::High, 100);
    let change = lanes.bind(10, Class::High, seq, 100, packet_id(Some(5)));
    let request = lanes.commit(2 * SECOND).expect("it is due");
    lanes.committed(2 * SECOND, request.ticket, Err(StoreError::Full));
    assert_eq!(send(&mut lanes, 2 * SECOND + 20_000, &BTreeMap::new()).len(), 1);
    let request = lanes.commit(4 * SECOND).expect("it is tried again");
    assert_eq!(request.packet_ids, [packet_id(Some(5))]);
    lanes.note_packet_id(4 * SECOND, packet_id(None));
    lanes.committed(4 * SECOND, request.ticket, Ok(()));
    assert_eq!(lanes.packet_ids_committed(), change, "what came since is for the next one");
}

#[test]
fn what_a_broker_sent_is_written_in_a_lane_that_waits_for_the_cloud_but_not_in_one_that_may_lose_it() {
    let mut policies = [policy(Durability::Through); 4];
    policies[Class::Bulk.index()] = policy(Durability::Memory);
    let mut lanes = lanes(policies);
    lanes.set_uplink_up(0, true);
    for class in [Class::Normal, Class::Bulk] {
        push(&mut lanes, 10, class, 100);
        lanes.require_disk(10, class, 100);
    }
    let request = lanes.commit(2 * SECOND).expect("it is due");
    assert_eq!(request.puts.iter().map(|put| put.header.key.lane).collect::<Vec<_>>(), [Class::Normal]);
    assert_eq!(lanes.counters(Class::Normal).spilled, 0, "it was asked for, not late");
}
