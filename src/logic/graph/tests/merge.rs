//! Whoever has seen the same has the same, whatever happened on the way.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// A digest on its way.
#[derive(Debug, Clone)]
struct Letter {
    from: Owner,
    bytes: Vec<u8>,
}

/// What happens at an owner.
#[derive(Debug, Clone)]
enum Event {
    /// An estimate changes.
    Measure { uplink: usize, size: u8, state: u8 },
    /// Nothing is known of it any more.
    Silence { seconds: u8 },
    /// A stream more.
    Reshape,
    /// The box restarts and remembers nothing.
    Reflash,
    /// The box restarts and remembers its incarnation.
    Restart,
    /// A new connection to a peer, which says what it has.
    Connect { peer: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0usize..2, 1u8..40, 0u8..5).prop_map(|(uplink, size, state)| Event::Measure { uplink, size, state }),
        2 => (1u8..20).prop_map(|seconds| Event::Silence { seconds }),
        1 => Just(Event::Reshape),
        1 => Just(Event::Reflash),
        1 => Just(Event::Restart),
        2 => (0usize..PEERS).prop_map(|peer| Event::Connect { peer }),
    ]
}

const PEERS: usize = 2;
const OWNERS: [&str; 3] = ["gateway/a", "gateway/b", "gateway/c"];

/// One owner and its connections.
struct Box1 {
    owner: Owner,
    streams: usize,
    site: Site,
    publisher: Publisher,
    peers: Vec<Peer>,
    runs: u64,
    incarnation: u64,
}

impl Box1 {
    fn new(at: usize) -> Box1 {
        let owner = owner(OWNERS[at]);
        let site = Site::new(&shape(owner.name(), 2, 1)).expect("a site");
        let runs = (at as u64 + 1) * 1_000;
        let publisher = Publisher::new(0, scramble(runs), PublisherLimits::default());
        Box1 { owner, streams: 1, site, publisher, peers: vec![Peer::default(); PEERS], runs, incarnation: 0 }
    }

    fn restart(&mut self, incarnation: u64) {
        self.runs += 1;
        self.publisher = Publisher::new(incarnation, scramble(self.runs), PublisherLimits::default());
        self.peers = vec![Peer::default(); PEERS];
        self.site = Site::new(&shape(self.owner.name(), 2, self.streams)).expect("a site");
    }

    fn apply(&mut self, event: &Event, now_us: &mut u64, clouds: &[Federation]) {
        match event {
            Event::Measure { uplink, size, state } => {
                let states =
                    [UplinkState::Green, UplinkState::Yellow, UplinkState::Red, UplinkState::Blocked, UplinkState::Cold];
                let health = UplinkEstimate { state: states[usize::from(*state)], ..healthy(*now_us, f64::from(*size) / 10.0) };
                self.site.uplink(*now_us, *uplink, &health);
            }
            Event::Silence { seconds } => *now_us += u64::from(*seconds) * SECOND_US,
            Event::Reshape => {
                self.streams += 1;
                self.site = Site::new(&shape(self.owner.name(), 2, self.streams)).expect("a site");
            }
            Event::Reflash => {
                self.restart(0);
                self.greet_all(clouds);
            }
            Event::Restart => {
                self.restart(self.incarnation);
                self.greet_all(clouds);
            }
            Event::Connect { peer } => self.peers[*peer] = self.publisher.greeted(clouds[*peer].stamp(&self.owner)),
        }
    }

    fn greet_all(&mut self, clouds: &[Federation]) {
        for (peer, cloud) in self.peers.iter_mut().zip(clouds) {
            *peer = self.publisher.greeted(cloud.stamp(&self.owner));
        }
        self.incarnation = self.publisher.stamp().incarnation;
    }
}

