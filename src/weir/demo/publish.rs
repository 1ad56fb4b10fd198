//! The sensors as MQTT clients, on a thread of their own, and what each remembers of what it sent.
//!
//! A client is two tasks: one keeps time and hands messages over, the other speaks MQTT and notes what was sent and what was
//! acknowledged. Packet ids tie a PUBACK to its message; the protocol gives them in the order in which messages were handed over.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use weir_host::shutdown::Shutdown;
use weir_logic::ids::PerClass;

use super::traffic::{Client, Kind, Message, Sensor};

/// User and password of all sensors.
pub(super) const USER: &str = "sensors";
pub(super) const PASSWORD: &str = "only for the demo";
/// Messages a client may have under way. Source: above what the fastest client sends in the 2 s that a PUBACK may take.
const INFLIGHT_MAX: u16 = 1_000;
/// Messages handed over that are not on the socket yet.
const QUEUE_LEN: usize = 16;
const PACKET_LEN_MAX: usize = 64 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const RECONNECT_WAIT: Duration = Duration::from_millis(200);

/// Counts while the sensors run.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Messages handed over to be sent.
    pub(super) published: PerClass<AtomicU64>,
    /// Messages whose PUBACK came.
    pub(super) acked: PerClass<AtomicU64>,
    pub(super) payload_bytes: AtomicU64,
    /// Connections lost or refused.
    pub(super) disconnects: AtomicU64,
}

impl Tally {
    pub(super) fn published_total(&self) -> u64 {
        self.published.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub(super) fn acked_total(&self) -> u64 {
        self.acked.iter().map(|count| count.load(Relaxed)).sum()
    }
}

/// What a device's sender remembers.
#[derive(Debug)]
pub(super) struct DeviceLog {
    pub(super) kind: Kind,
    pub(super) device: String,
    /// In the order of their numbers.
    pub(super) sent: Vec<Sent>,
}

/// What a sender remembers of one message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// When it was handed over, in microseconds since the start of the demo.
    pub(super) at_us: u64,
    /// How often it went out.
    pub(super) sends: u8,
    pub(super) acked: bool,
    pub(super) payload_len: u32,
    /// [`payload_hash`]
    pub(super) hash: u64,
    pub(super) value: f64,
    pub(super) time_ms: i64,
}

/// Tells whether a stored payload is the one that was sent.
pub(super) fn payload_hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

/// When sensors speak and fall silent.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// The start of the demo by both clocks; the second in Unix milliseconds.
    pub(super) start: Instant,
    pub(super) start_ms: i64,
    /// No new messages from here on.
    pub(super) quiet: Shutdown,
    /// Connections end here.
    pub(super) end: Shutdown,
}

/// Starts the sensors; the thread returns what they remember once `end` is requested.
///
/// # Errors
/// The system's, if there is no thread or no runtime.
pub(super) fn start(
    clients: Vec<Client>,
    addr: SocketAddr,
    times: Times,
    tally: Arc<Tally>,
) -> io::Result<JoinHandle<Vec<DeviceLog>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("sensors".to_owned()).spawn(move || runtime.block_on(run(clients, addr, times, tally)))
}

async fn run(clients: Vec<Client>, addr: SocketAddr, times: Times, tally: Arc<Tally>) -> Vec<DeviceLog> {
    let mut talkers = JoinSet::new();
    for client in clients {
        let mut options = MqttOptions::new(&client.name, addr.ip().to_string(), addr.port());
        options.set_credentials(USER, PASSWORD).set_keep_alive(KEEP_ALIVE).set_inflight(INFLIGHT_MAX);
        options.set_max_packet_size(PACKET_LEN_MAX, PACKET_LEN_MAX);
        let (mqtt, event_loop) = AsyncClient::new(options, QUEUE_LEN);
        // As many notes as the client may hold messages, so that the clock task never waits for them first.
        let (notes_tx, notes_rx) = mpsc::channel(usize::from(INFLIGHT_MAX) + 2 * QUEUE_LEN);
        let logs = client.sensors.iter().map(DeviceLog::new).collect();
        let talker = Talker { logs, notes_rx, on_the_way: HashMap::new(), tally: tally.clone() };
        talkers.spawn(talker.run(event_loop, times.end.clone()));
        tokio::spawn(keep_time(client, mqtt, notes_tx, times.clone(), tally.clone()));
    }
    talkers.join_all().await.into_iter().flatten().collect()
}

