//! What recurrent models carry from a device's window to its next one.
//!
//! A device's state is kept while its windows follow one another: the next one starts after the last one ended, and by no
//! more than the manifest's gap. Otherwise the model starts from zeros, as it does at a start of the process, when a
//! window could not be scored, and for a device that was forgotten because the limit of devices was reached: the one whose
//! last window is longest ago goes.

use std::collections::{BTreeMap, HashMap};

/// Whose window it is, and when: what decides which state goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The device, by any number that is its own.
    pub device: u64,
    /// Time of the window's first sample, in microseconds of any clock.
    pub start_us: i64,
    /// Time of its last sample.
    pub end_us: i64,
}

/// What was kept and dropped of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateCounts {
    /// Devices whose state is kept now.
    pub devices: u64,
    /// States dropped because of a gap, a step back in time or a window that could not be scored.
    pub resets: u64,
    /// States dropped because there were too many devices.
    pub evicted: u64,
}

/// The shape of one tensor of state, and where its batch stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateShape {
    dims: Vec<usize>,
    batch: usize,
    /// Products of the dimensions before and behind the batch.
    outer: usize,
    inner: usize,
}

/// The states of all devices of one model.
#[derive(Debug)]
pub(crate) struct States {
    devices: HashMap<u64, Device>,
    /// Devices by when they were last used.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
    gap_max_us: i64,
    devices_limit: usize,
    counts: StateCounts,
}

/// One device's.
#[derive(Debug)]
struct Device {
    /// All tensors, one after another.
    values: Vec<f32>,
    end_us: i64,
    used: u64,
}

impl StateShape {
    /// `dims[batch]` is any number.
    pub(crate) fn new(dims: Vec<usize>, batch: usize) -> Self {
        let (outer, inner) = (dims[..batch].iter().product(), dims[batch + 1..].iter().product());
        Self { dims, batch, outer, inner }
    }

    /// The tensor's dimensions with so many rows.
    pub(crate) fn dims(&self, rows: usize) -> Vec<usize> {
        let mut dims = self.dims.clone();
        dims[self.batch] = rows;
        dims
    }

    /// Values of one row.
    pub(crate) fn len(&self) -> usize {
        self.outer * self.inner
    }

    /// Puts a row's values into a tensor of `rows`.
    pub(crate) fn put(&self, tensor: &mut [f32], (row, rows): (usize, usize), values: &[f32]) {
        for (outer, part) in values.chunks_exact(self.inner).enumerate() {
            let at = (outer * rows + row) * self.inner;
            tensor[at..at + self.inner].copy_from_slice(part);
        }
    }

    /// Appends a row's values, from a tensor of `rows`.
    pub(crate) fn take(&self, tensor: &[f32], (row, rows): (usize, usize), values: &mut Vec<f32>) {
        for outer in 0..self.outer {
            let at = (outer * rows + row) * self.inner;
            values.extend_from_slice(&tensor[at..at + self.inner]);
        }
    }
}

impl States {
    pub(crate) fn new(gap_max_us: i64, devices_limit: usize) -> Self {
        let counts = StateCounts::default();
        Self { devices: HashMap::new(), by_use: BTreeMap::new(), uses: 0, gap_max_us, devices_limit, counts }
    }

    /// Keeps the state of at most so many devices from now on; at least one.
    pub(crate) fn limit(&mut self, devices: usize) {
        self.devices_limit = devices.max(1);
        self.evict();
    }

    /// The state that goes with a window; `None` for zeros. What does not go with it is dropped.
    pub(crate) fn of(&mut self, origin: &Origin) -> Option<&[f32]> {
        let device = self.devices.get(&origin.device)?;
        let gap_us = origin.start_us.checked_sub(device.end_us).unwrap_or(i64::MAX);
        if !(1..=self.gap_max_us).contains(&gap_us) {
            self.drop_of(origin.device);
        }
        self.devices.get(&origin.device).map(|device| device.values.as_slice())
    }