/// Bits without order.
fn scramble(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// All that is written when these events happen, each to one of the owners; also to peers that hear nothing of it.
fn letters(events: &[(usize, Event)]) -> Vec<Letter> {
    let mut boxes: Vec<Box1> = (0..OWNERS.len()).map(Box1::new).collect();
    let mut clouds = vec![Federation::new(FederationLimits::default()); PEERS];
    let (mut letters, mut now_us) = (Vec::new(), SECOND_US);
    for (step, (at, event)) in events.iter().enumerate() {
        now_us += 1_100_000;
        let from = &mut boxes[*at];
        from.apply(event, &mut now_us, &clouds);
        for (peer, cloud) in clouds.iter_mut().enumerate() {
            let Some(bytes) = from.publisher.next(now_us, from.site.graph(), &mut from.peers[peer]) else { continue };
            // Some are lost on the way, and the peer says so at the next delta.
            if step % 7 != peer {
                match cloud.merge(now_us, &from.owner, &bytes) {
                    Ok(Merged::NeedFull(_)) => from.peers[peer].need_full(),
                    other => {
                        other.expect("a sound digest");
                    }
                }
            }
            letters.push(Letter { from: from.owner.clone(), bytes });
        }
    }
    letters
}

fn read(letters: &[Letter]) -> Federation {
    let mut federation = Federation::new(FederationLimits::default());
    for letter in letters {
        federation.merge(0, &letter.from, &letter.bytes).expect("a sound digest");
    }
    federation
}

/// Everything in it that others could have too.
fn content(federation: &Federation) -> Vec<String> {
    let edges = |part: Part<'_>| part.edges(part.received_us()).collect::<Vec<_>>();
    federation
        .parts()
        .map(|part| format!("{} {:?} {:?} {:?}", part.owner(), part.stamp(), part.nodes().collect::<Vec<_>>(), edges(part)))
        .collect()
}

fn fulls(letters: Vec<Letter>) -> Vec<Letter> {
    letters.into_iter().filter(|letter| Digest::decode(&letter.bytes[..]).is_ok_and(|digest| digest.base == 0)).collect()
}

/// The same letters in another order, some twice, some not at all.
fn shuffled(letters: &[Letter], picks: &[prop::sample::Index]) -> Vec<Letter> {
    if letters.is_empty() {
        return Vec::new();
    }
    picks.iter().map(|pick| pick.get(letters).clone()).collect()
}

fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
    prop::collection::vec((0..OWNERS.len(), event()), 1..60)
}

proptest! {
    #[test]
    fn merging_is_commutative_and_idempotent(events in events(), picks in prop::collection::vec(any::<prop::sample::Index>(), 0..80)) {
        let letters = fulls(letters(&events));
        let once = read(&letters);
        // All of them, some twice, in another order.
        let mut more = shuffled(&letters, &picks);
        more.extend(letters.iter().rev().cloned());
        more.extend(shuffled(&letters, &picks));
        prop_assert_eq!(content(&read(&more)), content(&once));
    }

    #[test]
    fn merging_is_associative(events in events(), cut in any::<(prop::sample::Index, prop::sample::Index)>()) {
        let letters = fulls(letters(&events));
        let (a, b) = (cut.0.index(letters.len() + 1), cut.1.index(letters.len() + 1));
        let (a, b) = (a.min(b), a.max(b));
        // Whoever hands on what it has hands on the newest digest of each owner.
        let newest = |letters: &[Letter]| {
            let mut newest: BTreeMap<Owner, (Stamp, Letter)> = BTreeMap::new();
            for letter in letters {
                let stamp = Digest::decode(&letter.bytes[..]).expect("a digest").stamp.expect("a stamp");
                let held = newest.entry(letter.from.clone()).or_insert((stamp, letter.clone()));
                if stamp > held.0 {
                    *held = (stamp, letter.clone());
                }
            }
            newest.into_values().map(|(_, letter)| letter).collect::<Vec<_>>()
        };
        let (x, y, z) = (newest(&letters[..a]), newest(&letters[a..b]), newest(&letters[b..]));
        let left = newest(&[newest(&[x.clone(), y.clone()].concat()), z.clone()].concat());
        let right = newest(&[x, newest(&[y, z].concat())].concat());
        prop_assert_eq!(content(&read(&left)), content(&read(&right)));
        prop_assert_eq!(content(&read(&left)), content(&read(&letters)));
    }

    #[test]
    fn peers_converge_under_loss_reordering_repetition_restarts_and_reflashes(
        events in events(),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..120),
    ) {
        let letters = letters(&events);
        let mut clouds = [read(&[]), read(&letters), read(&shuffled(&letters, &picks))];
        // Deltas lead to the same state as full digests: no two peers differ under the same stamp.
        for a in 0..clouds.len() {
            for b in 0..a {
                for part in clouds[a].parts() {
                    if let Some(other) = clouds[b].part(part.owner()).filter(|other| other.stamp() == part.stamp()) {
                        prop_assert!(other.is_same(&part), "{:?} differs", part.stamp());
                    }
                }
            }
        }
        // At last one more version of each owner reaches all of them: a full digest, since they say what they lack.
        let mut boxes: Vec<Box1> = (0..OWNERS.len()).map(Box1::new).collect();
        for at in &mut boxes {
            at.restart(0);
            at.publisher = Publisher::new(0, 1, PublisherLimits::default());
            let mut peers: Vec<Peer> = clouds.iter().map(|cloud| at.publisher.greeted(cloud.stamp(&at.owner))).collect();
            for (peer, cloud) in peers.iter_mut().zip(&mut clouds) {
                let bytes = at.publisher.next(9_000 * SECOND_US, at.site.graph(), peer).expect("a digest");
                prop_assert_eq!(cloud.merge(0, &at.owner, &bytes), Ok(Merged::Taken { is_full: true }));
            }
        }
        let contents = clouds.each_ref().map(content);
        prop_assert_eq!(&contents[0], &contents[1]);
        prop_assert_eq!(&contents[0], &contents[2]);
        prop_assert_eq!(contents[0].len(), OWNERS.len());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), noise in any::<(prop::sample::Index, u8)>()) {
        let from = owner("gateway/a");
        let mut federation = Federation::new(FederationLimits::default());
        let _ = federation.merge(0, &from, &bytes);
        // A sound digest with one byte changed comes much further.
        let letters = letters(&[(0, Event::Measure { uplink: 0, size: 7, state: 0 }), (0, Event::Measure { uplink: 1, size: 9, state: 2 })]);
        for letter in letters {
            let _ = federation.merge(0, &from, &letter.bytes);
            let mut bytes = letter.bytes;
            let at = noise.0.index(bytes.len());
            bytes[at] = noise.1;
            let _ = federation.merge(0, &from, &bytes);
            for part in federation.parts() {
                let is_sound = part.edges(u64::MAX).all(|(from, to, estimate)| {
                    part.key(from) != part.key(to) && estimate.confidence().is_finite()
                });
                prop_assert!(is_sound);
            }
        }
    }

    #[test]
    fn arbitrary_numbers_never_panic(
        nodes in prop::collection::vec(0u32..80, 0..12), ends in prop::collection::vec(0u32..12, 0..20),
        cells in prop::collection::vec(prop_oneof![0u32..40, any::<u32>()], 0..40), base in 0u64..4, version in 0u64..6,
    ) {
        let names = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let stamp = Some(Stamp { incarnation: 0, run: 0, version });
        let full = Digest { stamp, base: 0, at_s: 9, names, nodes, ends, cells: cells.clone() };
        let delta = Digest { stamp: Some(Stamp { incarnation: 0, run: 0, version: version + 1 }), base, at_s: 10, cells, ..Digest::default() };
        let mut federation = Federation::new(FederationLimits::default());
        for digest in [full, delta] {
            let _ = federation.merge(0, &owner("gateway/a"), &digest.encode_to_vec());
        }
        prop_assert!(federation.len() <= 1);
    }
}

