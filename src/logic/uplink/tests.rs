use super::*;
use crate::wire::Pong;

const LIMITS: SessionLimits =
    SessionLimits { ping_us: 1_000_000, silence_us: 5_000_000, connect_us: 10_000_000, backoff_us: (500_000, 30_000_000) };

fn outputs(session: &mut Session) -> Vec<SessionOutput> {
    std::iter::from_fn(|| session.poll()).collect()
}

fn frame(body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_control(body, &mut bytes);
    bytes
}

fn up() -> Session {
    let mut session = Session::new(0, LIMITS, 1);
    session.tick(0, Default::default);
    session.connected(1_000, Epoch(7), &[Epoch(3)], "test");
    session.control(
        2_000,
        &frame(Body::Welcome(Welcome { protocol: 1, have: vec![], more: false, last_stamp: None, node: String::new() })),
    );
    assert!(outputs(&mut session).contains(&SessionOutput::Up));
    session
}

#[test]
fn a_session_is_up_only_after_the_last_page_of_the_welcome() {
    let mut session = Session::new(0, LIMITS, 1);
    session.tick(0, Default::default);
    assert_eq!(outputs(&mut session), [SessionOutput::Connect]);
    session.connected(10, Epoch(7), &[Epoch(3)], "test");
    assert!(matches!(&outputs(&mut session)[..], [SessionOutput::Write(_)]));
    let have = vec![LaneRanges { epoch: 3, lane: 1, bounds: vec![0, 9, 20, 29] }];
    session
        .control(20, &frame(Body::Welcome(Welcome { protocol: 1, have, more: true, last_stamp: None, node: String::new() })));
    let acked = |range| SessionOutput::Acked { epoch: Epoch(3), lane: Class::High, range };
    assert_eq!(outputs(&mut session), [acked(0..=9), acked(20..=29)]);
    assert!(!session.is_up());
    session.control(
        30,
        &frame(Body::Welcome(Welcome { protocol: 1, have: vec![], more: false, last_stamp: None, node: String::new() })),
    );
    assert_eq!(outputs(&mut session), [SessionOutput::Greeted { last_stamp: None, node: String::new() }, SessionOutput::Up]);
    assert!(session.is_up());
}

#[test]
fn silence_ends_a_session_and_any_word_keeps_it() {
    let mut session = up();
    for second in 1..8u64 {
        session.tick(second * 1_000_000, Default::default);
        session.control(second * 1_000_000 + 1, &frame(Body::Pong(Pong { nonce: second })));
    }
    assert!(session.is_up());
    outputs(&mut session);
    session.tick(12_000_002, Default::default);
    assert!(!session.is_up());
    let outputs = outputs(&mut session);
    assert!(
        matches!(&outputs[..], [SessionOutput::Disconnect(DownReason::Silence { .. }), SessionOutput::Down(_)]),
        "{outputs:?}"
    );
    assert!(session.deadline_us() > 12_000_002 && session.deadline_us() <= 12_600_000);
}

#[test]
fn credits_end_with_their_lease() {
    let mut session = up();
    session.control(3_000, &frame(Body::Credits(Credits { bytes: vec![1, 2, 3, 4], lease_ms: 10 })));
    assert_eq!(session.credits(12_999), [1, 2, 3, 4]);
    assert_eq!(session.credits(13_000), [0; 4]);
}

#[test]
fn credits_that_come_back_are_used_in_turn_critical_first() {
    let mut session = up();
    let mut give = |at_us: u64, bytes: [u64; 4]| {
        let lease_ms = 200_000;
        session.control(at_us, &frame(Body::Credits(Credits { bytes: bytes.to_vec(), lease_ms })));
        session.credits(at_us)
    };
    assert_eq!(give(3_000, [0; 4]), [0; 4]);
    assert_eq!(give(60_000_000, [9; 4]), [9, 0, 0, 9], "a plan holds bulk by other means");
    assert_eq!(give(75_000_000, [8; 4])[..2], [8, 8], "a renewal changes nothing");
    assert_eq!(give(120_000_000, [7; 4]), [7; 4], "after as long as there were none");
}

#[test]
fn a_change_of_the_clouds_load_is_told_and_forgotten_with_the_session() {
    let mut session = up();
    outputs(&mut session);
    let busy = |level, queue_percent| CloudLoad { level, queue_percent, commit_us: 9_000 };
    session.control(3_000, &frame(Body::Load(busy(2, 80))));
    session.control(4_000, &frame(Body::Load(busy(2, 90))));
    assert_eq!((outputs(&mut session), session.load()), (vec![SessionOutput::Load(busy(2, 80))], busy(2, 90)));
    session.control(5_000, &frame(Body::Load(busy(77, 90))));
    assert_eq!(session.load().level(), wire::LoadLevel::Stalled, "what is not known is taken for the worst");
    session.closed(6_000, "gone".to_owned());
    session.tick(60_000_000, Default::default);
    session.connected(60_001_000, Epoch(7), &[], "test");
    assert_eq!(session.load(), CloudLoad::default());
}

