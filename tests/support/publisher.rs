//! A sensor: publishes at a rate, keeps at most a window of messages unacknowledged, and after a lost connection connects
//! again and sends what was not acknowledged once more, marked DUP and in the same order.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, ConnectError, Login, Packet, Version};
use super::script::Message;

/// What a sensor does.
pub struct Sensor {
    /// Where the box listens.
    pub addr: SocketAddr,
    /// Who it is.
    pub login: Login,
    /// Most unacknowledged messages.
    pub window: usize,
    /// Messages a second; 0 for as fast as it goes.
    pub per_s: u32,
    /// Messages in all; it may be stopped earlier.
    pub count_max: u32,
    /// Between two attempts to connect.
    pub reconnect: Duration,
    /// The `n`-th message.
    pub script: Arc<dyn Fn(u32) -> Message + Send + Sync>,
}

/// What a sensor knows of one of its messages.
#[derive(Debug)]
pub struct Sent {
    /// The message.
    pub message: Message,
    /// When it was first sent.
    pub first: Instant,
    /// How often it was sent.
    pub sends: u32,
    /// When its first PUBACK came, and with which reason.
    pub acked: Option<(Instant, u8)>,
}

/// A sensor that runs.
pub struct Running {
    shared: Arc<Shared>,
    thread: JoinHandle<Report>,
}

/// What a sensor has to say at its end.
#[derive(Debug, Default)]
pub struct Report {
    /// True for MQTT 5, whose PUBACKs have reasons.
    pub has_reasons: bool,
    /// Every message, in the order in which they were first sent.
    pub sent: Vec<Sent>,
    /// PUBACKs that came in another order than their messages were sent.
    pub out_of_order: u64,
    /// PUBACKs nobody waited for.
    pub unknown_acks: u64,
    /// Connections.
    pub connects: u64,
    /// Messages unacknowledged at the end.
    pub unacked: usize,
}

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    is_abandoned: AtomicBool,
    sent: AtomicU64,
    acked: AtomicU64,
}

/// How long a sensor waits for PUBACKs before it looks around.
const READ_LIMIT: Duration = Duration::from_millis(5);
/// Between two attempts to connect, unless told otherwise.
const RECONNECT: Duration = Duration::from_millis(20);

impl Sensor {
    /// A sensor without a user name that sends as fast as it may.
    pub fn new(addr: SocketAddr, client_id: &str, script: impl Fn(u32) -> Message + Send + Sync + 'static) -> Self {
        Sensor {
            addr,
            login: Login::anonymous(client_id, Version::V311),
            window: 20,
            per_s: 0,
            count_max: u32::MAX,
            reconnect: RECONNECT,
            script: Arc::new(script),
        }
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let shared = Arc::new(Shared::default());
        let mut state = State {
            started: Instant::now(),
            client: None,
            in_flight: VecDeque::new(),
            next_id: 1,
            report: Report { has_reasons: self.login.version == Version::V5, ..Report::default() },
            shared: shared.clone(),
            sensor: self,
        };
        let thread = std::thread::spawn(move || {
            state.run();
            state.report.unacked = state.in_flight.len();
            state.report
        });
        Running { shared, thread }
    }
}

impl Running {
    /// PUBACKs so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Relaxed)
    }

    /// Messages first sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Relaxed)
    }

    /// Whether all was sent and acknowledged.
    pub fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Sends nothing new from now on; what is unacknowledged is still waited for.
    pub fn stop(&self) {
        self.shared.is_stopped.store(true, Relaxed);
    }

    /// Ends it: at once, whatever is unacknowledged.
    ///
    /// # Panics
    /// If its thread did.
    pub fn abandon(self) -> Report {
        self.shared.is_abandoned.store(true, Relaxed);
        self.thread.join().expect("the sensor did not panic")
    }

    /// Sends nothing new, waits until all is acknowledged, at most `limit`, and ends it.
    ///
    /// # Panics
    /// If its thread did.
    pub fn finish(self, limit: Duration) -> Report {
        self.stop();
        self.wait(limit)
    }

    /// Waits until all of `count_max` is sent and acknowledged, at most `limit`, and ends it.
    ///
    /// # Panics
    /// If its thread did.
    pub fn wait(self, limit: Duration) -> Report {
        let deadline = Instant::now() + limit;
        while !self.is_done() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.abandon()
    }
}

