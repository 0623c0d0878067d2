//! What a server logs: a line for each sign-in, connection and close, and never a token, a code, an address or a key,
//! whatever happens and whatever the log level is.

use std::{collections::BTreeSet, fs, path::Path, process::Command, sync::Mutex, time::Duration};

use reqwest::{Client, Method, StatusCode};
use sealwire::domain::Suite;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Person, Server, ServerProcess, Services, Socket, eventually,
    http::{call, challenge, codes, confirmation, person, post},
    mail_server::MailServer,
    raw::{BINARY, HANDSHAKE, TEXT, frame, header, request_upgrade},
};

/// Texts that must not be in the log.
#[derive(Default)]
struct Secrets(Mutex<BTreeSet<String>>);

impl Secrets {
    fn add(&self, secret: &str) {
        let mut secrets = self.0.lock().unwrap();
        // Its first characters must be absent, too, because a log may cut it short.
        secrets.insert(secret.chars().take(16).collect());
        secrets.insert(secret.to_owned());
    }

    /// Adds key material, also in the forms in which databases and debug output print bytes.
    fn add_bytes(&self, base64: &str) {
        use base64::{Engine, engine::general_purpose::STANDARD};
        self.add(base64);
        let bytes = STANDARD.decode(base64).unwrap();
        self.add(&bytes[1..].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat());
        self.add(&bytes[1..9].iter().map(u8::to_string).collect::<Vec<_>>().join(", "));
    }

    /// Adds all key material in a request or an answer.
    fn add_keys(&self, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if ["identity_key", "public_key", "signature"].contains(&name.as_str()) => {
                            self.add_bytes(text);
                        }
                        _ => self.add_keys(value),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.add_keys(value)),
            _ => {}
        }
    }

    fn add_email(&self, email: &str) {
        let (local, domain) = email.split_once('@').unwrap();
        for part in [email, local, domain] {
            self.add(part);
            self.add(&part.to_uppercase());
        }
    }

    fn assert_absent(&self, log: &str) {
        let secrets = self.0.lock().unwrap();
        assert!(secrets.len() > 50, "only {} secrets were added", secrets.len());
        for line in log.lines() {
            if let Some(secret) = secrets.iter().find(|secret| line.contains(*secret)) {
                panic!("{secret} is in the log: {line}");
            }
        }
    }
}

/// Counts the events that must have a log line each.
#[derive(Default)]
struct EventCounts {
    signed_in: usize,
    sockets: usize,
}

/// Two users who use the server, and what their requests must and must not leave in its log.
struct Scenario<'a> {
    server: &'a ServerProcess,
    secrets: &'a Secrets,
    events: EventCounts,
}

