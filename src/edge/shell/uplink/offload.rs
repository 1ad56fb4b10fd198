//! Windows for pools: a stream for each, its answer, or its end.

use std::collections::BTreeMap;

use quinn::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use weir_logic::audit::Purpose;
use weir_logic::ids::Class;

use super::{Events, ToPool, UplinkEvent};

/// Longest answer: a label, a few names and numbers, or a sentence.
const ANSWER_LEN_MAX: usize = 16 * 1024;

/// Sends each window on a stream of its own, for as long as the connection lives.
pub(super) async fn ask(connection: Connection, mut offloads_rx: mpsc::Receiver<ToPool>, events: Events) -> Result<(), String> {
    let mut streams = JoinSet::new();
    // Dropping its end cancels a request.
    let mut cancels: BTreeMap<u64, oneshot::Sender<()>> = BTreeMap::new();
    loop {
        tokio::select! {
            told = offloads_rx.recv() => match told {
                None => return Ok(()),
                Some(ToPool::Ask { id, priority, bytes }) => {
                    let (cancel_tx, cancel_rx) = oneshot::channel();
                    cancels.insert(id, cancel_tx);
                    streams.spawn(exchange(connection.clone(), id, priority, bytes, cancel_rx, events.clone()));
                }
                Some(ToPool::Cancel { id }) => drop(cancels.remove(&id)),
            },
            Some(ended) = streams.join_next() => {
                if let Ok(id) = ended {
                    cancels.remove(&id);
                }
            }
        }
    }
}

/// One request; returns its number.
async fn exchange(
    connection: Connection,
    id: u64,
    priority: i32,
    bytes: Vec<u8>,
    cancel_rx: oneshot::Receiver<()>,
    events: Events,
) -> u64 {
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        let _ = send.set_priority(priority);
        send.write_all(&bytes).await.ok()?;
        let _ = send.finish();
        recv.read_to_end(ANSWER_LEN_MAX).await.ok()
    };
    // Dropped before their ends, the halves of a stream are reset and stopped.
    let answer = tokio::select! {
        answer = asked => answer,
        _ = cancel_rx => return id,
    };
    // The end of a connection ends all its requests, and is told by itself.
    if connection.close_reason().is_none() {
        let event = match answer {
            Some(bytes) => UplinkEvent::OffloadAnswered { id, bytes },
            None => UplinkEvent::OffloadFailed { id },
        };
        events.send(event).await;
    }
    id
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