#[test]
fn questions_are_taken_a_few_at_a_time_and_the_others_are_told_so() {
    let mut session = up();
    outputs(&mut session);
    let ask = |id, text: &str| frame(Body::Question(AskedQuestion { id, text: text.to_owned() }));
    for id in 0..QUESTIONS_MAX + 2 {
        session.control(5_000_000, &ask(id, "stream=pumps"));
    }
    session.control(7_000_000, &ask(90, &"x".repeat(QUESTION_LEN_MAX + 1)));
    let outputs = outputs(&mut session);
    let asked = outputs.iter().filter(|output| matches!(output, SessionOutput::Asked { .. })).count();
    assert_eq!((asked, outputs.len()), (QUESTIONS_MAX as usize, QUESTIONS_MAX as usize + 3), "each has an answer or a word");
    assert_eq!((session.counters().questions, session.counters().questions_refused), (QUESTIONS_MAX.into(), 3));
    session.control(9_000_000, &ask(91, ""));
    assert_eq!(session.poll(), Some(SessionOutput::Asked { id: 91, text: String::new() }));
    assert!(session.is_up());
}

#[test]
fn garbage_on_control_ends_the_session() {
    let mut session = up();
    session.control(5_000, &[0xff; 16]);
    assert!(matches!(&outputs(&mut session)[..], [SessionOutput::Disconnect(DownReason::Protocol(_)), SessionOutput::Down(_)]));
    session.control(6_000, &[0xff; 16]);
    assert_eq!(outputs(&mut session), []);
}

#[test]
fn attempts_that_hang_are_given_up() {
    let mut session = Session::new(0, LIMITS, 1);
    session.tick(0, Default::default);
    session.tick(LIMITS.connect_us, Default::default);
    assert!(matches!(
        &outputs(&mut session)[..],
        [SessionOutput::Connect, SessionOutput::Disconnect(DownReason::Timeout { .. }), SessionOutput::Failed(_)]
    ));
    assert_eq!(session.last_down().map(ToString::to_string).as_deref(), Some("no connection within 10000 ms"));
}

/// Comes up and is closed after `up_us`, so often; returns the waits before the next attempts.
fn cycles(count: usize, up_us: u64, words: &[Body]) -> Vec<u64> {
    let (mut session, mut now_us, mut waits) = (Session::new(0, LIMITS, 1), 0, Vec::new());
    for _ in 0..count {
        session.tick(now_us, Default::default);
        session.connected(now_us, Epoch(7), &[], "test");
        session.control(
            now_us,
            &frame(Body::Welcome(Welcome { protocol: 1, have: vec![], more: false, last_stamp: None, node: String::new() })),
        );
        words.iter().for_each(|word| session.control(now_us, &frame(word.clone())));
        assert!(session.is_up());
        now_us += up_us;
        session.closed(now_us, "closed by the cloud".to_owned());
        waits.push(session.deadline_us() - now_us);
        now_us = session.deadline_us();
    }
    waits
}

#[test]
fn a_cloud_that_greets_and_closes_is_tried_ever_more_seldom() {
    let pong = Body::Pong(Pong { nonce: 1 });
    let none = Body::Ack(Ack { ranges: vec![] });
    let waits = cycles(12, 1_000, &[pong, none]);
    for (i, wait) in waits.iter().enumerate() {
        let step = (500_000u64 << i.min(20)).min(30_000_000);
        assert!((step / 2..=step).contains(wait), "attempt {i}: {wait}");
    }
}

#[test]
fn a_session_that_worked_is_soon_tried_again() {
    let ack = Body::Ack(Ack { ranges: vec![LaneRanges { epoch: 7, lane: 1, bounds: vec![0, 9] }] });
    let waits = cycles(12, 1_000, &[ack]);
    assert!(waits.iter().all(|&wait| wait <= 500_000), "the cloud took something: {waits:?}");
    let waits = cycles(12, LIMITS.backoff_us.1, &[]);
    assert!(waits.iter().all(|&wait| wait <= 500_000), "it held for long: {waits:?}");
}

#[test]
fn what_changes_for_the_better_is_tried_at_once_and_starts_the_waits_again() {
    let mut session = Session::new(0, LIMITS, 1);
    let mut now_us = 0;
    for _ in 0..12 {
        session.tick(now_us, Default::default);
        session.closed(now_us, "no such interface".to_owned());
        now_us = session.deadline_us();
    }
    outputs(&mut session);
    now_us -= 10_000_000;
    session.retry_now(now_us);
    session.tick(now_us, Default::default);
    assert_eq!(outputs(&mut session), [SessionOutput::Connect]);
    session.retry_now(now_us);
    assert_eq!(session.deadline_us(), now_us + LIMITS.connect_us, "an attempt that is under way goes on");
    session.closed(now_us, "no address yet".to_owned());
    assert!(session.deadline_us() <= now_us + LIMITS.backoff_us.0);
}

#[test]
fn a_session_that_is_up_or_stopped_does_not_try_again() {
    let mut session = up();
    session.retry_now(3_000);
    assert!(session.is_up());
    session.stop(4_000);
    outputs(&mut session);
    session.retry_now(5_000);
    session.tick(6_000, Default::default);
    assert_eq!(outputs(&mut session), []);
}

#[test]
fn a_policy_is_handed_on_and_what_became_of_it_is_told() {
    let mut session = up();
    outputs(&mut session);
    let offer = PolicyOffer { version: 7, text: b"text"[..].into(), signature: b"signature"[..].into() };
    session.control(3_000, &frame(Body::PolicyOffer(offer.clone())));
    assert_eq!(outputs(&mut session), [SessionOutput::PolicyOffer(offer)]);
    let state = PolicyState { version: 7, state: 2, reason: String::new(), kept: 7 };
    session.send_policy_state(state.clone());
    assert_eq!(outputs(&mut session), [SessionOutput::Write(frame(Body::PolicyState(state.clone())))]);
    session.control(4_000, &frame(Body::PolicyState(state)));
    assert_eq!(session.counters().unknown_messages, 1, "that is what a box says");
}
