//! What a run came to: for machines as JSON, for people as a page.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use weir_logic::ids::Class;

use super::oracle::Judgement;

/// The outcome of a run. Counts of messages and records are the oracle's, not those of the box or of the cloud.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// True if nothing was lost, doubled, missing or wrong.
    pub ok: bool,
    /// True if it was ended before its time.
    pub interrupted: bool,
    /// True if everything had left the box before it was stopped.
    pub drained: bool,
    /// What the random parts were drawn from.
    pub seed: u64,
    /// When PUBACKs were sent: `disk` or `through`.
    pub mode: String,
    /// The engine that ran the model: `ort` or `rten`.
    pub backend: String,
    /// Name of the link.
    pub link: String,
    /// Time in which sensors published, in seconds.
    pub publish_s: f64,
    /// From the end of publishing until the box was empty, in seconds.
    pub drain_s: f64,
    /// Sums over all classes.
    #[serde(flatten)]
    pub total: ClassReport,
    /// Verdicts of the model in the cloud.
    pub inferred: u64,
    /// Of the verdicts on windows with one exercise, the share that names it.
    pub accuracy: Option<f64>,
    /// Raw windows that went along because the model was not sure.
    pub windows: u64,
    /// Records the box still held when it was stopped.
    pub held: u64,
    /// Connections that sensors lost.
    pub disconnects: u64,
    /// Time without link, in seconds.
    pub outage_s: f64,
    /// UDP payload that the box sent to the link, with repetitions and acknowledgements.
    pub wire_bytes: u64,
    /// UDP payload that the cloud sent to the link.
    pub wire_bytes_down: u64,
    /// By class.
    pub classes: BTreeMap<&'static str, ClassReport>,
    /// From handing a message to the MQTT client until its record is seen in the cloud's database (looked at every 20 ms), by
    /// class; for `high` from the message that completed a window to the window's verdict. Aggregates are not in it.
    pub latency_ms: BTreeMap<&'static str, Latency>,
    /// What is wrong, in words; the first few of each kind.
    pub findings: Vec<String>,
}

/// What became of the messages of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClassReport {
    /// Messages handed to MQTT clients.
    pub published: u64,
    /// Messages whose PUBACK came.
    pub acked: u64,
    /// Records in the cloud.
    pub stored: u64,
    /// Messages that the rules of their stream let go.
    pub filtered: u64,
    /// Messages that went into an aggregate or a window.
    pub folded: u64,
    /// Records left out of what was sent, because the link could not carry all.
    pub thinned: u64,
    /// Records given up because their lane was full.
    pub evicted: u64,
    /// Records given up because they were too old.
    pub expired: u64,
    /// Messages that did not decode.
    pub undecodable: u64,
    /// Messages on a topic that no stream wants.
    pub unmatched: u64,
    /// Records stored again because their sender, unacknowledged, sent them again.
    pub resent: u64,
    /// Sequence numbers that neither came nor were given up.
    pub missing: u64,
    /// Messages that got their PUBACK, should be in a record, and are in none.
    pub lost: u64,
    /// Records stored twice.
    pub doubled: u64,
    /// Records that are not what was sent, or should not be there.
    pub wrong: u64,
    /// Bytes of payload published.
    pub payload_bytes: u64,
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the records were faster.
    pub p50: f64,
    /// One in a hundred was slower.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
    /// Records measured.
    pub count: u64,
}

impl Report {
    /// Takes in what the oracle says.
    pub(super) fn take(&mut self, judgement: Judgement) {
        for (class, counts) in Class::ALL.into_iter().zip(judgement.classes) {
            self.total.add(&counts);
            self.classes.insert(class.name(), counts);
        }
        for (class, us) in Class::ALL.into_iter().zip(judgement.latency_us) {
            self.latency_ms.extend(Latency::of(us).map(|latency| (class.name(), latency)));
        }
        (self.inferred, self.windows, self.held) = (judgement.verdicts, judgement.windows, judgement.held);
        self.accuracy = (judgement.judged > 0).then(|| judgement.right as f64 / judgement.judged as f64);
        self.findings = judgement.findings;
        self.ok = self.total.is_conserved();
    }
}

impl ClassReport {
    /// Adds another class.
    pub(super) fn add(&mut self, other: &ClassReport) {
        let pairs = [
            (&mut self.published, other.published),
            (&mut self.acked, other.acked),
            (&mut self.stored, other.stored),
            (&mut self.filtered, other.filtered),
            (&mut self.folded, other.folded),
            (&mut self.thinned, other.thinned),
            (&mut self.evicted, other.evicted),
            (&mut self.expired, other.expired),
            (&mut self.undecodable, other.undecodable),
            (&mut self.unmatched, other.unmatched),
            (&mut self.resent, other.resent),
            (&mut self.missing, other.missing),
            (&mut self.lost, other.lost),
            (&mut self.doubled, other.doubled),
            (&mut self.wrong, other.wrong),
            (&mut self.payload_bytes, other.payload_bytes),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }

    /// True if nothing was lost, doubled, missing or wrong.
    pub(super) fn is_conserved(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.missing == 0 && self.wrong == 0
    }
}

impl Latency {
    /// Of latencies in microseconds; `None` if there are none.
    pub(super) fn of(mut us: Vec<u64>) -> Option<Latency> {
        us.sort_unstable();
        let rank = |share: f64| ((us.len() as f64 * share).ceil() as usize).clamp(1, us.len()) - 1;
        let ms = |at: usize| us[at] as f64 / 1_000.0;
        let last = us.len().checked_sub(1)?;
        Some(Latency { p50: ms(rank(0.5)), p99: ms(rank(0.99)), max: ms(last), count: us.len() as u64 })
    }
}

/// The page at the end of a run: first the verdict, then the numbers, in 80 columns.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = &self.total;
        if self.ok {
            let published = grouped(total.published);
            writeln!(f, "Nothing lost, nothing doubled, nothing missing: {published} messages")?;
            writeln!(f, "accounted for, each by its id and by what was sent, not by Weir's own counters.")?;
        } else {
            let ClassReport { lost, doubled, missing, wrong, .. } = total;
            writeln!(f, "NOT CONSERVED: {lost} lost, {doubled} doubled, {missing} missing, {wrong} wrong")?;
            for finding in &self.findings {
                writeln!(f, "  {finding}")?;
            }
        }
        writeln!(f)?;
        self.write_sums(f)?;
        writeln!(f)?;
        self.write_classes(f)?;
        writeln!(f, "folded: part of a verdict or an average; filtered: had not changed enough;")?;
        writeln!(f, "refused: what two broken sensors send. Times are from publishing to the cloud.")
    }
}

