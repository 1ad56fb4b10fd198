//! Windows for pools and parts of models: a stream for each request, its answer, or its end.

use std::collections::BTreeMap;

use quinn::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use weir_logic::audit::Purpose;
use weir_logic::ids::Class;
use weir_logic::wire::model;

use super::{Asked, Asking, Events, UplinkEvent};

/// Longest answer to a window: a label, a few names and numbers, or a sentence.
const ANSWER_LEN_MAX: usize = 16 * 1024;
/// A request for a part of a model goes beside the lanes: it is as short as a heartbeat. Its answer is what is long, and the
/// cloud sends that after all else.
pub(super) const CHUNK_PRIORITY: i32 = 0;

/// Sends each request on a stream of its own, for as long as the connection lives.
pub(super) async fn ask(connection: Connection, mut asking_rx: mpsc::Receiver<Asking>, events: Events) -> Result<(), String> {
    let mut streams = JoinSet::new();
    // Dropping its end cancels a request.
    let mut cancels: BTreeMap<Asked, oneshot::Sender<()>> = BTreeMap::new();
    loop {
        tokio::select! {
            told = asking_rx.recv() => match told {
                None => return Ok(()),
                Some(Asking::Ask { asked, priority, bytes }) => {
                    let (cancel_tx, cancel_rx) = oneshot::channel();
                    cancels.insert(asked, cancel_tx);
                    streams.spawn(exchange(connection.clone(), asked, priority, bytes, cancel_rx, events.clone()));
                }
                Some(Asking::Cancel(asked)) => drop(cancels.remove(&asked)),
            },
            Some(ended) = streams.join_next() => {
                if let Ok(asked) = ended {
                    cancels.remove(&asked);
                }
            }
        }
    }
}

/// One request; returns its number.
async fn exchange(
    connection: Connection,
    asked: Asked,
    priority: i32,
    bytes: Vec<u8>,
    cancel_rx: oneshot::Receiver<()>,
    events: Events,
) -> Asked {
    let answer = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        let _ = send.set_priority(priority);
        send.write_all(&bytes).await.ok()?;
        let _ = send.finish();
        recv.read_to_end(asked.answer_len_max()).await.ok()
    };
    // Dropped before their ends, the halves of a stream are reset and stopped.
    let answer = tokio::select! {
        answer = answer => answer,
        _ = cancel_rx => return asked,
    };
    // The end of a connection ends all its requests, and is told by itself.
    if connection.close_reason().is_none() {
        events.send(asked.event(answer)).await;
    }
    asked
}

impl Asked {
    fn answer_len_max(self) -> usize {
        match self {
            Asked::Window(_) => ANSWER_LEN_MAX,
            Asked::Chunk(_) => model::ANSWER_LEN_MAX,
        }
    }

    fn event(self, answer: Option<Vec<u8>>) -> UplinkEvent {
        match (self, answer) {
            (Asked::Window(id), Some(bytes)) => UplinkEvent::OffloadAnswered { id, bytes },
            (Asked::Window(id), None) => UplinkEvent::OffloadFailed { id },
            (Asked::Chunk(id), Some(bytes)) => UplinkEvent::ChunkCame { id, bytes },
            (Asked::Chunk(id), None) => UplinkEvent::ChunkFailed { id },
        }
    }
}

/// A window in doubt is awaited: it goes before the lanes that are not critical, and beside critical blocks if it is critical
/// itself. An audit is not: it goes after all lanes.
pub(super) fn priority(class: Class, purpose: Purpose) -> i32 {
    match (purpose, class) {
        (Purpose::Audit, _) => -1,
        (Purpose::Doubt, Class::Critical) => 2,
        (Purpose::Doubt, _) => 1,
    }
}