impl Scenario<'_> {
    async fn enter(&mut self, email: &str, challenge: &str, code: &str) -> Person {
        self.secrets.add(code);
        let wrong = if code == "12345678" { "87654321" } else { "12345678" };
        let entry = |code: &str| json!({ "challenge_id": challenge, "email": email, "code": code });
        let (status, _) = post(self.server, "/v1/auth/verify", entry(wrong)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let (status, body) = post(self.server, "/v1/auth/verify", entry(code)).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        self.events.signed_in += 1;
        let person = person(email, &body);
        self.secrets.add(&person.token);
        person
    }

    async fn connect(&mut self, token: &str, codec: Codec) -> Socket {
        self.events.sockets += 1;
        Socket::connect(self.server, token, codec).await
    }

    async fn publish(&self, socket: &Socket, seed: u64, suite: Suite) -> KeySet {
        let mut keys = KeySet::new(suite, seed);
        let params = keys.complete(1..=3);
        self.secrets.add_keys(&params);
        socket.request("keys.publish", params.clone()).await;
        // Other keys under the same ids, then an invalid signature, then an invalid identity key.
        let mut other = keys.complete(1..=3);
        self.secrets.add_keys(&other);
        socket.try_request("keys.publish", other.clone()).await.unwrap().unwrap();
        other["signed_prekey"]["signature"] = params["signed_prekey"]["signature"].clone();
        assert_eq!(socket.refused("keys.publish", other.clone()).await["code"], "invalid_signature");
        other["identity_key"] = json!("AAAA");
        socket.refused("keys.publish", other).await;
        keys
    }

    /// Bob sets an access key, and Alice shows it, a key that is not his, and a text that is none.
    async fn show_access_keys(&self, alices: &Socket, bobs: &Socket, bob: &Person, send: &Value) {
        let keys = ["8PHy8/T19vf4+fr7/P3+/w==", "4OHi4+Tl5ufo6err7O3u7w==", "an access key of a wrong form"];
        self.secrets.add_bytes(keys[0]);
        self.secrets.add_bytes(keys[1]);
        self.secrets.add(keys[2]);
        bobs.request("access.set", json!({ "strangers": "refuse", "key": keys[0] })).await;
        bobs.refused("access.set", json!({ "strangers": keys[1], "key": keys[0] })).await;
        bobs.refused("access.set", json!({ "strangers": "limit", "key": keys[2] })).await;
        for key in keys {
            let mut claim = json!({ "user_id": bob.user, "claim_id": Uuid::from_u128(9) });
            let mut send = send.clone();
            (send["access"], claim["access"]) = (key.into(), key.into());
            for (op, params) in [("keys.fetch", claim.clone()), ("keys.claim", claim), ("messages.send", send)] {
                match alices.try_request(op, params).await.unwrap() {
                    Ok(reply) => self.secrets.add_keys(&reply),
                    // A repeat of the message is answered like the message.
                    Err(error) => assert!(key != keys[0] && op != "messages.send", "{op}: {error}"),
                }
            }
        }
        bobs.request("access.set", json!({ "strangers": "limit" })).await;
    }

    /// Does everything that the two users can do, with valid and with invalid requests. `deletion` is a code with which
    /// Alice deletes her account.
    async fn run(&mut self, alice: &Person, bob: &Person, deletion: Value) {
        let (server, secrets) = (self.server, self.secrets);
        let alices = self.connect(&alice.token, Codec::Json).await;
        // A browser sends its token among the subprotocols.
        let offered = format!("sealwire.token.{}, sealwire.v1.json", bob.token);
        let offer = [&HANDSHAKE[..], &[("sec-websocket-protocol", offered.as_str())]].concat();
        let (answer, mut browser) = request_upgrade(server, &offer).await;
        assert_eq!(answer.status, 101);
        self.events.sockets += 1;
        browser.message().await.expect("a welcome");
        browser.reset();
        eventually("the lost connection is logged", || async {
            log_of(server).contains("connection lost").then_some(())
        })
        .await;
        let bobs = self.connect(&bob.token, Codec::MsgPack).await;
        self.publish(&bobs, 2, Suite::SignalPqxdh).await;
        self.publish(&alices, 1, Suite::SignalX3dh).await;
        alices.request("users.find", json!({ "email": bob.email })).await;
        alices.refused("users.find", json!({ "email": "nobody@unknown-to-all.example" })).await;
        secrets.add_email("nobody@unknown-to-all.example");
        for claim in 0..5 {
            let params = json!({ "user_id": bob.user, "claim_id": Uuid::from_u128(claim) });
            secrets.add_keys(&alices.request("keys.claim", params).await);
        }
        secrets.add_keys(&alices.request("keys.fetch", json!({ "user_id": bob.user })).await);
        alices.refused("keys.claim", json!({ "user_id": bob.email, "claim_id": bob.token })).await;
        alices.refused(&alice.token, json!({})).await;
        // A valid and an invalid message.
        let content = "bWVzc2FnZSBjb250ZW50cyBhcmUgbm9ib2R5J3MgYnVzaW5lc3M=";
        secrets.add_bytes(content);
        let message = |id: u128, device: &str| {
            json!({ "message_id": Uuid::from_u128(id), "to": bob.user,
                    "messages": [{ "device_id": device, "type": 1, "content": content }] })
        };
        alices.request("messages.send", message(7, &bob.device)).await;
        alices.refused("messages.send", message(8, &alice.device)).await;
        self.show_access_keys(&alices, &bobs, bob, &message(9, &bob.device)).await;
        for _ in 0..2 {
            let seq = bobs.event("message").await["seq"].clone();
            bobs.request("messages.ack", json!({ "seqs": [seq] })).await;
        }
        alices.request("devices.rename", json!({ "name": "the-name-of-a-device" })).await;

        // A renewal. The new token is presented in a header and replaces the first.
        let renewed = alices.request("session.renew", json!({})).await;
        let renewed = renewed["token"].as_str().unwrap();
        secrets.add(renewed);
        let (status, _) = call(server, Method::GET, "/v1/auth/session", Some(renewed), None).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(call(server, Method::GET, "/v1/auth/session", Some(&alice.token), None).await.0, 401);

        // Secrets in places where they do not belong.
        for path in ["/v1/auth/session", "/v1/auth/otp", "/v1/socket", "/healthz", "/v1/nowhere", "/nowhere"] {
            let path = format!("{path}?token={renewed}&email={}&code=12121212", alice.email);
            for method in [Method::GET, Method::POST, Method::PUT] {
                let body = Some(json!({ "email": [alice.email], "token": renewed }));
                call(server, method, &path, Some(renewed), body).await;
            }
            call(server, Method::GET, &format!("/{renewed}/{}", alice.email), Some("not a token"), None).await;
        }
        let cut = format!("{{\"email\": \"{}\", \"code\": {renewed}", alice.email);
        for path in ["/v1/auth/otp", "/v1/auth/verify"] {
            let url = format!("http://{}{path}", server.address());
            let request = Client::new().post(url).header("cookie", renewed).header("x-forwarded-for", renewed);
            assert_eq!(request.body(cut.clone()).send().await.unwrap().status(), StatusCode::BAD_REQUEST);
        }
        let bearer = format!("Bearer {renewed}");
        for (name, value) in [("origin", "https://elsewhere.example"), ("sec-websocket-protocol", renewed)] {
            let headers = [&HANDSHAKE[..], &[("authorization", bearer.as_str()), (name, value)]].concat();
            assert!([400, 403].contains(&request_upgrade(server, &headers).await.0.status));
        }
        for junk in [
            frame(TEXT, format!("{{\"id\": 1, \"op\": \"{renewed}\", {}", alice.email).as_bytes()),
            frame(BINARY, renewed.as_bytes()),
            header(BINARY, 200_000_000),
        ] {
            self.events.sockets += 1;
            let (answer, mut socket) =
                request_upgrade(server, &[&HANDSHAKE[..], &[("authorization", &bearer)]].concat()).await;
            assert_eq!(answer.status, 101);
            socket.message().await.expect("a welcome");
            socket.send(&junk).await;
            assert!([4504, 4505].contains(&socket.close_code().await));
        }

        // The ends of sessions.
        bobs.request("devices.revoke", json!({ "device_id": bob.device })).await;
        assert_eq!(bobs.close_code().await, 4502);
        let alices = self.connect(renewed, Codec::MsgPack).await;
        secrets.add(deletion["code"].as_str().unwrap());
        alices.request("account.delete", deletion).await;
        assert_eq!(alices.close_code().await, 4506);
    }
}

