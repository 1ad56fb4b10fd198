//! From a user's topic to its stream and device: one hash lookup for each message of a topic that was seen before.
//!
//! The first message of a topic is matched against the user's permissions and the streams' filters; the answer, whatever
//! it is, is kept in a table of bounded size. A topic may lie in any of eight neighbouring slots, so a lookup is bounded
//! too, and topics chosen to collide only push out each other. Hashing is seeded by the caller. Devices are kept for ever,
//! up to a limit: windows and records refer to them by number.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::event::UserIndex;
use super::tree::FilterTree;

/// Number of a device, from 0 in the order in which devices were first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceIndex(pub u32);

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To a stream, from a device.
    Stream {
        /// The number given with the stream's filter.
        stream: u16,
        /// The device.
        device: DeviceIndex,
    },
    /// No stream wants it.
    Unmatched,
    /// The user may not publish there.
    Denied,
    /// A stream wants it, and there is no room for another device.
    DeviceRefused {
        /// The number given with the stream's filter.
        stream: u16,
    },
}

/// Limits of a [`TopicRouter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterLimits {
    /// Topics remembered, rounded up to a power of two; each costs 40 bytes and its text.
    pub topics_max: usize,
    /// Devices known.
    pub devices_max: usize,
}

impl Default for RouterLimits {
    fn default() -> Self {
        RouterLimits { topics_max: 16 * 1024, devices_max: 64 * 1024 }
    }
}

/// Streams' filters, users' permissions, devices, and the memory of topics.
#[derive(Debug)]
pub struct TopicRouter {
    streams: FilterTree,
    permissions: Vec<FilterTree>,
    devices: DeviceTable,
    cache: TopicCache,
    key: String,
}

impl TopicRouter {
    /// `permissions[user]` says where a user may publish; a user without an entry may not publish at all.
    pub fn new(streams: FilterTree, permissions: Vec<FilterTree>, limits: RouterLimits, seed: u64) -> TopicRouter {
        TopicRouter {
            streams,
            permissions,
            devices: DeviceTable::new(limits.devices_max, seed),
            cache: TopicCache::new(limits.topics_max, seed),
            key: String::new(),
        }
    }

    /// Takes new filters and permissions after a reload; devices keep their numbers.
    pub fn reload(&mut self, streams: FilterTree, permissions: Vec<FilterTree>) {
        self.streams = streams;
        self.permissions = permissions;
        self.cache.clear();
    }

    /// The route of a message. Allocates for topics that are not remembered only.
    #[inline]
    pub fn route(&mut self, user: UserIndex, topic: &str) -> Route {
        let hash = self.cache.hash(user, topic);
        if let Some(route) = self.cache.find(hash, user, topic) {
            return route;
        }
        let route = self.resolve(user, topic);
        self.cache.insert(hash, user, topic, route);
        route
    }

    /// The devices.
    pub fn devices(&self) -> &DeviceTable {
        &self.devices
    }

    /// Topics remembered now.
    pub fn topics_len(&self) -> usize {
        self.cache.len
    }

    /// Topics forgotten to make room for others.
    pub fn topics_evicted(&self) -> u64 {
        self.cache.evicted
    }

    fn resolve(&mut self, user: UserIndex, topic: &str) -> Route {
        if !self.permissions.get(usize::from(user.0)).is_some_and(|filters| filters.allows(topic)) {
            return Route::Denied;
        }
        let Some(found) = self.streams.find(topic) else { return Route::Unmatched };
        found.device_key(&mut self.key);
        match self.devices.intern(&self.key) {
            Some(device) => Route::Stream { stream: found.index, device },
            None => Route::DeviceRefused { stream: found.index },
        }
    }
}

/// Device keys and their numbers.
#[derive(Debug)]
pub struct DeviceTable {
    numbers: HashMap<Arc<str>, DeviceIndex, FixedState>,
    keys: Vec<Arc<str>>,
    devices_max: usize,
    devices_refused: u64,
}

