//! The far end: the real receiver over a sink that forgets what it had not committed when it dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;

use super::client::id_of;
use crate::block::{BlockHeader, Codec};
use crate::graph::{Federation, FederationLimits, Merged, Owner};
use crate::ids::{BlockKey, Class, Epoch, PerClass, Void};
use crate::ranges::RangeSet;
use crate::receive::{Alert, Input, Known, KnownEpoch, Now, Output, Receiver, SessionId, Store};
use crate::store::SeqRange;
use crate::wire::{self, Body, LaneStream, PolicyState};

pub(super) enum Job {
    Store(Store),
    Void(Void),
}

/// What the world must do for the cloud.
pub(super) enum Out {
    Send(u64, Vec<u8>),
    Close(u64),
}

pub(super) struct Cloud {
    pub(super) up: bool,
    pub(super) run: u64,
    receiver: Receiver,
    credits: PerClass<u64>,
    /// No commits: the sink's disk is full.
    pub(super) stuck: bool,
    jobs: VecDeque<Job>,
    pub(super) committing: Option<Vec<Job>>,
    inputs: BTreeMap<u64, BytesMut>,
    durable: BTreeMap<Epoch, KnownEpoch>,
    current: Option<Epoch>,
    records: BTreeMap<(Epoch, Class, u64), Option<u64>>,
    pub(super) ids: BTreeMap<u64, u32>,
    pub(super) voided: BTreeMap<(Epoch, Class), RangeSet>,
    /// What came thinned: numbers without their messages.
    pub(super) thinned: BTreeMap<(Epoch, Class), RangeSet>,
    pub(super) outs: Vec<Out>,
    /// What the box has told of its part of the health graph.
    pub(super) graph: Federation,
    /// What the box has said of policies.
    pub(super) policy_states: Vec<PolicyState>,
    /// Sessions that were told of pools.
    pools_told: BTreeSet<u64>,
}

/// The box, as its certificate says.
pub(super) fn owner() -> Owner {
    Owner::gateway("box").expect("a name")
}

impl Cloud {
    pub(super) fn new(credits: PerClass<u64>) -> Cloud {
        Cloud {
            up: true,
            run: 0,
            receiver: Receiver::new(credits),
            credits,
            stuck: false,
            jobs: VecDeque::new(),
            committing: None,
            inputs: BTreeMap::new(),
            durable: BTreeMap::new(),
            current: None,
            records: BTreeMap::new(),
            ids: BTreeMap::new(),
            voided: BTreeMap::new(),
            thinned: BTreeMap::new(),
            outs: Vec::new(),
            graph: Federation::new(FederationLimits::default()),
            policy_states: Vec::new(),
            pools_told: BTreeSet::new(),
        }
    }

