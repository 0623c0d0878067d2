//! The metrics of the server. This file lists all of them; `docs/operations.md` explains each, and a test compares both
//! with the output of a running server.
//!
//! To add a metric, add a line to the list, a row to the document, and a call where the event happens. The values of
//! each label are a closed set, so all series exist from the start, and counting is an atomic addition without locks or
//! allocations. Each server has its own [`Metrics`]; nothing is global.

mod kinds;
mod labels;
mod latency;

use std::time::Duration;

use prometheus::{Registry, TextEncoder};
use sealwire_protocol::{Code, frame::Op, push::PushKind};

use kinds::MetricKind;
pub use kinds::{
    BatchSize, BucketBounds, Counter, Counters, Gauge, Gauges, Histogram, Histograms, LabelValue, Seconds,
};
pub use labels::{
    AccessDenied, Batch, BusTraffic, ClaimOutcome, Close, Direction, Limit, MailDrop, MailOutcome, MailState,
    PoolState, ProofOutcome, PushResult, PushRoute, Repair, RequestedOp, ResponseCode, Route, SocketShare, Version,
};
pub use latency::LatencyCounts;

/// The description of a metric.
#[derive(Clone, Copy, Debug)]
pub struct MetricSpec {
    /// The name of the metric.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The help text.
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
            /// The descriptions of all metrics, in the order of the list.
            pub const ALL: &'static [MetricSpec] = &[$(
                MetricSpec { name: $name, kind: <$type as MetricKind>::NAME, labels: &[$($label),*], help: $help },
            )*];

            /// Creates all metrics, at zero.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                let mut specs = Self::ALL.iter();
                Self {
                    $($field: kinds::register(&registry, specs.next()),)*
                    registry,
                }
            }
        }
    };
}

