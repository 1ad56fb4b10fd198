//! Draws a scene as lines of a terminal, at any size from 60 x 16.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::{bytes, grouped};
use super::scene::{Phase, Scene, short_plan};

/// Width of a backlog's bar.
const BAR_LEN: usize = 20;
/// Fewest records that make a full bar; a handful on their way is no backlog.
const FULL_BAR_MIN: u64 = 200;
/// Lines that are always there; what is left is for verdicts and events.
const FIXED_LINES: usize = 19;

/// How a piece of text looks: the parameter of `ESC [ m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Dim,
    Bold,
    Good,
    Warn,
    Bad,
    Title,
}

impl Look {
    fn code(self) -> &'static str {
        match self {
            Look::Plain => "0",
            Look::Dim => "2",
            Look::Bold => "1",
            Look::Good => "32",
            Look::Warn => "33",
            Look::Bad => "1;31",
            Look::Title => "1;36",
        }
    }
}

/// A line under construction; text beyond the width is cut off.
#[derive(Debug)]
struct Line {
    width: usize,
    used: usize,
    text: String,
}

impl Line {
    fn new(width: usize) -> Line {
        Line { width, used: 0, text: String::new() }
    }

    fn put(mut self, look: Look, text: &str) -> Line {
        let piece: String = text.chars().filter(|c| !c.is_control()).take(self.width - self.used).collect();
        self.used += piece.chars().count();
        if look == Look::Plain {
            self.text.push_str(&piece);
        } else {
            // Writing to a string does not fail.
            let _ = write!(self.text, "\x1b[{}m{piece}\x1b[0m", look.code());
        }
        self
    }

    /// Fills with blanks up to a column.
    fn to(self, column: usize) -> Line {
        let blanks = column.saturating_sub(self.used);
        self.put(Look::Plain, &" ".repeat(blanks))
    }

    fn end(self) -> String {
        self.text
    }
}

/// The whole picture, `height` lines at most.
pub(super) fn draw(scene: &Scene, width: usize, height: usize) -> Vec<String> {
    let mut lines = vec![title(scene, width), progress(scene, width)];
    lines.extend(flow(scene, width));
    lines.push(heading("lane       held  backlog", "in the cloud    on the way   oldest", 36, width));
    lines.extend((0..scene.status.lanes.len()).map(|index| lane(scene, index, width)));
    lines.push(heading("stream      plan", "records folded filtered bad why", 35, width));
    lines.extend((0..scene.status.streams.len()).map(|index| stream(scene, index, width)));
    lines.push(heading("verdicts reaching the cloud", "events", 33, width));
    lines.extend(feed(scene, width, height.saturating_sub(FIXED_LINES).max(3)));
    lines.push(conservation(scene, width));
    lines.truncate(height);
    lines
}

/// One line about everything, for logs and pipes.
pub(super) fn one_line(scene: &Scene) -> String {
    let held: u64 = scene.status.lanes.iter().map(|lane| lane.records).sum();
    let link = match scene.down_for {
        Some(down_for) => format!("link DOWN for {:.0} s", down_for.as_secs_f64()),
        None => format!("link up, {} /s", bytes(scene.rates.wire_bytes as u64)),
    };
    format!(
        "{}  {:>6} msg/s  {link:<22}  published {:>8}  acked {:>8}  held {:>7}  in the cloud {:>8}",
        clock(scene.elapsed),
        format!("{:.0}", scene.rates.messages),
        grouped(scene.published),
        grouped(scene.acked),
        grouped(held),
        grouped(scene.committed.iter().sum()),
    )
}

fn title(scene: &Scene, width: usize) -> String {
    let phase = match scene.phase {
        Phase::Publishing => format!("{} of {}, Ctrl-C ends it", clock(scene.elapsed), clock(scene.publish_for)),
        Phase::Draining => format!("{} emptying the box", clock(scene.elapsed)),
    };
    let line = Line::new(width).put(Look::Title, " weir demo ").put(Look::Bold, &format!(" {phase}"));
    let column = width.saturating_sub(scene.title.chars().count() + 1).max(34);
    line.to(column).put(Look::Dim, &scene.title).end()
}

