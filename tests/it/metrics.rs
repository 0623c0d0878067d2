//! The metrics: a running server exposes those in the code's list and in docs/operations.md, and counts real events.

mod failures;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    ops::RangeInclusive,
};

use sealwire::metrics::Metrics;
use serde_json::json;
use uuid::Uuid;

use crate::support::{Codec, Services, Socket, TestApp, claiming::owners, eventually, http::post, sign_in};

/// The metrics of a server at one time.
#[derive(Default)]
pub struct Scrape {
    /// Name → kind, help.
    families: BTreeMap<String, (String, String)>,
    /// Name with labels, as written → value.
    pub samples: BTreeMap<String, f64>,
}

impl Scrape {
    pub async fn of(admin: SocketAddr) -> Self {
        let response = reqwest::get(format!("http://{admin}/metrics")).await.unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Self::parse(&response.text().await.unwrap())
    }

    /// Parses Prometheus' text format.
    fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                help.clone_into(&mut scrape.families.entry(name.to_owned()).or_default().1);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                kind.clone_into(&mut scrape.families.entry(name.to_owned()).or_default().0);
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                let before = scrape.samples.insert(sample.to_owned(), value.parse().unwrap());
                assert_eq!(before, None, "{sample} is there twice");
            }
        }
        scrape
    }

    pub fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample}"))
    }

    /// The sum of the samples of a metric that have all of these labels, such as `kind="apns"`.
    pub fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let has_all = |sample: &str| {
            sample.split('{').next() == Some(metric) && labels.iter().all(|label| sample.contains(label))
        };
        self.samples.iter().filter(|(sample, _)| has_all(sample)).map(|(_, value)| value).sum()
    }

    /// Returns the family of a sample and the names of its labels.
    fn family(&self, sample: &str) -> (String, BTreeSet<String>) {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let labels =
            labels.trim_end_matches('}').split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let stem = stem.filter(|stem| self.families.get(*stem).is_some_and(|(kind, _)| kind == "histogram"));
        (stem.unwrap_or(name).to_owned(), labels.filter(|label| label != "le").collect())
    }
}

/// Returns the value of a sample of the server with this operator's listener.
pub async fn value(admin: SocketAddr, sample: &str) -> f64 {
    Scrape::of(admin).await.value(sample)
}

/// Waits until a sample of the server with this operator's listener is in the range.
pub async fn wait_for_sample(admin: SocketAddr, sample: &str, range: RangeInclusive<f64>) {
    eventually(sample, || async { range.contains(&value(admin, sample).await).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_exposes_every_listed_metric_and_no_other() {
    let app = TestApp::start(&[]);
    let scrape = Scrape::of(app.admin()).await;
    let live: BTreeMap<&str, (&str, &str)> =
        scrape.families.iter().map(|(name, (kind, help))| (name.as_str(), (kind.as_str(), help.as_str()))).collect();
    let listed: BTreeMap<&str, (&str, &str)> =
        Metrics::ALL.iter().map(|entry| (entry.name, (entry.kind, entry.help))).collect();
    assert_eq!(live, listed);
    assert_eq!(listed.len(), Metrics::ALL.len());

    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sample in scrape.samples.keys() {
        let (family, of_this) = scrape.family(sample);
        let of_family = labels.entry(family).or_insert_with(|| of_this.clone());
        assert_eq!(*of_family, of_this, "{sample}");
    }
    for entry in Metrics::ALL {
        let listed: BTreeSet<String> = entry.labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(labels.get(entry.name), Some(&listed), "{} has its series from the start", entry.name);
    }
    for (family, (kind, _)) in &scrape.families {
        assert_eq!(kind == "counter", family.ends_with("_total"), "counters and only counters end in _total: {family}");
    }
}

#[test]
fn operations_md_documents_every_metric_and_no_other() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let (_, section) = text.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let unquoted = |cell: &str| cell.replace('`', "").trim().to_owned();
    let documented: Vec<[String; 3]> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            assert!(cells[3].trim().len() > 10, "{line}");
            [unquoted(cells[0]), unquoted(cells[1]), unquoted(cells[2])]
        })
        .collect();
    let listed: Vec<[String; 3]> = Metrics::ALL
        .iter()
        .map(|entry| [entry.name.to_owned(), entry.kind.to_owned(), entry.labels.join(", ")])
        .collect();
    assert_eq!(documented, listed);
}

