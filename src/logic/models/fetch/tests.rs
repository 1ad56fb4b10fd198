use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::model::{ModelChunk, ModelRefusal};

const S: u64 = 1_000_000;
const KIB: u64 = 1_024;

fn rules() -> FetchRules {
    FetchRules { package_len_max: 4 * 1_024 * KIB, day_bytes: 1_024 * KIB, month_bytes: 8 * 1_024 * KIB, metered: false }
}

fn task(active: u64, tried: u64) -> TaskModels {
    TaskModels { task: "a".to_owned(), active, tried, trial: None, last: None, refused: None }
}

fn offer(version: u64, len: u64) -> ModelOffer {
    let sha256 = Bytes::from(vec![version as u8; SUM_LEN]);
    ModelOffer { task: "a".to_owned(), version, len, sha256, head: "head".to_owned(), signature: "signature".to_owned() }
}

fn open() -> Vec<FetchWay<'static>> {
    vec![FetchWay { name: "lan", refusal: None }]
}

/// A box whose disk and cloud are as good as they should be, until a test says otherwise.
struct Lab {
    fetches: Fetches,
    now_us: u64,
    /// Bytes of the package on disk, and which.
    disk: u64,
    part: Bytes,
    len: u64,
    /// What a chunk takes.
    took_us: u64,
    /// Requests: when, where, and how many bytes.
    asks: Vec<(u64, u64, u32)>,
    news: Vec<FetchNews>,
    saved: Spent,
    ways: Vec<FetchWay<'static>>,
    finish: Result<(), Unfinished>,
    finished: u32,
}

impl Lab {
    fn new(rules: FetchRules) -> Lab {
        let mut fetches = Fetches::new(FetchStart { rules: Some(rules), spent: Spent::default() });
        fetches.handle(0, FetchInput::Tasks(vec![task(1, 1)]));
        Lab {
            fetches,
            now_us: S,
            disk: 0,
            part: Bytes::new(),
            len: 0,
            took_us: 50_000,
            asks: Vec::new(),
            news: Vec::new(),
            saved: Spent::default(),
            ways: open(),
            finish: Ok(()),
            finished: 0,
        }
    }

    fn offer(&mut self, version: u64, len: u64) {
        self.fetches.offered(offer(version, len));
    }

    /// Plays until nothing is to be done before `until_us`.
    fn play(&mut self, until_us: u64) {
        loop {
            self.fetches.tick(self.now_us, &self.ways);
            let outputs: Vec<FetchOutput> = std::iter::from_fn(|| self.fetches.poll()).collect();
            if outputs.is_empty() {
                // Who waits is asked once a second.
                let next_us = self.fetches.deadline_us().min(self.now_us + S);
                if next_us > until_us {
                    return;
                }
                self.now_us = self.now_us.max(next_us);
            }
            outputs.into_iter().for_each(|output| self.carry_out(output));
        }
    }