fn log_of(server: &ServerProcess) -> String {
    fs::read_to_string(server.path("server.log")).unwrap()
}

/// Returns the log entries with this message. Every line must be a JSON entry.
fn entries(log: &str, message: &str) -> Vec<Value> {
    let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    entries.filter(|entry| entry["fields"]["message"] == message).collect()
}

/// Asserts that each event has a log line, and that no line has a secret.
async fn assert_log_is_complete_and_without_secrets(server: &ServerProcess, secrets: &Secrets, events: &EventCounts) {
    let log = eventually("every close is logged", || async {
        let log = log_of(server);
        (entries(&log, "socket closed").len() >= events.sockets).then_some(log)
    })
    .await;
    secrets.assert_absent(&log);
    assert_eq!(entries(&log, "signed in").len(), events.signed_in);
    let opened = entries(&log, "socket opened");
    let closed = entries(&log, "socket closed");
    assert_eq!((opened.len(), closed.len()), (events.sockets, events.sockets));
    for entry in opened.iter().chain(&closed) {
        assert!(Uuid::parse_str(entry["fields"]["device_id"].as_str().unwrap()).is_ok(), "{entry}");
        assert!(entry["fields"]["epoch"].is_u64() && entry["timestamp"].is_string(), "{entry}");
    }
    assert!(opened.iter().all(|entry| entry["fields"]["client"] == "127.0.0.1"));
    for entry in &closed {
        let fields = &entry["fields"];
        assert!(fields["code"].is_u64() && fields["seconds"].is_f64() && fields["reason"].is_string(), "{entry}");
    }
    let codes: BTreeSet<u64> = closed.iter().map(|entry| entry["fields"]["code"].as_u64().unwrap()).collect();
    assert!([1006, 4502, 4504, 4505, 4506].iter().all(|code| codes.contains(code)), "{codes:?}");
    let requests = entries(&log, "request");
    assert!(
        requests.len() > 10 && requests.iter().all(|entry| entry["span"]["route"].is_string()),
        "{} requests",
        requests.len()
    );
    // The server logs at the level that was set; the libraries log nothing below INFO.
    let levels = |ours: bool| -> BTreeSet<String> {
        let all = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let from = |entry: &Value| entry["target"].as_str().unwrap().starts_with("sealwire") == ours;
        all.filter(from).map(|entry| entry["level"].as_str().unwrap().to_owned()).collect()
    };
    assert!(levels(true).contains("DEBUG"), "RUST_LOG was ignored");
    assert!(!levels(false).contains("DEBUG") && !levels(false).contains("TRACE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_log_on_sqlite_with_mail_in_a_folder_contains_no_secret() {
    let (secrets, admin) = (Secrets::default(), "the-admin-token-of-this-test");
    secrets.add(admin);
    let server = ServerProcess::start(&[("RUST_LOG", "trace"), ("ADMIN__TOKEN", admin)]).await;
    secrets.add(fs::read_to_string(server.path("sealwire.secret")).unwrap().trim());
    secrets.add(fs::read_to_string(server.path("sealwire.db-vapid")).unwrap().trim());
    let mut scenario = Scenario { server: &server, secrets: &secrets, events: EventCounts::default() };
    let mut users = Vec::new();
    for email in ["quixotic-alice@windmills.example", "baroque-bob@fugues.example"] {
        secrets.add_email(email);
        let (challenge, code) = challenge(&server, email).await;
        users.push(scenario.enter(email, &challenge, &code).await);
    }
    // A second code, for a user who is known already.
    challenge(&server, &users[1].email).await;
    for code in codes(server.mail(), &users[1].email) {
        secrets.add(&code);
    }
    let deletion = confirmation(&server, &users[0].email, "delete").await;
    scenario.run(&users[0], &users[1], deletion).await;
    let events = scenario.events;
    assert_log_is_complete_and_without_secrets(&server, &secrets, &events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_log_during_outages_of_postgresql_redis_and_smtp_contains_no_secret() {
    let services = Services::private();
    let mail = MailServer::start().await;
    let (secrets, secret) = (Secrets::default(), "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=");
    secrets.add(secret);
    let database = services.database().await;
    let server = ServerProcess::start(&[
        ("RUST_LOG", "trace,sqlx=trace,redis=trace,lettre=trace,actix_http=trace,h1=trace,mio=trace,rustls=trace"),
        ("DATABASE__URL", &database),
        ("BUS__URL", &services.redis),
        ("AUTH__SECRET", secret),
        ("MAILER__URL", &mail.url()),
    ])
    .await;
    let mut scenario = Scenario { server: &server, secrets: &secrets, events: EventCounts::default() };
    let mut users = Vec::new();
    for (index, email) in ["quixotic-alice@windmills.example", "baroque-bob@fugues.example"].iter().enumerate() {
        secrets.add_email(email);
        let (status, body) = post(&server, "/v1/auth/otp", json!({ "email": email })).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        let code = mail.state.nth_mail(index).await.code();
        users.push(scenario.enter(email, body["challenge_id"].as_str().unwrap(), &code).await);
    }
    let (_, body) = post(&server, "/v1/auth/otp", json!({ "email": users[0].email, "purpose": "delete" })).await;
    let deletion = json!({ "challenge_id": body["challenge_id"], "code": mail.state.nth_mail(2).await.code() });
    // A mail that is refused, and one while the mail server is down.
    mail.state.refuse_with.store(550, std::sync::atomic::Ordering::SeqCst);
    post(&server, "/v1/auth/otp", json!({ "email": "late-larry@refused.example" })).await;
    secrets.add_email("late-larry@refused.example");
    mail.state.wait_for_refusals(1).await;
    drop(mail);
    post(&server, "/v1/auth/otp", json!({ "email": "later-lucy@refused.example" })).await;
    secrets.add_email("later-lucy@refused.example");
    scenario.run(&users[0], &users[1], deletion).await;

    // Redis and then PostgreSQL are killed, and requests arrive during the outage.
    let email = "stranded-steve@islands.example";
    secrets.add_email(email);
    for service in ["redis", "postgres"] {
        services.control("kill", service).await;
        for _ in 0..3 {
            let _ =
                tokio::time::timeout(Duration::from_secs(3), post(&server, "/v1/auth/otp", json!({ "email": email })))
                    .await;
            let session = call(&server, Method::GET, "/v1/auth/session", Some(&users[0].token), None);
            let _ = tokio::time::timeout(Duration::from_secs(3), session).await;
        }
    }
    let events = scenario.events;
    assert_log_is_complete_and_without_secrets(&server, &secrets, &events).await;
    let log = log_of(&server);
    assert!(!entries(&log, "the bus is down").is_empty() && log.contains("the database fails"), "nothing broke down");
    assert!(!entries(&log, "a mail was not sent").is_empty());
}

#[test]
fn the_log_is_text_on_a_terminal_and_json_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_sealwire"));
    // The address cannot be bound, so the server logs its start and exits with an error.
    let settings = [
        ("SEALWIRE__DATABASE__URL", format!("sqlite://{}", folder.path().join("x.db").display())),
        ("SEALWIRE__SERVER__BIND", "192.0.2.1:1".to_owned()),
        ("SEALWIRE__ADMIN__BIND", "127.0.0.1:0".to_owned()),
    ];
    let piped = Command::new(binary).envs(settings.clone()).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(piped.stderr).unwrap();
    assert!(serde_json::from_str::<Value>(said.lines().next().unwrap()).is_ok(), "{said}");
    // `script` of util-linux runs it in a pseudo-terminal.
    let shown = Command::new("script")
        .args(["-qec", binary.to_str().unwrap(), "/dev/null"])
        .envs(settings)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("starting") && !shown.contains("{\"timestamp\""), "{shown}");
}
