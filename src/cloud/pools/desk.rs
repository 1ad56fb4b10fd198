//! The desk: one task that owns every pool's scheduler, and carries out what they say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use weir_host::shutdown::Shutdown;
use weir_infer::{BatchWorker, Manifest, Ran};
use weir_logic::ids::Class;
use weir_logic::pool::{Pool, PoolOutput, PoolRequest, RefusedReason};
use weir_logic::wire::Body;
use weir_logic::wire::offload::{OffloadAnswer, OffloadRequest, PoolView, RefusalKind};

use super::serve::refusal;
use super::{PoolStatus, Remote, ToDesk, allows, limits};
use crate::config::Pool as PoolConfig;

/// How often the status is published.
const SHOWN_EVERY: Duration = Duration::from_secs(1);
/// A deadline that is further away than this is no deadline: the gateway has given up long before.
const DEADLINE_US_MAX: u64 = 60_000_000;

/// All pools.
pub(crate) struct Desk {
    pools: Vec<OnePool>,
    desk_rx: mpsc::Receiver<ToDesk>,
    ran_rx: mpsc::UnboundedReceiver<ToDesk>,
    shown_tx: watch::Sender<Arc<Vec<PoolStatus>>>,
    remotes: Vec<Remote>,
    /// Names of pools that are left out because another has them: told once.
    hidden: BTreeSet<String>,
    /// In which pool a request is.
    places: HashMap<u64, usize>,
    started: Instant,
}

struct OnePool {
    name: String,
    scheduler: Pool,
    workers: Vec<BatchWorker>,
    manifest: Manifest,
    view: PoolView,
    gateways: Vec<String>,
    queue_max: usize,
    open: BTreeMap<u64, Open>,
    /// By worker: what it runs, and when that began.
    running: Vec<(Vec<u64>, u64)>,
    denied: u64,
    failed: u64,
}

/// A request without an answer.
struct Open {
    window: Vec<f32>,
    reply_tx: oneshot::Sender<Body>,
    came_us: u64,
}

