//! "Why, and where is it?", asked of the cloud about one gateway.
//!
//! The box knows why: it is asked over the control stream of its newest session, and given a few seconds. The cloud knows what has
//! come: that is read from the database in any case, so that there is an answer when the box is away, too old, or busy.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use weir_host::admin::Answer;
use weir_logic::gateway::{Explanation, Question, RecordId};
use weir_logic::ids::Class;

use crate::enrol::Enrolled;
use crate::hub::ToHub;

/// How long a box has for its answer.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// How long to wait for the database.
const DATABASE_WAIT: Duration = Duration::from_secs(1);

/// What box and cloud say of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayAnswer {
    /// The gateway.
    pub gateway: String,
    /// What the box says; `None` if it was not to be had.
    pub answer: Option<Explanation>,
    /// Why the box says nothing, in words.
    pub no_answer: Option<String>,
    /// When the cloud last stored something of it or greeted it, in Unix microseconds; `None` if never.
    pub last_seen_us: Option<i64>,
    /// What is stored of its newest epoch, by lane.
    pub lanes: Vec<StoredLane>,
    /// Whether the record is stored, if one was asked for.
    pub record: Option<StoredRecord>,
}

/// What is stored of one lane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredLane {
    /// The lane.
    pub lane: String,
    /// The epoch, 16 hexadecimal digits.
    pub epoch: String,
    /// The highest number that is stored, or noted as given up.
    pub last_seq: Option<u64>,
    /// Numbers below it that are neither.
    pub gaps: u64,
}

/// What is on record of one record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredRecord {
    /// Its name.
    pub record: String,
    /// One word: `stored`, `left-out`, `void`, `missing`, or `absent`.
    pub place: String,
    /// The same in words.
    pub text: String,
}

/// How a question is answered.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) hub_tx: mpsc::WeakSender<ToHub>,
    pub(crate) enrolled_rx: watch::Receiver<Enrolled>,
    pub(crate) database: Arc<Path>,
}

impl Asker {
    /// Answers `query` about a gateway, as JSON.
    pub(crate) fn ask(&self, gateway: &str, query: &str) -> Answer {
        let (asker, gateway, query) = (self.clone(), gateway.to_owned(), query.to_owned());
        Box::pin(async move {
            let question: Question = query.parse().map_err(|err: weir_logic::gateway::QuestionError| err.to_string())?;
            let record = if let Question::Record(id) = &question { Some(*id) } else { None };
            let (database, name) = (asker.database.clone(), gateway.clone());
            let read = tokio::task::spawn_blocking(move || stored(&database, &name, record));
            let said = asker.ask_box(&gateway, query).await?;
            let stored = read.await.map_err(|err| err.to_string())?;
            let mut answer = stored.map_err(|err| format!("the database cannot be read: {err}"))?;
            let is_enrolled = asker.enrolled_rx.borrow().contains(&gateway);
            if answer.last_seen_us.is_none() && !is_enrolled && said.is_err() {
                return Err(format!("there is no gateway `{gateway}`: it is not enrolled, and nothing has come from it"));
            }
            match said.and_then(|json| serde_json::from_str(&json).map_err(|err| format!("its answer cannot be read: {err}"))) {
                Ok(explanation) => answer.answer = Some(explanation),
                Err(reason) => answer.no_answer = Some(reason),
            }
            serde_json::to_string(&answer).map_err(|err| err.to_string())
        })
    }

    /// The box's own words, or why there are none; an error if the cloud is at its end.
    async fn ask_box(&self, gateway: &str, question: String) -> Result<Result<String, String>, String> {
        let stopping = || "the cloud is stopping".to_owned();
        let (answer_tx, answer_rx) = oneshot::channel();
        let hub_tx = self.hub_tx.upgrade().ok_or_else(stopping)?;
        hub_tx.send(ToHub::Asked { gateway: gateway.into(), question, answer_tx }).await.map_err(|_| stopping())?;
        Ok(match tokio::time::timeout(ANSWER_WAIT, answer_rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("its connection ended before it answered".to_owned()),
            Err(_) => Err(format!("it gave no answer within {} s", ANSWER_WAIT.as_secs())),
        })
    }
}

