//! What the server counts of itself. This file has the one list of all metrics; `docs/operations.md` explains each, and a
//! test compares the two with what a live server says.
//!
//! To add a metric: a line in the list, a row in the document, and the call where it happens. All series of a metric exist
//! from the start, since the values of each label are a closed set. Counting is an atomic addition, without locks,
//! allocations or text. Each server has its own [`Metrics`]; nothing here is global.

mod kinds;
mod labels;

use std::time::Duration;

use prometheus::{Registry, TextEncoder};

use crate::protocol::{Code, frame::Op};
use kinds::Kind;
pub use kinds::{Buckets, Counter, Counters, Gauge, Gauges, Histogram, Histograms, Items, Label, Seconds};
pub use labels::{
    AccessDenied, Asked, Batch, BusTraffic, ClaimEnd, Close, Direction, Limit, MailEnd, Outcome, PoolState, Repair,
    Route, Version,
};

/// A metric as the list has it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name in the exposition.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($field:ident: $type:ty = $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// The metrics of one server.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Metrics {
            /// Every metric, in the order of the list.
            pub const ALL: &'static [Entry] = &[$(
                Entry { name: $name, kind: <$type as Kind>::NAME, labels: &[$($label),*], help: $help },
            )*];

            /// All metrics at zero.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                let mut entries = Self::ALL.iter();
                Self {
                    $($field: kinds::register(&registry, entries.next()),)*
                    registry,
                }
            }
        }
    };
}