metrics! {
    build_info: Gauges<Version> = "sealwire_build_info" ["version"] "Always 1; the label is the version of the server";
    start_time: Gauge = "process_start_time_seconds" [] "Start time of the server, in seconds since 1970";
    resident_memory: Gauge = "process_resident_memory_bytes" [] "Resident memory of the process";
    open_files: Gauge = "process_open_fds" [] "Open files of the process, including connections";
    max_files: Gauge = "process_max_fds" [] "Maximum number of open files of the process";

    connected_devices: Gauge = "sealwire_connected_devices" [] "Devices connected to this node";
    open_sockets: Gauge = "sealwire_open_sockets" [] "Open WebSocket connections, including closing ones";
    open_sockets_limit: Gauge = "sealwire_open_sockets_limit" [] "Maximum number of open WebSocket connections";
    open_http: Gauge = "sealwire_open_http_connections" [] "Open client connections that have not upgraded to WebSocket";
    open_http_limit: Gauge = "sealwire_open_http_connections_limit" [] "Maximum number of open client connections that have not upgraded to WebSocket";
    connects: Counter = "sealwire_connects_total" [] "Sockets that opened, counted at the welcome";
    closes: Counters<Close> = "sealwire_closes_total" ["code"] "Sockets that closed, by close code";
    connections_refused: Counters<Limit> = "sealwire_connections_refused_total" ["limit"] "Connections and upgrades refused or ended because of a limit, by limit";
    sockets_given_up: Counters<SocketShare> = "sealwire_sockets_given_up_total" ["share"] "Sockets that lost their place to a new one, because their user or their network held most";
    upgrades_refused: Counters<Code> = "sealwire_upgrades_refused_total" ["code"] "WebSocket upgrades refused, by error code";
    ops: Counters<(RequestedOp, ResponseCode)> = "sealwire_ops_total" ["op", "code"] "Replies to requests on sockets, by op and error code";
    op_seconds: Histograms<Op, Seconds> = "sealwire_op_seconds" ["op"] "Time from the start of a request to its encoded reply";
    http_requests: Counters<(Route, ResponseCode)> = "sealwire_http_requests_total" ["route", "code"] "Responses to sign-in and session requests, by route and error code";
    work_under_way: Gauge = "sealwire_work_under_way" [] "Requests and mails in progress";
    clock_skew: Gauge = "sealwire_clock_skew_seconds" [] "Seconds by which the node's clock is ahead of the database's";
    clock_trusted: Gauge = "sealwire_clock_trusted" [] "1 if the node trusts its clock with deleting and approving";
    draining: Gauge = "sealwire_draining" [] "1 while the node is stopping";
    access_denied: Counters<AccessDenied> = "sealwire_admin_refused_total" ["reason"] "Requests to the operator's listener that were refused, by reason";

    sign_ins: Counter = "sealwire_sign_ins_total" [] "Sessions opened with a code";
    codes_mailed: Counter = "sealwire_codes_mailed_total" [] "Codes handed to the mailer";
    wrong_guesses: Counter = "sealwire_wrong_guesses_total" [] "Codes that were compared and wrong";
    session_failures_limited: Counter = "sealwire_session_failures_limited_total" [] "Look-ups of invalid tokens from networks that had made too many";
    proofs: Counters<ProofOutcome> = "sealwire_proofs_total" ["outcome"] "Proofs of work offered to clients beyond a limit, and accepted from them";
    mails: Counters<MailOutcome> = "sealwire_mails_total" ["outcome"] "Mails, by outcome";
    mails_dropped: Counters<MailDrop> = "sealwire_mails_dropped_total" ["reason"] "Mails dropped because of a limit on unsent mails, by limit";
    unsent_mails: Gauges<MailState> = "sealwire_unsent_mails" ["state"] "Unsent mails, by state";
    claims: Counters<ClaimOutcome> = "sealwire_claims_total" ["outcome"] "Bundles returned by claims, by outcome for the one-time key; a repeated claim counts again";

    sends: Counter = "sealwire_sends_total" [] "Messages accepted from devices, without duplicates";
    envelopes: Counter = "sealwire_envelopes_total" [] "Envelopes of the accepted messages, one for each recipient device";
    deliveries: Counter = "sealwire_deliveries_total" [] "Envelopes sent to a socket of their device";
    redeliveries: Counter = "sealwire_redeliveries_total" [] "Envelopes sent to the same socket again because they were not acked";
    delivery_seconds: Histogram<Seconds> = "sealwire_delivery_seconds" [] "Time from accepting an envelope to sending it, if its device was connected the whole time";
    expired: Counter = "sealwire_expired_envelopes_total" [] "Envelopes deleted because they expired";
    mailbox_envelopes: Gauge = "sealwire_mailbox_envelopes" [] "Envelopes in all mailboxes of the database";
    mailbox_bytes: Gauge = "sealwire_mailbox_bytes" [] "Bytes of content in all mailboxes of the database";

    pushes: Counters<(PushRoute, PushResult)> = "sealwire_pushes_total" ["kind", "service", "outcome", "reason"] "Pushes to push services, by kind, whether the service is trusted, outcome, and reason of a failure";
    pushes_under_way: Gauge = "sealwire_pushes_under_way" [] "Pushes to push services in progress";
    push_overdue: Gauges<PushKind> = "sealwire_push_overdue_seconds" ["kind"] "How long the oldest wake-up has been due that no node has taken";

    batch_items: Histograms<Batch, BatchSize> = "sealwire_batch_items" ["batch"] "Requests per batch";
    batch_seconds: Histograms<Batch, Seconds> = "sealwire_batch_seconds" ["batch"] "Duration of a batch, including retries";
    transaction_seconds: Histogram<Seconds> = "sealwire_transaction_seconds" [] "Duration of a write transaction, from waiting for its connection to the end of its commit";
    user_queue_full: Counter = "sealwire_user_queue_full_total" [] "Requests refused because too many others of their user were waiting";
    lock_timeouts: Counter = "sealwire_lock_timeouts_total" [] "Statements that gave up waiting for a locked row";
    store_retries: Counter = "sealwire_store_retries_total" [] "Transactions retried after a conflict or an unknown outcome";
    database_up: Gauge = "sealwire_database_up" [] "1 if the database answers";
    pool_connections: Gauges<PoolState> = "sealwire_pool_connections" ["state"] "Open database connections, by state";
    pool_limit: Gauge = "sealwire_pool_connections_limit" [] "Maximum number of open database connections";

    bus_up: Gauge = "sealwire_bus_up" [] "1 if signals reach other nodes";
    bus_signals: Counters<BusTraffic> = "sealwire_bus_signals_total" ["direction"] "Signals between nodes, by direction; rejected counts payloads";
    reconcile_rounds: Counter = "sealwire_reconcile_rounds_total" [] "Rounds of checking all connections against the database";
    reconcile_repairs: Counters<Repair> = "sealwire_reconcile_repairs_total" ["what"] "Missed signals that the reconcile delivered, by signal";
    sweeps: Counter = "sealwire_sweeps_total" [] "Successful sweeps";
    swept_rows: Counter = "sealwire_swept_rows_total" [] "Rows deleted or cleared by sweeps";

    memory_in_use: Gauges<Direction> = "sealwire_memory_budget_used_bytes" ["direction"] "Memory in use of the budget for messages, requests and outboxes";
    memory_limit: Gauges<Direction> = "sealwire_memory_budget_limit_bytes" ["direction"] "Memory budget for messages, requests and outboxes";
    memory_given_up: Counters<Direction> = "sealwire_memory_given_up_total" ["direction"] "Unfinished messages and send queues given up because their memory was needed";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counts a reply to a request on a socket.
    pub fn count_reply(&self, op: RequestedOp, code: ResponseCode) {
        self.ops.inc((op, code));
    }

    /// Counts an envelope that was sent to a socket. `took` is the time since it was accepted; `None` if its device was
    /// not connected the whole time.
    pub fn count_delivery(&self, took: Option<Duration>) {
        self.deliveries.inc();
        if let Some(took) = took {
            self.delivery_seconds.observe(took.as_secs_f64());
        }
    }

    /// The meter for one kind of batch.
    #[must_use]
    pub fn batch(&self, batch: Batch) -> BatchMeter {
        BatchMeter { items: self.batch_items.of(batch), seconds: self.batch_seconds.of(batch) }
    }

    /// Returns all metrics in the Prometheus text format.
    #[must_use]
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "cannot write the metrics");
        }
        text
    }

    /// The content type of [`Self::exposition`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;

    /// The number of error responses per code, in the order of [`Code::ALL`]: ops, HTTP requests and upgrades together.
    #[must_use]
    pub fn errors(&self) -> [u64; Code::ALL.len()] {
        std::array::from_fn(|index| {
            let code = Code::ALL[index];
            let response = ResponseCode::Error(code);
            let ops: u64 = RequestedOp::all().map(|op| self.ops.get((op, response))).sum();
            let http: u64 = Route::ALL.iter().map(|route| self.http_requests.get((*route, response))).sum();
            ops + http + self.upgrades_refused.get(code)
        })
    }
}

/// Records the size and duration of batches of one kind.
#[derive(Clone, Debug)]
pub struct BatchMeter {
    items: Histogram<BatchSize>,
    seconds: Histogram<Seconds>,
}

impl BatchMeter {
    /// Records a batch.
    pub fn record(&self, items: usize, took: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        self.items.observe(items as f64);
        self.seconds.observe(took.as_secs_f64());
    }
}
