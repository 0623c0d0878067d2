//! The alerts that fire on this node now: the rules of `deploy/alerts.yml`, applied to the last minute.
//!
//! Those rules look at all nodes and wait for minutes before they fire. The status shows what is true now, so a
//! condition may appear here that Prometheus does not report yet. Alerts on longer periods (`SweepsStopped`,
//! `PoolsEmpty`, `PushCredentials`, `PushFails`, `PushBusy`, `AdminTokenGuessed`) are left to Prometheus, and so is `NodeAway`: the status page shows
//! that itself.

use sealwire_protocol::CloseCode;
use serde::Serialize;

use super::history::{CounterValues, p99_ms};
use crate::metrics::{Close, LabelValue, Limit};

/// One event per second, as a count of a minute. An alert fires above its threshold.
const ONE_PER_SECOND: u64 = 60;
/// 0.1 error responses per second, as a count of a minute.
const SERVER_ERRORS: u64 = 6;
/// Wrong codes of a minute.
const WRONG_GUESSES: u64 = 20;
/// Messages of a minute that are refused because of a rate limit.
const SENDS_LIMITED: u64 = 300;
/// Largest difference of the clock to the database's, in seconds.
const CLOCK_SKEW: u64 = 5;
/// With a larger one the node does not serve.
const WRONG_CLOCK: u64 = 60;
/// 0.1 lock timeouts per second, as a count of a minute.
const LOCK_TIMEOUTS: u64 = 6;
/// Seconds for which a wake-up may be due.
const PUSH_OVERDUE: u64 = 60;
const OP_P99_MS: f64 = 1000.0;
const DELIVERY_P99_MS: f64 = 2000.0;
const MAILBOX_BYTES: u64 = 10 << 30;
const BUS_DOWN: &str = "Signals do not reach all nodes, or another deployment uses the bus; see the reasons.";

const CLOCK_UNTRUSTED: &str = "The clock is not trusted, so nothing is deleted or approved by time.";

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody must act now.
    Page,
    /// Somebody must act in the next days.
    Ticket,
}

/// An alert that fires.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// The name of the rule in `deploy/alerts.yml` and of its paragraph in `docs/operations.md`.
    name: &'static str,
    severity: Severity,
    /// A sentence for the operator, with the numbers.
    text: String,
}

/// The measurements that the alerts are derived from.
#[derive(Debug)]
pub struct Conditions<'a> {
    pub database_answers: bool,
    pub bus_is_up: bool,
    /// Number and limit.
    pub sockets: (usize, usize),
    /// Number and limit.
    pub http: (usize, usize),
    /// Number and limit, if both are known.
    pub files: Option<(u64, u64)>,
    /// Bytes in use and limit.
    pub inbound: (usize, usize),
    /// Bytes in use and limit.
    pub outbound: (usize, usize),
    pub mailbox_bytes: u64,
    /// Seconds by which the clock is ahead of the database's.
    pub clock_skew: i64,
    /// Seconds for which the oldest wake-up has been due.
    pub push_overdue: u64,
    /// Whether the clock may decide what is deleted and approved.
    pub clock_is_trusted: bool,
    /// The counts of the last minute.
    pub counts: &'a CounterValues,
}

