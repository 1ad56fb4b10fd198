//! Folds the samples of one device into minimum, maximum, mean and count per span of time.
//!
//! Spans are aligned to multiples of their length since the Unix epoch, so those of all devices line up. Every sample
//! that comes is in exactly one aggregate: the counts of what comes out add up to the samples that went in. For that,
//! - a sample up to `reorder_max` before the open span is folded into it (**late**; `first_us` then tells);
//! - one from further back closes the open span and opens its own (the **clock was set back**);
//! - one from a span that was closed before opens it again: the aggregates have one start, and merge into the whole.
//!
//! A span is closed by the first later sample, or by the box's clock when its device has gone silent.

use crate::payload::Samples;

/// What every [`Aggregator`] of a stream has in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AggregateSpec {
    pub(super) channels: usize,
    pub(super) every_us: i64,
    pub(super) reorder_max_us: i64,
}

/// The samples of one device in one span of time, or of several that were merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Start of the span, in microseconds since the Unix epoch.
    pub start_us: i64,
    /// End of the span, exclusive.
    pub end_us: i64,
    /// Time of the earliest sample; before `start_us` if that one was late.
    pub first_us: i64,
    /// Time of the latest sample.
    pub last_us: i64,
    /// Samples in it, at least 1.
    pub count: u64,
    /// One for each channel, at least one.
    pub channels: Vec<ChannelAggregate>,
}

/// What is left of one channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChannelAggregate {
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// The sum of all values, from which the mean follows; stops at the largest finite number.
    pub sum: f64,
}

impl Aggregate {
    /// The mean of a channel; none if there is no such channel.
    pub fn mean(&self, channel: usize) -> Option<f64> {
        Some(self.channels.get(channel)?.sum / self.count as f64)
    }

    /// Takes in another aggregate of the same device, so that this one stands for the samples of both.
    ///
    /// The order of merging changes sums by rounding only. The span becomes the smallest that covers both.
    ///
    /// # Errors
    /// If the other has another number of channels; nothing is changed then.
    pub fn merge(&mut self, other: &Aggregate) -> Result<(), MergeError> {
        let (ours, theirs) = (self.channels.len(), other.channels.len());
        if ours != theirs {
            return Err(MergeError { ours, theirs });
        }
        self.start_us = self.start_us.min(other.start_us);
        self.end_us = self.end_us.max(other.end_us);
        self.first_us = self.first_us.min(other.first_us);
        self.last_us = self.last_us.max(other.last_us);
        self.count = self.count.saturating_add(other.count);
        for (mine, other) in self.channels.iter_mut().zip(&other.channels) {
            mine.take_in(*other);
        }
        Ok(())
    }

    /// All rows of one message received at `received_us`; `None` if it has none. The span is that of its rows.
    pub fn of_message(samples: &Samples, received_us: i64) -> Option<Aggregate> {
        let mut rows = samples.iter(received_us);
        let (time_us, row) = rows.next()?;
        let mut aggregate = Aggregate::new(time_us, time_us.saturating_add(1), time_us, row);
        for (time_us, row) in rows {
            aggregate.add(time_us, row);
        }
        aggregate.end_us = aggregate.last_us.saturating_add(1);
        aggregate.start_us = aggregate.first_us;
        Some(aggregate)
    }

    fn new(start_us: i64, end_us: i64, time_us: i64, row: &[f64]) -> Aggregate {
        let channels = row.iter().map(|value| ChannelAggregate::new(*value)).collect();
        Aggregate { start_us, end_us, first_us: time_us, last_us: time_us, count: 1, channels }
    }

    fn add(&mut self, time_us: i64, row: &[f64]) {
        self.first_us = self.first_us.min(time_us);
        self.last_us = self.last_us.max(time_us);
        self.count += 1;
        for (mine, value) in self.channels.iter_mut().zip(row) {
            mine.take_in(ChannelAggregate::new(*value));
        }
    }
}

impl ChannelAggregate {
    fn new(value: f64) -> ChannelAggregate {
        ChannelAggregate { min: value, max: value, sum: value }
    }

