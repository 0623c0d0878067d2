//! The status as JSON. `docs/operations.md` explains every field.

use std::{collections::BTreeMap, time::Duration};

use sealwire_protocol::Code;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Admin, NodeUsage,
    history::{Series, milliseconds, seconds},
};
use crate::{http::health::readiness, metrics::Close};

/// `GET /status`
#[derive(Debug, Serialize)]
pub struct StatusReport {
    name: &'static str,
    version: &'static str,
    node_id: Uuid,
    uptime_s: u64,
    /// As in `/readyz`.
    status: &'static str,
    reasons: Vec<&'static str>,
    database: DatabaseReport,
    bus: BusReport,
    connected_devices: usize,
    memory: MemoryReport,
    mailbox: MailboxReport,
    last_minute: LastMinute,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Series>,
}

#[derive(Debug, Serialize)]
struct DatabaseReport {
    kind: &'static str,
    ok: bool,
    latency_ms: Option<f64>,
    pool: PoolReport,
}

#[derive(Debug, Serialize)]
struct PoolReport {
    open: u32,
    idle: u32,
    limit: u32,
}

#[derive(Debug, Serialize)]
struct BusReport {
    kind: &'static str,
    ok: bool,
    probe_age_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "units belong to the names of fields")]
struct MemoryReport {
    resident_bytes: Option<u64>,
    budget_used_bytes: usize,
    budget_limit_bytes: usize,
}

/// The mail in all mailboxes of the database.
#[derive(Debug, Serialize)]
struct MailboxReport {
    waiting: Option<u64>,
    bytes: Option<u64>,
}

/// The counts of the last minute.
#[derive(Debug, Serialize)]
struct LastMinute {
    /// The exact length of the period.
    seconds: f64,
    claims: u64,
    exhausted: u64,
    limited: u64,
    sends: u64,
    deliveries: u64,
    sign_ins: u64,
    errors: BTreeMap<&'static str, u64>,
    closes: BTreeMap<String, u64>,
}

impl StatusReport {
    /// Builds the report. `latency` is how long the database just took to answer; `None` if it did not.
    pub fn of(admin: &Admin, latency: Option<Duration>, with_history: bool) -> Self {
        let service = &admin.service;
        let point = admin.point(latency);
        let (span, counts) = admin.history.minute(&point);
        let NodeUsage { inbound, outbound, is_draining, .. } = (admin.usage)();
        let bus_is_up = service.bus_is_up();
        let (status, reasons) = readiness(latency.is_some(), bus_is_up, is_draining);
        let (store, pool) = service.store_state();
        let (bus, probe_age) = service.bus_state();
        let backlog = admin.backlog();
        let errors = Code::ALL.iter().map(|code| code.name()).zip(counts.errors);
        let closes = Close::all().map(|(_, text)| text).zip(counts.closes);
        Self {
            name: "sealwire",
            version: env!("CARGO_PKG_VERSION"),
            node_id: admin.node_id,
            uptime_s: admin.started.elapsed().as_secs(),
            status: status.name(),
            reasons,
            database: DatabaseReport {
                kind: store,
                ok: latency.is_some(),
                latency_ms: latency.map(milliseconds),
                pool: PoolReport { open: pool.open, idle: pool.idle, limit: pool.limit },
            },
            bus: BusReport { kind: bus, ok: bus_is_up, probe_age_ms: probe_age.map(milliseconds) },
            connected_devices: point.connected,
            memory: MemoryReport {
                resident_bytes: point.resident,
                budget_used_bytes: inbound.0 + outbound.0,
                budget_limit_bytes: inbound.1 + outbound.1,
            },
            mailbox: MailboxReport {
                waiting: backlog.map(|load| load.envelopes),
                bytes: backlog.map(|load| load.bytes),
            },
            last_minute: LastMinute {
                seconds: seconds(span),
                claims: counts.claims,
                exhausted: counts.exhausted,
                limited: counts.limited,
                sends: counts.sends,
                deliveries: counts.deliveries,
                sign_ins: counts.sign_ins,
                errors: errors.filter(|(_, count)| *count > 0).collect(),
                closes: closes.filter(|(_, count)| *count > 0).collect(),
            },
            history: with_history.then(|| admin.history.series(point)),
        }
    }
}