    fn carry_out(&mut self, output: FetchOutput) {
        let now_us = self.now_us;
        match output {
            FetchOutput::Check(offer) => {
                if self.part != offer.sha256 {
                    (self.disk, self.part) = (0, offer.sha256.clone());
                }
                self.len = offer.len;
                let (result, sha256) = (Ok(self.disk), offer.sha256);
                self.fetches.handle(now_us, FetchInput::Checked { sha256, result });
            }
            FetchOutput::Ask { id, bytes, .. } => {
                let control = wire::take_control(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
                let Some(Body::ModelAsk(ask)) = control.body else { panic!("a request") };
                self.asks.push((now_us, ask.offset, ask.len));
                assert_eq!(ask.offset, self.disk, "nothing twice, and nothing left out");
                let data = Bytes::from(vec![7; u64::from(ask.len).min(self.len - ask.offset) as usize]);
                self.now_us += self.took_us;
                self.fetches.came(self.now_us, id, &encoded(Body::ModelChunk(ModelChunk { offset: ask.offset, data })));
            }
            FetchOutput::Write { sha256, offset, data } => {
                assert_eq!(offset, self.disk);
                self.disk += data.len() as u64;
                self.fetches.handle(now_us, FetchInput::Written { sha256, result: Ok(self.disk) });
            }
            FetchOutput::Finish(offer) => {
                self.finished += 1;
                let result = self.finish.clone();
                if matches!(result, Err(Unfinished::Wrong(_))) {
                    self.disk = 0;
                }
                self.fetches.handle(now_us, FetchInput::Finished { sha256: offer.sha256, result });
            }
            FetchOutput::Save(spent) => self.saved = spent,
            FetchOutput::News(news) => self.news.push(news),
            FetchOutput::Cancel { .. } => {}
        }
    }

    fn last(&self) -> (&'static str, &str) {
        self.news.last().map_or(("", ""), |news| (news.word(), news.reason.as_str()))
    }
}

fn encoded(body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_control(body, &mut bytes);
    bytes
}

#[test]
fn a_package_comes_in_chunks_that_grow_with_pauses_as_long_as_they_take() {
    let mut lab = Lab::new(rules());
    lab.offer(2, 500 * KIB);
    lab.play(60 * S);
    assert_eq!((lab.disk, lab.finished, lab.last().0), (500 * KIB, 1, "fetched"));
    let words: Vec<&str> = lab.news.iter().map(FetchNews::word).collect();
    assert_eq!(words, ["fetching", "fetched"]);
    assert_eq!(lab.asks[..5].iter().map(|ask| ask.2).collect::<Vec<_>>(), [8, 16, 32, 64, 64].map(|kib| kib * 1_024));
    assert!(lab.asks.windows(2).all(|pair| pair[1].0 >= pair[0].0 + 2 * lab.took_us), "half of the time at most");
    let spent = lab.fetches.view().spent();
    assert!((500 * KIB..510 * KIB).contains(&spent.day_bytes) && lab.saved == spent, "{spent:?}");
}

#[test]
fn on_a_slow_line_chunks_shrink_so_that_acknowledgements_wait_no_longer() {
    let mut lab = Lab::new(rules());
    lab.took_us = 2 * S;
    lab.offer(2, 40 * KIB);
    lab.play(600 * S);
    assert_eq!(lab.asks[..4].iter().map(|ask| ask.2).collect::<Vec<_>>(), [8_192, 4_096, 2_048, 1_024]);
    assert_eq!(lab.last().0, "fetched");
}

#[test]
fn what_is_on_disk_is_not_fetched_again_whatever_ended_the_run_or_the_session() {
    let mut lab = Lab::new(rules());
    lab.offer(2, 300 * KIB);
    while lab.disk < 100 * KIB {
        lab.play(lab.now_us + 10_000);
        lab.now_us += 10_000;
    }
    // A session is lost with a request under way: the next one asks for the same place.
    lab.now_us += S;
    lab.fetches.tick(lab.now_us, &lab.ways);
    let Some(FetchOutput::Ask { uplink, id, .. }) = lab.fetches.poll() else { panic!("a request") };
    lab.fetches.uplink_lost(lab.now_us, uplink);
    lab.fetches.came(
        lab.now_us,
        id,
        &encoded(Body::ModelChunk(ModelChunk { offset: lab.disk, data: Bytes::from_static(&[1]) })),
    );
    assert!(lab.fetches.poll().is_none(), "what comes late is of no use");
    let (disk, asks) = (lab.disk, lab.asks.len());
    // The box dies.
    let mut again = Lab::new(rules());
    (again.disk, again.part) = (disk, offer(2, 0).sha256);
    again.offer(2, 300 * KIB);
    again.play(60 * S);
    assert!(asks > 0 && again.news[0].reason.contains("bytes are here already"), "{:?}", again.news);
    assert_eq!((again.asks[0].1, again.disk, again.last().0), (disk, 300 * KIB, "fetched"));
}

#[test]
fn a_days_budget_ends_it_until_tomorrow_and_it_says_so_once() {
    let mut lab = Lab::new(FetchRules { day_bytes: 200 * KIB, ..rules() });
    lab.offer(2, 300 * KIB);
    lab.play(3_600 * S);
    let (word, reason) = lab.last();
    assert!(
        word == "waiting" && reason.contains("bytes that models may take in a day are used (infer.updates.day_bytes)"),
        "{reason}"
    );
    assert_eq!(lab.news.iter().filter(|news| news.word() == "waiting").count(), 1);
    let spent = lab.fetches.view().spent();
    // An answer has some bytes around its chunk.
    assert!((200 * KIB..=201 * KIB).contains(&spent.day_bytes) && lab.saved == spent, "{spent:?}");
    lab.play(lab.now_us + DAY_US + 60 * S);
    assert_eq!((lab.last().0, lab.disk), ("fetched", 300 * KIB));
    assert!(lab.news.iter().any(|news| news.reason.starts_with("it goes on")));
    // A month's is for the month, over restarts.
    let spent = Spent { day_since_us: 0, day_bytes: 0, month_since_us: 0, month_bytes: 8 * 1_024 * KIB };
    let mut lab = Lab::new(rules());
    lab.fetches = Fetches::new(FetchStart { rules: Some(rules()), spent });
    lab.fetches.handle(0, FetchInput::Tasks(vec![task(1, 1)]));
    lab.offer(2, 10 * KIB);
    lab.play(DAY_US * 29);
    assert!(lab.asks.is_empty() && lab.last().1.contains("in 30 days are used"), "{:?}", lab.last());
    lab.play(DAY_US * 31);
    assert_eq!(lab.last().0, "fetched");
}

#[test]
fn what_would_be_refused_is_not_fetched() {
    let mut lab = Lab::new(rules());
    for (offer, part) in [
        (offer(1, 100), "version 1 is not above 1, which was taken before"),
        (offer(2, 5 * 1_024 * KIB), "the box takes up to 4194304: raise infer.updates.size_limit"),
        (offer(2, 0), "it has 0 bytes"),
        (ModelOffer { task: "b".to_owned(), ..offer(2, 100) }, "no model of this box answers task `b`"),
        (ModelOffer { sha256: Bytes::from_static(&[1; 31]), ..offer(2, 100) }, "has not the length of one"),
        (ModelOffer { head: "x".repeat(HEAD_LEN_MAX + 1), ..offer(2, 100) }, "has not the length of one"),
        (ModelOffer { signature: "x".repeat(300), ..offer(2, 100) }, "has not the length of one"),
    ] {
        lab.fetches.offered(offer);
        lab.play(lab.now_us + 10 * S);
        let (word, reason) = lab.last();
        assert!(word == "refused" && reason.contains(part), "{word} {reason}");
    }
    let small = FetchRules { month_bytes: 50 * KIB, ..rules() };
    let mut other = Lab::new(small);
    other.offer(2, 60 * KIB);
    other.play(10 * S);
    assert!(other.last().1.contains("raise infer.updates.month_bytes") && other.asks.is_empty(), "{:?}", other.last());
    assert!(lab.asks.is_empty() && lab.fetches.view().counters().refused == 7);
    // What the shell refuses, and a box that takes none.
    lab.fetches.offered(offer(2, 100));
    let Some(FetchOutput::Check(offered)) = lab.fetches.poll() else { panic!("it is looked at") };
    lab.fetches.handle(0, FetchInput::Checked { sha256: offered.sha256, result: Err("no signature".to_owned()) });
    lab.play(lab.now_us + S);
    assert_eq!(lab.last(), ("refused", "no signature"));
    let state = &lab.fetches.states().tasks[0];
    assert_eq!(
        (state.version, OfferState::from_code(state.state), &*state.reason),
        (2, Some(OfferState::Refused), "no signature")
    );
    let mut without = Fetches::new(FetchStart::default());
    without.offered(offer(2, 100));
    assert!(!without.takes_models() && without.poll().is_none());
}

#[test]
fn it_goes_by_the_first_uplink_that_may_and_says_why_if_there_is_none() {
    let mut lab = Lab::new(rules());
    let all =
        [("lan", NoWay::Down), ("lan/tcp", NoWay::Tcp), ("lte", NoWay::Metered), ("sat", NoWay::Month), ("dsl", NoWay::Unwell)];
    lab.ways = all.map(|(name, why)| FetchWay { name, refusal: Some(why) }).into();
    lab.offer(2, 100 * KIB);
    lab.play(10 * S);
    let (word, reason) = lab.last();
    assert_eq!(word, "waiting");
    for part in
        ["lan is down", "lan/tcp goes over TCP, and models come over QUIC only", "lte is metered (infer.updates.metered)"]
    {
        assert!(reason.contains(part), "{reason}");
    }
    lab.ways[3].refusal = None;
    lab.fetches.tick(20 * S, &lab.ways);
    let outputs: Vec<FetchOutput> = std::iter::from_fn(|| lab.fetches.poll()).collect();
    assert!(outputs.iter().any(|output| matches!(output, FetchOutput::Ask { uplink: 3, .. })), "{outputs:?}");
}

#[test]
fn a_cloud_that_has_none_of_it_is_passed_over_and_asked_again_later() {
    let mut lab = Lab::new(rules());
    lab.ways = vec![FetchWay { name: "lan", refusal: None }, FetchWay { name: "dsl", refusal: None }];
    lab.offer(2, 100 * KIB);
    lab.fetches.handle(S, FetchInput::Checked { sha256: offer(2, 0).sha256, result: Ok(0) });
    let refusal = encoded(Body::ModelRefusal(ModelRefusal { reason: "has no such package".to_owned() }));
    let mut asked = Vec::new();
    for second in 1..8 {
        lab.fetches.tick(second * S, &lab.ways);
        for output in std::iter::from_fn(|| lab.fetches.poll()).collect::<Vec<_>>() {
            match output {
                FetchOutput::Ask { uplink, id, .. } => {
                    asked.push(uplink);
                    lab.fetches.came(second * S, id, &refusal);
                }
                FetchOutput::News(news) => lab.news.push(news),
                _ => {}
            }
        }
    }
    assert_eq!(asked[..5], [0, 1, 0, 1, 0], "the other one, and then once more");
    assert!(
        lab.news.iter().any(|news| news.reason.contains("lan has no such package, dsl has no such package")),
        "{:?}",
        lab.news
    );
}

#[test]
fn garbage_and_silence_are_tried_again_after_longer_and_longer_pauses() {
    let mut lab = Lab::new(rules());
    lab.offer(2, 100 * KIB);
    lab.fetches.handle(0, FetchInput::Checked { sha256: offer(2, 0).sha256, result: Ok(0) });
    let (mut now_us, mut pauses) = (0, Vec::new());
    let wrong = |data: &'static [u8], offset| encoded(Body::ModelChunk(ModelChunk { offset, data: Bytes::from_static(data) }));
    let too_long = encoded(Body::ModelChunk(ModelChunk { offset: 0, data: Bytes::from(vec![0; 8 * 1_024 + 1]) }));
    let answers = [b"garbage".to_vec(), Vec::new(), wrong(b"x", 1), wrong(b"", 0), too_long];
    for answer in answers {
        let before_us = now_us;
        now_us = lab.fetches.deadline_us();
        pauses.push((now_us - before_us) / S);
        lab.fetches.tick(now_us, &lab.ways);
        let id = std::iter::from_fn(|| lab.fetches.poll()).find_map(|output| match output {
            FetchOutput::Ask { id, .. } => Some(id),
            _ => None,
        });
        lab.fetches.came(now_us, id.expect("a request"), &answer);
        assert!(lab.fetches.poll().is_none(), "nothing is written");
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8]);
    // No answer at all.
    now_us = lab.fetches.deadline_us();
    lab.fetches.tick(now_us, &lab.ways);
    assert!(matches!(lab.fetches.poll(), Some(FetchOutput::Ask { .. })));
    assert_eq!(lab.fetches.deadline_us(), now_us + ASK_US_MAX);
    lab.fetches.tick(now_us + ASK_US_MAX, &lab.ways);
    assert!(matches!(lab.fetches.poll(), Some(FetchOutput::Cancel { .. })));
}

