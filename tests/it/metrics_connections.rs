//! Metrics of connections: how many are open, how many may be, and which limit refused the others.

use futures_util::future::join_all;
use reqwest::Client;

use crate::{
    metrics::{Scrape, wait_for_sample},
    support::{
        Codec, Socket, TestApp,
        raw::{HANDSHAKE, connect_from, request_upgrade},
        sign_in,
    },
};

const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_and_files_are_exposed_with_their_limits() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "70"), ("SERVER__MAX_HTTP_CONNECTIONS", "90")]);
    let before = Scrape::of(app.admin()).await.value("process_open_fds");
    let mut sockets = Vec::new();
    for index in 0..3 {
        let person = sign_in(&app, &format!("person{index}@example.org")).await;
        sockets.push(Socket::connect(&app, &person.token, Codec::Json).await);
    }
    let idle = join_all((0..40).map(|_| connect_from(LOOPBACK, &app))).await;
    wait_for_sample(app.admin(), "sealwire_open_sockets", 3.0..=3.0).await;
    // Connections that signed the users in may still be open.
    wait_for_sample(app.admin(), "sealwire_open_http_connections", 40.0..=60.0).await;
    let scrape = Scrape::of(app.admin()).await;
    for (sample, limit) in [("sealwire_open_sockets_limit", 70.0), ("sealwire_open_http_connections_limit", 90.0)] {
        let value = scrape.value(sample);
        assert!((value - limit).abs() < f64::EPSILON, "{sample}: {value}");
    }
    let (open, most) = (scrape.value("process_open_fds"), scrape.value("process_max_fds"));
    // Other tests in this process open and close files at the same time.
    assert!(open > 40.0 && open < most && before > 5.0, "{before} and then {open} of {most}");
    drop(idle);
    drop(sockets);
    wait_for_sample(app.admin(), "sealwire_open_sockets", 0.0..=0.0).await;
    wait_for_sample(app.admin(), "sealwire_open_http_connections", 0.0..=20.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_counted_under_the_limit_that_refused_it() {
    let no_limits = [
        ("LIMITS__CONNECTIONS_PER_NETWORK", "0"),
        ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "0"),
        ("LIMITS__CONNECTS_PER_NETWORK_SECOND", "0"),
    ];
    let of = |limit: &str| format!("sealwire_connections_refused_total{{limit=\"{limit}\"}}");
    // Each limit allows the sign-ins; the connections that are opened after them exceed it.
    for (setting, value, limit, sockets) in [
        ("SERVER__MAX_CONNECTIONS", "1", "max_connections", true),
        ("SERVER__MAX_HTTP_CONNECTIONS", "8", "max_http_connections", false),
        ("LIMITS__CONNECTIONS_PER_NETWORK", "1", "connections_per_network", true),
        ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "8", "http_connections_per_network", false),
        ("LIMITS__CONNECTS_PER_NETWORK_SECOND", "1", "connects_per_network_second", false),
    ] {
        let mut settings: Vec<_> = no_limits.iter().copied().filter(|(name, _)| *name != setting).collect();
        settings.push((setting, value));
        let app = TestApp::start(&settings);
        let mut held = Vec::new();
        let mut idle = Vec::new();
        if sockets {
            for index in 0..2 {
                let person = sign_in(&app, &format!("person{index}@example.org")).await;
                let bearer = format!("Bearer {}", person.token);
                let (answer, socket) =
                    request_upgrade(&app, &[&HANDSHAKE[..], &[("authorization", &bearer)]].concat()).await;
                assert_eq!(answer.status == 101, index == 0, "{limit}");
                held.push(socket);
            }
        } else {
            idle = join_all((0..40).map(|_| connect_from(LOOPBACK, &app))).await;
        }
        wait_for_sample(app.admin(), &of(limit), 1.0..=40.0).await;
        let scrape = Scrape::of(app.admin()).await;
        let others = scrape
            .samples
            .iter()
            .filter(|(sample, _)| sample.starts_with("sealwire_connections_refused_total") && **sample != of(limit));
        assert!(others.map(|(_, value)| *value).sum::<f64>() == 0.0, "{limit}");
        drop((held, idle));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_to_the_operators_listener_are_counted_by_reason() {
    let app = TestApp::start(&[("ADMIN__TOKEN", "correct horse battery staple")]);
    let url = format!("http://{}/metrics", app.admin());
    let get = |name: &'static str, value: &'static str| Client::new().get(&url).header(name, value).send();
    for (name, value, status, times) in [
        ("Accept", "*/*", 401, 2),
        ("Authorization", "Bearer correct horse battery", 401, 3),
        ("Host", "evil.example", 403, 4),
    ] {
        for _ in 0..times {
            assert_eq!(get(name, value).await.unwrap().status(), status);
        }
    }
    let answer = get("Authorization", "Bearer correct horse battery staple").await.unwrap();
    let scrape = answer.text().await.unwrap();
    for (reason, times) in [("no_token", 2), ("wrong_token", 3), ("host", 4)] {
        let line = format!("\nsealwire_admin_refused_total{{reason=\"{reason}\"}} {times}\n");
        assert!(scrape.contains(&line), "{line} in {scrape}");
    }
}