/// A message handed over: which of the client's devices it is from.
#[derive(Debug)]
struct Note {
    device: usize,
    sent: Sent,
}

/// Hands over messages at the client's rate; one that had to wait is followed by those that are overdue.
async fn keep_time(mut client: Client, mqtt: AsyncClient, notes_tx: mpsc::Sender<Note>, times: Times, tally: Arc<Tally>) {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / client.rate_hz));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut quiet = times.quiet.clone();
    let devices = client.sensors.len();
    for turn in 0.. {
        tokio::select! {
            biased;
            () = quiet.requested() => break,
            _ = ticks.tick() => {}
        }
        let elapsed = times.start.elapsed();
        let sensor = &mut client.sensors[turn % devices];
        let Message { topic, payload, value, time_ms } = sensor.next(times.start_ms + elapsed.as_millis() as i64);
        let sent = Sent {
            at_us: elapsed.as_micros() as u64,
            sends: 0,
            acked: false,
            payload_len: payload.len() as u32,
            hash: payload_hash(&payload),
            value,
            time_ms,
        };
        let class = sensor.kind.class().index();
        // Both fail only when the connection has ended for good.
        let is_noted = notes_tx.send(Note { device: turn % devices, sent }).await.is_ok();
        if !is_noted || mqtt.publish_bytes(topic, QoS::AtLeastOnce, false, payload).await.is_err() {
            return;
        }
        tally.published[class].fetch_add(1, Relaxed);
        tally.payload_bytes.fetch_add(u64::from(sent.payload_len), Relaxed);
    }
    // The event loop ends with its last client.
    let mut end = times.end;
    end.requested().await;
}

/// The MQTT side of a client.
struct Talker {
    logs: Vec<DeviceLog>,
    notes_rx: mpsc::Receiver<Note>,
    /// Packet id to device and number.
    on_the_way: HashMap<u16, (usize, usize)>,
    tally: Arc<Tally>,
}

impl Talker {
    async fn run(mut self, mut event_loop: EventLoop, mut end: Shutdown) -> Vec<DeviceLog> {
        // The client forgets what a lost connection left unacknowledged; a sensor must not.
        let mut unacknowledged = VecDeque::new();
        loop {
            let event = tokio::select! {
                event = event_loop.poll() => event,
                () = end.requested() => break,
            };
            match event {
                Ok(Event::Outgoing(Outgoing::Publish(packet_id))) => self.went_out(packet_id),
                Ok(Event::Incoming(Packet::PubAck(ack))) => self.acked(ack.pkid),
                Ok(Event::Incoming(Packet::ConnAck(_))) => event_loop.pending.append(&mut unacknowledged),
                Ok(_) => {}
                Err(err) => {
                    unacknowledged.append(&mut event_loop.pending);
                    self.tally.disconnects.fetch_add(1, Relaxed);
                    tracing::warn!(%err, "sensor is not connected");
                    tokio::time::sleep(RECONNECT_WAIT).await;
                }
            }
        }
        while let Ok(note) = self.notes_rx.try_recv() {
            self.logs[note.device].sent.push(note.sent);
        }
        self.logs
    }

    fn went_out(&mut self, packet_id: u16) {
        let (device, number) = match self.on_the_way.get(&packet_id) {
            // Sent again on a new connection.
            Some(&place) => place,
            None => {
                let Ok(Note { device, sent }) = self.notes_rx.try_recv() else { return };
                self.logs[device].sent.push(sent);
                let place = (device, self.logs[device].sent.len() - 1);
                self.on_the_way.insert(packet_id, place);
                place
            }
        };
        let sent = &mut self.logs[device].sent[number];
        sent.sends = sent.sends.saturating_add(1);
    }

    fn acked(&mut self, packet_id: u16) {
        let Some((device, number)) = self.on_the_way.remove(&packet_id) else { return };
        let log = &mut self.logs[device];
        log.sent[number].acked = true;
        self.tally.acked[log.kind.class().index()].fetch_add(1, Relaxed);
    }
}

impl DeviceLog {
    fn new(sensor: &Sensor) -> DeviceLog {
        DeviceLog { kind: sensor.kind, device: sensor.device.clone(), sent: Vec::new() }
    }
}
