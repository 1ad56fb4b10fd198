use weir_host::units::Bytes;

use super::*;
use crate::link::profile::{LinkProfile, OutageDirection};

const PAYLOAD: usize = 1_200;
const WIRE_BITS: f64 = (PAYLOAD as f64 + HEADER_BYTES as f64) * 8.0;

fn profile(mbit_per_s: u64) -> LinkProfile {
    let side = LinkSide {
        rate: BitRate::from_bits_per_s(mbit_per_s * 1_000_000),
        delay: Duration::from_millis(40),
        queue: Bytes::from_kib(64),
        ..LinkSide::default()
    };
    LinkProfile { name: "test".to_owned(), description: String::new(), up: side.clone(), down: side, outages: Vec::new() }
}

fn outage(start_s: u64, length_s: u64, every_s: u64) -> Outage {
    Outage {
        start: Duration::from_secs(start_s),
        length: Duration::from_secs(length_s),
        every: Duration::from_secs(every_s),
        ..Outage::default()
    }
}

/// Offers a packet every `gap_us` for `seconds`; gives each packet's time and fate.
fn offer(model: &mut LinkModel, seconds: u64, gap_us: u64) -> Vec<(u64, Fate)> {
    (0..seconds * 1_000_000 / gap_us).map(|n| (n * gap_us, model.packet(n * gap_us, PAYLOAD))).collect()
}

fn arrivals(fates: &[(u64, Fate)]) -> Vec<u64> {
    let arrival = |(_, fate): &(u64, Fate)| match fate {
        Fate::Deliver { at_us } => Some(*at_us),
        Fate::Drop(_) => None,
    };
    fates.iter().filter_map(arrival).collect()
}

fn count(fates: &[(u64, Fate)], reason: DropReason) -> u64 {
    fates.iter().filter(|(_, fate)| *fate == Fate::Drop(reason)).count() as u64
}

#[test]
fn every_packet_is_delivered_or_dropped_for_a_reason() {
    for (name, profile) in LinkProfile::builtin().map(|profile| (profile.name.clone(), profile)) {
        let mut model = LinkModel::new(&profile, Direction::Up, 42);
        let fates = offer(&mut model, 120, 1_000);
        let counts = model.counts();
        assert_eq!(counts.offered_packets, fates.len() as u64, "{name}");
        assert_eq!(counts.offered_bytes, (fates.len() * PAYLOAD) as u64, "{name}");
        assert_eq!(counts.delivered_packets, arrivals(&fates).len() as u64, "{name}");
        assert_eq!(counts.delivered_bytes, counts.delivered_packets * PAYLOAD as u64, "{name}");
        assert_eq!(counts.lost_packets, count(&fates, DropReason::Loss), "{name}");
        assert_eq!(counts.queue_full_packets, count(&fates, DropReason::QueueFull), "{name}");
        assert_eq!(counts.outage_packets, count(&fates, DropReason::Outage), "{name}");
        let dropped = counts.lost_packets + counts.queue_full_packets + counts.outage_packets + counts.too_large_packets;
        assert_eq!(counts.delivered_packets + dropped, counts.offered_packets, "{name}");
        assert!(counts.delivered_packets > 0, "{name}");
        assert!(fates.iter().all(|(now, fate)| !matches!(fate, Fate::Deliver { at_us } if at_us < now)), "{name}");
    }
}

#[test]
fn an_overloaded_link_carries_its_rate_within_two_percent() {
    for mbit_per_s in [1, 5, 50, 400] {
        let mut model = LinkModel::new(&profile(mbit_per_s), Direction::Up, 1);
        // Twice what the link carries, for 10 s.
        let gap_us = (WIRE_BITS / (2.0 * mbit_per_s as f64)) as u64;
        let arrived = arrivals(&offer(&mut model, 10, gap_us));
        let in_time = arrived.iter().filter(|at_us| **at_us <= 10_040_000).count() as f64;
        let share = in_time * WIRE_BITS / (mbit_per_s as f64 * 10e6);
        assert!((0.98..=1.02).contains(&share), "{mbit_per_s} Mbit/s: {share}");
        assert!(model.counts().queue_full_packets > 0);
    }
}

#[test]
fn a_full_queue_delays_by_its_size_and_no_more() {
    let mut model = LinkModel::new(&profile(1), Direction::Up, 1);
    for (now_us, fate) in offer(&mut model, 10, 5_000) {
        if let Fate::Deliver { at_us } = fate {
            // 64 KiB at 1 Mbit/s are 524 ms.
            assert!(at_us - now_us <= 40_000 + 524_300, "{}", at_us - now_us);
        }
        assert!(model.queued_bytes(now_us) <= 64 << 10);
    }
    assert_eq!(model.queued_bytes(20_000_000), 0);
}

