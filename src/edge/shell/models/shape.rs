//! What two models must have in common for one to take the other's place while streams go on.

use std::fmt;

use weir_infer::{Manifest, Task};

/// What streams give a model and take from it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    task: Task,
    channels: Vec<String>,
    window: usize,
    rate_hz: f64,
    labels: Vec<String>,
}

impl Shape {
    pub(super) fn of(manifest: &Manifest) -> Shape {
        Shape {
            task: manifest.task,
            channels: manifest.input.channels.clone(),
            window: manifest.input.window,
            rate_hz: manifest.input.rate_hz,
            labels: manifest.output.labels.clone(),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (window, channels, rate_hz) = (self.window, self.channels.join(" "), self.rate_hz);
        write!(f, "windows of {window} samples of {channels} at {rate_hz} Hz for {}", self.task)?;
        if self.labels.is_empty() { Ok(()) } else { write!(f, " into {}", self.labels.join(" ")) }
    }
}