impl Desk {
    pub(super) fn new(
        desk_rx: mpsc::Receiver<ToDesk>,
        ran_rx: mpsc::UnboundedReceiver<ToDesk>,
        shown_tx: watch::Sender<Arc<Vec<PoolStatus>>>,
        remotes: Vec<Remote>,
    ) -> Desk {
        Desk {
            pools: Vec::new(),
            desk_rx,
            ran_rx,
            shown_tx,
            remotes,
            hidden: BTreeSet::new(),
            places: HashMap::new(),
            started: Instant::now(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pools.len()
    }

    pub(super) fn add(&mut self, config: &PoolConfig, manifest: &Manifest, workers: Vec<BatchWorker>) {
        let view = PoolView {
            name: config.name.clone(),
            task: config.task.clone(),
            model: manifest.name.clone(),
            version: manifest.version.clone(),
            zone: config.zone.clone().unwrap_or_default(),
            channels: manifest.input.channels.len() as u32,
            length: manifest.input.window as u32,
            int16: manifest.input.int16,
            ..PoolView::default()
        };
        self.pools.push(OnePool {
            name: config.name.clone(),
            scheduler: Pool::new(limits(config)),
            running: vec![(Vec::new(), 0); workers.len()],
            workers,
            manifest: manifest.clone(),
            view,
            gateways: config.gateways.clone(),
            queue_max: config.queue_max,
            open: BTreeMap::new(),
            denied: 0,
            failed: 0,
        });
    }

    /// Runs until the cloud stops; then ends the models' threads. Who still waits is told to ask later.
    pub(super) async fn run(mut self, mut stopped: Shutdown) {
        let mut ticks = tokio::time::interval(SHOWN_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due_us = self.pools.iter().filter_map(|pool| pool.scheduler.deadline_us()).min();
            let wait = due_us.map_or(SHOWN_EVERY, |due_us| Duration::from_micros(due_us.saturating_sub(self.now_us())));
            tokio::select! {
                Some(ran) = self.ran_rx.recv() => self.take(ran),
                Some(message) = self.desk_rx.recv() => self.take(message),
                () = stopped.requested() => break,
                _ = ticks.tick() => self.publish(),
                () = tokio::time::sleep(wait) => self.tick(),
            }
        }
        self.desk_rx.close();
        let workers = self.pools.into_iter().flat_map(|pool| pool.workers);
        let stop = move || workers.for_each(BatchWorker::stop);
        // Nothing is left to be done if the runtime ends first.
        let _ = tokio::task::spawn_blocking(stop).await;
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, message: ToDesk) {
        let now_us = self.now_us();
        match message {
            ToDesk::Request { id, gateway, request, reply_tx } => self.request(now_us, id, gateway, &request, reply_tx),
            ToDesk::Cancelled { id } => {
                if let Some(at) = self.places.remove(&id) {
                    let pool = &mut self.pools[at];
                    pool.scheduler.cancel(id);
                    pool.open.remove(&id);
                }
            }
            ToDesk::Ran { pool, worker, ran } => {
                let ids = self.pools[pool].ran(now_us, worker, ran);
                for id in ids {
                    self.places.remove(&id);
                }
                self.carry_out(now_us, pool);
            }
        }
    }

    fn request(&mut self, now_us: u64, id: u64, gateway: Arc<str>, request: &OffloadRequest, reply_tx: oneshot::Sender<Body>) {
        // Who has gone does not want to know.
        let refuse = |reply_tx: oneshot::Sender<Body>, kind, text: &str| drop(reply_tx.send(refusal(kind, text, 0)));
        let found = self.pools.iter().position(|pool| pool.name == request.pool);
        let Some(at) = found.filter(|&at| allows(&self.pools[at].gateways, &gateway)) else {
            if let Some(at) = found {
                self.pools[at].denied += 1;
                tracing::debug!(%gateway, pool = request.pool, "a gateway may not use this pool");
            }
            // The same words for what is not there and what is not for it.
            return refuse(reply_tx, RefusalKind::Denied, "there is no such pool for this gateway");
        };
        let pool = &mut self.pools[at];
        let window = match request.values() {
            Ok(window) if request.task == pool.view.task && window.len() == pool.manifest.row_len() => window,
            Ok(_) => {
                pool.denied += 1;
                let (channels, length) = (pool.view.channels, pool.view.length);
                let text = format!("the pool does `{}` on {channels} channels of {length} samples", pool.view.task);
                return refuse(reply_tx, RefusalKind::Denied, &text);
            }
            Err(err) => {
                pool.denied += 1;
                return refuse(reply_tx, RefusalKind::Failed, &err.to_string());
            }
        };
        let class = Class::from_index(request.class as usize).unwrap_or(Class::Bulk);
        let deadline_us = now_us.saturating_add((u64::from(request.deadline_ms) * 1_000).min(DEADLINE_US_MAX));
        pool.open.insert(id, Open { window, reply_tx, came_us: now_us });
        self.places.insert(id, at);
        pool.scheduler.offer(now_us, PoolRequest { id, gateway, class, deadline_us });
        self.carry_out(now_us, at);
    }

    fn tick(&mut self) {
        let now_us = self.now_us();
        for at in 0..self.pools.len() {
            self.pools[at].scheduler.tick(now_us);
            self.carry_out(now_us, at);
        }
    }

    fn carry_out(&mut self, now_us: u64, at: usize) {
        let pool = &mut self.pools[at];
        while let Some(output) = pool.scheduler.poll() {
            match output {
                PoolOutput::Run { worker, ids } => pool.start(now_us, worker, ids),
                PoolOutput::Refuse { id, reason, retry_after_us } => {
                    self.places.remove(&id);
                    let Some(open) = pool.open.remove(&id) else { continue };
                    let retry_after_ms = u32::try_from(retry_after_us / 1_000).unwrap_or(u32::MAX);
                    let (kind, text) = in_words(reason);
                    // Who has gone does not want to know.
                    let _ = open.reply_tx.send(refusal(kind, text, retry_after_ms));
                }
            }
        }
    }

    pub(super) fn publish(&mut self) {
        let now_us = self.now_us();
        let mut shown: Vec<PoolStatus> = self.pools.iter().map(|pool| pool.status(now_us)).collect();
        for pool in self.remotes.iter().flat_map(Remote::pools) {
            // Of two of one name the first counts; ours before another machine's.
            if shown.iter().all(|other| other.view.name != pool.view.name) {
                shown.push(pool);
            } else if self.hidden.insert(pool.view.name.clone()) {
                tracing::warn!(
                    pool = pool.view.name,
                    machine = pool.machine,
                    "there is another pool of this name; this one is left out"
                );
            }
        }
        self.shown_tx.send_replace(Arc::new(shown));
    }
}

impl OnePool {
    fn start(&mut self, now_us: u64, worker: u16, ids: Vec<u64>) {
        // A request that was cancelled just now still runs, as nothing.
        let open = &mut self.open;
        let window = |id: &u64| open.get_mut(id).map(|open| std::mem::take(&mut open.window)).unwrap_or_default();
        let windows = ids.iter().map(window).collect();
        let at = usize::from(worker);
        self.running[at] = (ids, now_us);
        if self.workers[at].try_run(windows).is_err() {
            tracing::error!(pool = self.name, worker, "the model's thread is gone");
        }
    }

    /// Answers what a worker has run; returns what that was.
    fn ran(&mut self, now_us: u64, worker: u16, ran: Ran) -> Vec<u64> {
        let (ids, began_us) = std::mem::take(&mut self.running[usize::from(worker)]);
        let compute_us = u64::try_from(ran.took.as_micros()).unwrap_or(u64::MAX);
        for (id, result) in ids.iter().zip(ran.results) {
            let Some(open) = self.open.remove(id) else { continue };
            let body = match result {
                Ok(answer) => Body::OffloadAnswer(OffloadAnswer {
                    label: self.manifest.label(&answer.verdict).unwrap_or_default().to_owned(),
                    score: answer.verdict.score,
                    confidence: answer.verdict.confidence,
                    model: self.manifest.name.clone(),
                    version: self.manifest.version.clone(),
                    queue_us: began_us.saturating_sub(open.came_us),
                    compute_us,
                }),
                Err(err) => {
                    self.failed += 1;
                    refusal(RefusalKind::Failed, &err.to_string(), 0)
                }
            };
            // Who has gone does not want to know.
            let _ = open.reply_tx.send(body);
        }
        self.scheduler.finished(now_us, worker, compute_us);
        ids
    }

    fn status(&self, now_us: u64) -> PoolStatus {
        let load = self.scheduler.load(now_us);
        let view = PoolView {
            queue_percent: (100 * load.queued / self.queue_max.max(1)) as u32,
            p50_us: load.p50_us,
            p95_us: load.p95_us,
            age_ms: load.age_us.unwrap_or(0) / 1_000,
            ..self.view.clone()
        };
        PoolStatus {
            view,
            gateways: self.gateways.clone(),
            machine: None,
            queue_max: self.queue_max,
            load,
            counters: *self.scheduler.counters(),
            denied: self.denied,
            failed: self.failed,
        }
    }
}

/// What a gateway is told of a refusal.
fn in_words(reason: RefusedReason) -> (RefusalKind, &'static str) {
    match reason {
        RefusedReason::Full => (RefusalKind::Busy, "the pool's queue is full"),
        RefusedReason::Shed => (RefusalKind::Busy, "it made room for a request of a higher class"),
        RefusedReason::Unfair => (RefusalKind::Busy, "it made room for a gateway that has fewer waiting"),
        RefusedReason::Late => (RefusalKind::Late, "at present it would be answered after its deadline"),
        RefusedReason::Expired => (RefusalKind::Late, "its deadline passed while it waited"),
    }
}