impl DeviceTable {
    /// A table of at most `devices_max` devices.
    pub fn new(devices_max: usize, seed: u64) -> DeviceTable {
        let numbers = HashMap::with_hasher(FixedState::with_seed(seed));
        DeviceTable { numbers, keys: Vec::new(), devices_max: devices_max.min(u32::MAX as usize), devices_refused: 0 }
    }

    /// The number of a device, new or known; `None`, counted, if it is new and there is no room.
    pub fn intern(&mut self, key: &str) -> Option<DeviceIndex> {
        if let Some(&device) = self.numbers.get(key) {
            return Some(device);
        }
        if self.keys.len() >= self.devices_max {
            self.devices_refused += 1;
            return None;
        }
        let device = DeviceIndex(self.keys.len() as u32);
        let key: Arc<str> = key.into();
        self.keys.push(key.clone());
        self.numbers.insert(key, device);
        Some(device)
    }

    /// The key of a device.
    pub fn key(&self, device: DeviceIndex) -> Option<&str> {
        self.keys.get(device.0 as usize).map(|key| &**key)
    }

    /// Devices known.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// New devices that found no room; a remembered topic counts once.
    pub fn devices_refused(&self) -> u64 {
        self.devices_refused
    }
}

/// Slots in which a topic may lie.
const WAYS: usize = 8;

/// Slots at first; the table doubles when half full, up to its limit.
const SLOTS_MIN: usize = 64;

#[derive(Debug)]
struct TopicCache {
    hasher: FixedState,
    /// A power of two.
    slots: Vec<Option<Slot>>,
    slots_max: usize,
    len: usize,
    evicted: u64,
}

#[derive(Debug)]
struct Slot {
    topic: Box<str>,
    hash: u64,
    route: Route,
    user: UserIndex,
    /// Found since it was last passed over for eviction.
    used: bool,
}

impl TopicCache {
    fn new(topics_max: usize, seed: u64) -> TopicCache {
        let slots_max = topics_max.clamp(SLOTS_MIN, 1 << 24).next_power_of_two();
        let slots = (0..SLOTS_MIN).map(|_| None).collect();
        TopicCache { hasher: FixedState::with_seed(seed), slots, slots_max, len: 0, evicted: 0 }
    }

    #[inline]
    fn hash(&self, user: UserIndex, topic: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(topic.as_bytes());
        hasher.write_u16(user.0);
        hasher.finish()
    }

    /// The slots of a hash: `WAYS` neighbours, from a multiple of `WAYS` on.
    #[inline]
    fn ways(&mut self, hash: u64) -> &mut [Option<Slot>] {
        let start = hash as usize & (self.slots.len() - 1) & !(WAYS - 1);
        &mut self.slots[start..start + WAYS]
    }

    #[inline]
    fn find(&mut self, hash: u64, user: UserIndex, topic: &str) -> Option<Route> {
        for slot in self.ways(hash).iter_mut().flatten() {
            if slot.hash == hash && slot.user == user && *slot.topic == *topic {
                slot.used = true;
                return Some(slot.route);
            }
        }
        None
    }

    fn insert(&mut self, hash: u64, user: UserIndex, topic: &str, route: Route) {
        if self.len * 2 >= self.slots.len() && self.slots.len() < self.slots_max {
            self.grow();
        }
        self.place(Slot { topic: topic.into(), hash, route, user, used: false });
    }

