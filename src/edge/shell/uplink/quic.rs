//! An uplink over QUIC: one control stream with the highest priority, and for each lane one stream for live data and one for
//! backlog.
//!
//! Blocks are written in pieces of [`PIECE_LEN`], so that a block of a lower lane never holds up more than that once QUIC picks
//! the next stream to serve. QUIC has no multipath, so the endpoint, a socket of its own, decides the way out.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weir_host::quic;
use weir_logic::congestion::send_window;
use weir_logic::health::PathStats;
use weir_logic::ids::Class;
use weir_logic::lanes::Flow;

use super::{BLOCKS_LEN, Events, Outgoing, UplinkEvent, UplinkTarget, asking, look_up, words};

/// Largest piece handed to QUIC at once.
const PIECE_LEN: usize = 16 * 1024;
/// How often the path is reported, and how often it is looked at while the congestion window moves.
const PATH_INTERVAL: Duration = Duration::from_millis(250);
const WINDOW_INTERVAL: Duration = Duration::from_millis(25);

/// Connects and moves bytes until the connection ends; returns why.
pub(super) async fn run(target: &UplinkTarget, config: &quinn::ClientConfig, events: &Events, outgoing: Outgoing) -> String {
    match connect(target, config).await {
        Ok(connection) => {
            let _guard = CloseOnDrop(connection.clone());
            converse(connection, events, outgoing).await
        }
        Err(reason) => reason,
    }
}

/// Closes the connection with a word to the peer when the attempt is dropped.
struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(0u32.into(), b"");
    }
}

/// Connects from a socket of its own. The endpoint lives on by itself for as long as its connection does.
async fn connect(target: &UplinkTarget, config: &quinn::ClientConfig) -> Result<Connection, String> {
    let describe = |err: &dyn std::fmt::Display| format!("cannot connect to {}: {err}", target.address);
    let socket = quic::bind(target.local_addr, target.interface.as_deref()).map_err(|err| words(&err))?;
    let endpoint = quic::client_endpoint(socket).map_err(|err| words(&err))?;
    let found = look_up(&target.address, target.local_addr).await?;
    let connecting = endpoint.connect_with(config.clone(), found[0], &target.server_name).map_err(|err| describe(&err))?;
    connecting.await.map_err(|err| describe(&err))
}

/// Moves bytes until the connection ends; returns why.
async fn converse(connection: Connection, events: &Events, outgoing: Outgoing) -> String {
    let Outgoing { control_rx, blocks_rx, asking_rx } = outgoing;
    let (control_out, control_in) = match connection.open_bi().await {
        Ok(streams) => streams,
        Err(err) => return err.to_string(),
    };
    // Above every lane, see `priority`.
    let _ = control_out.set_priority(i32::MAX);
    events.send(UplinkEvent::Connected).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(write_control(control_out, control_rx));
    tasks.spawn(read_control(control_in, events.clone()));
    tasks.spawn(write_blocks(connection.clone(), blocks_rx, events.clone()));
    tasks.spawn(asking::ask(connection.clone(), asking_rx, events.clone()));
    tasks.spawn(watch_path(connection.clone(), events.clone()));
    let reason = tokio::select! {
        reason = connection.closed() => Some(reason.to_string()),
        ended = tasks.join_next() => ended.and_then(|task| task.ok()).and_then(Result::err),
    };
    // The peer's reason says more than the stream error that came of it.
    match (connection.close_reason(), reason) {
        (Some(reason), _) => reason.to_string(),
        (None, Some(reason)) => reason,
        (None, None) => "control stream ended".to_owned(),
    }
}

async fn write_control(mut stream: SendStream, mut control_rx: mpsc::Receiver<Vec<u8>>) -> Result<(), String> {
    while let Some(bytes) = control_rx.recv().await {
        stream.write_all(&bytes).await.map_err(|err| err.to_string())?;
    }
    Ok(())
}

async fn read_control(mut stream: RecvStream, events: Events) -> Result<(), String> {
    while let Some(chunk) = stream.read_chunk(64 * 1024, true).await.map_err(|err| err.to_string())? {
        events.send(UplinkEvent::Control(chunk.bytes)).await;
    }
    Ok(())
}

/// Hands each block to its stream's writer, which is started with the stream's first block.
async fn write_blocks(
    connection: Connection,
    mut blocks_rx: mpsc::Receiver<(Flow, Bytes)>,
    events: Events,
) -> Result<(), String> {
    let mut writers: [Option<mpsc::Sender<Bytes>>; 8] = Default::default();
    let mut tasks = JoinSet::new();
    while let Some((flow, block)) = blocks_rx.recv().await {
        let writer = writers[flow.lane.index() * 2 + usize::from(flow.backlog)].get_or_insert_with(|| {
            let (writer_tx, writer_rx) = mpsc::channel(BLOCKS_LEN);
            tasks.spawn(write_flow(connection.clone(), flow, writer_rx, events.clone()));
            writer_tx
        });
        if writer.send(block).await.is_err() {
            return match tasks.join_next().await {
                Some(Ok(Err(reason))) => Err(reason),
                _ => Err("lane stream ended".to_owned()),
            };
        }
    }
    Ok(())
}

async fn write_flow(
    connection: Connection,
    flow: Flow,
    mut blocks_rx: mpsc::Receiver<Bytes>,
    events: Events,
) -> Result<(), String> {
    let mut stream = connection.open_uni().await.map_err(|err| err.to_string())?;
    let _ = stream.set_priority(priority(flow));
    stream.write_all(&flow.to_bytes()).await.map_err(|err| err.to_string())?;
    while let Some(block) = blocks_rx.recv().await {
        let len = (block.len() as u32).to_le_bytes();
        stream.write_all(&len).await.map_err(|err| err.to_string())?;
        for piece in block.chunks(PIECE_LEN) {
            stream.write_all(piece).await.map_err(|err| err.to_string())?;
        }
        events.send(UplinkEvent::Written { flow, len: block.len() as u64 }).await;
    }
    Ok(())
}

/// Critical above all; among the rest the gateway's shares decide, not QUIC.
fn priority(flow: Flow) -> i32 {
    match flow.lane {
        Class::Critical => 2 - i32::from(flow.backlog),
        Class::High | Class::Normal | Class::Bulk => 0,
    }
}

/// Reports the path, and lets the send window follow the congestion window.
async fn watch_path(connection: Connection, events: Events) -> Result<(), String> {
    let mut reported: Option<Instant> = None;
    let mut cwnd_bytes = 0;
    loop {
        let stats = connection.stats();
        let has_moved = stats.path.cwnd != cwnd_bytes;
        cwnd_bytes = stats.path.cwnd;
        if has_moved {
            connection.set_send_window(send_window(cwnd_bytes));
        }
        if reported.is_none_or(|at| at.elapsed() >= PATH_INTERVAL) {
            reported = Some(Instant::now());
            events.send(UplinkEvent::Path(path_stats(&stats))).await;
        }
        tokio::time::sleep(if has_moved { WINDOW_INTERVAL } else { PATH_INTERVAL }).await;
    }
}

fn path_stats(stats: &quinn::ConnectionStats) -> PathStats {
    PathStats {
        rtt_us: stats.path.rtt.as_micros() as u64,
        rtt_min_us: 0,
        received_packets: stats.udp_rx.datagrams,
        sent_packets: stats.path.sent_packets,
        lost_packets: stats.path.lost_packets,
        sent_bytes: stats.udp_tx.bytes,
        received_bytes: stats.udp_rx.bytes,
        cwnd_bytes: stats.path.cwnd,
        congestion_events: stats.path.congestion_events,
    }
}