fn progress(scene: &Scene, width: usize) -> String {
    let share = (scene.elapsed.as_secs_f64() / scene.publish_for.as_secs_f64().max(0.001)).min(1.0);
    let done = (share * width as f64) as usize;
    let look = if scene.down_for.is_some() { Look::Bad } else { Look::Good };
    Line::new(width).put(look, &"━".repeat(done)).put(Look::Dim, &"─".repeat(width - done)).end()
}

/// Sensors, link and cloud.
fn flow(scene: &Scene, width: usize) -> [String; 3] {
    let rates = &scene.rates;
    let label = |text: &str| Line::new(width).put(Look::Bold, text).to(9);
    let sensors = label(" sensors").put(
        Look::Plain,
        &format!(
            "{:>5.0} msg/s {:>9}/s   published {}  acked {}",
            rates.messages,
            bytes(rates.payload_bytes as u64),
            grouped(scene.published),
            grouped(scene.acked)
        ),
    );
    let link = match scene.down_for {
        Some(down_for) => label(" link").put(Look::Bad, &format!("  DOWN for {:.1} s", down_for.as_secs_f64())),
        None => label(" link").put(Look::Good, "  up").put(
            Look::Plain,
            &format!(
                " {:>4.1} Mbit/s {:>9}/s   queue {:<8}",
                scene.link.up.bits_per_s as f64 / 1e6,
                bytes(rates.wire_bytes as u64),
                bytes(scene.link.up.queued_bytes)
            ),
        ),
    };
    let uplink = scene.status.uplinks.first();
    let rtt = match uplink.filter(|uplink| uplink.up) {
        Some(uplink) => format!("rtt {} ms", uplink.rtt_us / 1_000),
        None => "no session".to_owned(),
    };
    let link = link.to(50).put(Look::Plain, &rtt).to(64).put(Look::Dim, &scene.link_name);
    let cloud = label(" cloud").put(
        Look::Plain,
        &format!(
            "{:>5.0} rec/s {:>9} sent   records {}",
            rates.committed,
            bytes(scene.link.up.counts.offered_bytes),
            grouped(scene.committed.iter().sum())
        ),
    );
    [sensors.end(), link.end(), cloud.end()]
}

fn heading(left: &str, right: &str, column: usize, width: usize) -> String {
    Line::new(width).put(Look::Dim, " ").put(Look::Dim, left).to(column).put(Look::Dim, right).end()
}

fn lane(scene: &Scene, index: usize, width: usize) -> String {
    let lane = &scene.status.lanes[index];
    let full = scene.peaks.iter().copied().max().unwrap_or(0).max(FULL_BAR_MIN);
    let filled = ((lane.records * BAR_LEN as u64).div_ceil(full) as usize).min(BAR_LEN);
    let waits = scene.status.uplinks.iter().all(|uplink| !uplink.up);
    let look = if waits { Look::Warn } else { Look::Good };
    let filled = if lane.records == 0 { 0 } else { filled };
    let oldest = lane.oldest_age_us.map_or("-".to_owned(), |us| format!("{:.1} s", us as f64 / 1e6));
    Line::new(width)
        .put(Look::Bold, &format!(" {:<9}", lane.class))
        .put(Look::Plain, &format!("{:>6} ", grouped(lane.records)))
        .put(look, &"█".repeat(filled))
        .put(Look::Dim, &"·".repeat(BAR_LEN - filled))
        .put(Look::Plain, &format!("{:>11}", grouped(scene.committed[index])))
        .put(Look::Plain, &format!("{:>14}", bytes(lane.under_way_bytes)))
        .put(Look::Plain, &format!("{oldest:>9}"))
        .end()
}

fn stream(scene: &Scene, index: usize, width: usize) -> String {
    let stream = &scene.status.streams[index];
    let records = stream.kept + stream.aggregates + stream.verdicts + stream.windows;
    let bad = if stream.undecodable > 0 { Look::Warn } else { Look::Plain };
    Line::new(width)
        .put(Look::Bold, &format!(" {:<12}", stream.name))
        .put(Look::Plain, &format!("{:<22}", short_plan(&stream.plan)))
        .put(Look::Plain, &format!("{:>7}", grouped(records)))
        .put(Look::Plain, &format!("{:>7}", grouped(stream.folded)))
        .put(Look::Plain, &format!("{:>9}", grouped(stream.filtered)))
        .put(bad, &format!("{:>4}", grouped(stream.undecodable)))
        .put(Look::Dim, &format!(" {}", stream.reason.replace("policy asks for ", "policy: ")))
        .end()
}