#[test]
fn a_whole_that_is_wrong_is_fetched_once_more_and_then_refused() {
    let mut lab = Lab::new(rules());
    lab.finish = Err(Unfinished::Wrong("other sum".to_owned()));
    lab.offer(2, 100 * KIB);
    lab.play(60 * S);
    assert_eq!((lab.finished, lab.last()), (2, ("refused", "other sum; it was fetched 2 times")));
    let mut lab = Lab::new(rules());
    lab.finish = Err(Unfinished::Disk("full".to_owned()));
    lab.offer(2, 100 * KIB);
    lab.play(20 * S);
    assert_eq!(lab.last().0, "waiting");
    lab.finish = Ok(());
    lab.play(120 * S);
    assert_eq!((lab.last().0, lab.disk), ("fetched", 100 * KIB), "what is on disk is looked at again");
}

#[test]
fn a_newer_version_takes_the_place_of_an_older_one_and_other_tasks_wait_their_turn() {
    let mut lab = Lab::new(rules());
    let other = TaskModels { task: "b".to_owned(), ..task(0, 0) };
    lab.fetches.handle(0, FetchInput::Tasks(vec![task(1, 1), other]));
    lab.offer(2, 200 * KIB);
    lab.play(lab.now_us + 200_000);
    lab.fetches.offered(ModelOffer { task: "b".to_owned(), ..offer(7, 50 * KIB) });
    lab.offer(3, 100 * KIB);
    assert!(lab.fetches.states().tasks.iter().any(|of| of.task == "b" && of.stage == "waiting"));
    lab.fetches.offered(offer(2, 200 * KIB));
    lab.play(lab.now_us + 60 * S);
    let fetched: Vec<_> =
        lab.news.iter().filter(|news| news.word() == "fetched").map(|news| (&*news.task, news.version)).collect();
    assert_eq!(fetched, [("a", 3), ("b", 7)]);
}