/// Metrics that the document mentions anywhere (above all in the alerts) must exist.
#[test]
fn operations_md_mentions_only_metrics_that_exist() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let mut checked = 0;
    for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if word.starts_with("sealwire_") || word.starts_with("process_") {
            let known = Metrics::ALL.iter().any(|entry| {
                let rest = word.strip_prefix(entry.name);
                rest == Some("") || (entry.kind == "histogram" && matches!(rest, Some("_bucket" | "_sum" | "_count")))
            });
            assert!(known, "{word}");
            checked += 1;
        }
    }
    assert!(checked > Metrics::ALL.len(), "the section about alerts mentions metrics, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_claims_sign_ins_and_closes_are_counted() {
    let app = TestApp::start(&[]);
    let owner = owners(&app, 1, 1).await.remove(0);
    let alice = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &alice.token, Codec::Json).await;
    for n in 0..3 {
        let claim = json!({ "user_id": owner.person.user, "claim_id": Uuid::from_u128(n) });
        socket.request("keys.claim", claim).await;
    }
    socket.refused("users.find", json!({})).await;
    socket.refused("no.such.op", json!({})).await;
    post(&app, "/v1/auth/otp", json!({ "email": "nobody" })).await;
    let upgrade = reqwest::get(format!("http://{}/v1/socket", crate::support::Server::address(&app))).await.unwrap();
    assert_eq!(upgrade.status(), 400);
    let newer = Socket::connect(&app, &alice.token, Codec::Json).await;
    assert_eq!(socket.close_code().await, 4503);
    newer.barrier().await;
    wait_for_sample(app.admin(), "sealwire_open_sockets", 2.0..=2.0).await;

    let scrape = eventually("the mails are sent and the disconnect is written", || async {
        let scrape = Scrape::of(app.admin()).await;
        let disconnected = scrape.value("sealwire_batch_items_count{batch=\"disconnects\"}") >= 1.0;
        (disconnected && scrape.value("sealwire_mails_total{outcome=\"sent\"}") >= 2.0).then_some(scrape)
    })
    .await;
    for (sample, value) in [
        ("sealwire_connected_devices", 2.0),
        ("sealwire_connects_total", 3.0),
        ("sealwire_closes_total{code=\"4503\"}", 1.0),
        ("sealwire_closes_total{code=\"lost\"}", 0.0),
        ("sealwire_upgrades_refused_total{code=\"bad_request\"}", 1.0),
        ("sealwire_ops_total{code=\"ok\",op=\"keys.claim\"}", 3.0),
        ("sealwire_ops_total{code=\"bad_request\",op=\"users.find\"}", 1.0),
        ("sealwire_ops_total{code=\"unknown_op\",op=\"unknown\"}", 1.0),
        ("sealwire_op_seconds_count{op=\"keys.claim\"}", 3.0),
        ("sealwire_op_seconds_bucket{op=\"keys.claim\",le=\"+Inf\"}", 3.0),
        ("sealwire_op_seconds_count{op=\"users.find\"}", 1.0),
        ("sealwire_http_requests_total{code=\"ok\",route=\"otp\"}", 2.0),
        ("sealwire_http_requests_total{code=\"bad_request\",route=\"otp\"}", 1.0),
        ("sealwire_http_requests_total{code=\"ok\",route=\"verify\"}", 2.0),
        ("sealwire_sign_ins_total", 2.0),
        ("sealwire_codes_mailed_total", 2.0),
        ("sealwire_mails_total{outcome=\"failed\"}", 0.0),
        ("sealwire_claims_total{outcome=\"claimed\"}", 1.0),
        ("sealwire_claims_total{outcome=\"exhausted\"}", 2.0),
        ("sealwire_batch_items_sum{batch=\"claims\"}", 3.0),
        ("sealwire_batch_items_sum{batch=\"connections\"}", 3.0),
        ("sealwire_database_up", 1.0),
        ("sealwire_bus_up", 1.0),
        ("sealwire_draining", 0.0),
    ] {
        assert!((scrape.value(sample) - value).abs() < f64::EPSILON, "{sample} is {}", scrape.value(sample));
    }
    let version = concat!("sealwire_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    for at_least_one in [
        version,
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "sealwire_open_sockets_limit",
        "sealwire_sweeps_total",
        "sealwire_batch_seconds_count{batch=\"claims\"}",
        "sealwire_transaction_seconds_count",
        "sealwire_pool_connections_limit",
        "sealwire_memory_budget_limit_bytes{direction=\"in\"}",
        "sealwire_memory_budget_limit_bytes{direction=\"out\"}",
    ] {
        assert!(scrape.value(at_least_one) >= 1.0, "{at_least_one}");
    }
    let pool = ["idle", "busy"].map(|state| scrape.value(&format!("sealwire_pool_connections{{state=\"{state}\"}}")));
    assert!(pool[0] + pool[1] >= 1.0 && pool[0] + pool[1] <= scrape.value("sealwire_pool_connections_limit"));

    let other = Scrape::of(TestApp::start(&[]).admin()).await;
    assert!(other.value("sealwire_sign_ins_total") == 0.0, "each server has its own counters");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_between_nodes_and_repairs_by_the_reconcile_are_counted() {
    let services = Services::private();
    let database = services.database().await;
    let settings = [
        ("DATABASE__URL", database.as_str()),
        ("BUS__URL", services.redis.as_str()),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ];
    let (one, two) = (TestApp::start(&settings), TestApp::start(&settings));
    for app in [&one, &two] {
        wait_for_sample(app.admin(), "sealwire_bus_up", 1.0..=1.0).await;
    }
    let alice = sign_in(&one, "alice@example.org").await;
    let older = Socket::connect(&one, &alice.token, Codec::Json).await;
    let newer = Socket::connect(&two, &alice.token, Codec::Json).await;
    assert_eq!(older.close_code().await, 4503);
    wait_for_sample(two.admin(), "sealwire_bus_signals_total{direction=\"published\"}", 1.0..=f64::MAX).await;
    wait_for_sample(one.admin(), "sealwire_bus_signals_total{direction=\"received\"}", 1.0..=f64::MAX).await;
    wait_for_sample(two.admin(), "sealwire_reconcile_repairs_total{what=\"displaced\"}", 0.0..=0.0).await;

    // Without the bus, the next reconcile repairs what a signal would have reported.
    services.control("stop", "redis").await;
    wait_for_sample(two.admin(), "sealwire_bus_up", 0.0..=0.0).await;
    let newest = Socket::connect(&one, &alice.token, Codec::Json).await;
    assert_eq!(newer.close_code().await, 4503);
    wait_for_sample(two.admin(), "sealwire_reconcile_repairs_total{what=\"displaced\"}", 1.0..=1.0).await;
    wait_for_sample(two.admin(), "sealwire_reconcile_rounds_total", 1.0..=f64::MAX).await;
    newest.barrier().await;
}
