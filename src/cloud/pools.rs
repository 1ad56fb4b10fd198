//! Pools: larger models that gateways ask when their own are unsure.
//!
//! ```text
//! a stream of a connection --> desk (a task, all pools) --> model threads, one batch at a time
//!        ^                      |   ^                            |
//!        `---- answer, refusal -'   `---------- results ---------'
//! ```
//! A pool may be another machine's ([`remote`]), which runs a [`machine`]: its desk is there, and requests are passed on to it.
//! What runs next and who is refused is decided by [`weir_logic::pool::Pool`]; here are its threads, its clock, and who may
//! ask it. A model that cannot be loaded is reported, and its pool left out: taking data in does not depend on it.

mod desk;
mod machine;
mod remote;
mod rights;
mod serve;
mod shown;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use weir_host::shutdown::Shutdown;
use weir_infer::{BatchWorker, LoadError, Model, Ran, RuntimeLibrary};
use weir_logic::pool::PoolLimits;
use weir_logic::wire::Body;
use weir_logic::wire::offload::{OffloadRequest, PoolViews};

use crate::config::{Infer, Pool as PoolConfig};

pub use machine::{PoolServer, PoolSockets};
pub use remote::TargetError;
pub(crate) use remote::{Remote, Target};
pub(crate) use rights::allows;
pub(crate) use serve::serve;
pub(crate) use shown::{PoolStatus, one};

use desk::Desk;

/// Requests whose bytes are being read, or that wait for an answer, over all connections.
const REQUESTS_MAX: usize = 4_096;
/// Messages that wait for the desk: of each request that has a place, itself and that it is taken back. So whoever has a place
/// is heard by the scheduler, which alone knows whose turn it is.
const DESK_QUEUE_LEN: usize = 2 * REQUESTS_MAX;

/// What the desk is told.
#[derive(Debug)]
pub(crate) enum ToDesk {
    /// A gateway asks.
    Request { id: u64, gateway: Arc<str>, request: OffloadRequest, reply_tx: oneshot::Sender<Body> },
    /// It does not want to know any more.
    Cancelled { id: u64 },
    /// A worker has run a batch.
    Ran { pool: usize, worker: u16, ran: Ran },
}

/// The way to the desk, for connections.
#[derive(Debug)]
pub(crate) struct Door {
    desk_tx: mpsc::Sender<ToDesk>,
    places: Arc<Semaphore>,
    next_id: AtomicU64,
    remotes: Vec<Remote>,
    /// Which pool is whose.
    shown_rx: watch::Receiver<Arc<Vec<PoolStatus>>>,
    /// Requests turned away because there was no place.
    pub(crate) over_limit: AtomicU64,
    /// Streams that carried no request.
    pub(crate) garbled: AtomicU64,
}

impl Door {
    /// The machine that runs a pool; `None` if that is this one, or if there is no such pool.
    fn machine_of(&self, pool: &str) -> Option<&Remote> {
        let address = self.shown_rx.borrow().iter().find(|shown| shown.view.name == pool)?.machine.clone()?;
        self.remotes.iter().find(|remote| remote.address() == address)
    }

    /// Other machines by address, and whether they are connected.
    pub(crate) fn machines(&self) -> BTreeMap<String, bool> {
        self.remotes.iter().map(|remote| (remote.address().to_owned(), remote.is_connected())).collect()
    }
}

/// The pools, about to run.
pub(crate) struct Pools {
    desk: Desk,
    targets: Vec<(Target, watch::Sender<remote::State>)>,
    pub(crate) door: Arc<Door>,
    pub(crate) shown_rx: watch::Receiver<Arc<Vec<PoolStatus>>>,
}

