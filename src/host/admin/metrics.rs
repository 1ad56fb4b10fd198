//! The Prometheus text format, written by hand: it is four rules and an escape.

use std::fmt::Write as _;

/// Collects metrics as text. Call once per metric name, with all of its label sets.
#[derive(Debug, Default)]
pub struct MetricsText {
    text: String,
}

impl MetricsText {
    /// An empty text.
    pub fn new() -> Self {
        Self::default()
    }

    /// A value that only grows; `name` ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.sample(name, &[], value as f64);
    }

    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        self.sample(name, &[], value);
    }

    /// A counter with labels: each item is its labels (name, value) and its count.
    pub fn counters<'a, L>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (L, u64)>)
    where
        L: AsRef<[(&'a str, &'a str)]>,
    {
        self.head(name, help, "counter");
        for (labels, value) in samples {
            self.sample(name, labels.as_ref(), value as f64);
        }
    }

    /// A gauge with labels: each item is its labels (name, value) and its value.
    pub fn gauges<'a, L>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (L, f64)>)
    where
        L: AsRef<[(&'a str, &'a str)]>,
    {
        self.head(name, help, "gauge");
        for (labels, value) in samples {
            self.sample(name, labels.as_ref(), value);
        }
    }

    /// The text for `/metrics`.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{name}=\"{value}\"")
            })
            .collect();
        let value = if value == f64::INFINITY {
            "+Inf".to_owned()
        } else if value == f64::NEG_INFINITY {
            "-Inf".to_owned()
        } else {
            value.to_string()
        };
        if labels.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_in_the_prometheus_text_format() {
        let mut metrics = MetricsText::new();
        metrics.counter("weir_ingest_messages_total", "Messages taken in.", 1 << 40);
        metrics.gauge("weir_lane_bytes", "Two\nlines \\ back", 0.5);
        metrics.counters(
            "weir_drops_total",
            "Dropped.",
            [([("reason", "a\"b\\c\nd"), ("lane", "bulk")], 3), ([("reason", "x"), ("lane", "y")], 0)],
        );
        metrics.gauges("weir_up", "Up.", [(vec![("uplink", "lte")], f64::INFINITY)]);
        assert_eq!(
            metrics.finish(),
            "# HELP weir_ingest_messages_total Messages taken in.\n\
             # TYPE weir_ingest_messages_total counter\n\
             weir_ingest_messages_total 1099511627776\n\
             # HELP weir_lane_bytes Two\\nlines \\\\ back\n\
             # TYPE weir_lane_bytes gauge\n\
             weir_lane_bytes 0.5\n\
             # HELP weir_drops_total Dropped.\n\
             # TYPE weir_drops_total counter\n\
             weir_drops_total{reason=\"a\\\"b\\\\c\\nd\",lane=\"bulk\"} 3\n\
             weir_drops_total{reason=\"x\",lane=\"y\"} 0\n\
             # HELP weir_up Up.\n\
             # TYPE weir_up gauge\n\
             weir_up{uplink=\"lte\"} +Inf\n"
        );
    }
}
