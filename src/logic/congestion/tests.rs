use proptest::prelude::*;

use super::*;
use link::{PACKET, Run, Sender, Setup, run};

mod link;

const SECOND: u64 = 1_000_000;

/// Part of the link's rate that a flow's acks make up; the rate must not change between the two.
fn share(setup: &Setup, run: &Run, flow: usize, from_us: u64, until_us: u64) -> f64 {
    let rate = setup.rates.iter().rev().find(|&&(at_us, _)| at_us <= from_us).expect("the first is at 0").1;
    run.flows[flow].acked_between(from_us, until_us) as f64 / (rate * (until_us - from_us) as f64 / 1e6)
}

fn alone(setup: &Setup, end_us: u64) -> Run {
    run(setup, vec![(0, Sender::ours())], end_us)
}

/// Clean links that hold at least 16 packets on the way: 2 to 100 Mbit/s, 10 to 200 ms, a queue of a half to eight products.
fn links() -> impl Strategy<Value = Setup> {
    (250e3..12.5e6, 10_000u64..200_000, 0.5..8.0, 1u64..u64::MAX)
        .prop_map(|(rate, rtt_us, queue, seed)| {
            let product = rate * rtt_us as f64 / 1e6;
            let queue_bytes = ((queue * product) as u64).max(16 * PACKET);
            Setup { seed, ..Setup::constant(rate, rtt_us, queue_bytes) }
        })
        .prop_filter("too little on the way", |setup| setup.product() >= 16.0 * PACKET as f64)
}

