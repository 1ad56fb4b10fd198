//! Watches the cloud's database from outside: what is committed when, and what the models said.
//!
//! `coverage` names every sequence number that was stored or given up, in the transaction that did it. It is read every 20 ms;
//! the first time that a number is seen in it is taken as the time of its commit, which is at most that much too late.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use weir_logic::ids::{Class, PerClass};

use super::DemoError;

const POLL: Duration = Duration::from_millis(20);
/// Verdicts shown of one poll; a backlog brings thousands at once.
const VERDICTS_MAX: i64 = 8;

/// A verdict as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) device: String,
    pub(super) label: String,
    pub(super) confidence: f64,
}

/// A run of sequence numbers that were first seen in the database together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) first: i64,
    pub(super) last: i64,
    /// Microseconds since the start of the demo.
    pub(super) at_us: u64,
}

/// When sequence numbers were seen, by epoch and lane.
#[derive(Debug, Default)]
pub(super) struct Commits {
    seen: BTreeMap<(String, usize), Vec<Seen>>,
}

impl Commits {
    /// When a number was first seen, in microseconds since the start of the demo.
    pub(super) fn at_us(&self, epoch: &str, lane: Class, seq: i64) -> Option<u64> {
        let seen = self.seen.get(&(epoch.to_owned(), lane.index()))?;
        let after = seen.partition_point(|seen| seen.first <= seq);
        seen.get(after.checked_sub(1)?).filter(|seen| seq <= seen.last).map(|seen| seen.at_us)
    }

    /// Takes in all ranges of a lane as they are now; returns those that are new.
    fn update(&mut self, epoch: &str, lane: usize, ranges: &[(i64, i64)], at_us: u64) -> Vec<Seen> {
        let known = self.seen.entry((epoch.to_owned(), lane)).or_default();
        let mut new = Vec::new();
        for &(first, last) in ranges {
            let mut next = first;
            // Sorted by `first`, so that what is between two known ones is new.
            for seen in known.iter().filter(|seen| seen.last >= first && seen.first <= last) {
                if next < seen.first {
                    new.push(Seen { first: next, last: seen.first - 1, at_us });
                }
                next = next.max(seen.last + 1);
            }
            if next <= last {
                new.push(Seen { first: next, last, at_us });
            }
        }
        known.extend(&new);
        known.sort_by_key(|seen| seen.first);
        new
    }
}

/// The thread that watches.
#[derive(Debug)]
pub(super) struct Observer {
    /// Records committed so far, by class.
    pub(super) committed: Arc<PerClass<AtomicU64>>,
    pub(super) verdicts_rx: mpsc::Receiver<Arrived>,
    stop_tx: mpsc::Sender<()>,
    thread: JoinHandle<rusqlite::Result<Commits>>,
}

impl Observer {
    /// Starts watching; times count from `start`.
    pub(super) fn start(database: &Path, start: Instant) -> Result<Observer, DemoError> {
        let connection = open(database)?;
        let committed: Arc<PerClass<AtomicU64>> = Arc::default();
        let (verdicts_tx, verdicts_rx) = mpsc::channel();
        let (stop_tx, stop_rx) = mpsc::channel();
        let counts = committed.clone();
        let watch = move || {
            let mut commits = Commits::default();
            // The last look comes after the cloud has stopped.
            let mut is_last = false;
            loop {
                look(&connection, start, &mut commits, &counts, &verdicts_tx)?;
                if is_last {
                    return Ok(commits);
                }
                is_last = stop_rx.recv_timeout(POLL) != Err(mpsc::RecvTimeoutError::Timeout);
            }
        };
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(watch).map_err(DemoError::System)?;
        Ok(Observer { committed, verdicts_rx, stop_tx, thread })
    }

    /// Looks once more and ends.
    pub(super) fn stop(self) -> Result<Commits, DemoError> {
        drop(self.stop_tx);
        match self.thread.join() {
            Ok(commits) => Ok(commits?),
            Err(_) => Err(DemoError::Part { name: "observer", reason: "its thread panicked".to_owned() }),
        }
    }
}

/// Opens the cloud's database for reading.
pub(super) fn open(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

fn look(
    connection: &Connection,
    start: Instant,
    commits: &mut Commits,
    committed: &PerClass<AtomicU64>,
    verdicts_tx: &mpsc::Sender<Arrived>,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare(
        "SELECT e.epoch, c.lane, c.first, c.last FROM coverage c JOIN epochs e ON e.id = c.epoch_id ORDER BY 1, 2, 3",
    )?;
    let mut lanes: BTreeMap<(String, usize), Vec<(i64, i64)>> = BTreeMap::new();
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        lanes.entry((row.get(0)?, row.get::<_, i64>(1)? as usize)).or_default().push((row.get(2)?, row.get(3)?));
    }
    let at_us = start.elapsed().as_micros() as u64;
    for ((epoch, lane), ranges) in lanes {
        for seen in commits.update(&epoch, lane, &ranges, at_us) {
            if let Some(count) = committed.get(lane) {
                count.fetch_add((seen.last - seen.first + 1) as u64, Relaxed);
            }
            if lane == Class::High.index() {
                tell_verdicts(connection, &epoch, seen, verdicts_tx)?;
            }
        }
    }
    Ok(())
}

fn tell_verdicts(
    connection: &Connection,
    epoch: &str,
    seen: Seen,
    verdicts_tx: &mpsc::Sender<Arrived>,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare(
        "SELECT s.device, v.label, v.confidence FROM verdict_rows v JOIN epochs e ON e.id = v.epoch_id
         JOIN sources s ON s.id = v.source_id WHERE e.epoch = ?1 AND v.lane = ?2 AND v.seq BETWEEN ?3 AND ?4
         ORDER BY v.seq DESC LIMIT ?5",
    )?;
    let lane = Class::High.index() as i64;
    let mut rows = select.query(rusqlite::params![epoch, lane, seen.first, seen.last, VERDICTS_MAX])?;
    let mut arrived = Vec::new();
    while let Some(row) = rows.next()? {
        arrived.push(Arrived { device: row.get(0)?, label: row.get(1)?, confidence: row.get(2)? });
    }
    for verdict in arrived.into_iter().rev() {
        // Nobody looks any more: only the times matter then.
        let _ = verdicts_tx.send(verdict);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_the_time_at_which_it_was_first_seen() {
        let mut commits = Commits::default();
        assert_eq!(commits.update("e", 0, &[(1, 4), (8, 9)], 10).len(), 2);
        // The gap is filled and the end grows: the database now says one range.
        let new = commits.update("e", 0, &[(1, 12)], 20);
        assert_eq!(new, [Seen { first: 5, last: 7, at_us: 20 }, Seen { first: 10, last: 12, at_us: 20 }]);
        let at = |seq| commits.at_us("e", Class::Critical, seq);
        assert_eq!([at(4), at(5), at(8), at(12), at(13)], [Some(10), Some(20), Some(10), Some(20), None]);
        assert_eq!(commits.at_us("other", Class::Critical, 4), None);
    }
}