/// What the database has of a gateway, and of a record.
fn stored(database: &Path, gateway: &str, record: Option<RecordId>) -> rusqlite::Result<GatewayAnswer> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(DATABASE_WAIT)?;
    let mut answer = GatewayAnswer { gateway: gateway.to_owned(), ..GatewayAnswer::default() };
    let found = connection
        .query_row("SELECT id, last_seen_us, current_epoch_id FROM gateways WHERE name = ?", [gateway], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?))
        })
        .optional()?;
    let epoch_of =
        |id: i64| connection.query_row("SELECT epoch FROM epochs WHERE id = ?", [id], |row| row.get::<_, String>(0)).optional();
    if let Some((_, last_seen_us, current)) = found {
        answer.last_seen_us = Some(last_seen_us);
        if let Some(id) = current
            && let Some(epoch) = epoch_of(id)?
        {
            answer.lanes = lanes(&connection, id, &epoch)?;
        }
    }
    if let Some(record) = record {
        let of_epoch = "SELECT id FROM epochs WHERE gateway_id = ? AND epoch = ?";
        let epoch_id: Option<i64> = match found {
            Some((id, ..)) => {
                connection.query_row(of_epoch, params![id, format!("{:016x}", record.epoch.0)], |row| row.get(0)).optional()?
            }
            None => None,
        };
        answer.record = Some(find(&connection, epoch_id, record)?);
    }
    Ok(answer)
}

fn lanes(connection: &Connection, epoch_id: i64, epoch: &str) -> rusqlite::Result<Vec<StoredLane>> {
    let mut sums =
        connection.prepare("SELECT max(last), sum(last - first + 1) FROM coverage WHERE epoch_id = ? AND lane = ?")?;
    let lane = |class: Class| {
        sums.query_row(params![epoch_id, class.index()], |row| {
            let (last_seq, count): (Option<u64>, Option<u64>) = (row.get(0)?, row.get(1)?);
            let gaps = last_seq.map_or(0, |last_seq| (last_seq + 1).saturating_sub(count.unwrap_or_default()));
            Ok(StoredLane { lane: class.name().to_owned(), epoch: epoch.to_owned(), last_seq, gaps })
        })
    };
    Class::ALL.into_iter().map(lane).collect()
}

/// Where a record is, by the cloud's tables.
fn find(connection: &Connection, epoch_id: Option<i64>, record: RecordId) -> rusqlite::Result<StoredRecord> {
    let told = |place: &str, text: String| StoredRecord { record: record.to_string(), place: place.to_owned(), text };
    let Some(epoch_id) = epoch_id else {
        return Ok(told("absent", "the cloud has seen nothing of this epoch".to_owned()));
    };
    let key = params![epoch_id, record.lane.index(), record.seq];
    for (table, what) in [
        ("sample_rows", "a message"),
        ("aggregate_rows", "an aggregate"),
        ("verdict_rows", "a verdict"),
        ("window_rows", "a window"),
    ] {
        let sql = format!(
            "SELECT s.stream, s.device FROM {table} r JOIN sources s ON s.id = r.source_id \
             WHERE r.epoch_id = ? AND r.lane = ? AND r.seq = ? LIMIT 1"
        );
        let source = connection.query_row(&sql, key, |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
        if let Some((stream, device)) = source.optional()? {
            let of = if device.is_empty() { String::new() } else { format!(", device {device}") };
            return Ok(told("stored", format!("the cloud has it: {what} of stream {stream}{of}")));
        }
    }
    let within = |table: &str, column: &str| {
        let sql = format!(
            "SELECT {column} FROM {table} WHERE epoch_id = ?1 AND lane = ?2 AND first <= ?3 AND last >= ?3 ORDER BY first DESC"
        );
        connection.query_row(&sql, key, |row| row.get::<_, String>(0)).optional()
    };
    if let Some(reason) = within("void_rows", "reason")? {
        return Ok(told("void", format!("the box gave it up ({reason}) before the cloud had it")));
    }
    if within("missing_rows", "'missing'")?.is_some() {
        return Ok(told(
            "missing",
            "it neither came nor was given up, and the box holds it no more: this is an alert".to_owned(),
        ));
    }
    if within("thinned_rows", "'thinned'")?.is_some() {
        return Ok(told("left-out", "the box left it out, because the uplink could not carry all at full fidelity".to_owned()));
    }
    if within("coverage", "'covered'")?.is_some() {
        return Ok(told("stored", "the cloud had it; its row was deleted since".to_owned()));
    }
    Ok(told("absent", "the cloud does not have it".to_owned()))
}