metrics! {
    build_info: Gauges<Version> = "sealwire_build_info" ["version"] "Always 1; the label names the version";
    start_time: Gauge = "process_start_time_seconds" [] "When the server started, in seconds since 1970";
    resident_memory: Gauge = "process_resident_memory_bytes" [] "Memory that the process holds";
    open_files: Gauge = "process_open_fds" [] "Files that the process has open, connections among them";
    max_files: Gauge = "process_max_fds" [] "Files that the process may have open";

    connected_devices: Gauge = "sealwire_connected_devices" [] "Sockets of devices on this node";
    open_sockets: Gauge = "sealwire_open_sockets" [] "Upgraded connections, those that are closing included";
    open_sockets_limit: Gauge = "sealwire_open_sockets_limit" [] "Upgraded connections that this node takes";
    open_http: Gauge = "sealwire_open_http_connections" [] "Open connections of clients that are no sockets (yet)";
    open_http_limit: Gauge = "sealwire_open_http_connections_limit" [] "Connections that are no sockets that may be open at once";
    connects: Counter = "sealwire_connects_total" [] "Sockets that got their welcome";
    closes: Counters<Close> = "sealwire_closes_total" ["code"] "Sockets that ended, by close code";
    connections_refused: Counters<Limit> = "sealwire_connections_refused_total" ["limit"] "Connections and upgrades that were refused, by the limit that they met";
    upgrades_refused: Counters<Code> = "sealwire_upgrades_refused_total" ["code"] "Upgrades to a socket that were refused, by error code";
    ops: Counters<(Asked, Outcome)> = "sealwire_ops_total" ["op", "code"] "Replies to requests on sockets, by op and error code";
    op_seconds: Histograms<Op, Seconds> = "sealwire_op_seconds" ["op"] "Time from a request's start to its encoded reply";
    http_requests: Counters<(Route, Outcome)> = "sealwire_http_requests_total" ["route", "code"] "Answers to sign-in and session requests, by error code";
    work_under_way: Gauge = "sealwire_work_under_way" [] "Requests and mails that are under way";
    draining: Gauge = "sealwire_draining" [] "1 while the node is being stopped";
    access_denied: Counters<AccessDenied> = "sealwire_admin_refused_total" ["reason"] "Requests to the operator's listener that were refused";

    sign_ins: Counter = "sealwire_sign_ins_total" [] "Sessions opened by a right code";
    codes_mailed: Counter = "sealwire_codes_mailed_total" [] "Sign-in codes handed to the mail queue";
    mails: Counters<MailEnd> = "sealwire_mails_total" ["outcome"] "Mails, by what became of them";
    claims: Counters<ClaimEnd> = "sealwire_claims_total" ["outcome"] "Bundles that claims brought, by what became of the one-time key; a repeated claim counts again";

    sends: Counter = "sealwire_sends_total" [] "Messages accepted from devices, without repeats";
    deliveries: Counter = "sealwire_deliveries_total" [] "Envelopes handed to a socket of their device";
    redeliveries: Counter = "sealwire_redeliveries_total" [] "Envelopes handed to the same socket again because no ack came";
    delivery_seconds: Histogram<Seconds> = "sealwire_delivery_seconds" [] "Time from an envelope's acceptance to its delivery, where its device was connected all the while";
    expired: Counter = "sealwire_expired_envelopes_total" [] "Envelopes that were deleted because their time was up";
    mailbox_envelopes: Gauge = "sealwire_mailbox_envelopes" [] "Envelopes that wait in all mailboxes of the database";
    mailbox_bytes: Gauge = "sealwire_mailbox_bytes" [] "Content that waits in all mailboxes of the database";

    batch_items: Histograms<Batch, Items> = "sealwire_batch_items" ["batch"] "Requests that shared one transaction";
    batch_seconds: Histograms<Batch, Seconds> = "sealwire_batch_seconds" ["batch"] "Time that a batch took, its tries together";
    transaction_seconds: Histogram<Seconds> = "sealwire_transaction_seconds" [] "Time of one write transaction, from its start to the end of its commit";
    store_retries: Counter = "sealwire_store_retries_total" [] "Transactions that ran again because they lost to another or their outcome was unknown";
    database_up: Gauge = "sealwire_database_up" [] "1 if the database answers";
    pool_connections: Gauges<PoolState> = "sealwire_pool_connections" ["state"] "Database connections that are open";
    pool_limit: Gauge = "sealwire_pool_connections_limit" [] "Database connections that may be open";

    bus_up: Gauge = "sealwire_bus_up" [] "1 if signals reach the other nodes";
    bus_signals: Counters<BusTraffic> = "sealwire_bus_signals_total" ["direction"] "Signals between nodes";
    reconcile_rounds: Counter = "sealwire_reconcile_rounds_total" [] "Times that all connections were compared with the database";
    reconcile_repairs: Counters<Repair> = "sealwire_reconcile_repairs_total" ["what"] "Connections that had missed a signal, by what they had missed";
    sweeps: Counter = "sealwire_sweeps_total" [] "Sweeps that ended well";
    swept_rows: Counter = "sealwire_swept_rows_total" [] "Rows that sweeps deleted or cleared";

    memory_in_use: Gauges<Direction> = "sealwire_memory_budget_used_bytes" ["direction"] "Memory drawn from the budget of requests and outboxes";
    memory_limit: Gauges<Direction> = "sealwire_memory_budget_limit_bytes" ["direction"] "Memory that the budget has in all";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counts a request on a socket that was answered.
    pub fn answered(&self, op: Asked, outcome: Outcome) {
        self.ops.inc((op, outcome));
    }

    /// Counts an envelope that was handed to a socket, `waited` after it had been accepted; `None` where it was its device
    /// that it had waited for.
    pub fn delivered(&self, waited: Option<Duration>) {
        self.deliveries.inc();
        if let Some(waited) = waited {
            self.delivery_seconds.observe(waited.as_secs_f64());
        }
    }

    /// What measures one kind of batch.
    #[must_use]
    pub fn batch(&self, batch: Batch) -> BatchMeter {
        BatchMeter { items: self.batch_items.of(batch), seconds: self.batch_seconds.of(batch) }
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }

    /// The content type of [`Self::exposition`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;

    /// Errors with which requests were answered, one for each of [`Code::ALL`]: ops, sign-in and upgrades together.
    #[must_use]
    pub fn errors(&self) -> [u64; Code::ALL.len()] {
        std::array::from_fn(|index| {
            let code = Code::ALL[index];
            let outcome = Outcome::Refused(code);
            let ops: u64 = Asked::all().map(|asked| self.ops.get((asked, outcome))).sum();
            let http: u64 = Route::ALL.iter().map(|route| self.http_requests.get((*route, outcome))).sum();
            ops + http + self.upgrades_refused.get(code)
        })
    }
}

/// Measures batches of one kind.
#[derive(Clone, Debug)]
pub struct BatchMeter {
    items: Histogram<Items>,
    seconds: Histogram<Seconds>,
}

impl BatchMeter {
    /// Counts a batch.
    pub fn ran(&self, items: usize, took: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        self.items.observe(items as f64);
        self.seconds.observe(took.as_secs_f64());
    }
}
