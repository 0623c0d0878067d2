//! The status as JSON. `docs/operations.md` explains every field.

use std::{collections::BTreeMap, time::Duration};

use sealwire_protocol::{Code, push::PushKind};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Admin, NodeUsage,
    alerts::{self, Alert, Conditions},
    history::{CounterValues, Series, milliseconds, p99_ms, seconds},
    process,
};
use crate::{
    http::health::readiness,
    metrics::{Close, LabelValue, Limit},
    service::BusState,
};

/// `GET /status`
#[derive(Debug, Serialize)]
pub struct StatusReport {
    name: &'static str,
    version: &'static str,
    node_id: Uuid,
    uptime_s: u64,
    /// As in `/readyz`.
    status: &'static str,
    reasons: Vec<String>,
    alerts: Vec<Alert>,
    database: DatabaseReport,
    bus: BusReport,
    connected_devices: usize,
    sockets: UsageReport,
    http_connections: UsageReport,
    files: UsageReport,
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

/// A number of open connections or files, and its maximum; `null` if unknown.
#[derive(Debug, Serialize)]
struct UsageReport {
    open: Option<u64>,
    limit: Option<u64>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "units belong to the names of fields")]
struct MemoryReport {
    resident_bytes: Option<u64>,
    budget_used_bytes: usize,
    budget_limit_bytes: usize,
    inbound_used_bytes: usize,
    inbound_limit_bytes: usize,
    outbound_used_bytes: usize,
    outbound_limit_bytes: usize,
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
    envelopes: u64,
    deliveries: u64,
    sign_ins: u64,
    mails_sent: u64,
    mails_failed: u64,
    op_p99_ms: Option<f64>,
    delivery_p99_ms: Option<f64>,
    signals_dropped: u64,
    signals_repaired: u64,
    errors: BTreeMap<&'static str, u64>,
    closes: BTreeMap<String, u64>,
    connections_refused: BTreeMap<String, u64>,
}

impl LastMinute {
    fn of(span: Duration, counts: &CounterValues) -> Self {
        let errors = Code::ALL.iter().map(|code| code.name()).zip(counts.errors);
        let closes = Close::all().map(|(_, text)| text).zip(counts.closes);
        let refused = Limit::texts().into_iter().map(|texts| texts.concat()).zip(counts.refused);
        Self {
            seconds: seconds(span),
            claims: counts.claims,
            exhausted: counts.exhausted,
            limited: counts.limited,
            sends: counts.sends,
            envelopes: counts.envelopes,
            deliveries: counts.deliveries,
            sign_ins: counts.sign_ins,
            mails_sent: counts.mails_sent,
            mails_failed: counts.mails_failed,
            op_p99_ms: p99_ms(&counts.op_latency),
            delivery_p99_ms: p99_ms(&counts.delivery_latency),
            signals_dropped: counts.signals_dropped,
            signals_repaired: counts.signals_repaired,
            errors: errors.filter(|(_, count)| *count > 0).collect(),
            closes: closes.filter(|(_, count)| *count > 0).collect(),
            connections_refused: refused.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// A number and its maximum.
fn usage((open, limit): (usize, usize)) -> UsageReport {
    UsageReport { open: Some(open as u64), limit: Some(limit as u64) }
}

impl StatusReport {
    /// Builds the report. `latency` is how long the database just took to answer; `None` if it did not.
    pub fn of(admin: &Admin, latency: Option<Duration>, with_history: bool) -> Self {
        let service = &admin.service;
        let point = admin.point(latency);
        let (span, counts) = admin.history.minute(&point);
        let NodeUsage { sockets, http, inbound, outbound, is_draining, .. } = (admin.usage)();
        let files = UsageReport { open: process::open_files(), limit: process::max_files() };
        let bus_state = service.bus_state();
        let bus_is_up = bus_state == BusState::Up;
        let (status, reasons) = readiness(latency.is_some(), admin.service.is_clock_wrong(), bus_state, is_draining);
        let (store, pool) = service.store_state();
        let (bus, probe_age) = service.bus_kind();
        let backlog = admin.backlog();
        let conditions = Conditions {
            database_answers: latency.is_some(),
            bus_is_up,
            sockets,
            http,
            files: files.open.zip(files.limit),
            inbound,
            outbound,
            clock_skew: admin.service.clock_skew(),
            push_overdue: PushKind::ALL.into_iter().map(|kind| admin.metrics.push_overdue.get(kind)).max().unwrap_or(0),
            clock_is_trusted: admin.service.is_clock_trusted(),
            mailbox_bytes: backlog.map_or(0, |backlog| backlog.bytes),
            counts: &counts,
        };
        Self {
            name: "sealwire",
            version: env!("CARGO_PKG_VERSION"),
            node_id: admin.node_id,
            uptime_s: admin.started.elapsed().as_secs(),
            status: status.name(),
            reasons,
            alerts: alerts::firing(&conditions),
            database: DatabaseReport {
                kind: store,
                ok: latency.is_some(),
                latency_ms: latency.map(milliseconds),
                pool: PoolReport { open: pool.open, idle: pool.idle, limit: pool.limit },
            },
            bus: BusReport { kind: bus, ok: bus_is_up, probe_age_ms: probe_age.map(milliseconds) },
            connected_devices: point.connected,
            sockets: usage(sockets),
            http_connections: usage(http),
            files,
            memory: MemoryReport {
                resident_bytes: point.resident,
                budget_used_bytes: inbound.0 + outbound.0,
                budget_limit_bytes: inbound.1 + outbound.1,
                inbound_used_bytes: inbound.0,
                inbound_limit_bytes: inbound.1,
                outbound_used_bytes: outbound.0,
                outbound_limit_bytes: outbound.1,
            },
            mailbox: MailboxReport {
                waiting: backlog.map(|load| load.envelopes),
                bytes: backlog.map(|load| load.bytes),
            },
            last_minute: LastMinute::of(span, &counts),
            history: with_history.then(|| admin.history.series(point)),
        }
    }
}
