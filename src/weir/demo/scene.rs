//! What a person is shown while the demo runs: numbers gathered a few times a second, and their recent past.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use weir_edge::status::Status;

use super::observe::Arrived;
use super::publish::Tally;
use crate::link::thread::LinkStats;

/// Rates are over this many looks.
const RATE_LOOKS: usize = 5;
/// Verdicts and events remembered; no terminal shows more.
const LINES_MAX: usize = 100;
/// Records that go to disk after so long without are told of again.
const SPILL_QUIET: Duration = Duration::from_secs(3);
/// A backlog of at least so many records is worth an event when it is gone.
const BACKLOG_RECORDS_MIN: u64 = 50;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Sensors publish.
    Publishing,
    /// Sensors are silent; the box empties itself.
    Draining,
}

/// One look at everything.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) phase: Phase,
    pub(super) elapsed: Duration,
    pub(super) publish_for: Duration,
    /// Engine, mode, seed and speed, for the title.
    pub(super) title: String,
    pub(super) link_name: String,
    pub(super) status: Status,
    pub(super) link: LinkStats,
    pub(super) published: u64,
    pub(super) acked: u64,
    pub(super) payload_bytes: u64,
    /// Records in the cloud, by lane.
    pub(super) committed: [u64; 4],
    /// Messages, payload bytes, wire bytes and committed records a second.
    pub(super) rates: Rates,
    /// When the link went down, if it is.
    pub(super) down_for: Option<Duration>,
    /// Newest last.
    pub(super) verdicts: VecDeque<Arrived>,
    /// When, and what happened; newest last.
    pub(super) events: VecDeque<(Duration, String)>,
    /// Largest backlog of each lane so far in records, which is a full bar.
    pub(super) peaks: [u64; 4],
}

/// Changes a second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rates {
    pub(super) messages: f64,
    pub(super) payload_bytes: f64,
    pub(super) wire_bytes: f64,
    pub(super) committed: f64,
}

/// Turns looks into scenes.
#[derive(Debug)]
pub(super) struct Director {
    scene: Scene,
    looks: VecDeque<(Duration, [u64; 4])>,
    down_since: Option<Duration>,
    has_backlog: bool,
    spilled_at: Option<Duration>,
}

impl Director {
    pub(super) fn new(title: String, link_name: String, publish_for: Duration) -> Director {
        let scene = Scene {
            phase: Phase::Publishing,
            elapsed: Duration::ZERO,
            publish_for,
            title,
            link_name,
            status: Status::default(),
            link: LinkStats::default(),
            published: 0,
            acked: 0,
            payload_bytes: 0,
            committed: [0; 4],
            rates: Rates::default(),
            down_for: None,
            verdicts: VecDeque::new(),
            events: VecDeque::new(),
            peaks: [0; 4],
        };
        Director { scene, looks: VecDeque::new(), down_since: None, has_backlog: false, spilled_at: None }
    }

    pub(super) fn scene(&self) -> &Scene {
        &self.scene
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.scene.phase = phase;
    }

    pub(super) fn verdict(&mut self, arrived: Arrived) {
        self.scene.verdicts.push_back(arrived);
        if self.scene.verdicts.len() > LINES_MAX {
            self.scene.verdicts.pop_front();
        }
    }

    pub(super) fn event(&mut self, text: String) {
        self.scene.events.push_back((self.scene.elapsed, text));
        if self.scene.events.len() > LINES_MAX {
            self.scene.events.pop_front();
        }
    }

    /// Takes in the present state of everything.
    pub(super) fn look(&mut self, start: Instant, status: Status, link: LinkStats, tally: &Tally, committed: [u64; 4]) {
        let scene = &mut self.scene;
        scene.elapsed = start.elapsed();
        let before = std::mem::replace(&mut scene.status, status);
        (scene.link, scene.committed) = (link, committed);
        (scene.published, scene.acked) = (tally.published_total(), tally.acked_total());
        scene.payload_bytes = tally.payload_bytes.load(Relaxed);
        for (peak, lane) in scene.peaks.iter_mut().zip(&scene.status.lanes) {
            *peak = lane.records.max(*peak);
        }
        let now = [scene.published, scene.payload_bytes, link.up.counts.delivered_bytes, committed.iter().sum()];
        let elapsed = scene.elapsed;
        self.looks.push_back((elapsed, now));
        if self.looks.len() > RATE_LOOKS {
            self.looks.pop_front();
        }
        if let Some((then, counts)) = self.looks.front() {
            let seconds = (elapsed - *then).as_secs_f64();
            let rate =
                |index: usize| if seconds > 0.0 { now[index].saturating_sub(counts[index]) as f64 / seconds } else { 0.0 };
            scene.rates = Rates { messages: rate(0), payload_bytes: rate(1), wire_bytes: rate(2), committed: rate(3) };
        }
        self.note_link(link.is_up);
        self.note_changes(&before);
    }

    fn note_link(&mut self, is_up: bool) {
        let elapsed = self.scene.elapsed;
        match (self.down_since, is_up) {
            (None, false) => {
                self.down_since = Some(elapsed);
                self.event("link is DOWN".to_owned());
            }
            (Some(since), true) => {
                self.down_since = None;
                self.event(format!("link is back after {:.1} s", (elapsed - since).as_secs_f64()));
            }
            _ => {}
        }
        self.scene.down_for = self.down_since.map(|since| elapsed - since);
    }

    /// What the box says of itself now and did not say before.
    fn note_changes(&mut self, before: &Status) {
        let now = self.scene.status.clone();
        for (index, uplink) in now.uplinks.iter().enumerate() {
            let was_up = before.uplinks.get(index).is_some_and(|uplink| uplink.up);
            match (was_up, uplink.up) {
                (false, true) => self.event(format!("{} is up", uplink.name)),
                (true, false) => {
                    let reason = uplink.last_down.as_deref().unwrap_or("closed").replace("no word from the cloud", "silent");
                    self.event(format!("{} is down: {reason}", uplink.name));
                }
                _ => {}
            }
        }
        for (index, stream) in now.streams.iter().enumerate() {
            if before.streams.get(index).is_none_or(|old| old.plan != stream.plan) {
                self.event(format!("plan {}: {}", stream.name, short_plan(&stream.plan)));
            }
        }
        let spilled = |status: &Status| status.lanes.iter().map(|lane| lane.spilled).sum::<u64>();
        if spilled(&now) > spilled(before) {
            // Told again only after a time without.
            if self.spilled_at.is_none_or(|at| at + SPILL_QUIET < self.scene.elapsed) {
                self.event("acks are late: records go to disk".to_owned());
            }
            self.spilled_at = Some(self.scene.elapsed);
        }
        if now.disk_full && !before.disk_full {
            self.event("disk is FULL: sensors are held back".to_owned());
        }
        let held: u64 = now.lanes.iter().map(|lane| lane.records).sum();
        let uplink_up = now.uplinks.iter().any(|uplink| uplink.up);
        // Before the first session there is no backlog yet, only a beginning.
        let was_up = now.uplinks.iter().any(|uplink| uplink.ups > 0);
        if was_up && !uplink_up && held > BACKLOG_RECORDS_MIN {
            self.has_backlog = true;
        } else if self.has_backlog && uplink_up && held < BACKLOG_RECORDS_MIN {
            self.has_backlog = false;
            self.event("the backlog is delivered".to_owned());
        }
    }
}

/// `verdict in lane high, model on the box` in less room.
pub(super) fn short_plan(plan: &str) -> String {
    plan.replace(" in lane ", " > ").replace(", no model", "").replace(", model on the box", " + model")
}