#[test]
fn an_idle_link_adds_its_delay_and_the_packets_own_time() {
    let mut model = LinkModel::new(&profile(5), Direction::Up, 1);
    let own_us = (WIRE_BITS / 5.0).ceil() as u64;
    assert_eq!(model.packet(1_000_000, PAYLOAD), Fate::Deliver { at_us: 1_000_000 + own_us + 40_000 });
}

#[test]
fn the_loss_share_is_honoured_singly_and_in_bursts() {
    for burst in [1, 8] {
        let mut profile = profile(100);
        profile.up.loss = Ratio::from_percent(5);
        profile.up.loss_burst = burst;
        let mut model = LinkModel::new(&profile, Direction::Up, 3);
        let fates = offer(&mut model, 200, 1_000);
        let lost = count(&fates, DropReason::Loss) as f64;
        let share = lost / fates.len() as f64;
        assert!((0.045..=0.055).contains(&share), "burst {burst}: {share}");
        let is_lost = |fate: &(u64, Fate)| fate.1 == Fate::Drop(DropReason::Loss);
        let bursts = fates.windows(2).filter(|pair| is_lost(&pair[1]) && !is_lost(&pair[0])).count() as f64;
        let mean = lost / bursts;
        let expected = if burst == 1 { 1.0..=1.2 } else { 7.0..=9.0 };
        assert!(expected.contains(&mean), "burst {burst}: {mean}");
    }
}

#[test]
fn an_outage_drops_all_from_its_start_to_its_end() {
    let mut profile = profile(5);
    profile.outages = vec![outage(20, 12, 0)];
    let mut model = LinkModel::new(&profile, Direction::Up, 1);
    for (now_us, fate) in offer(&mut model, 60, 10_000) {
        let is_down = (20_000_000..32_000_000).contains(&now_us);
        assert_eq!(model.is_up(now_us), !is_down, "{now_us}");
        assert_eq!(model.bits_per_s(now_us), if is_down { 0 } else { 5_000_000 });
        // A packet takes 2 ms to leave, so none that comes in before the outage is caught in it.
        assert_eq!(matches!(fate, Fate::Deliver { .. }), !is_down, "{now_us}");
    }
}

#[test]
fn an_outage_takes_what_still_waits() {
    let mut profile = profile(1);
    profile.outages = vec![outage(2, 1, 0)];
    let mut model = LinkModel::new(&profile, Direction::Up, 1);
    let fates = offer(&mut model, 5, 5_000);
    assert!(arrivals(&fates).iter().all(|at_us| !(2_040_001..3_040_000).contains(at_us)));
    let waiting = fates.iter().filter(|(now, fate)| *now < 2_000_000 && *fate == Fate::Drop(DropReason::Outage));
    assert!(waiting.count() > 0);
}

#[test]
fn outages_repeat_shift_and_have_a_direction() {
    let mut profile = profile(5);
    let shifted = Outage { shift: Duration::from_secs(10), direction: OutageDirection::Up, ..outage(30, 30, 60) };
    profile.outages = vec![shifted];
    let model = LinkModel::new(&profile, Direction::Up, 9);
    let down = LinkModel::new(&profile, Direction::Down, 9);
    let mut starts = Vec::new();
    for second in 1..6_000 {
        if !model.is_up(second * 1_000_000) && model.is_up((second - 1) * 1_000_000) {
            starts.push(second);
        }
        assert!(down.is_up(second * 1_000_000));
    }
    assert_eq!(starts.len(), 100);
    for (nth, start) in starts.iter().enumerate() {
        let earliest = 30 + 60 * nth as u64;
        assert!((earliest..=earliest + 10).contains(start), "{nth}: {start}");
    }
    let shifts: std::collections::BTreeSet<u64> = starts.iter().map(|start| start % 60).collect();
    assert!(shifts.len() > 5, "shifts vary: {shifts:?}");
    let down_s = (0..6_000).filter(|second| !model.is_up(second * 1_000_000)).count();
    assert!((2_970..=3_000).contains(&down_s), "{down_s}");
}

#[test]
fn order_is_kept_whatever_the_jitter() {
    let mut profile = profile(20);
    profile.up.jitter = Duration::from_millis(30);
    let mut model = LinkModel::new(&profile, Direction::Up, 5);
    let arrived = arrivals(&offer(&mut model, 20, 1_000));
    assert!(arrived.is_sorted());
    let delays: Vec<u64> = arrived.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(delays.iter().any(|gap| *gap > 5_000), "jitter is there");
}

