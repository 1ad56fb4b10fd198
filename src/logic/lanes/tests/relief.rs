//! Lanes that are nearly full.

use super::*;
use crate::payload::NumberFormat;

/// Lanes of this policy after a minute's readings of three devices, without an uplink; `disk` is what was written.
fn overfilled(lane: LanePolicy, floor: Option<Level>, disk: &mut BTreeMap<BlockKey, Bytes>) -> Lanes {
    let mut stream = named("thin");
    stream.format = PayloadFormat::Number(NumberFormat::default());
    stream.value = floor.map(|floor| {
        let lateness = Lateness { d0_us: 1_000 * SECOND, d1_us: None, u1: 1.0 };
        StreamValue { weight: 1.0, ladder: Ladder::TELEMETRY.down_to(floor), lateness, is_exempt: false }
    });
    let thinner = Thinner::new(&[stream], 0);
    let mut lanes = Lanes::new(0, Epoch(9), [lane; 4], LIMITS, Found::default(), thinner);
    for message in 0..20_000u64 {
        let now_us = message * 3_000;
        let payload =
            format!("{}", noise(message, 8).iter().fold(0u64, |all, &byte| (all << 8) | u64::from(byte)) as f64 / 1e9);
        let record = NewRecord {
            source: (message % 3) as u32,
            stream: "thin",
            device: ["a", "b", "c"][message as usize % 3],
            kind: RecordKind::Raw,
            service_time: false,
            at_us: now_us,
            payload: payload.as_bytes(),
        };
        lanes.push(now_us, Class::Normal, 0, &record);
        if message.is_multiple_of(16) {
            lanes.tick(now_us);
            while let Some(key) = lanes.relieve(now_us, &one_way()) {
                lanes.loaded(now_us, key, disk.get(&key).cloned());
            }
            if let Some(request) = lanes.commit(now_us) {
                write(disk, &request);
                lanes.committed(now_us, request.ticket, Ok(()));
            }
            check(&lanes);
        }
    }
    lanes
}

#[test]
fn a_full_lane_keeps_all_of_its_time_more_coarsely_before_it_gives_anything_up() {
    let lane = LanePolicy { cap_bytes: 64 << 10, ..policy(Durability::Disk) };
    let (mut disk, mut thinned) = (BTreeMap::new(), BTreeMap::new());
    let evicting = overfilled(lane, None, &mut disk).counters(Class::Normal);
    assert!(evicting.evicted > 10_000 && evicting.thinned == 0, "{evicting:?}");
    let lanes = overfilled(LanePolicy { overflow: Overflow::Thin, ..lane }, None, &mut thinned);
    let counters = lanes.counters(Class::Normal);
    assert_eq!(counters.evicted, 0);
    assert!(counters.thinned > 0 && counters.thinned_blocks > 0, "{counters:?}");
    assert!(lanes.status(Class::Normal).bytes <= lane.cap_bytes);
    // What is on disk is what the lane believes to be there.
    for block in lanes.lanes[Class::Normal.index()].blocks.values().filter(|block| block.disk == Disk::Stored) {
        assert_eq!(thinned.get(&block.header.key).map(|bytes| bytes.len() as u32), Some(block.len));
    }
    // The oldest record's time is still covered.
    let first = lanes.lanes[Class::Normal.index()].blocks.values().next().expect("blocks");
    assert_eq!((first.header.key.first_seq, first.header.fidelity), (0, crate::block::Fidelity::Thinned));
    // After a restart it goes on from there.
    let mut found = held(&lanes);
    found.sort_by_key(|held| held.header.key);
    let again = Lanes::new(0, Epoch(10), [lane; 4], LIMITS, Found { held: &found, ..Found::default() }, thinner());
    assert_eq!(again.status(Class::Normal).bytes, found.iter().map(|held| u64::from(held.len)).sum::<u64>());
}

