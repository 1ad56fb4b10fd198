//! Cuts the samples of one device into windows for a model.
//!
//! A ring holds the last `length` samples in order of time. The sample that fills it completes a window at once: nothing
//! waits for stragglers, because a verdict is worth most now. Then `step` samples leave, and filling goes on.
//!
//! The rules for times, for a sample at `t` when the newest one so far is at `last`:
//! - `t > last + gap_max`: a **gap**. What the ring holds is dropped, and a window starts at this sample.
//! - `t > last`: the next sample.
//! - `t < last - reorder_max`: the **clock was set back** (or a device resends what is very old). As for a gap.
//! - a time that is there already, or ends the last window: a **duplicate** (QoS 1 resends). The first one stays.
//! - at or before the end of the last window, or among samples that were skipped: **late**, and dropped.
//! - otherwise it is **reordered**: put in its place.
//!
//! A message of several samples carries one time, and its nominal rate is off by a few percent in cheap sensors, so the
//! rows of two messages overlap although nothing was late. Hence rows that a newer message places up to `reorder_max`
//! before `last` are moved to just after it (**squeezed**). Messages without a time of their own are taken in the order
//! in which they came, however many arrive at one instant.

use super::WindowSpec;
use crate::payload::Samples;

/// One complete window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window<'a> {
    /// Time of the first sample.
    pub start_us: i64,
    /// Time of the last sample.
    pub end_us: i64,
    /// Channels; the length is `values.len() / channels`.
    pub channels: usize,
    /// `f32[channels][length]`, row-major; values beyond the range of `f32` are its largest.
    pub values: &'a [f32],
}

/// What a [`Windower`] has done with the samples it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowCounters {
    /// Samples given.
    pub samples: u64,
    /// Windows completed.
    pub windows: u64,
    /// Silences longer than `gap_max`.
    pub gaps: u64,
    /// Times that fell back by more than `reorder_max`.
    pub jumps_back: u64,
    /// Samples dropped because their window was complete.
    pub late: u64,
    /// Samples dropped because one with the same time was there.
    pub duplicates: u64,
    /// Samples put in their place behind newer ones.
    pub reordered: u64,
    /// Samples moved to just after the last one.
    pub squeezed: u64,
}

impl WindowCounters {
    /// Adds another device's counts to these.
    pub fn add(&mut self, other: &WindowCounters) {
        self.samples += other.samples;
        self.windows += other.windows;
        self.gaps += other.gaps;
        self.jumps_back += other.jumps_back;
        self.late += other.late;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.squeezed += other.squeezed;
    }
}

/// The window under construction of one device of a stream.
///
/// Holds `length x (4 x channels + 8)` bytes from its first sample on ([`WindowSpec::device_bytes`]), and never more. A
/// sample costs a few nanoseconds a channel; one that is reordered up to a move of the whole ring.
#[derive(Debug, Clone)]
pub struct Windower {
    spec: WindowSpec,
    /// `[length][channels]`, a ring of rows.
    rows: Box<[f32]>,
    /// The time of each row.
    times_us: Box<[i64]>,
    head: usize,
    len: usize,
    /// Samples still to skip before the next window, if `step` is longer than `length`.
    skip: usize,
    /// The newest time seen since the last jump.
    last_us: Option<i64>,
    /// Samples at or before this time are too late.
    closed_us: i64,
    /// When the last message without a time of its own came.
    last_received_us: Option<i64>,
    counters: WindowCounters,
}

impl Windower {
    /// A windower without samples, which holds no buffer yet.
    pub fn new(spec: WindowSpec) -> Windower {
        Windower {
            spec,
            rows: Box::default(),
            times_us: Box::default(),
            head: 0,
            len: 0,
            skip: 0,
            last_us: None,
            closed_us: i64::MIN,
            last_received_us: None,
            counters: WindowCounters::default(),
        }
    }

    /// The spec it was made with.
    pub fn spec(&self) -> &WindowSpec {
        &self.spec
    }

    /// What became of the samples so far.
    pub fn counters(&self) -> WindowCounters {
        self.counters
    }

