//! The operator's listener: who may use it, the status, the metrics and the status page.

use std::sync::atomic::Ordering;

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Codec, Member, Server, Socket, TestApp,
    claiming::owners,
    eventually,
    http::{call, post},
    mail_server::MailServer,
    mailing::message,
    raw::RawSocket,
    services::Services,
    sign_in,
};

const TOKEN: &str = "correct horse battery staple";

async fn request(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = Client::new().request(method, format!("http://{}{path}", app.admin()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

async fn get(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Response {
    request(app, Method::GET, path, headers).await
}

pub async fn status(app: &TestApp) -> Value {
    let response = get(app, "/status", &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    response.json().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_identifies_the_node_and_describes_database_bus_and_memory() {
    let app = TestApp::start(&[]);
    let first = status(&app).await;
    assert_eq!(first["name"], "sealwire");
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(first["node_id"].as_str().unwrap().parse::<Uuid>().is_ok());
    assert_eq!((&first["status"], &first["reasons"]), (&json!("ready"), &json!([])));
    let (database, bus) = (&first["database"], &first["bus"]);
    assert_eq!((&database["kind"], &database["ok"]), (&json!("sqlite"), &json!(true)));
    assert!(database["latency_ms"].as_f64().unwrap() > 0.0);
    let pool = |key: &str| database["pool"][key].as_u64().unwrap();
    assert!(pool("idle") <= pool("open") && (1..=pool("limit")).contains(&pool("open")), "{database}");
    assert_eq!(bus, &json!({ "kind": "local", "ok": true, "probe_age_ms": null }));
    assert!(first["memory"]["resident_bytes"].as_u64().unwrap() > 1_000_000);
    assert_eq!(first["memory"]["budget_limit_bytes"], 512 << 20);
    assert_eq!(first["memory"]["inbound_limit_bytes"], 256 << 20);
    assert_eq!(first["memory"]["outbound_limit_bytes"], 256 << 20);
    for usage in ["sockets", "http_connections", "files"] {
        let (open, limit) = (first[usage]["open"].as_u64().unwrap(), first[usage]["limit"].as_u64().unwrap());
        assert!(open < limit, "{usage}: {open} of {limit}");
    }
    assert_eq!(first["alerts"], json!([]));
    assert!(first.get("history").is_none(), "only the status page needs the history");
    assert_eq!(status(&app).await["node_id"], first["node_id"]);
    let other = TestApp::start(&[]);
    assert_ne!(status(&other).await["node_id"], first["node_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_the_events_of_the_last_minute() {
    let app = TestApp::start(&[]);
    let owner = owners(&app, 1, 2).await.remove(0);
    let alice = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &alice.token, Codec::Json).await;
    let claim = |n| json!({ "user_id": owner.person.user, "claim_id": Uuid::from_u128(n) });
    for n in 0..3 {
        socket.request("keys.claim", claim(n)).await;
    }
    socket.refused("keys.claim", json!({ "user_id": Uuid::from_u128(9), "claim_id": Uuid::from_u128(9) })).await;
    socket.refused("no.such.op", json!({})).await;
    call(&app, Method::GET, "/v1/auth/session", Some("nonsense"), None).await;
    let now = status(&app).await;
    assert_eq!(now["connected_devices"], 2);
    let minute = &now["last_minute"];
    assert_eq!((&minute["claims"], &minute["exhausted"], &minute["limited"]), (&json!(2), &json!(1), &json!(0)));
    assert_eq!((&minute["sign_ins"], &minute["mails_failed"]), (&json!(2), &json!(0)));
    assert!(minute["mails_sent"].as_u64().unwrap() >= 2, "{minute}");
    let p99 = minute["op_p99_ms"].as_f64().unwrap();
    assert!(p99 > 0.0 && p99 <= 10_000.0, "{p99}");
    assert_eq!(minute["delivery_p99_ms"], Value::Null, "nothing was delivered");
    assert_eq!(minute["connections_refused"], json!({}));
    let urgent = now["alerts"].as_array().unwrap().iter().any(|alert| alert["severity"] == "page");
    assert!(!urgent, "refusals to clients are routine: {now}");
    assert_eq!(minute["errors"], json!({ "not_found": 1, "unauthorized": 1, "unknown_op": 1 }));
    assert_eq!(minute["closes"], json!({}));
    let seconds = minute["seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds.to_string().len() <= "60.123".len(), "{seconds}");

    // Two sockets are displaced, one is closed by its client, one is reset.
    let newer = Socket::connect(&app, &alice.token, Codec::Json).await;
    assert_eq!(socket.close_code().await, 4503);
    newer.send(tokio_tungstenite::tungstenite::Message::Close(None)).await;
    newer.closed().await;
    let (raw, _) = RawSocket::connect(&app, &owner.person.token, Codec::Json).await;
    raw.reset();
    let expected = json!({ "4503": 2, "peer": 1, "lost": 1 });
    // A device is disconnected before its close is counted.
    eventually("all closes are counted", || async {
        let now = status(&app).await;
        (now["connected_devices"] == 0 && now["last_minute"]["closes"] == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_claims_beyond_the_drain_limit_separately() {
    let app = TestApp::start(&[("LIMITS__CLAIM_BURST", "1")]);
    let owner = owners(&app, 1, 5).await.remove(0);
    let alice = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &alice.token, Codec::Json).await;
    for n in 0..3 {
        socket.request("keys.claim", json!({ "user_id": owner.person.user, "claim_id": Uuid::from_u128(n) })).await;
    }
    let minute = &status(&app).await["last_minute"];
    assert_eq!((&minute["claims"], &minute["exhausted"], &minute["limited"]), (&json!(1), &json!(0), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_delivered_and_waiting_messages_are_counted() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::Json).await;
    let laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
    drop(laptop.socket);
    eventually("the laptop is disconnected", || async { (status(&app).await["connected_devices"] == 2).then_some(()) })
        .await;
    let both = [&phone.person, &laptop.person];
    for text in ["one", "three"] {
        alice.send(&both, text).await;
        phone.receives(text).await;
    }
    let again = message(&both, "once more");
    for _ in 0..2 {
        alice.socket.request("messages.send", again.clone()).await;
    }
    phone.receives("once more").await;
    let now = status(&app).await;
    let minute = &now["last_minute"];
    // Three messages to two devices, one of them disconnected; the repeat counts neither as a message nor as envelopes.
    assert_eq!((&minute["sends"], &minute["envelopes"], &minute["deliveries"]), (&json!(3), &json!(6), &json!(3)));
    assert!(minute["delivery_p99_ms"].as_f64().unwrap() > 0.0, "{minute}");
    // The waiting messages are counted only now and then.
    eventually("the waiting messages have been counted", || async {
        (status(&app).await["mailbox"] == json!({ "waiting": 3, "bytes": 3 + 5 + 9 })).then_some(())
    })
    .await;
    let metrics = get(&app, "/metrics", &[]).await.text().await.unwrap();
    for line in [
        "sealwire_sends_total 3",
        "sealwire_envelopes_total 6",
        "sealwire_deliveries_total 3",
        "sealwire_redeliveries_total 0",
        "sealwire_delivery_seconds_count 3",
        "sealwire_mailbox_envelopes 3",
        "sealwire_mailbox_bytes 17",
    ] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line} in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_failed_mails_and_refused_connections() {
    let server = MailServer::start().await;
    server.state.refuse_with.store(550, Ordering::SeqCst);
    let app = TestApp::start(&[("MAILER__URL", &server.url()), ("LIMITS__HTTP_CONNECTIONS_PER_NETWORK", "8")]);
    post(&app, "/v1/auth/otp", json!({ "email": "alice@example.org" })).await;
    let mut held = Vec::new();
    let refused = eventually("a connection is refused and a mail has failed", || {
        let stream = std::net::TcpStream::connect(app.address()).unwrap();
        held.push(stream);
        let app = &app;
        async move {
            let minute = status(app).await["last_minute"].take();
            (minute["connections_refused"]["http_connections_per_network"].is_u64() && minute["mails_failed"] == 1)
                .then_some(minute)
        }
    })
    .await;
    assert_eq!(refused["mails_sent"], 0);
    let alerts = status(&app).await["alerts"].take();
    assert_eq!((&alerts[0]["name"], &alerts[0]["severity"]), (&json!("MailFails"), &json!("page")), "{alerts}");
    assert_eq!(alerts[0]["text"], "Mails not sent in the last minute: 1.");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_an_outage_of_the_bus_and_of_the_database() {
    let services = Services::private();
    let database = services.database().await;
    let app = TestApp::start(&[
        ("DATABASE__URL", database.as_str()),
        ("BUS__URL", services.redis.as_str()),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ]);
    let probed = eventually("the bus is up and has answered a probe", || async {
        let now = status(&app).await;
        (now["bus"]["ok"] == true && now["bus"]["probe_age_ms"].is_number()).then_some(now)
    })
    .await;
    assert_eq!((&probed["bus"]["kind"], &probed["database"]["kind"]), (&json!("redis"), &json!("postgres")));
    assert!(probed["bus"]["probe_age_ms"].as_f64().unwrap() < 10_000.0);
    assert_eq!(probed["status"], "ready");

    services.control("stop", "redis").await;
    let down = eventually("the bus is down", || async {
        let now = status(&app).await;
        (now["bus"]["ok"] == false).then_some(now)
    })
    .await;
    assert_eq!((&down["status"], &down["reasons"]), (&json!("degraded"), &json!(["the bus does not answer"])));
    assert_eq!((&down["alerts"][0]["name"], &down["alerts"][0]["severity"]), (&json!("BusDown"), &json!("page")));

    services.control("stop", "postgres").await;
    let database_down = eventually("the database is down", || async {
        let now = status(&app).await;
        (now["database"]["ok"] == false).then_some(now)
    })
    .await;
    assert_eq!(database_down["status"], "not_ready");
    assert_eq!(database_down["database"]["latency_ms"], Value::Null);
    assert_eq!(database_down["alerts"][0]["name"], "DatabaseAway");
    let metrics = get(&app, "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("\nsealwire_database_up 0\n") && metrics.contains("\nsealwire_bus_up 0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_needs_the_token_if_one_is_configured() {
    let app = TestApp::start(&[("ADMIN__TOKEN", TOKEN)]);
    let basic = |text: &str| {
        use base64::{Engine, engine::general_purpose::STANDARD};
        format!("Basic {}", STANDARD.encode(text))
    };
    let paths = ["/status", "/metrics", "/", "/status.js", "/status.css", "/status.svg", "/nothing"];
    for path in paths {
        for wrong in [
            None,
            Some(String::new()),
            Some("Bearer".to_owned()),
            Some("Bearer wrong".to_owned()),
            Some(format!("Bearer {}", &TOKEN[1..])),
            Some(format!("Bearer {TOKEN}x")),
            Some(TOKEN.to_owned()),
            Some(basic(TOKEN)),
            Some(basic(&format!("{TOKEN}:"))),
            Some(basic("operator:wrong")),
        ] {
            let headers: Vec<_> = wrong.iter().map(|value| ("Authorization", value.as_str())).collect();
            let refused = get(&app, path, &headers).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path} {wrong:?}");
            assert!(
                header(&refused, "www-authenticate").starts_with("Basic "),
                "browsers prompt for a password only with this header"
            );
            let text = refused.text().await.unwrap();
            assert!(text.len() < 100 && !text.contains("sealwire_"), "{text}");
        }
    }
    for right in [format!("Bearer {TOKEN}"), format!("bearer {TOKEN}"), basic(&format!("operator:{TOKEN}"))] {
        for path in &paths[..2] {
            let accepted = get(&app, path, &[("Authorization", &right)]).await;
            assert_eq!(accepted.status(), StatusCode::OK, "{right}");
        }
    }
}

/// Prevents DNS rebinding: a web page whose name was rebound to this address sends its own name in `Host`.
#[tokio::test(flavor = "multi_thread")]
async fn requests_to_unknown_hosts_are_refused() {
    let app = TestApp::start(&[("ADMIN__ALLOWED_HOSTS", "status.example, metrics.example")]);
    let port = app.admin().port();
    for known in ["localhost", "127.0.0.1", "[::1]", "status.example", "METRICS.example"] {
        for host in [known.to_owned(), format!("{known}:{port}")] {
            assert_eq!(get(&app, "/status", &[("Host", &host)]).await.status(), StatusCode::OK, "{host}");
        }
    }
    for host in ["evil.example", "localhost.evil.example", "status.example.evil", "127.0.0.1.nip.example"] {
        for path in ["/status", "/metrics", "/status.js", "/nothing"] {
            let host = format!("{host}:{port}");
            assert_eq!(get(&app, path, &[("Host", &host)]).await.status(), StatusCode::FORBIDDEN, "{host}");
        }
    }
    let raw = |head: String| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let own = format!("127.0.0.1:{port}");
    assert_eq!(raw(format!("GET /status HTTP/1.1\r\nHost: {own}\r\n\r\n")).await, "HTTP/1.1 200");
    for head in [
        "GET /status HTTP/1.0\r\n\r\n".to_owned(),
        format!("GET /status HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n\r\n"),
        format!("GET http://evil.example/status HTTP/1.1\r\nHost: {own}\r\n\r\n"),
        "GET /status HTTP/1.1\r\nHost:\r\n\r\n".to_owned(),
    ] {
        let answer = raw(head.clone()).await;
        assert!(answer.ends_with("403") || answer.ends_with("400"), "{head}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_get_and_head_are_allowed() {
    let app = TestApp::start(&[]);
    for path in ["/status", "/metrics", "/status.js", "/nothing"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS, Method::TRACE] {
            let refused = request(&app, method.clone(), path, &[]).await;
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(header(&refused, "allow"), "GET, HEAD");
        }
    }
    assert_eq!(get(&app, "/nothing", &[]).await.status(), StatusCode::NOT_FOUND);
    for path in ["/status", "/metrics", "/status.css"] {
        let head = request(&app, Method::HEAD, path, &[]).await;
        assert_eq!(head.status(), StatusCode::OK);
        assert!(header(&head, "content-length").parse::<usize>().unwrap() > 100);
        assert_eq!(head.bytes().await.unwrap().len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_the_security_headers() {
    let app = TestApp::start(&[]);
    let foreign = [("Host", "evil.example")];
    let origin = [("Origin", "https://evil.example")];
    for (path, headers) in [
        ("/status", &[][..]),
        ("/metrics", &[]),
        ("/status.js", &[]),
        ("/nothing", &[]),
        ("/", &foreign),
        ("/status", &origin),
    ] {
        let response = get(&app, path, headers).await;
        assert_eq!(header(&response, "cache-control"), "no-store");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff");
        assert_eq!(header(&response, "referrer-policy"), "no-referrer");
        assert_eq!(header(&response, "cross-origin-resource-policy"), "same-origin");
        assert_eq!(header(&response, "access-control-allow-origin"), "", "no other origin may read");
        let policy = header(&response, "content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_get_the_status_page_and_other_clients_get_json() {
    let app = TestApp::start(&[]);
    for (accept, kind) in [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html", "text/html"),
        ("*/*", "application/json"),
        ("image/png", "application/json"),
        ("nonsense", "application/json"),
    ] {
        let response = get(&app, "/status", &[("Accept", accept)]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(header(&response, "content-type").starts_with(kind), "{accept}");
        assert!(header(&response, "vary").eq_ignore_ascii_case("accept"));
    }
    let page = get(&app, "/status", &[("Accept", "text/html")]).await.text().await.unwrap();
    for file in ["/status.css", "/status.js", "/status.svg"] {
        assert!(page.contains(&format!("\"{file}\"")), "{file}");
    }
    assert!(page.contains("<p id=\"NodeAway\">") && !page.contains("<!--"), "the runbook is part of the page");
    let home = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let home = home.get(format!("http://{}/", app.admin())).send().await.unwrap();
    assert_eq!((home.status().as_u16(), header(&home, "location")), (302, "/status"));
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_md_documents_every_field_of_the_status_and_no_other() {
    fn fields(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            // The fields of these are codes and settings.
            Value::Object(map)
                if !["errors", "closes", "connections_refused"].iter().any(|end| path.ends_with(end)) =>
            {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    fields(value, &path, found);
                }
            }
            _ => found.push(path.to_owned()),
        }
    }
    let mut real = Vec::new();
    fields(&status(&TestApp::start(&[])).await, "", &mut real);
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let section = text.split_once("\n## Status\n").unwrap().1.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let mut documented: Vec<&str> = rows.flat_map(|(names, _)| names.trim_end_matches('`').split("`, `")).collect();
    documented.sort_unstable();
    real.sort_unstable();
    assert_eq!(documented, real);
}

/// Clients and the operator have separate listeners, and neither serves the paths of the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_clients_listener_does_not_serve_status_and_metrics() {
    let app = TestApp::start(&[]);
    for path in ["/status", "/metrics", "/status.js"] {
        let (code, _) = call(&app, Method::GET, path, None, None).await;
        assert_eq!(code, StatusCode::NOT_FOUND);
    }
    assert_ne!(app.address(), app.admin());
    assert_eq!(get(&app, "/healthz", &[]).await.status(), StatusCode::NOT_FOUND);
}

/// The status page shows close codes by the names in the protocol's table.
#[test]
fn the_status_page_names_close_codes_as_the_protocol_does() {
    let script = include_str!("../../src/http/admin/status.js");
    let (_, names) = script.split_once("const CLOSE_NAMES = {").unwrap();
    let names: Vec<&str> =
        names.split_once('}').unwrap().0.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let real = sealwire_protocol::CloseCode::ALL;
    let real: Vec<String> = real.iter().map(|code| format!("{}: \"{}\",", code.number(), code.reason())).collect();
    assert_eq!(names, real);
}