#[test]
fn the_cloud_is_told_how_far_each_task_has_come() {
    let mut fetches = Fetches::new(FetchStart { rules: Some(rules()), spent: Spent::default() });
    let state = |fetches: &Fetches| {
        let state = fetches.states().tasks.remove(0);
        (state.active, state.version, OfferState::from_code(state.state).expect("one of ours"), state.stage)
    };
    fetches.handle(0, FetchInput::Tasks(vec![task(1, 1)]));
    assert_eq!(state(&fetches), (1, 1, OfferState::Kept, String::new()));
    fetches.offered(offer(2, 100));
    fetches.handle(0, FetchInput::Checked { sha256: offer(2, 0).sha256, result: Ok(100) });
    fetches.handle(0, FetchInput::Finished { sha256: offer(2, 0).sha256, result: Ok(()) });
    assert_eq!(state(&fetches), (1, 2, OfferState::Trial, "fetched".to_owned()));
    let trial = TaskModels { tried: 2, trial: Some((2, "shadow")), ..task(1, 1) };
    fetches.handle(0, FetchInput::Tasks(vec![trial]));
    assert_eq!(state(&fetches), (1, 2, OfferState::Trial, "shadow".to_owned()));
    let back = TaskModels { tried: 2, last: Some((2, crate::models::Change::RolledBack, "slow".to_owned())), ..task(1, 1) };
    fetches.handle(0, FetchInput::Tasks(vec![back]));
    assert_eq!((state(&fetches).2, &*fetches.states().tasks[0].reason), (OfferState::RolledBack, "slow"));
    // What the inbox refuses.
    fetches.offered(offer(3, 100));
    fetches.handle(0, FetchInput::Checked { sha256: offer(3, 0).sha256, result: Ok(100) });
    fetches.handle(0, FetchInput::Finished { sha256: offer(3, 0).sha256, result: Ok(()) });
    fetches.handle(0, FetchInput::Tasks(vec![TaskModels { refused: Some((3, "full".to_owned())), ..task(1, 2) }]));
    assert_eq!((state(&fetches), &*fetches.states().tasks[0].reason), ((1, 3, OfferState::Refused, String::new()), "full"));
    fetches.handle(0, FetchInput::Tasks(vec![task(4, 4)]));
    assert_eq!(state(&fetches), (4, 4, OfferState::Kept, String::new()));
}

