//! What is only on disk: in which order it is read and sent.

use super::*;

/// Two blocks on disk, born at 0 s and 8 s, that are worth a tenth once they are 10 s old; their keys.
fn two_on_disk(disk: &mut BTreeMap<BlockKey, Bytes>) -> (Lanes, [BlockKey; 2]) {
    let mut lanes =
        Lanes::new(0, Epoch(9), [policy(Durability::Disk); 4], LIMITS, Found::default(), Thinner::new(&[named("s")], 0));
    for at_us in [0, 8 * SECOND] {
        // As much as makes a block.
        (0..4).for_each(|_| _ = push(&mut lanes, at_us, Class::Normal, 1_200));
        commits(&mut lanes, at_us, at_us + SECOND, disk);
    }
    lanes.set_uplink_up(9 * SECOND, true);
    let mut keys = lanes.lanes[Class::Normal.index()].blocks.values().map(|block| block.header.key);
    let keys = [keys.next().expect("the first"), keys.next().expect("the second")];
    (lanes, keys)
}

fn soon_late() -> Plan {
    let lateness = Lateness { d0_us: 10 * SECOND, d1_us: None, u1: 0.1 };
    let value = StreamValue { weight: 1.0, ladder: Ladder::RAW, lateness, is_exempt: false };
    Plan { values: [Some(value)].into(), weighs: true, ..one_way() }
}

fn load(outgoing: Option<Outgoing>) -> BlockKey {
    match outgoing {
        Some(Outgoing::Load { key }) => key,
        other => panic!("{other:?} where a block was to be read"),
    }
}

#[test]
fn a_block_that_became_late_while_it_waited_does_not_hold_up_what_is_not() {
    let mut disk = BTreeMap::new();
    let (mut lanes, [first, second]) = two_on_disk(&mut disk);
    let (plan, ways) = (soon_late(), [Some(CREDITS)]);
    // With a second left, the first is the most urgent; then the uplink has no room for it until it is late.
    assert_eq!(load(lanes.outgoing(9 * SECOND, &ways, &plan)), first);
    lanes.loaded(9 * SECOND, first, disk.get(&first).cloned());
    assert!(lanes.outgoing(9 * SECOND, &[Some([0; 4])], &plan).is_none());
    assert_eq!(load(lanes.outgoing(11 * SECOND, &ways, &plan)), second);
    check(&lanes);
    lanes.loaded(11 * SECOND, second, disk.get(&second).cloned());
    let sent = send(&mut lanes, 11 * SECOND, &disk);
    assert_eq!(sent.iter().map(|&(_, key, _)| key).collect::<Vec<_>>(), [second, first]);
    check(&lanes);
}

#[test]
fn the_next_block_is_read_while_the_uplink_has_no_room() {
    let mut disk = BTreeMap::new();
    let (mut lanes, [first, second]) = two_on_disk(&mut disk);
    // Room for one block at a time.
    let (plan, ways) = (soon_late(), [Some([1; 4])]);
    assert_eq!(load(lanes.outgoing(9 * SECOND, &ways, &plan)), first);
    lanes.loaded(9 * SECOND, first, disk.get(&first).cloned());
    assert!(matches!(lanes.outgoing(9 * SECOND, &ways, &plan), Some(Outgoing::Send { key, .. }) if key == first));
    assert_eq!(load(lanes.outgoing(9 * SECOND, &ways, &plan)), second);
    lanes.loaded(9 * SECOND, second, disk.get(&second).cloned());
    assert!(lanes.outgoing(9 * SECOND, &ways, &plan).is_none(), "it waits for room");
    check(&lanes);
}