    /// Keeps what the model gave for a window.
    pub(crate) fn keep(&mut self, origin: &Origin, values: Vec<f32>) {
        self.uses += 1;
        let device = Device { values, end_us: origin.end_us, used: self.uses };
        if let Some(before) = self.devices.insert(origin.device, device) {
            self.by_use.remove(&before.used);
        }
        self.by_use.insert(self.uses, origin.device);
        self.evict();
    }

    /// Drops the state of a device whose window could not be scored.
    pub(crate) fn drop_of(&mut self, device: u64) {
        if let Some(device) = self.devices.remove(&device) {
            self.by_use.remove(&device.used);
            self.counts.resets += 1;
        }
    }

    pub(crate) fn counts(&self) -> StateCounts {
        StateCounts { devices: self.devices.len() as u64, ..self.counts }
    }

    fn evict(&mut self) {
        while self.devices.len() > self.devices_limit {
            let Some((_, device)) = self.by_use.pop_first() else { return };
            self.devices.remove(&device);
            self.counts.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn origin(device: u64, start_us: i64) -> Origin {
        Origin { device, start_us, end_us: start_us + SECOND }
    }

    #[test]
    fn a_row_goes_into_a_batch_and_comes_back_wherever_the_batch_stands() {
        for (dims, batch) in [(vec![0, 4], 0), (vec![2, 0, 3], 1), (vec![2, 2, 0], 2)] {
            let shape = StateShape::new(dims, batch);
            let rows: Vec<Vec<f32>> = (0..3).map(|row| (0..shape.len()).map(|i| (row * 100 + i) as f32).collect()).collect();
            let mut tensor = vec![0.0; shape.dims(3).iter().product()];
            rows.iter().enumerate().for_each(|(row, values)| shape.put(&mut tensor, (row, 3), values));
            for (row, values) in rows.iter().enumerate() {
                let mut found = Vec::new();
                shape.take(&tensor, (row, 3), &mut found);
                assert_eq!(&found, values, "{shape:?}");
            }
        }
        let shape = StateShape::new(vec![2, 0, 2], 1);
        let mut tensor = vec![0.0; 8];
        shape.put(&mut tensor, (1, 2), &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(tensor, [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0], "row-major, as ONNX has it");
    }

    #[test]
    fn state_goes_with_the_next_window_and_no_other() {
        let gap = 3 * SECOND;
        // The window before ended at 1 s. When the next one starts, and whether it is given the state.
        for (start_us, is_given) in [
            (SECOND + 20_000, true),
            (SECOND + gap, true),
            (SECOND + gap + 1, false),
            (SECOND, false),
            (-SECOND, false),
            (i64::MIN, false),
            (i64::MAX, false),
        ] {
            let mut states = States::new(gap, 10);
            states.keep(&origin(7, 0), vec![1.0]);
            let next = Origin { device: 7, start_us, end_us: start_us };
            assert_eq!(states.of(&next).is_some(), is_given, "a window at {start_us}");
            assert_eq!(states.counts().resets, u64::from(!is_given));
            assert!(states.of(&Origin { device: 8, ..next }).is_none(), "another device");
        }
    }

    #[test]
    fn the_device_that_is_silent_longest_is_forgotten_first_and_counted() {
        let mut states = States::new(60 * SECOND, 2);
        states.keep(&origin(1, 0), vec![1.0]);
        states.keep(&origin(2, 0), vec![2.0]);
        states.keep(&origin(1, 2 * SECOND), vec![1.5]);
        states.keep(&origin(3, 2 * SECOND), vec![3.0]);
        assert_eq!(states.counts(), StateCounts { devices: 2, resets: 0, evicted: 1 });
        assert_eq!(states.of(&origin(2, 2 * SECOND)), None);
        assert_eq!(states.of(&origin(1, 4 * SECOND)), Some([1.5].as_slice()));
        states.limit(0);
        assert_eq!(states.counts(), StateCounts { devices: 1, resets: 0, evicted: 2 });
        assert_eq!(states.of(&origin(3, 4 * SECOND)), Some([3.0].as_slice()));
        states.drop_of(3);
        assert_eq!(states.counts(), StateCounts { devices: 0, resets: 1, evicted: 2 });
        assert!(states.by_use.is_empty());
    }
}