#[derive(Debug, Clone)]
enum Op {
    Acks { after_us: u64, sent_before_us: u64, packets: u64, in_flight: u64, app_limited: bool },
    Lost { bytes: u64, is_persistent: bool },
    Packet(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    let acks = (0u64..3 * SECOND, 0u64..2 * SECOND, 1u64..200, 0u64..20_000_000, any::<bool>()).prop_map(
        |(after_us, sent_before_us, packets, in_flight, app_limited)| Op::Acks {
            after_us,
            sent_before_us,
            packets,
            in_flight,
            app_limited,
        },
    );
    prop_oneof![
        8 => acks,
        3 => (1u64..1_000_000, prop::bool::weighted(0.1)).prop_map(|(bytes, is_persistent)| Op::Lost { bytes, is_persistent }),
        1 => (1_200u64..9_000).prop_map(Op::Packet),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn window_and_memory_stay_within_bounds_whatever_happens(ops in prop::collection::vec(ops(), 1..400)) {
        let (mut now_us, mut packet) = (SECOND, PACKET);
        let mut controller = Controller::new(now_us, packet);
        for op in ops {
            match op {
                Op::Acks { after_us, sent_before_us, packets, in_flight, app_limited } => {
                    now_us += after_us;
                    (0..packets).for_each(|_| controller.acked(now_us, now_us.saturating_sub(sent_before_us), packet));
                    controller.acks_end(now_us, in_flight, app_limited);
                }
                Op::Lost { bytes, is_persistent } => controller.lost(now_us, bytes, is_persistent),
                Op::Packet(bytes) => {
                    packet = bytes;
                    controller.set_packet_bytes(bytes);
                }
            }
            prop_assert!(controller.window() >= WINDOW_PACKETS_MIN * packet, "{}", controller.window());
            prop_assert!(controller.window() <= WINDOW_MAX, "{}", controller.window());
            prop_assert!(controller.deliveries.len() <= DELIVERIES_MAX);
        }
    }

    #[test]
    fn fills_a_steady_link_within_16_round_trips_and_queues_half_a_product(setup in links()) {
        let begun_us = 16 * setup.rtt_us;
        let end_us = begun_us + 200 * setup.rtt_us;
        let run = alone(&setup, end_us);
        let carried = share(&setup, &run, 0, begun_us, end_us);
        let (queue, _) = run.queue_between(begun_us, end_us);
        prop_assert!(carried >= 0.95, "{carried}");
        prop_assert!(queue <= 0.5 * setup.product(), "{} products", queue / setup.product());
    }

    #[test]
    fn holds_nine_tenths_of_the_rate_where_2_percent_are_lost_at_random(setup in links()) {
        let setup = Setup { loss: 0.02, ..setup };
        let end_us = 216 * setup.rtt_us;
        let carried = share(&setup, &alone(&setup, end_us), 0, 16 * setup.rtt_us, end_us);
        prop_assert!(carried >= 0.9, "{carried}");
    }

    #[test]
    fn a_link_that_becomes_four_times_as_fast_is_full_within_16_round_trips(setup in links()) {
        let (slow, change_us) = (setup.rates[0].1, 60 * setup.rtt_us);
        let setup = Setup { rates: vec![(0, slow), (change_us, 4.0 * slow)], ..setup };
        let (full_us, end_us) = (change_us + 16 * setup.rtt_us, change_us + 66 * setup.rtt_us);
        let carried = share(&setup, &alone(&setup, end_us), 0, full_us, end_us);
        // A product of more than the largest window cannot be filled.
        let largest = WINDOW_MAX as f64 / (4.0 * setup.product());
        prop_assert!(carried >= 0.9 * largest.min(1.0), "{carried}");
    }

    #[test]
    fn a_link_that_becomes_four_times_as_slow_has_a_short_queue_after_two_of_its_emptyings(setup in links()) {
        let (fast, change_us) = (setup.rates[0].1, 60 * setup.rtt_us);
        let product = setup.product() / 4.0;
        prop_assume!(product >= 16.0 * PACKET as f64);
        let setup = Setup { rates: vec![(0, fast), (change_us, fast / 4.0)], ..setup };
        // What was under way takes five round trips to leave at a quarter of the rate.
        let (short_us, end_us) = (change_us + 12 * setup.rtt_us, change_us + 112 * setup.rtt_us);
        let run = alone(&setup, end_us);
        let (queue, _) = run.queue_between(short_us, end_us);
        let carried = share(&setup, &run, 0, short_us, end_us);
        prop_assert!(queue <= product, "{} products", queue / product);
        prop_assert!(carried >= 0.85, "{carried}");
    }

    #[test]
    fn jitter_and_acks_in_heaps_do_not_starve_it(setup in links(), jitter in 0.0..0.4, heap_us in 1u64..40_000) {
        let jitter_us = (jitter * setup.rtt_us as f64) as u64;
        let setup = Setup { jitter_us, ack_every_us: heap_us.min(setup.rtt_us / 2), ..setup };
        let end_us = 300 * setup.rtt_us;
        let carried = share(&setup, &alone(&setup, end_us), 0, 60 * setup.rtt_us, end_us);
        // With jitter of a third of a round trip and heaps as long one in some thousands has less than 0.8; 0.747 in 1,500.
        prop_assert!(carried >= 0.7, "{carried}");
    }

    #[test]
    fn acks_that_stay_away_for_a_second_do_not_lower_it(setup in links()) {
        let silent_us = 60 * setup.rtt_us;
        let setup = Setup { silence_us: (silent_us, silent_us + SECOND), ..setup };
        let again_us = silent_us + SECOND + 16 * setup.rtt_us;
        let end_us = again_us + 50 * setup.rtt_us;
        let carried = share(&setup, &alone(&setup, end_us), 0, again_us, end_us);
        prop_assert!(carried >= 0.9, "{carried}");
    }
}

#[test]
fn a_queue_shorter_than_what_it_sends_on_top_loses_few() {
    // A burst of the pacer is 12,000 bytes.
    for (queue_bytes, most) in [(15_000, 0.07), (20_000, 0.07), (25_000, 0.05)] {
        let setup = Setup::constant(1.25e6, 80_000, queue_bytes);
        let run = alone(&setup, 60 * SECOND);
        let carried = share(&setup, &run, 0, 5 * SECOND, 60 * SECOND);
        let lost = run.flows[0].lost_bytes as f64 / run.flows[0].sent_bytes as f64;
        assert!(carried >= 0.8, "{queue_bytes}: {carried}");
        assert!(lost <= most, "{queue_bytes}: {lost}");
    }
}

#[test]
fn neither_starves_beside_cubic() {
    // Queues of a half, one, two, four and ten products: cubic fills any, so it has more of a long one.
    for (queue_bytes, least) in [(25_000, 0.2), (50_000, 0.25), (100_000, 0.25), (200_000, 0.2), (500_000, 0.08)] {
        for (ours_us, cubic_us) in [(0, 5 * SECOND), (5 * SECOND, 0)] {
            let setup = Setup::constant(625e3, 80_000, queue_bytes);
            let run = run(&setup, vec![(ours_us, Sender::ours()), (cubic_us, Sender::cubic())], 100 * SECOND);
            let shares = [0, 1].map(|flow| share(&setup, &run, flow, 20 * SECOND, 100 * SECOND));
            assert!(shares[0].min(shares[1]) >= least, "queue {queue_bytes}, ours from {ours_us}: {shares:?}");
        }
    }
}

#[test]
fn two_of_its_kind_share_a_link() {
    let setup = Setup::constant(625e3, 80_000, 200_000);
    let run = run(&setup, vec![(0, Sender::ours()), (5 * SECOND, Sender::ours())], 60 * SECOND);
    let shares = [0, 1].map(|flow| share(&setup, &run, flow, 20 * SECOND, 60 * SECOND));
    assert!(shares[0].min(shares[1]) >= 0.3, "{shares:?}");
    assert!(
        run.queue_between(20 * SECOND, 60 * SECOND).0 <= setup.product(),
        "{:?}",
        run.queue_between(20 * SECOND, 60 * SECOND)
    );
}

#[test]
fn too_little_to_send_does_not_lower_the_window() {
    let setup = Setup::constant(625e3, 80_000, 262_144);
    let mut run = alone(&setup, 10 * SECOND);
    let Sender::Ours(controller) = &mut run.flows[0].sender else { unreachable!("it is ours") };
    let before = controller.window();
    for ack in 0..1_000 {
        let now_us = 10 * SECOND + ack * 100_000;
        controller.acked(now_us, now_us - 80_000, PACKET);
        controller.acks_end(now_us, 0, true);
    }
    assert!(controller.window() >= before * 3 / 4, "{} of {before}", controller.window());
}

#[test]
fn a_path_that_was_dead_begins_anew() {
    let setup = Setup::constant(625e3, 80_000, 262_144);
    let mut run = alone(&setup, 10 * SECOND);
    let Sender::Ours(controller) = &mut run.flows[0].sender else { unreachable!("it is ours") };
    controller.lost(10 * SECOND, 40_000, true);
    assert_eq!(controller.window(), WINDOW_PACKETS_MIN * PACKET);
    assert!(controller.in_startup());
}

#[test]
fn send_window_is_a_quarter_more_than_the_window() {
    assert_eq!(send_window(100_000), 125_000);
    assert_eq!(send_window(2_400), 8 << 10);
    assert_eq!(send_window(u64::MAX / 2), 4 << 20);
}
