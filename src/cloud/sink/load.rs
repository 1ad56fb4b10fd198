//! Reads what is on record of a gateway.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use weir_logic::ids::{Epoch, PerClass};
use weir_logic::ranges::RangeSet;
use weir_logic::receive::{Known, KnownEpoch};
use weir_logic::rollout::OfferState;

use crate::models::ModelKey;
use crate::policies::PolicyRecord;

/// How an epoch is written in the database: 16 hexadecimal digits.
pub(super) fn epoch_text(epoch: Epoch) -> String {
    format!("{:016x}", epoch.0)
}

/// The current epoch of a gateway, and those of `epochs` that exist.
pub(super) fn known(connection: &Connection, gateway: &str, epochs: &[Epoch]) -> rusqlite::Result<Known> {
    let found = connection
        .query_row("SELECT id, current_epoch_id FROM gateways WHERE name = ?", [gateway], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))
        })
        .optional()?;
    let Some((gateway_id, current_id)) = found else { return Ok(Known::default()) };
    let mut known = Known::default();
    if let Some(id) = current_id {
        let text: Option<String> =
            connection.query_row("SELECT epoch FROM epochs WHERE id = ?", [id], |row| row.get(0)).optional()?;
        known.current = text.and_then(|text| u64::from_str_radix(&text, 16).ok()).map(Epoch);
    }
    let mut find = connection.prepare("SELECT id FROM epochs WHERE gateway_id = ? AND epoch = ?")?;
    for &epoch in epochs {
        let id: Option<i64> = find.query_row(params![gateway_id, epoch_text(epoch)], |row| row.get(0)).optional()?;
        if let Some(id) = id {
            let durable = ranges(connection, "coverage", id)?;
            let missing = ranges(connection, "missing_rows", id)?;
            known.epochs.push(KnownEpoch { epoch, durable, missing });
        }
    }
    Ok(known)
}

/// What is on record of a version of a policy; states that this program does not know are left out.
pub(super) fn policy(connection: &Connection, version: u64) -> rusqlite::Result<PolicyRecord> {
    let sql = "SELECT signature FROM policies WHERE version = ?";
    let signature = connection.query_row(sql, [version], |row| row.get(0)).optional()?;
    let sql = "SELECT g.name, r.state, r.reason FROM policy_rows r JOIN gateways g ON g.id = r.gateway_id WHERE r.version = ?";
    Ok(PolicyRecord { signature, states: states(connection, sql, params![version])? })
}

/// The same of a model, whose sum is in the place of a signature.
pub(super) fn model(connection: &Connection, (task, version): &ModelKey) -> rusqlite::Result<PolicyRecord> {
    let sql = "SELECT sha256 FROM models WHERE task = ? AND version = ?";
    let signature = connection.query_row(sql, params![task, version], |row| row.get(0)).optional()?;
    let sql = "SELECT g.name, r.state, r.reason FROM model_rows r JOIN gateways g ON g.id = r.gateway_id \
               WHERE r.task = ? AND r.version = ?";
    Ok(PolicyRecord { signature, states: states(connection, sql, params![task, version])? })
}

type State = (Arc<str>, OfferState, String);

fn states(connection: &Connection, sql: &str, of: &[&dyn rusqlite::ToSql]) -> rusqlite::Result<Vec<State>> {
    let mut select = connection.prepare(sql)?;
    let rows = select.query_map(of, |row| {
        let (name, state, reason): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let state = OfferState::ALL.into_iter().find(|known| known.name() == state);
        Ok(state.map(|state| (Arc::from(name), state, reason)))
    })?;
    rows.filter_map(Result::transpose).collect()
}

fn ranges(connection: &Connection, table: &str, epoch_id: i64) -> rusqlite::Result<PerClass<RangeSet>> {
    let mut lanes = PerClass::<RangeSet>::default();
    let mut select =
        connection.prepare(&format!("SELECT lane, first, last FROM {table} WHERE epoch_id = ? ORDER BY lane, first"))?;
    let mut rows = select.query([epoch_id])?;
    while let Some(row) = rows.next()? {
        let (lane, first, last): (usize, u64, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if let Some(ranges) = lanes.get_mut(lane) {
            ranges.insert(first..=last);
        }
    }
    Ok(lanes)
}