    /// Takes one sample with its own time. A completed window is written to `buffer`, which is reused.
    ///
    /// # Panics
    /// If `row` has another number of channels than the spec.
    pub fn push<'b>(&mut self, time_us: i64, row: &[f64], buffer: &'b mut Vec<f32>) -> Option<Window<'b>> {
        assert_eq!(row.len(), self.spec.channels, "a row has the spec's channels");
        self.counters.samples += 1;
        if let Some(last_us) = self.last_us {
            if time_us <= last_us && last_us.saturating_sub(time_us) <= self.spec.reorder_max_us {
                return self.insert(time_us, row, buffer);
            }
            if time_us < last_us {
                self.counters.jumps_back += 1;
                self.restart();
            } else if time_us.saturating_sub(last_us) > self.spec.gap_max_us {
                self.counters.gaps += 1;
                self.restart();
            }
        }
        self.last_us = Some(time_us);
        if self.skip > 0 {
            self.skip -= 1;
            self.closed_us = time_us;
            return None;
        }
        self.place(self.len, time_us, row);
        self.complete(buffer)
    }

    /// Takes all rows of a message received at `received_us`, and calls `on_window` for each window they complete.
    ///
    /// # Panics
    /// If the message has another number of channels than the spec.
    pub fn push_message(
        &mut self,
        samples: &Samples,
        received_us: i64,
        buffer: &mut Vec<f32>,
        mut on_window: impl FnMut(Window<'_>),
    ) {
        let in_order = self.takes_in_order(samples, received_us);
        for (time_us, row) in samples.iter(received_us) {
            let squeezed_us = match self.last_us {
                Some(last_us) if in_order && time_us <= last_us => {
                    self.counters.squeezed += 1;
                    last_us.saturating_add(1)
                }
                _ => time_us,
            };
            if let Some(window) = self.push(squeezed_us, row, buffer) {
                on_window(window);
            }
        }
    }

    /// Forgets all samples, as after a gap: for a device that is gone, or a model that changed. Counters stay.
    pub fn clear(&mut self) {
        self.restart();
        self.last_us = None;
    }

    /// Whether a message's rows follow what is there, whatever their times say.
    fn takes_in_order(&mut self, samples: &Samples, received_us: i64) -> bool {
        let (Some(last_us), Some(newest)) = (self.last_us, samples.rows().checked_sub(1)) else {
            self.last_received_us = Some(received_us);
            return true;
        };
        if samples.time_us().is_some() {
            let first_us = samples.row_time_us(0, received_us);
            let overlap_us = last_us.saturating_sub(first_us);
            return samples.row_time_us(newest, received_us) > last_us && overlap_us <= self.spec.reorder_max_us;
        }
        let previous_us = self.last_received_us.replace(received_us).unwrap_or(received_us);
        if previous_us.saturating_sub(received_us) > self.spec.reorder_max_us {
            self.counters.jumps_back += 1;
            self.clear();
        }
        true
    }

    /// Handles a sample at or before the newest, and not so old that the clock must have been set back.
    fn insert<'b>(&mut self, time_us: i64, row: &[f64], buffer: &'b mut Vec<f32>) -> Option<Window<'b>> {
        let after = (0..self.len).rev().find(|index| self.times_us[self.slot(*index)] <= time_us);
        let is_there = after.is_some_and(|index| self.times_us[self.slot(index)] == time_us);
        if is_there || self.closed_us == time_us {
            self.counters.duplicates += 1;
            return None;
        }
        if time_us < self.closed_us {
            self.counters.late += 1;
            return None;
        }
        self.counters.reordered += 1;
        self.place(after.map_or(0, |index| index + 1), time_us, row);
        self.complete(buffer)
    }

    /// Writes a row at a position, moving the rows from there on by one. The ring has room: it is cut as soon as full.
    fn place(&mut self, position: usize, time_us: i64, row: &[f64]) {
        if self.times_us.is_empty() {
            self.rows = vec![0.0; self.spec.length * self.spec.channels].into();
            self.times_us = vec![0; self.spec.length].into();
        }
        let channels = self.spec.channels;
        for index in (position..self.len).rev() {
            let (from, to) = (self.slot(index), self.slot(index + 1));
            self.times_us[to] = self.times_us[from];
            self.rows.copy_within(from * channels..(from + 1) * channels, to * channels);
        }
        let slot = self.slot(position);
        self.times_us[slot] = time_us;
        for (place, value) in self.rows[slot * channels..].iter_mut().zip(row) {
            *place = value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        }
        self.len += 1;
    }

    /// Cuts a window if the ring is full.
    fn complete<'b>(&mut self, buffer: &'b mut Vec<f32>) -> Option<Window<'b>> {
        let WindowSpec { channels, length, step, .. } = self.spec;
        if self.len < length {
            return None;
        }
        buffer.clear();
        buffer.resize(channels * length, 0.0);
        let (newer, older) = self.rows.split_at(self.head * channels);
        for (index, row) in older.chunks_exact(channels).chain(newer.chunks_exact(channels)).enumerate() {
            for (channel, value) in row.iter().enumerate() {
                buffer[channel * length + index] = *value;
            }
        }
        let (start_us, end_us) = (self.times_us[self.head], self.times_us[self.slot(length - 1)]);
        let leave = step.min(length);
        self.head = self.slot(leave);
        self.len -= leave;
        self.skip = step - leave;
        self.closed_us = end_us;
        self.counters.windows += 1;
        Some(Window { start_us, end_us, channels, values: buffer })
    }

    fn restart(&mut self) {
        self.head = 0;
        self.len = 0;
        self.skip = 0;
        self.closed_us = i64::MIN;
    }

    fn slot(&self, index: usize) -> usize {
        let slot = self.head + index;
        if slot >= self.spec.length { slot - self.spec.length } else { slot }
    }
}