/// Returns the alerts that fire, those with the severity `page` first.
pub fn firing(conditions: &Conditions<'_>) -> Vec<Alert> {
    let counts = conditions.counts;
    let slow_consumers =
        Close::all().zip(counts.closes).find(|((close, _), _)| *close == Close::Code(CloseCode::SlowConsumer));
    let above = |milliseconds: Option<f64>, threshold: f64| milliseconds.filter(|p99| *p99 > threshold);
    let page = [
        ("DatabaseAway", (!conditions.database_answers).then(|| "The database does not answer.".to_owned())),
        ("BusDown", (!conditions.bus_is_up).then(|| BUS_DOWN.to_owned())),
        ("ServerErrors", more_than(SERVER_ERRORS, counts.server_errors(), "Error responses internal or unavailable")),
        ("WrongGuesses", more_than(WRONG_GUESSES, counts.wrong_guesses, "Wrong guesses at codes")),
        ("MailFails", more_than(0, counts.mails_failed.saturating_sub(counts.mails_dropped), "Mails not sent")),
        ("NodeNearlyFull", nearly_full(conditions)),
        ("MemoryBudget", memory_budget(conditions)),
        ("ClockWrong", clock_beyond(WRONG_CLOCK, conditions.clock_skew)),
    ];
    let ticket = [
        ("OpsSlow", above(p99_ms(&counts.op_latency), OP_P99_MS).map(|p99| slow("requests", p99))),
        ("DeliverySlow", above(p99_ms(&counts.delivery_latency), DELIVERY_P99_MS).map(|p99| slow("deliveries", p99))),
        ("ConnectionsRefused", connections_refused(counts)),
        ("ClockSkewed", clock_beyond(CLOCK_SKEW, conditions.clock_skew)),
        ("ClockUntrusted", (!conditions.clock_is_trusted).then(|| CLOCK_UNTRUSTED.to_owned())),
        ("StrangersLimited", strangers_limited(counts)),
        ("SendersLimited", more_than(SENDS_LIMITED, counts.sends_limited, "Messages beyond the limit of their sender")),
        ("ProofsAsked", more_than(ONE_PER_SECOND, counts.proofs_offered, "Proofs of work asked of clients")),
        ("TokensGuessed", more_than(ONE_PER_SECOND, counts.tokens_limited, "Invalid tokens beyond a network's limit")),
        ("UsersThrottled", more_than(ONE_PER_SECOND, counts.throttled, "Requests of users with too many waiting")),
        ("MailDropped", more_than(0, counts.mails_dropped, "Mails dropped because too many were unsent")),
        (
            "RowsLocked",
            more_than(LOCK_TIMEOUTS, counts.lock_timeouts, "Statements that waited in vain for a locked row"),
        ),
        ("MemoryGivenUp", more_than(ONE_PER_SECOND, counts.given_up, "Unfinished messages and send queues given up")),
        ("SlowConsumers", slow_consumers.and_then(|(_, n)| more_than(ONE_PER_SECOND, n, "Sockets closed with 4002"))),
        ("SignalsLost", signals_lost(counts)),
        ("MailboxesPileUp", mailboxes_pile_up(conditions.mailbox_bytes)),
        ("PushOverdue", push_overdue(conditions.push_overdue)),
    ];
    let page = page.into_iter().map(|(name, text)| (name, Severity::Page, text));
    let ticket = ticket.into_iter().map(|(name, text)| (name, Severity::Ticket, text));
    page.chain(ticket).filter_map(|(name, severity, text)| Some(Alert { name, severity, text: text? })).collect()
}

/// The text of an alert on something that happened more than `threshold` times in the last minute; `None` if it did
/// not.
fn more_than(threshold: u64, count: u64, what: &str) -> Option<String> {
    (count > threshold).then(|| format!("{what} in the last minute: {count}."))
}

fn slow(what: &str, p99_ms: f64) -> String {
    format!("1 % of the {what} in the last minute took longer than {p99_ms:.0} ms.")
}

/// Whether more than 80 % of a limit is in use.
fn is_nearly_full(used: u64, limit: u64) -> bool {
    u128::from(used) * 5 > u128::from(limit) * 4
}

fn nearly_full(conditions: &Conditions<'_>) -> Option<String> {
    let numbers = |(used, limit): (usize, usize)| (used as u64, limit as u64);
    let kinds = [
        ("sockets", Some(numbers(conditions.sockets))),
        ("other connections", Some(numbers(conditions.http))),
        ("files", conditions.files),
    ];
    let full = kinds.into_iter().filter_map(|(what, usage)| {
        let (used, limit) = usage.filter(|(used, limit)| is_nearly_full(*used, *limit))?;
        Some(format!("{used} of {limit} {what}"))
    });
    listed(full).map(|full| format!("Open: {full}."))
}

