//! The models that a box starts with.

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;
use weir_infer::{Model, Worker};
use weir_logic::ingest::ModelName;

use super::ModelDesk;
use crate::config::{Config, Infer, ModelInfo};
use crate::shell::{InferBatch, InferMessage};

/// Loads each model, of the store or of the configuration, and starts its thread; what cannot be loaded is reported and left out.
///
/// # Errors
/// If the system has no thread left.
pub(crate) fn start_models(
    config: &Config,
    mut desk: Option<&mut ModelDesk>,
    infer_tx: &mpsc::Sender<InferMessage>,
) -> io::Result<(Vec<Worker>, Vec<ModelInfo>)> {
    let library = config.infer.runtime_library();
    let (mut workers, mut infos) = (Vec::new(), Vec::new());
    if desk.as_ref().is_some_and(|desk| desk.forbids_models()) {
        tracing::error!(
            "the box has crashed three times within ten minutes: it runs without models, takes in and sends on all that comes; \
             stop it in good order and start it again to try them once more"
        );
        return Ok((workers, infos));
    }
    for entry in &config.model {
        let stored = desk.as_mut().and_then(|desk| desk.model_for(entry));
        let model = match stored.map_or_else(|| Model::load(&entry.manifest, config.infer.backend, &library), Ok) {
            Ok(model) => model,
            Err(err) => {
                tracing::error!(model = entry.name, %err, "model is not loaded; its streams go on without it");
                continue;
            }
        };
        if let Some(err) = model.fallback() {
            tracing::info!(model = entry.name, %err, "running on the embedded engine");
        }
        for advice in model.advice() {
            tracing::warn!(model = entry.name, %advice, "model runs worse than it could");
        }
        let (version, task) = (&model.manifest().version, entry.task.as_deref().unwrap_or_default());
        tracing::info!(model = entry.name, version, task, backend = ?model.backend(), "model is loaded");
        infos.push(ModelInfo::new(&entry.name, model.manifest()));
        desk.iter_mut().for_each(|desk| desk.runs(entry, workers.len()));
        workers.push(start_worker(model, &config.infer, workers.len(), None, infer_tx.clone())?);
    }
    Ok((workers, infos))
}

/// Starts the worker of a model, whose batches go to the driver.
///
/// # Errors
/// If the system has no thread left.
pub(super) fn start_worker(
    model: Model,
    infer: &Infer,
    index: usize,
    by: Option<Arc<ModelName>>,
    infer_tx: mpsc::Sender<InferMessage>,
) -> io::Result<Worker> {
    let sink = Box::new(move |outcomes| {
        // The driver has stopped: nobody waits for these.
        let _ = infer_tx.blocking_send(InferMessage::Batch(InferBatch { model: index, by: by.clone(), outcomes }));
    });
    Worker::start(model, infer.worker_options(), sink)
}
