//! One request: its stream, from the gateway's bytes to the answer. Most are windows for a pool; some want a part of a model.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{RecvStream, SendStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use weir_logic::wire::offload::{OFFLOAD_VALUES_MAX, OffloadRefusal, RefusalKind};
use weir_logic::wire::{self, Body};

use super::{Door, ToDesk};
use crate::models::Library;

/// Longest request: the values and all else that is in it.
const REQUEST_LEN_MAX: usize = 4 * OFFLOAD_VALUES_MAX + 8 * 1024;
/// How long a gateway has for sending one.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a stream to its end.
pub(crate) async fn serve(
    door: Arc<Door>,
    library: Option<Library>,
    gateway: Arc<str>,
    send: SendStream,
    mut recv: RecvStream,
) {
    let Ok(_place) = door.places.try_acquire() else {
        door.over_limit.fetch_add(1, Relaxed);
        let _ = recv.stop(0u32.into());
        return answer(send, refusal(RefusalKind::Busy, "too many requests at once", 1_000)).await;
    };
    let bytes = match timeout(READ_TIMEOUT, recv.read_to_end(REQUEST_LEN_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        // Reset, too long, or too slow.
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    let request = match (take_request(&bytes), library) {
        (Some(Body::OffloadRequest(request)), _) => request,
        (Some(Body::ModelAsk(ask)), Some(library)) => {
            // After all else that this connection has to say.
            let _ = send.set_priority(i32::MIN);
            return answer(send, library.answer(&gateway, ask).await).await;
        }
        _ => {
            door.garbled.fetch_add(1, Relaxed);
            return answer(send, refusal(RefusalKind::Failed, "the stream carries no request", 0)).await;
        }
    };
    if let Some(machine) = door.machine_of(&request.pool) {
        return tokio::select! {
            body = machine.pass_on(&gateway, &bytes) => answer(send, body).await,
            // Dropped, the stream to the machine is reset, and it hears the same.
            _ = send.stopped() => {}
        };
    }
    let id = door.next_id.fetch_add(1, Relaxed);
    let (reply_tx, reply_rx) = oneshot::channel();
    let asked = ToDesk::Request { id, gateway, request, reply_tx };
    let body = match door.desk_tx.try_send(asked) {
        Ok(()) => tokio::select! {
            reply = reply_rx => reply.unwrap_or_else(|_| refusal(RefusalKind::Busy, "the cloud is stopping", 5_000)),
            _ = send.stopped() => {
                // A desk that is gone needs to be told nothing.
                let _ = door.desk_tx.send(ToDesk::Cancelled { id }).await;
                return;
            }
        },
        Err(_) => {
            door.over_limit.fetch_add(1, Relaxed);
            refusal(RefusalKind::Busy, "too many requests at once", 1_000)
        }
    };
    answer(send, body).await;
}

async fn answer(mut send: SendStream, body: Body) {
    let mut bytes = Vec::new();
    wire::encode_control(body, &mut bytes);
    // Who has gone does not want to know.
    if send.write_all(&bytes).await.is_ok() {
        let _ = send.finish();
    }
}

fn take_request(bytes: &[u8]) -> Option<Body> {
    wire::take_control(&mut BytesMut::from(bytes)).ok().flatten()?.body
}

/// A refusal with its words.
pub(super) fn refusal(kind: RefusalKind, reason: &str, retry_after_ms: u32) -> Body {
    Body::OffloadRefusal(OffloadRefusal { kind: kind.code(), reason: reason.to_owned(), retry_after_ms })
}