fn memory_budget(conditions: &Conditions<'_>) -> Option<String> {
    let halves =
        [("large messages being received", conditions.inbound), ("requests and outboxes", conditions.outbound)];
    let full = halves.into_iter().filter(|(_, (used, limit))| is_nearly_full(*used as u64, *limit as u64));
    listed(full.map(|(what, (used, limit))| format!("{} of {} MiB for {what}", used >> 20, limit >> 20)))
        .map(|full| format!("In use: {full}."))
}

fn connections_refused(counts: &CounterValues) -> Option<String> {
    let limits = Limit::texts().into_iter().map(|texts| texts.concat()).zip(counts.refused);
    let often = limits.filter(|(_, count)| *count > ONE_PER_SECOND);
    listed(often.map(|(limit, count)| format!("{count} ({limit})")))
        .map(|often| format!("Connections refused in the last minute: {often}."))
}

fn signals_lost(counts: &CounterValues) -> Option<String> {
    let (dropped, repaired) = (counts.signals_dropped, counts.signals_repaired);
    let text = || format!("Signals in the last minute: {dropped} dropped, {repaired} delivered late by the reconcile.");
    (dropped > 0 || repaired > ONE_PER_SECOND).then(text)
}

fn clock_beyond(seconds: u64, skew: i64) -> Option<String> {
    let way = if skew > 0 { "ahead of" } else { "behind" };
    (skew.unsigned_abs() > seconds).then(|| format!("The clock is {} s {way} the database's.", skew.unsigned_abs()))
}

fn strangers_limited(counts: &CounterValues) -> Option<String> {
    let (claims, full) = (counts.limited, counts.mailbox_full);
    let text = || format!("In the last minute: {claims} claims over a limit, {full} messages to full mailboxes.");
    (claims > ONE_PER_SECOND || full > ONE_PER_SECOND).then(text)
}

fn mailboxes_pile_up(bytes: u64) -> Option<String> {
    (bytes > MAILBOX_BYTES).then(|| format!("{} GiB of content wait in all mailboxes.", bytes >> 30))
}

fn push_overdue(seconds: u64) -> Option<String> {
    (seconds > PUSH_OVERDUE).then(|| format!("A device was to be woken {seconds} s ago, and no node has tried."))
}