impl Report {
    fn write_sums(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = &self.total;
        let (published, acked) = (grouped(total.published), grouped(total.acked));
        writeln!(f, "sensors  {published} messages in {:.0} s, {acked} acknowledged", self.publish_s)?;
        let share = 100.0 * self.wire_bytes as f64 / total.payload_bytes.max(1) as f64;
        let (wire, payload) = (bytes(self.wire_bytes), bytes(total.payload_bytes));
        writeln!(f, "link     {:.1} s down; {wire} sent for {payload} of payload ({share:.0} %)", self.outage_s)?;
        let right = self.accuracy.map_or(String::new(), |share| format!(", {:.0} % right", 100.0 * share));
        let (verdicts, windows) = (grouped(self.inferred), grouped(self.windows));
        writeln!(f, "model    {verdicts} verdicts by {}{right}; {windows} unsure, sent raw", self.backend)?;
        writeln!(f, "cloud    {} records", grouped(total.stored))?;
        for (count, what) in [
            (self.held, "records still on the box: the link was too slow to empty it"),
            (total.evicted, "records evicted because their lane was full"),
            (total.expired, "records expired"),
            (total.resent, "records sent again by sensors that saw no PUBACK"),
        ] {
            if count > 0 {
                writeln!(f, "         {} {what}", grouped(count))?;
            }
        }
        Ok(())
    }

    fn write_classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "class     published   stored   folded filtered refused       p50       p99")?;
        for (name, class) in in_order(&self.classes) {
            let refused = class.undecodable + class.unmatched;
            let latency = self.latency_ms.get(name).copied().unwrap_or_default();
            writeln!(
                f,
                "{name:<9} {:>9} {:>8} {:>8} {:>8} {refused:>7} {:>9} {:>9}",
                grouped(class.published),
                grouped(class.stored),
                grouped(class.folded),
                grouped(class.filtered),
                milliseconds(latency.p50),
                milliseconds(latency.p99)
            )?;
        }
        Ok(())
    }
}

fn in_order<'r>(classes: &'r BTreeMap<&'static str, ClassReport>) -> impl Iterator<Item = (&'static str, &'r ClassReport)> {
    Class::ALL.iter().filter_map(|class| Some((class.name(), classes.get(class.name())?)))
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size for people.
pub(super) fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn milliseconds(ms: f64) -> String {
    if ms < 1_000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1_000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        assert_eq!(Latency::of(Vec::new()), None);
        let latency = Latency::of((1..=1_000).rev().map(|ms| ms * 1_000).collect()).unwrap();
        assert_eq!(latency, Latency { p50: 500.0, p99: 990.0, max: 1_000.0, count: 1_000 });
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let mut report = Report::default();
        report.latency_ms.insert("critical", Latency::default());
        let json = serde_json::to_value(&report).unwrap();
        for key in [
            "published",
            "acked",
            "stored",
            "filtered",
            "folded",
            "thinned",
            "evicted",
            "expired",
            "undecodable",
            "unmatched",
            "resent",
            "missing",
            "lost",
            "doubled",
            "inferred",
            "outage_s",
            "wire_bytes",
            "payload_bytes",
        ] {
            assert!(json[key].is_number(), "{key}");
        }
        assert!(json["latency_ms"]["critical"]["p50"].is_number() && json["latency_ms"]["critical"]["p99"].is_number());
    }

    #[test]
    fn the_page_says_first_what_went_wrong() {
        let mut report = Report { ok: true, accuracy: Some(1.0), inferred: 1_234_567, windows: 123_456, ..Report::default() };
        report.backend = "rten".to_owned();
        (report.total.published, report.total.payload_bytes, report.wire_bytes) = (98_765_432, 1 << 30, 1 << 29);
        assert!(report.to_string().starts_with("Nothing lost, nothing doubled"));
        assert!(report.to_string().lines().all(|line| line.len() <= 80), "{report}");
        (report.ok, report.total.lost) = (false, 3);
        report.findings.push("pump/n1/7 is nowhere".to_owned());
        let page = report.to_string();
        assert!(
            page.starts_with("NOT CONSERVED: 3 lost") && page.contains("pump/n1/7") && !page.contains("Nothing lost"),
            "{page}"
        );
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!([grouped(0), grouped(999), grouped(1_000), grouped(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
    }
}