/// Verdicts on the left, events on the right, newest at the bottom.
fn feed(scene: &Scene, width: usize, rows: usize) -> Vec<String> {
    let verdicts: Vec<_> = scene.verdicts.iter().rev().take(rows).rev().collect();
    let events: Vec<_> = scene.events.iter().rev().take(rows).rev().collect();
    (0..rows)
        .map(|row| {
            let mut line = Line::new(width);
            if let Some(verdict) = verdicts.get(row) {
                let sure = if verdict.confidence < super::setup::UNSURE_BELOW { Look::Warn } else { Look::Good };
                line = line
                    .put(Look::Plain, &format!(" {:<11.11} does ", verdict.device))
                    .put(Look::Bold, &format!("{:<5}", verdict.label))
                    .put(sure, &format!("{:>4.0} %", 100.0 * verdict.confidence));
            }
            line = line.to(33);
            if let Some((at, text)) = events.get(row) {
                let is_bad = text.contains("DOWN") || text.contains("is down") || text.contains("FULL");
                line = line.put(Look::Dim, &format!("{} ", clock(*at))).put(if is_bad { Look::Bad } else { Look::Plain }, text);
            }
            line.end()
        })
        .collect()
}

fn conservation(scene: &Scene, width: usize) -> String {
    let held: u64 = scene.status.lanes.iter().map(|lane| lane.records).sum();
    let unacked = scene.published.saturating_sub(scene.acked);
    let given_up: u64 = scene.status.lanes.iter().map(|lane| lane.evicted + lane.expired + lane.corrupt).sum();
    let unmatched = scene.status.ingest.unmatched;
    let text = format!(
        " unacked {}  held {}  in the cloud {}  given up {given_up}  unmatched {unmatched}",
        grouped(unacked),
        grouped(held),
        grouped(scene.committed.iter().sum()),
    );
    Line::new(width).put(Look::Title, &text).end()
}

fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::observe::Arrived;
    use crate::demo::scene::Director;
    use weir_edge::status::{LaneStatus, StreamStatus, UplinkStatus};

    fn visible(line: &str) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some(at) = rest.find('\x1b') {
            out.push_str(&rest[..at]);
            rest = &rest[at + rest[at..].find('m').unwrap() + 1..];
        }
        out + rest
    }

    fn scene() -> Scene {
        let mut director = Director::new("through, rten, seed 1".to_owned(), "default".to_owned(), Duration::from_secs(60));
        director.event("link is DOWN: nothing gets through".to_owned());
        director.verdict(Arrived { device: "subject10\x1b[2J".to_owned(), label: "ROW".to_owned(), confidence: 0.97 });
        let mut scene = director.scene().clone();
        let lane = |class: &str| LaneStatus { class: class.to_owned(), records: 1_234_567, ..Default::default() };
        scene.status.lanes = ["critical", "high", "normal", "bulk"].map(lane).to_vec();
        scene.status.streams = vec![StreamStatus { name: "temperature".to_owned(), ..Default::default() }; 6];
        scene.status.uplinks = vec![UplinkStatus::default()];
        scene
    }

    #[test]
    fn the_picture_fits_the_terminal() {
        for (width, height) in [(60, 16), (80, 24), (120, 40), (200, 60)] {
            let lines = draw(&scene(), width, height);
            assert!(lines.len() <= height, "{} lines at {width} x {height}", lines.len());
            for line in &lines {
                assert!(visible(line).chars().count() <= width, "{width}: {}", visible(line));
            }
        }
        assert_eq!(draw(&scene(), 80, 24).len(), 24, "all of a usual terminal is used");
    }

    #[test]
    fn what_comes_from_outside_cannot_steer_the_terminal() {
        let picture: String = draw(&scene(), 80, 24).concat();
        assert!(!picture.contains("\x1b[2J"));
    }
}