#[test]
fn a_floor_holds_in_a_full_lane_too_and_critical_is_only_evicted() {
    let lane = LanePolicy { cap_bytes: 64 << 10, overflow: Overflow::Thin, ..policy(Durability::Disk) };
    let counters = overfilled(lane, Some(Level::Raw), &mut BTreeMap::new()).counters(Class::Normal);
    assert!(counters.evicted > 0 && counters.thinned == 0, "{counters:?}");
    let down_to = |floor| overfilled(lane, Some(floor), &mut BTreeMap::new());
    let evicted = |floor| down_to(floor).counters(Class::Normal).evicted;
    assert!(evicted(Level::Thin2) > evicted(Level::Thin4) && evicted(Level::Thin4) > evicted(Level::Aggregate));
    let lanes = Lanes::new(0, Epoch(9), [lane; 4], LIMITS, Found::default(), thinner());
    assert!(!lanes.lanes[Class::Critical.index()].thins());
}

#[test]
fn a_block_that_was_thinned_where_it_lies_is_not_thinned_again_for_the_same_level() {
    let mut disk = BTreeMap::new();
    let lane = LanePolicy { cap_bytes: 64 << 10, overflow: Overflow::Thin, ..policy(Durability::Disk) };
    let mut lanes = overfilled(lane, Some(Level::Thin4), &mut disk);
    let values = [Some(StreamValue {
        weight: 1.0,
        ladder: Ladder::TELEMETRY.down_to(Level::Thin4),
        lateness: Lateness { d0_us: 1_000 * SECOND, d1_us: None, u1: 1.0 },
        is_exempt: false,
    })];
    let plan = Plan { lambda: 1.0, prices: Prices::flat(1.0), values: values.into(), weighs: true, ..one_way() };
    // What is over the cap goes now and not while it is sent.
    lanes.tick(99 * SECOND);
    let blocks: BTreeMap<BlockKey, (Coarseness, u32)> = lanes.lanes[Class::Normal.index()]
        .blocks
        .values()
        .map(|block| (block.header.key, (block.coarseness, block.len)))
        .collect();
    lanes.set_uplink_up(0, true);
    let mut sent = 0;
    while let Some(outgoing) = lanes.outgoing(100 * SECOND, &[Some(CREDITS)], &plan) {
        match outgoing {
            Outgoing::Send { key, flow, block, .. } => {
                lanes.written(0, flow, block.len() as u64);
                if let Some(&(coarseness, len)) = blocks.get(&key) {
                    assert_eq!(block.len() as u32 == len, coarseness != Coarseness::Whole, "{key:?}");
                    sent += 1;
                }
            }
            Outgoing::Load { key } => lanes.loaded(100 * SECOND, key, disk.get(&key).cloned()),
        }
        check_under_way(&lanes);
    }
    assert_eq!(sent, blocks.len());
}

#[test]
fn a_block_that_was_read_to_be_sent_is_not_thinned_meanwhile() {
    let mut disk = BTreeMap::new();
    let lane = LanePolicy { overflow: Overflow::Thin, ..policy(Durability::Disk) };
    let mut lanes = overfilled(lane, None, &mut disk);
    lanes.set_uplink_up(0, true);
    // From here on it is full, of blocks that are whole.
    lanes.lanes[Class::Normal.index()].policy.cap_bytes = lanes.status(Class::Normal).bytes;
    let ways = [Some(CREDITS)];
    let now_us = 100 * SECOND;
    let mut sent = 0;
    while let Some(outgoing) = lanes.outgoing(now_us, &ways, &one_way()) {
        match outgoing {
            Outgoing::Send { flow, block, .. } => {
                lanes.written(0, flow, block.len() as u64);
                sent += 1;
            }
            Outgoing::Load { key } => {
                lanes.loaded(now_us, key, disk.get(&key).cloned());
                while let Some(to_thin) = lanes.relieve(now_us, &one_way()) {
                    assert_ne!(to_thin, key);
                    lanes.load_failed(now_us, to_thin);
                }
            }
        }
        check(&lanes);
    }
    assert!(sent > 3, "{sent}");
}
