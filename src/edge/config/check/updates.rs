//! `[infer.updates]`.

use weir_host::units::{Bytes, Duration};

use super::{Context, check_range};
use crate::config::finding::Findings;

pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let (config, updates) = (context.config, &context.config.infer.updates);
    let path = |key: &str| format!("infer.updates.{key}");
    let size = Bytes::from_mib(1)..=Bytes::from_gib(16);
    check_range(findings, &path("size_limit"), &updates.size_limit, &size, "three models of each task must find room");
    let memory = Bytes::from_mib(32)..=Bytes::from_gib(16);
    check_range(findings, &path("memory_limit"), &updates.memory_limit, &memory, "the program alone takes 20 MiB");
    let answer = Duration::from_millis(50)..=Duration::from_secs(60);
    let why = "windows of a canary's devices wait so long for a model that hangs";
    check_range(findings, &path("answer_timeout"), &updates.answer_timeout, &answer, why);
    let why = "a few windows say nothing, and a trial must come to an end";
    check_range(findings, &path("windows"), &updates.windows, &(10..=1_000_000), why);
    let why = "it is a share: 0.9 is nine windows of ten";
    check_range(findings, &path("agreement_min"), &updates.agreement_min, &(0.0..=1.0), why);
    check_range(findings, &path("share"), &updates.share, &(0.0..=1.0), "it is a share: 0.1 is every tenth device");
    let stage = Duration::from_secs(10)..=Duration::from_secs(30 * 86_400);
    check_range(findings, &path("stage_timeout"), &updates.stage_timeout, &stage, "windows must have time to come");
    let bytes = Bytes::from_kib(1)..=Bytes::from_gib(1_024);
    let why = "a package of some KiB must come whole one day";
    check_range(findings, &path("day_bytes"), &updates.day_bytes, &bytes, why);
    check_range(findings, &path("month_bytes"), &updates.month_bytes, &bytes, why);
    if updates.key.is_some() && config.model.is_empty() && config.stream.iter().all(|stream| stream.task.is_none()) {
        let hint = "add [[model]], or remove the key";
        findings.warn(&path("key"), "models are taken, and there is no model that they could replace", hint);
    }
}