#[test]
fn limits_refuse_and_are_counted() {
    let digest = DigestLimits { len_max: 600, nodes_max: 16, edges_max: 12 };
    let limits = FederationLimits { digest, owners_max: 1, memory_bytes_max: 4_000, expire_us: SECOND_US };
    let mut federation = Federation::new(limits);
    let full = |name: &str, uplinks, streams| {
        let site = Site::new(&shape(name, uplinks, streams)).expect("a site");
        let mut publisher = Publisher::new(0, 1, PublisherLimits::default());
        publisher.next(SECOND_US, site.graph(), &mut Peer::default()).expect("a digest")
    };
    let (a, b) = (owner("gateway/a"), owner("gateway/b"));
    federation.merge(0, &a, &full("a", 1, 1)).expect("fits");
    assert!(matches!(federation.merge(0, &b, &full("b", 1, 1)), Err(MergeError::TooManyOwners { limit: 1 })));
    assert!(matches!(federation.merge(0, &b, &full("a", 1, 1)), Err(MergeError::Digest(DigestError::Name(_)))));
    assert!(matches!(federation.merge(0, &a, &full("a", 3, 20)), Err(MergeError::Digest(DigestError::TooLong { .. }))));
    assert!(matches!(federation.merge(0, &a, &full("a", 1, 5)), Err(MergeError::Digest(DigestError::TooManyNodes { .. }))));
    assert!(matches!(federation.merge(0, &a, &full("a", 3, 1)), Err(MergeError::Digest(DigestError::TooManyEdges { .. }))));
    assert!(matches!(federation.merge(0, &a, b"\xff"), Err(MergeError::Digest(DigestError::Malformed(_)))));
    assert_eq!(federation.expire(SECOND_US), 0);
    assert_eq!(federation.expire(SECOND_US + 1), 1);
    assert_eq!((federation.len(), federation.memory_bytes()), (0, 0));
    let mut small = Federation::new(FederationLimits { memory_bytes_max: 100, ..limits });
    assert!(matches!(small.merge(0, &a, &full("a", 1, 1)), Err(MergeError::OutOfMemory { limit: 100 })));
    assert_eq!((small.memory_bytes(), small.counters().out_of_memory), (0, 1));
    let expected = FederationCounters {
        fulls: 1,
        too_long: 1,
        too_many_nodes: 1,
        too_many_edges: 1,
        malformed: 1,
        bad_names: 1,
        too_many_owners: 1,
        expired: 1,
        ..FederationCounters::default()
    };
    assert_eq!(federation.counters(), expected);
}