    /// Into a free slot, else in place of one that was not used since the last time, else of the first.
    fn place(&mut self, new: Slot) {
        let ways = self.ways(new.hash);
        if let Some(free) = ways.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(new);
            self.len += 1;
            return;
        }
        let victim = ways.iter().position(|slot| slot.as_ref().is_some_and(|slot| !slot.used)).unwrap_or(WAYS);
        for slot in ways[..victim].iter_mut().flatten() {
            slot.used = false;
        }
        let victim = victim % WAYS;
        // The newest goes to the back, so that the oldest of the unused is the next victim.
        ways[victim..].rotate_left(1);
        ways[WAYS - 1] = Some(new);
        self.evicted += 1;
    }

    fn grow(&mut self) {
        let slots = (0..self.slots.len() * 2).map(|_| None).collect();
        self.len = 0;
        for slot in std::mem::replace(&mut self.slots, slots).into_iter().flatten() {
            self.place(slot);
        }
    }

    fn clear(&mut self) {
        self.slots.fill_with(|| None);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::Filter;

    const ALICE: UserIndex = UserIndex(0);
    const BOB: UserIndex = UserIndex(1);

    fn tree(filters: &[&str]) -> FilterTree {
        let filters: Vec<Filter> = filters.iter().map(|text| Filter::parse(text).expect("valid")).collect();
        FilterTree::new(filters.iter().zip(0..))
    }

    fn router(limits: RouterLimits) -> TopicRouter {
        TopicRouter::new(tree(&["a/+/vib", "b/#"]), vec![tree(&["#"]), tree(&["a/1/#"])], limits, 7)
    }

    #[test]
    fn routes_are_by_user_and_stay_the_same_when_remembered() {
        let mut router = router(RouterLimits::default());
        for _ in 0..3 {
            assert_eq!(router.route(ALICE, "a/1/vib"), Route::Stream { stream: 0, device: DeviceIndex(0) });
            assert_eq!(router.route(BOB, "a/1/vib"), Route::Stream { stream: 0, device: DeviceIndex(0) });
            assert_eq!(router.route(ALICE, "a/2/vib"), Route::Stream { stream: 0, device: DeviceIndex(1) });
            assert_eq!(router.route(BOB, "a/2/vib"), Route::Denied);
            assert_eq!(router.route(BOB, "a/1/x"), Route::Unmatched);
            assert_eq!(router.route(UserIndex(2), "a/1/vib"), Route::Denied);
        }
        assert_eq!((router.topics_len(), router.topics_evicted()), (6, 0));
        assert_eq!(router.devices().key(DeviceIndex(1)), Some("2"));
        router.reload(tree(&["a/2/+"]), vec![tree(&["#"]), tree(&["#"])]);
        assert_eq!(router.route(BOB, "a/1/vib"), Route::Unmatched);
        assert_eq!(router.route(BOB, "a/2/2"), Route::Stream { stream: 0, device: DeviceIndex(1) });
    }

    #[test]
    fn a_flood_of_topics_and_devices_stays_within_its_limits() {
        let limits = RouterLimits { topics_max: 256, devices_max: 100 };
        let mut router = router(limits);
        for n in 0..10_000 {
            let device = router.route(ALICE, &format!("a/{n}/vib"));
            assert_eq!(matches!(device, Route::DeviceRefused { stream: 0 }), n >= 100, "{n}");
        }
        assert!(router.topics_len() <= 256);
        assert_eq!(router.topics_len() as u64 + router.topics_evicted(), 10_000);
        assert_eq!((router.devices().len(), router.devices().devices_refused()), (100, 9_900));
        assert_eq!(router.route(ALICE, "a/99/vib"), Route::Stream { stream: 0, device: DeviceIndex(99) });
    }

    #[test]
    fn topics_in_use_survive_a_flood_of_others() {
        let mut router = router(RouterLimits { topics_max: 64, devices_max: 10 });
        for n in 0..1_000 {
            router.route(ALICE, "b/hot");
            router.route(ALICE, &format!("c/{n}"));
        }
        let hash = router.cache.hash(ALICE, "b/hot");
        assert!(router.cache.find(hash, ALICE, "b/hot").is_some());
        assert!(router.topics_evicted() <= 1_001 - 8 && router.topics_evicted() >= 1_001 - 64);
    }
}