/// Joins the texts; `None` if there are none.
fn listed(texts: impl Iterator<Item = String>) -> Option<String> {
    Some(texts.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn quiet(counts: &CounterValues) -> Conditions<'_> {
        Conditions {
            database_answers: true,
            bus_is_up: true,
            sockets: (80, 100),
            http: (80, 100),
            files: Some((80, 100)),
            inbound: (80 << 20, 100 << 20),
            outbound: (80 << 20, 100 << 20),
            mailbox_bytes: MAILBOX_BYTES,
            clock_skew: -5,
            push_overdue: PUSH_OVERDUE,
            clock_is_trusted: true,
            counts,
        }
    }

    /// A quiet minute, up to the thresholds.
    fn quiet_minute() -> CounterValues {
        let mut counts = CounterValues {
            wrong_guesses: WRONG_GUESSES,
            proofs_offered: ONE_PER_SECOND,
            signals_repaired: ONE_PER_SECOND,
            given_up: ONE_PER_SECOND,
            tokens_limited: ONE_PER_SECOND,
            throttled: ONE_PER_SECOND,
            lock_timeouts: LOCK_TIMEOUTS,
            limited: ONE_PER_SECOND,
            mailbox_full: ONE_PER_SECOND,
            sends_limited: SENDS_LIMITED,
            refused: [ONE_PER_SECOND; Limit::ALL.len()],
            ..CounterValues::of(&Metrics::new())
        };
        counts.closes.fill(ONE_PER_SECOND);
        // Routine refusals are no alert.
        counts.errors.fill(1_000_000);
        let codes = sealwire_protocol::Code::ALL;
        for code in [sealwire_protocol::Code::Internal, sealwire_protocol::Code::Unavailable] {
            counts.errors[codes.iter().position(|known| *known == code).unwrap()] = SERVER_ERRORS / 2;
        }
        counts
    }

    fn alarming_minute() -> CounterValues {
        let metrics = Metrics::new();
        metrics.op_seconds.observe(sealwire_protocol::frame::Op::ALL[0], 3.0);
        metrics.delivery_seconds.observe(7.0);
        let mut counts = CounterValues {
            wrong_guesses: WRONG_GUESSES + 1,
            proofs_offered: ONE_PER_SECOND + 1,
            mails_failed: 3,
            mails_dropped: 2,
            signals_dropped: 1,
            given_up: ONE_PER_SECOND + 1,
            tokens_limited: ONE_PER_SECOND + 1,
            throttled: ONE_PER_SECOND + 1,
            lock_timeouts: LOCK_TIMEOUTS + 1,
            mailbox_full: ONE_PER_SECOND + 1,
            sends_limited: SENDS_LIMITED + 1,
            ..CounterValues::of(&metrics)
        };
        counts.errors.fill(SERVER_ERRORS);
        counts.closes.fill(ONE_PER_SECOND + 1);
        counts.refused[1] = ONE_PER_SECOND + 1;
        counts
    }

    #[test]
    fn nothing_fires_up_to_the_thresholds() {
        assert_eq!(firing(&quiet(&quiet_minute())), []);
    }

    #[test]
    fn every_condition_has_its_alert_of_the_rules_file_with_its_severity() {
        let counts = alarming_minute();
        let conditions = Conditions {
            database_answers: false,
            bus_is_up: false,
            sockets: (81, 100),
            http: (50, 100),
            files: Some((99, 100)),
            inbound: (81 << 20, 100 << 20),
            mailbox_bytes: MAILBOX_BYTES + 1,
            push_overdue: PUSH_OVERDUE + 1,
            clock_skew: 61,
            clock_is_trusted: false,
            ..quiet(&counts)
        };
        let alerts = firing(&conditions);
        let rules = include_str!("../../../deploy/alerts.yml");
        for Alert { name, severity, text } in &alerts {
            let rule = rules.split_once(&format!("- alert: {name}\n")).unwrap().1.split("- alert:").next().unwrap();
            let severity = format!("{severity:?}").to_lowercase();
            assert!(rule.contains(&format!("severity: {severity}}}")), "{name} is a {severity}: {rule}");
            assert!(text.ends_with('.') && text.len() > 20, "{name}: {text}");
        }
        let text = |name: &str| alerts.iter().find(|alert| alert.name == name).map(|alert| &*alert.text);
        assert_eq!(text("NodeNearlyFull"), Some("Open: 81 of 100 sockets, 99 of 100 files."));
        assert_eq!(text("MemoryBudget"), Some("In use: 81 of 100 MiB for large messages being received."));
        assert_eq!(
            text("ConnectionsRefused"),
            Some("Connections refused in the last minute: 61 (max_http_connections).")
        );
        assert_eq!(text("ClockWrong"), Some("The clock is 61 s ahead of the database's."));
        let skewed = firing(&Conditions { clock_skew: 6, ..quiet(&quiet_minute()) });
        assert_eq!(skewed.iter().map(|alert| alert.name).collect::<Vec<_>>(), ["ClockSkewed"]);
        assert_eq!(
            text("StrangersLimited"),
            Some("In the last minute: 0 claims over a limit, 61 messages to full mailboxes.")
        );
        assert_eq!(text("MailFails"), Some("Mails not sent in the last minute: 1."));
        assert_eq!(text("MailDropped"), Some("Mails dropped because too many were unsent in the last minute: 2."));
        let longer = [
            "NodeAway",
            "SweepsStopped",
            "PoolsEmpty",
            "PushCredentials",
            "PushFails",
            "PushBusy",
            "AdminTokenGuessed",
        ];
        let rules = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
        let rules: Vec<&str> = rules.filter(|name| !longer.contains(name)).collect();
        assert_eq!(alerts.iter().map(|alert| alert.name).collect::<Vec<_>>(), rules, "in the order of the rules");
    }
}