    fn take_in(&mut self, other: ChannelAggregate) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = (self.sum + other.sum).clamp(f64::MIN, f64::MAX);
    }
}

/// Aggregates of different shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot merge an aggregate of {theirs} channels into one of {ours}")]
pub struct MergeError {
    ours: usize,
    theirs: usize,
}

/// What an [`Aggregator`] has done with the samples it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AggregateCounters {
    /// Samples given; each is in exactly one aggregate.
    pub samples: u64,
    /// Aggregates closed.
    pub aggregates: u64,
    /// Samples folded into the span after their own.
    pub late: u64,
    /// Times that fell back by more than `reorder_max` and so closed a span.
    pub jumps_back: u64,
}

/// The open aggregate of one device of a stream: `24 x channels` bytes and about 120 more. It allocates once a span.
#[derive(Debug, Clone)]
pub struct Aggregator {
    spec: AggregateSpec,
    open: Option<Aggregate>,
    /// When, by the box's clock, the open span has ended and waited for late samples.
    close_at_us: i64,
    counters: AggregateCounters,
}

impl Aggregator {
    /// An aggregator with nothing open.
    pub fn new(spec: AggregateSpec) -> Aggregator {
        Aggregator { spec, open: None, close_at_us: i64::MAX, counters: AggregateCounters::default() }
    }

    /// Folds in one sample; returns the aggregate that it closes.
    ///
    /// `time_us` is the sample's own time, `received_us` the box's clock: they need not agree.
    ///
    /// # Panics
    /// If `row` has another number of channels than the spec.
    pub fn push(&mut self, time_us: i64, received_us: i64, row: &[f64]) -> Option<Aggregate> {
        assert_eq!(row.len(), self.spec.channels, "a row has the spec's channels");
        self.counters.samples += 1;
        let every_us = self.spec.every_us;
        let start_us = time_us.div_euclid(every_us).saturating_mul(every_us);
        let end_us = start_us.saturating_add(every_us);
        let close_at_us = received_us.saturating_add(end_us.saturating_sub(time_us)).saturating_add(self.spec.reorder_max_us);
        if let Some(open) = &mut self.open {
            let behind_us = open.start_us.saturating_sub(time_us);
            if open.start_us == start_us || (0..=self.spec.reorder_max_us).contains(&behind_us) {
                if open.start_us == start_us {
                    self.close_at_us = self.close_at_us.min(close_at_us);
                } else {
                    self.counters.late += 1;
                }
                open.add(time_us, row);
                return None;
            }
            self.counters.jumps_back += u64::from(behind_us > 0);
        }
        let closed = self.flush();
        self.open = Some(Aggregate::new(start_us, end_us, time_us, row));
        self.close_at_us = close_at_us;
        closed
    }

    /// Folds in all rows of a message received at `received_us`; calls `on_closed` for each aggregate they close.
    ///
    /// # Panics
    /// If the message has another number of channels than the spec.
    pub fn push_message(&mut self, samples: &Samples, received_us: i64, mut on_closed: impl FnMut(Aggregate)) {
        for (time_us, row) in samples.iter(received_us) {
            if let Some(closed) = self.push(time_us, received_us, row) {
                on_closed(closed);
            }
        }
    }

    /// When [`Aggregator::close_if_older`] will close the open aggregate, by the box's clock; none if nothing is open.
    pub fn close_at_us(&self) -> Option<i64> {
        self.open.as_ref().map(|_| self.close_at_us)
    }

    /// Closes the open aggregate if its span ended `reorder_max` or longer ago by the box's clock `now_us`.
    pub fn close_if_older(&mut self, now_us: i64) -> Option<Aggregate> {
        if now_us >= self.close_at_us { self.flush() } else { None }
    }

    /// Closes the open aggregate now: at shutdown, or when the configuration changes.
    pub fn flush(&mut self) -> Option<Aggregate> {
        self.close_at_us = i64::MAX;
        self.counters.aggregates += u64::from(self.open.is_some());
        self.open.take()
    }

    /// What became of the samples so far.
    pub fn counters(&self) -> AggregateCounters {
        self.counters
    }
}