impl Pools {
    /// Loads the models and starts their threads; `targets` are other machines that have pools.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub(crate) fn start(pools: &[PoolConfig], infer: &Infer, targets: Vec<Target>) -> std::io::Result<Pools> {
        let (desk_tx, desk_rx) = mpsc::channel(DESK_QUEUE_LEN);
        // Workers report over a way of their own: they are few, and one that waited for the desk would hold up its model.
        let (ran_tx, ran_rx) = mpsc::unbounded_channel();
        let (shown_tx, shown_rx) = watch::channel(Arc::default());
        let (remotes, targets): (Vec<Remote>, Vec<_>) = targets.into_iter().map(Remote::new).unzip();
        let mut desk = Desk::new(desk_rx, ran_rx, shown_tx, remotes.clone());
        for pool in pools {
            match load(pool, infer) {
                Ok(models) => {
                    let at = desk.len();
                    let manifest = models[0].manifest().clone();
                    let start = |(worker, model): (usize, Model)| {
                        let ran_tx = ran_tx.clone();
                        let worker = worker as u16;
                        let sink = move |ran| {
                            // The desk has ended: nobody waits for these.
                            let _ = ran_tx.send(ToDesk::Ran { pool: at, worker, ran });
                        };
                        BatchWorker::start(model, Box::new(sink))
                    };
                    let workers = models.into_iter().enumerate().map(start).collect::<Result<_, _>>()?;
                    tracing::info!(pool = pool.name, task = pool.task, model = manifest.name, "pool is ready");
                    desk.add(pool, &manifest, workers);
                }
                Err(err) => {
                    tracing::error!(pool = pool.name, %err, "the pool's model is not loaded; there is no such pool now")
                }
            }
        }
        desk.publish();
        let door = Door {
            desk_tx,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            next_id: AtomicU64::new(1),
            remotes,
            shown_rx: shown_rx.clone(),
            over_limit: AtomicU64::default(),
            garbled: AtomicU64::default(),
        };
        Ok(Pools { desk, targets, door: Arc::new(door), shown_rx })
    }

    /// Answers until the cloud stops.
    pub(crate) async fn run(self, stopped: Shutdown) {
        let mut connections = tokio::task::JoinSet::new();
        for (target, state_tx) in self.targets {
            connections.spawn(remote::keep(target, state_tx));
        }
        self.desk.run(stopped).await;
    }
}

/// What the pools of a configuration lack to be loaded here: for `weir-cloud check`.
pub fn check(pools: &[PoolConfig], infer: &Infer) -> Vec<String> {
    let problem = |pool: &PoolConfig| load(pool, infer).err().map(|err| format!("pool `{}`: {err}", pool.name));
    pools.iter().filter_map(problem).collect()
}

/// One model for each thread.
fn load(pool: &PoolConfig, infer: &Infer) -> Result<Vec<Model>, PoolError> {
    let library = RuntimeLibrary::from_env(infer.library.clone());
    let one = |_| Model::load(Path::new(&pool.model), pool.engine, &library);
    let models: Vec<Model> = (0..pool.threads.max(1)).map(one).collect::<Result<_, _>>()?;
    let is_recurrent = models.first().is_some_and(|model| model.manifest().state.is_some());
    if is_recurrent { Err(PoolError::Recurrent) } else { Ok(models) }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
enum PoolError {
    /// Its model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its model carries state from a device's window to the next one; a pool sees some windows of many boxes.
    #[error("the model is recurrent, and a pool sees only some windows of a device: run it on the box")]
    Recurrent,
}

/// The limits of a pool's scheduler.
fn limits(pool: &PoolConfig) -> PoolLimits {
    PoolLimits {
        queue_max: pool.queue_max,
        batch_max: pool.batch_max,
        linger_us: pool.linger.as_micros(),
        workers: pool.threads,
    }
}

/// The pools that a gateway may use.
pub(crate) fn views_for(pools: &[PoolStatus], gateway: &str) -> PoolViews {
    let allowed = pools.iter().filter(|pool| allows(&pool.gateways, gateway));
    PoolViews { pools: allowed.map(|pool| pool.view.clone()).take(weir_logic::wire::offload::POOLS_MAX).collect() }
}