    /// Dies: sessions, and what was not committed, are gone.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.run += 1;
        self.jobs.clear();
        self.committing = None;
        for (session, _) in std::mem::take(&mut self.inputs) {
            self.outs.push(Out::Close(session));
        }
        self.receiver = Receiver::new(self.credits);
        self.graph = Federation::new(FederationLimits::default());
    }

    /// Says something on every session.
    pub(super) fn say(&mut self, body: &Body) {
        for &session in self.inputs.keys() {
            let mut bytes = Vec::new();
            wire::encode_control(body.clone(), &mut bytes);
            self.outs.push(Out::Send(session, bytes));
        }
    }

    /// Says of pools what there is to say, once on each session.
    pub(super) fn tell_pools(&mut self, body: &Body) {
        for &session in self.inputs.keys().filter(|session| self.pools_told.insert(**session)) {
            let mut bytes = Vec::new();
            wire::encode_control(body.clone(), &mut bytes);
            self.outs.push(Out::Send(session, bytes));
        }
    }

    pub(super) fn set_credits(&mut self, now_us: u64, credits: PerClass<u64>) {
        self.credits = credits;
        self.handle(now_us, Input::CreditLevel { bytes: credits });
    }

    pub(super) fn accepted(&mut self, session: u64) {
        self.inputs.insert(session, BytesMut::new());
    }

    pub(super) fn closed(&mut self, now_us: u64, session: u64) {
        if self.inputs.remove(&session).is_some() {
            self.handle(now_us, Input::Closed { session: SessionId(session) });
        }
    }

    pub(super) fn tick(&mut self, now_us: u64) {
        self.handle(now_us, Input::Tick);
    }

    pub(super) fn control(&mut self, now_us: u64, session: u64, bytes: &[u8]) {
        let Some(input) = self.inputs.get_mut(&session) else { return };
        input.extend_from_slice(bytes);
        let mut bodies = Vec::new();
        while let Some(message) = wire::take_control(input).expect("the gateway speaks the protocol") {
            bodies.push(message.body.expect("of a kind we know"));
        }
        for body in bodies {
            let session = SessionId(session);
            match body {
                Body::Hello(hello) => {
                    let to_load = self.receiver.to_load(&hello);
                    let epochs = to_load.iter().filter_map(|epoch| self.durable.get(epoch).cloned()).collect();
                    let known = Known { current: self.current, epochs };
                    self.handle(now_us, Input::Hello { session, hello, known });
                }
                Body::Digest(told) => {
                    let merged = self.graph.merge(now_us, &owner(), &told.digest).expect("the gateway keeps to the limits");
                    if let Merged::NeedFull(have) = merged {
                        let mut bytes = Vec::new();
                        wire::encode_control(Body::NeedFull(have), &mut bytes);
                        self.outs.push(Out::Send(session.0, bytes));
                    }
                }
                Body::PolicyState(state) => self.policy_states.push(state),
                body => self.handle(now_us, Input::Control { session, body }),
            }
        }
    }

    pub(super) fn block(&mut self, now_us: u64, session: u64, stream: LaneStream, block: bytes::Bytes) {
        if self.inputs.contains_key(&session) {
            let header = BlockHeader::parse(&block).expect("blocks arrive whole");
            self.handle(now_us, Input::Block { session: SessionId(session), stream, header, block });
        }
    }

    fn handle(&mut self, now_us: u64, input: Input) {
        let now = Now { mono_us: now_us + 77, unix_us: 1_700_000_000_000_000 + now_us as i64 };
        self.receiver.handle(now, input);
        while let Some(output) = self.receiver.poll() {
            match output {
                Output::Send { session, mut body } => {
                    if let Body::Welcome(welcome) = &mut body {
                        welcome.last_stamp = self.graph.stamp(&owner());
                    }
                    let mut bytes = Vec::new();
                    wire::encode_control(body, &mut bytes);
                    self.outs.push(Out::Send(session.0, bytes));
                }
                Output::Close { session, .. } => {
                    self.inputs.remove(&session.0);
                    self.outs.push(Out::Close(session.0));
                }
                Output::Store(store) => self.jobs.push_back(Job::Store(store)),
                Output::StoreVoid(void) => self.jobs.push_back(Job::Void(void)),
                Output::EpochOpened { epoch, .. } => self.current = Some(epoch),
                Output::EpochsClosed { .. } | Output::Alert(Alert::Cloned { .. }) => {}
                Output::Alert(Alert::Missing(range)) => panic!("the cloud misses {range:?}"),
            }
        }
        assert_eq!(self.receiver.counters().protocol_errors, 0, "the gateway keeps to the protocol");
    }

    /// Starts a transaction if one is due.
    pub(super) fn begin(&mut self) -> bool {
        if !self.up || self.stuck || self.committing.is_some() || self.jobs.is_empty() {
            return false;
        }
        self.committing = Some(self.jobs.drain(..).collect());
        true
    }

    pub(super) fn commit(&mut self, now_us: u64, codec: &mut Codec) {
        let Some(jobs) = self.committing.take() else { return };
        let mut ranges = Vec::new();
        for job in jobs {
            match job {
                Job::Store(store) => {
                    let key = store.header.key;
                    for &(first, last) in &store.takes {
                        ranges.push(SeqRange { key: BlockKey { first_seq: first, ..key }, last_seq: last });
                    }
                    let mut seqs = super::thinned_in(codec, &store.block);
                    let thinned = self.thinned.entry((key.epoch, key.lane)).or_default();
                    seqs.iter().for_each(|range| thinned.insert(range));
                    let (_, records) = codec.open(&store.block).expect("a sound block");
                    for record in records {
                        let record = record.expect("a sound record");
                        seqs.insert(record.seq..=record.seq);
                        if !store.takes.iter().any(|&(first, last)| (first..=last).contains(&record.seq)) {
                            continue;
                        }
                        let id = id_of(record.payload);
                        let before = self.records.insert((key.epoch, key.lane, record.seq), id);
                        assert!(before.is_none(), "{key:?}: record {} was stored twice", record.seq);
                        if let Some(id) = id {
                            *self.ids.entry(id).or_default() += 1;
                        }
                    }
                    assert!(seqs.covers(key.first_seq..=store.header.last_seq), "{key:?} lacks records its header promises");
                }
                Job::Void(void) => {
                    self.voided.entry((void.key.epoch, void.key.lane)).or_default().insert(void.key.first_seq..=void.last_seq);
                    ranges.push(SeqRange { key: void.key, last_seq: void.last_seq });
                }
            }
        }
        for range in &ranges {
            let known = self.durable.entry(range.key.epoch).or_insert_with(|| KnownEpoch {
                epoch: range.key.epoch,
                durable: Default::default(),
                missing: Default::default(),
            });
            let durable = &mut known.durable[range.key.lane.index()];
            assert!(!durable.intersects(range.key.first_seq..=range.last_seq), "{range:?} was durable already");
            durable.insert(range.key.first_seq..=range.last_seq);
        }
        self.handle(now_us, Input::Committed { ranges });
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.committing.is_none()
    }
}