#[test]
fn a_share_of_packets_is_overtaken_if_the_profile_says_so() {
    let mut profile = profile(20);
    profile.up.reorder = Ratio::from_percent(2);
    let mut model = LinkModel::new(&profile, Direction::Up, 5);
    let arrived = arrivals(&offer(&mut model, 20, 1_000));
    let overtaken = arrived.windows(2).filter(|pair| pair[1] < pair[0]).count() as f64;
    let share = overtaken / arrived.len() as f64;
    assert!((0.015..=0.025).contains(&share), "{share}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for profile in LinkProfile::builtin() {
        let run = |seed, direction| offer(&mut LinkModel::new(&profile, direction, seed), 60, 3_000);
        assert_eq!(run(11, Direction::Up), run(11, Direction::Up), "{}", profile.name);
        if profile.up.loss.ppm() > 0 {
            assert_ne!(run(11, Direction::Up), run(12, Direction::Up), "{}", profile.name);
            assert_ne!(run(11, Direction::Up), run(11, Direction::Down), "{}", profile.name);
        }
    }
}

#[test]
fn a_packet_larger_than_the_link_carries_is_dropped() {
    let mut model = LinkModel::new(&profile(5), Direction::Up, 1);
    assert!(matches!(model.packet(0, 1_472), Fate::Deliver { .. }));
    assert_eq!(model.packet(0, 1_473), Fate::Drop(DropReason::TooLarge));
    assert_eq!(model.counts().too_large_packets, 1);
}

#[test]
fn the_link_can_be_forced_down_and_slowed() {
    let mut model = LinkModel::new(&profile(5), Direction::Up, 1);
    model.force_down(true);
    assert_eq!(model.packet(0, PAYLOAD), Fate::Drop(DropReason::Outage));
    model.force_down(false);
    model.scale_rate(Ratio::from_percent(10));
    assert_eq!(model.bits_per_s(0), 500_000);
    assert_eq!(model.packet(0, PAYLOAD), Fate::Deliver { at_us: 40_000 + (WIRE_BITS * 2.0).ceil() as u64 });
    model.scale_rate(Ratio::from_percent(0));
    assert!(matches!(model.packet(100_000, PAYLOAD), Fate::Deliver { .. }), "no rate is so small that it hangs");
}

#[test]
fn rate_loss_and_delay_can_be_forced_and_given_back() {
    let mut model = LinkModel::new(&profile(5), Direction::Up, 1);
    model.force_rate(Some(BitRate::from_bits_per_s(1_000_000)));
    model.force_delay(Some(Duration::from_millis(200)));
    assert_eq!(model.bits_per_s(0), 1_000_000);
    let own_us = WIRE_BITS.ceil() as u64;
    assert_eq!(model.packet(0, PAYLOAD), Fate::Deliver { at_us: 200_000 + own_us });
    model.force_loss(Some(Ratio::from_percent(90)));
    let lost = (0..1_000).filter(|n| model.packet(1_000_000 + n * 20_000, PAYLOAD) == Fate::Drop(DropReason::Loss)).count();
    assert!((850..=950).contains(&lost), "{lost} of 1000");
    model.force_rate(None);
    model.force_loss(None);
    model.force_delay(None);
    let own_us = (WIRE_BITS / 5.0).ceil() as u64;
    assert_eq!(model.packet(30_000_000, PAYLOAD), Fate::Deliver { at_us: 30_000_000 + own_us + 40_000 });
}

#[test]
fn an_ip_packet_counts_as_long_as_it_is() {
    let mut model = LinkModel::new(&profile(5), Direction::Up, 1).of_ip_packets();
    assert!(matches!(model.packet(0, 1_500), Fate::Deliver { .. }));
    assert_eq!(model.packet(0, 1_501), Fate::Drop(DropReason::TooLarge));
    assert_eq!(model.queued_bytes(0), 1_500);
}

#[test]
fn a_recorded_trace_is_carried_at_its_mean_rate() {
    // 100 ms with ten packets in the first 10 ms: 1.2 Mbit/s on average, in bursts.
    let text: String = (1..=10).map(|ms| format!("{ms}\n")).collect::<String>() + "100\n";
    let mut profile = profile(1);
    profile.up.recorded = Some(RateCurve::parse_trace(&text, None).unwrap());
    let mut model = LinkModel::new(&profile, Direction::Up, 1);
    let arrived = arrivals(&offer(&mut model, 10, 2_000));
    let mean = arrived.iter().filter(|at| **at <= 10_040_000).count() as f64 * WIRE_BITS / 10.0;
    assert!((mean / (11.0 * 12_000.0 * 10.0) - 1.0).abs() < 0.02, "{mean}");
    assert!(arrived.iter().all(|at| (at - 40_000 - 1) % 100_000 <= 10_000 || (at - 40_000 - 1) % 100_000 >= 99_000));
}