proptest! {
    #[test]
    fn whatever_happens_bytes_in_flight_and_budgets_keep_their_limits(
        steps in prop::collection::vec((0u8..9, 0u64..400_000, any::<u8>()), 1..200),
    ) {
        let rules = FetchRules { day_bytes: 300 * KIB, ..rules() };
        let mut lab = Lab::new(rules);
        let (mut asked, mut now_us): (Option<(u64, u64, u32)>, u64) = (None, S);
        lab.offer(2, 700 * KIB);
        for (what, wait_us, byte) in steps {
            now_us += wait_us;
            match (what, asked) {
                (0..5, Some((id, offset, len))) => {
                    asked = None;
                    let data = Bytes::from(vec![byte; len as usize]);
                    lab.fetches.came(now_us, id, &encoded(Body::ModelChunk(ModelChunk { offset, data })));
                }
                (5, Some((id, ..))) => { asked = None; lab.fetches.failed(now_us, id); }
                (6, _) => { asked = None; lab.fetches.uplink_lost(now_us, 0); }
                (7, _) => lab.fetches.offered(offer(2 + u64::from(byte % 3), 700 * KIB)),
                (8, _) => now_us += DAY_US / 4,
                _ => {}
            }
            lab.fetches.tick(now_us, &lab.ways);
            while let Some(output) = lab.fetches.poll() {
                match output {
                    FetchOutput::Check(offer) => {
                        lab.disk = 0;
                        lab.fetches.handle(now_us, FetchInput::Checked { sha256: offer.sha256, result: Ok(0) });
                        lab.fetches.tick(now_us, &lab.ways);
                    }
                    FetchOutput::Ask { id, bytes, .. } => {
                        prop_assert!(asked.is_none(), "one at a time");
                        let control = wire::take_control(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
                        let Some(Body::ModelAsk(ask)) = control.body else { panic!("a request") };
                        prop_assert!(ask.offset == lab.disk && ask.len as usize <= CHUNK_LEN_MAX && ask.len > 0);
                        asked = Some((id, ask.offset, ask.len));
                    }
                    FetchOutput::Cancel { .. } => asked = None,
                    FetchOutput::Write { sha256, offset, data } => {
                        prop_assert_eq!(offset, lab.disk);
                        lab.disk += data.len() as u64;
                        lab.fetches.handle(now_us, FetchInput::Written { sha256, result: Ok(lab.disk) });
                    }
                    FetchOutput::Finish(offer) => {
                        prop_assert_eq!(lab.disk, offer.len);
                        lab.fetches.handle(now_us, FetchInput::Finished { sha256: offer.sha256, result: Ok(()) });
                    }
                    FetchOutput::Save(_) | FetchOutput::News(_) => {}
                }
            }
            // What is around a chunk is counted, too, and was not foreseen.
            prop_assert!(lab.fetches.view().spent().day_bytes <= rules.day_bytes + 2 * KIB);
        }
    }
}