struct State {
    sensor: Sensor,
    shared: Arc<Shared>,
    started: Instant,
    client: Option<Client>,
    /// Packet id and position of what is unacknowledged, oldest first.
    in_flight: VecDeque<(u16, usize)>,
    next_id: u16,
    report: Report,
}

impl State {
    fn run(&mut self) {
        while !self.shared.is_abandoned.load(Relaxed) {
            let all_sent = self.shared.is_stopped.load(Relaxed) || self.report.sent.len() >= self.sensor.count_max as usize;
            if all_sent && self.in_flight.is_empty() {
                return;
            }
            if let Err(err) = self.step(all_sent) {
                assert!(!matches!(err.kind(), ErrorKind::InvalidData), "{}: {err}", self.sensor.login.client_id);
                self.client = None;
            }
        }
    }

    /// Connects if need be, sends what may be sent, takes what has come.
    fn step(&mut self, all_sent: bool) -> io::Result<()> {
        if self.client.is_none() {
            match Client::connect(self.sensor.addr, &self.sensor.login) {
                Ok(client) => self.connected(client)?,
                // A box that is stopping says so; what is asked of the sensor is to come back.
                Err(ConnectError::Refused(0x03 | 0x88 | 0x8b)) => {
                    std::thread::sleep(self.sensor.reconnect);
                    return Ok(());
                }
                Err(ConnectError::Refused(code)) => {
                    return Err(io::Error::new(ErrorKind::InvalidData, format!("refused with code {code:#04x}")));
                }
                Err(ConnectError::Io(_)) => {
                    std::thread::sleep(self.sensor.reconnect);
                    return Ok(());
                }
            }
        }
        while !all_sent && self.may_send() {
            self.send_next()?;
        }
        self.take_acks()
    }

    fn connected(&mut self, client: Client) -> io::Result<()> {
        self.report.connects += 1;
        let client = self.client.insert(client);
        for &(id, at) in &self.in_flight {
            let sent = &mut self.report.sent[at];
            sent.sends += 1;
            client.publish(&sent.message.topic, &sent.message.payload, sent.message.qos, id, true)?;
        }
        Ok(())
    }

    fn may_send(&self) -> bool {
        let sent = self.report.sent.len() as u64;
        let due = match self.sensor.per_s {
            0 => u64::MAX,
            per_s => (self.started.elapsed().as_secs_f64() * f64::from(per_s)) as u64 + 1,
        };
        self.in_flight.len() < self.sensor.window && sent < u64::from(self.sensor.count_max).min(due)
    }

    fn send_next(&mut self) -> io::Result<()> {
        let Some(client) = &mut self.client else { return Err(ErrorKind::NotConnected.into()) };
        let message = (self.sensor.script)(self.report.sent.len() as u32);
        let (at, id) = (self.report.sent.len(), self.next_id);
        // What is written to a broken connection counts as sent: nobody knows how far it came.
        let outcome = client.publish(&message.topic, &message.payload, message.qos, id, false);
        if message.qos > 0 {
            self.in_flight.push_back((id, at));
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        }
        self.report.sent.push(Sent { message, first: Instant::now(), sends: 1, acked: None });
        self.shared.sent.fetch_add(1, Relaxed);
        outcome
    }

    fn take_acks(&mut self) -> io::Result<()> {
        let mut limit = READ_LIMIT;
        while let Some(client) = &mut self.client {
            let Some(packet) = client.read(limit)? else { return Ok(()) };
            match packet {
                Packet::PubRec { id } => client.release(id)?,
                Packet::PubComp { id } => self.take_ack(id, 0),
                Packet::PubAck { id, reason } => self.take_ack(id, reason),
                Packet::Disconnect { .. } => return Err(ErrorKind::ConnectionAborted.into()),
                Packet::ConnAck { .. } | Packet::Other(_) => {
                    return Err(io::Error::new(ErrorKind::InvalidData, format!("{packet:?} was not expected")));
                }
            }
            limit = Duration::from_millis(1);
        }
        Ok(())
    }
    fn take_ack(&mut self, id: u16, reason: u8) {
        match self.in_flight.iter().position(|&(own, _)| own == id) {
            Some(at) => {
                self.report.out_of_order += u64::from(at > 0);
                let (_, nth) = self.in_flight.remove(at).expect("its position was just found");
                self.report.sent[nth].acked = Some((Instant::now(), reason));
                self.shared.acked.fetch_add(1, Relaxed);
            }
            None => self.report.unknown_acks += 1,
        }
    }
}
