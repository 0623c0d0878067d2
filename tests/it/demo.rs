//! The try-it page: its files, when it is served, and who may read codes.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    log_lines::entries,
    support::{PATIENCE, Server, ServerProcess, TestApp, chromium::Page, eventually, http::post},
};

const ON: [(&str, &str); 1] = [("MAILER__URL", "log:")];
/// The paths of the page's files, their names in the repository and their types.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/try-it/app.js", "app.js", "text/javascript; charset=utf-8"),
    ("/try-it/app.css", "app.css", "text/css; charset=utf-8"),
    ("/try-it/worker.js", "worker.js", "text/javascript; charset=utf-8"),
    ("/try-it/icon.svg", "icon.svg", "image/svg+xml"),
    ("/try-it/icon.png", "icon.png", "image/png"),
];

struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The status and the error code.
    fn error(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap().to_owned())
    }
}

/// Sends a request with exactly these headers and a body, and returns the response.
async fn exchange(mut stream: TcpStream, start: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let headers = headers.iter().fold(String::new(), |text, (name, value)| text + &format!("{name}: {value}\r\n"));
    let length = body.len();
    let request = format!("{start} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head, body: bytes[end + 4..].to_vec() }
}

async fn connect(server: &impl Server) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

async fn get(server: &impl Server, path: &str, headers: &[(&str, &str)]) -> Response {
    exchange(connect(server).await, &format!("GET {path}"), headers, "").await
}

/// Asks for the code of a challenge with exactly these headers.
async fn code_with(server: &impl Server, headers: &[(&str, &str)], challenge: &Value) -> Response {
    let body = json!({ "challenge_id": challenge }).to_string();
    exchange(connect(server).await, "POST /try-it/code", headers, &body).await
}

/// Asks for the code of a challenge as the page does, opened under this host name.
async fn code_on(server: &impl Server, host: &str, challenge: &Value) -> Response {
    let host = format!("{host}:{}", server.address().port());
    let headers = [("Host", &*host), ("Origin", &format!("http://{host}")), ("Content-Type", "application/json")];
    code_with(server, &headers, challenge).await
}

async fn new_challenge(server: &impl Server, email: &str) -> Value {
    post(server, "/v1/auth/otp", json!({ "email": email })).await.1["challenge_id"].clone()
}

fn asset(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/demo/assets").join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_serves_the_committed_files_and_a_browser_keeps_them_until_they_change() {
    let app = TestApp::start(&ON);
    let host = app.address().to_string();
    let mut tags = Vec::new();
    for (path, name, content_type) in FILES {
        let response = get(&app, path, &[("Host", &host)]).await;
        assert_eq!(response.status, 200, "{path}");
        assert!(response.body == asset(name), "{path} is not the committed {name}");
        assert_eq!(response.header("content-type"), Some(content_type));
        assert_eq!(response.header("cache-control"), Some("no-cache"));
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(response.header("cross-origin-opener-policy"), Some("same-origin"));
        assert_eq!(response.header("access-control-allow-origin"), None);
        let policy = response.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        let sources = format!("connect-src 'self' ws://{host} wss://{host};");
        let trusted = "; trusted-types try-it-worker; require-trusted-types-for 'script'";
        assert!(policy.contains(&sources) && policy.ends_with(trusted), "{policy}");

        let tag = response.header("etag").unwrap().to_owned();
        let again = get(&app, path, &[("Host", &host), ("If-None-Match", &format!("\"other\", W/{tag}"))]).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        let changed = get(&app, path, &[("Host", &host), ("If-None-Match", "\"other\"")]).await;
        assert_eq!(changed.status, 200);
        tags.push(tag);

        let head = exchange(connect(&app).await, &format!("HEAD {path}"), &[("Host", &host)], "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        let length = asset(name).len().to_string();
        assert_eq!(head.header("content-length"), Some(&*length));
        let other = exchange(connect(&app).await, &format!("POST {path}"), &[("Host", &host)], "{}").await;
        assert_eq!(other.error(), (404, "not_found".to_owned()), "{path}");
    }
    tags.dedup();
    assert_eq!(tags.len(), 1, "files of two versions are never mixed");
}

#[test]
fn the_page_loads_no_other_files() {
    let page = String::from_utf8(asset("index.html")).unwrap();
    let mut found = 0;
    for attribute in ["src=\"", "href=\""] {
        for (at, _) in page.match_indices(attribute) {
            let target = page[at + attribute.len()..].split('"').next().unwrap();
            let is_file = FILES.iter().any(|(path, ..)| *path == target);
            assert!(is_file || target.starts_with(['#', '/']) && target.len() == 1, "{target}");
            found += usize::from(is_file);
        }
    }
    assert!(found >= 3, "the page loads its script, style and icon");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_gets_the_code_of_a_challenge() {
    let app = TestApp::start(&ON);
    for host in ["localhost", "127.0.0.1", "LOCALHOST", "127.8.8.8", "[::1]"] {
        let challenge = new_challenge(&app, "alice@example.org").await;
        let shown = code_on(&app, host, &challenge).await;
        assert_eq!(shown.status, 200, "{host}: {}", shown.json());
        assert_eq!(shown.header("cache-control"), Some("no-store"));
        assert_eq!(shown.header("access-control-allow-origin"), None);
        let again = code_on(&app, host, &challenge).await;
        assert_eq!(again.json(), shown.json(), "a page that is loaded again can show it again");
        let body = json!({ "challenge_id": challenge, "email": "alice@example.org", "code": shown.json()["code"] });
        assert_eq!(post(&app, "/v1/auth/verify", body).await.0.as_u16(), 201, "{host}");
    }
    let other = code_on(&app, "localhost", &json!(Uuid::new_v4())).await;
    assert_eq!(other.error(), (404, "not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_expire() {
    let app = TestApp::with_clock(&ON);
    let challenge = new_challenge(&app, "alice@example.org").await;
    app.advance(Duration::from_secs(599));
    assert_eq!(code_on(&app, "localhost", &challenge).await.status, 200);
    app.advance(Duration::from_secs(1));
    assert_eq!(code_on(&app, "localhost", &challenge).await.error(), (404, "not_found".to_owned()));
}

/// A code for deletion is not mailed to an address without an account, so the page does not show that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn only_codes_that_were_mailed_are_shown() {
    let app = TestApp::start(&ON);
    let body = json!({ "email": "nobody@example.org", "purpose": "delete" });
    let challenge = post(&app, "/v1/auth/otp", body).await.1["challenge_id"].clone();
    assert_eq!(code_on(&app, "localhost", &challenge).await.error(), (404, "not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_page_gets_a_code() {
    let app = TestApp::start(&[("MAILER__URL", "log:"), ("SERVER__ALLOWED_ORIGINS", "https://chat.example")]);
    let challenge = new_challenge(&app, "alice@example.org").await;
    let port = app.address().port();
    let (own, rebound) = (format!("localhost:{port}"), format!("evil.example:{port}"));
    let own_origin = format!("http://{own}");
    let json_type = ("Content-Type", "application/json");
    let origin = |origin: &'static str| vec![("Host", &*own), ("Origin", origin), json_type];
    let own_and = |more: (&'static str, &'static str)| vec![("Host", &*own), ("Origin", &*own_origin), json_type, more];
    let rebound_origin = format!("http://{rebound}");
    let other_port = format!("http://localhost:{}", port ^ 1);
    for headers in [
        vec![("Host", &*own), json_type],
        origin("http://evil.example"),
        origin("https://chat.example"),
        origin("null"),
        origin("http://localhost"),
        vec![("Host", &*own), ("Origin", &*other_port), json_type],
        vec![("Host", &*own), ("Origin", &*own_origin), ("Origin", &*own_origin), json_type],
        own_and(("Sec-Fetch-Site", "cross-site")),
        own_and(("Sec-Fetch-Site", "same-site")),
        own_and(("Sec-Fetch-Site", "none")),
        // DNS rebinding: the page's own name leads to this server.
        vec![("Host", &*rebound), ("Origin", &*rebound_origin), ("Sec-Fetch-Site", "same-origin"), json_type],
        vec![("Host", "0.0.0.0"), ("Origin", "http://0.0.0.0"), json_type],
        vec![("Host", "192.0.2.7"), ("Origin", "http://192.0.2.7"), json_type],
        vec![("Host", "localhost.evil.example"), ("Origin", "http://localhost.evil.example"), json_type],
    ] {
        let refused = code_with(&app, &headers, &challenge).await;
        assert_eq!(refused.error(), (403, "forbidden_origin".to_owned()), "{headers:?}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    // Two hosts, and one in the request line that differs from the header.
    let twice = [("Host", &*own), ("Host", "evil.example"), ("Origin", &*own_origin), json_type];
    let refused = code_with(&app, &twice, &challenge).await;
    assert!([400, 403].contains(&refused.status), "{}", refused.head);
    let body = json!({ "challenge_id": challenge }).to_string();
    let start = format!("POST http://{rebound}/try-it/code");
    let refused = exchange(connect(&app).await, &start, &own_and(("X", "y")), &body).await;
    assert_eq!(refused.error(), (403, "forbidden_origin".to_owned()));

    // What a form or a request without a preflight can send.
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
        let headers = [("Host", &*own), ("Origin", &*own_origin), ("Content-Type", content_type)];
        let refused = code_with(&app, &headers, &challenge).await;
        assert_eq!(refused.error(), (400, "bad_request".to_owned()), "{content_type}");
    }
    for proxy in [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", "localhost"),
        ("X-Real-IP", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("Via", "1.1 proxy"),
    ] {
        let refused = code_with(&app, &own_and(proxy), &challenge).await;
        assert_eq!(refused.error(), (404, "not_found".to_owned()), "{proxy:?}");
        let page = get(&app, "/", &[("Host", &own), proxy]).await;
        assert_eq!(page.error(), (404, "not_found".to_owned()), "{proxy:?}");
    }
    let page = get(&app, "/", &[("Host", &rebound)]).await;
    assert_eq!(page.error(), (404, "not_found".to_owned()));
    assert_eq!(code_on(&app, "localhost", &challenge).await.status, 200, "the page itself still gets it");
}

/// Returns an address of this machine that is no loopback address. `None` without a network.
async fn own_address() -> Option<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    socket.connect("192.0.2.1:9").await.ok()?;
    socket.local_addr().ok().filter(|address| !address.ip().is_loopback())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_loopback_address_gets_neither_page_nor_code() {
    let Some(mut source) = own_address().await else {
        println!("not tested: this machine has only loopback addresses");
        return;
    };
    source.set_port(0);
    let app = TestApp::start(&ON);
    let challenge = new_challenge(&app, "alice@example.org").await;
    let from_source = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(source).unwrap();
        socket.connect(app.address()).await.unwrap()
    };
    let host = app.address().to_string();
    let origin = format!("http://{host}");
    let headers = [("Host", &*host), ("Origin", &origin), ("Content-Type", "application/json")];
    let body = json!({ "challenge_id": challenge }).to_string();
    let refused = exchange(from_source().await, "POST /try-it/code", &headers, &body).await;
    assert_eq!(refused.error(), (404, "not_found".to_owned()));
    let page = exchange(from_source().await, "GET /", &headers, "").await;
    assert_eq!(page.error(), (404, "not_found".to_owned()));
    assert_eq!(code_with(&app, &headers, &challenge).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_nothing_is_served_and_no_code_is_kept() {
    let file = TestApp::start(&[]);
    let off = TestApp::start(&[("MAILER__URL", "log:"), ("SERVER__DEMO", "false")]);
    let proxied = TestApp::start(&[("MAILER__URL", "log:"), ("SERVER__TRUSTED_PROXIES", "127.0.0.1")]);
    for app in [file, off, proxied] {
        let host = app.address().to_string();
        for (path, ..) in FILES {
            assert_eq!(get(&app, path, &[("Host", &host)]).await.error(), (404, "not_found".to_owned()), "{path}");
        }
        let challenge = new_challenge(&app, "alice@example.org").await;
        assert_eq!(code_on(&app, "localhost", &challenge).await.error(), (404, "not_found".to_owned()));
    }
}

/// With a mailer that sends, a code that the page showed would let everybody on this machine sign in as anybody.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_mailer_that_sends_the_page_can_be_served_but_shows_no_code() {
    let app = TestApp::start(&[("SERVER__DEMO", "true")]);
    let host = app.address().to_string();
    assert_eq!(get(&app, "/", &[("Host", &host)]).await.status, 200);
    let challenge = new_challenge(&app, "alice@example.org").await;
    assert_eq!(code_on(&app, "localhost", &challenge).await.error(), (404, "not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_written_only_by_the_mailer() {
    let mut server = ServerProcess::start(&ON).await;
    let challenge = new_challenge(&server, "alice@example.org").await;
    let shown = code_on(&server, "localhost", &challenge).await;
    let code = shown.json()["code"].as_str().unwrap().to_owned();
    let log = eventually("the mail is printed", || async {
        let log = fs::read_to_string(server.path("server.log")).unwrap();
        log.contains(&code).then_some(log)
    })
    .await;
    assert_eq!(log.matches(&code).count(), 1, "{log}");
    let address = server.address();
    let invitation = format!("to try it in a browser, open http://{address}/");
    assert!(entries(&server).iter().any(|entry| entry["fields"]["message"] == invitation), "{log}");
    assert!(server.terminate().await.success());
    for entry in fs::read_dir(server.path("")).unwrap() {
        let path = entry.unwrap().path();
        let is_clean = |bytes: &[u8]| !bytes.windows(code.len()).any(|part| part == code.as_bytes());
        assert!(path.is_dir() || path.ends_with("server.log") || is_clean(&fs::read(&path).unwrap()), "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_for_other_machines_has_no_page_and_refuses_to_start_if_it_is_demanded() {
    let folder = tempfile::tempdir().unwrap();
    let start = |demo: &str| {
        Command::new(env!("CARGO_BIN_EXE_sealwire"))
            .args(["check-config"])
            .current_dir(folder.path())
            .env("SEALWIRE__SERVER__BIND", "0.0.0.0:0")
            .env("SEALWIRE__SERVER__DEMO", demo)
            .output()
            .unwrap()
    };
    let refused = start("true");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.lines().count() == 1 && said.contains("server.demo") && said.contains("server.bind"), "{said}");
    assert!(start("auto").status.success());

    let app = TestApp::start(&[("MAILER__URL", "log:"), ("SERVER__BIND", "0.0.0.0:0")]);
    let host = app.address().to_string();
    assert_eq!(get(&app, "/", &[("Host", &host)]).await.error(), (404, "not_found".to_owned()));
    let challenge = new_challenge(&app, "alice@example.org").await;
    assert_eq!(code_on(&app, "localhost", &challenge).await.error(), (404, "not_found".to_owned()));
}

/// Under the page's policy, its script can sign in and open the socket, and no page of another origin can do either.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_the_page_signs_in_and_connects() {
    let (app, foreign) = (TestApp::start(&ON), TestApp::start(&ON));
    let script = |origin: &str| {
        format!(
            "(async () => {{ const post = async (path, body) => (await fetch({origin:?} + path, {{ method: 'POST', \
               headers: {{ 'content-type': 'application/json' }}, body: JSON.stringify(body) }})).json(); \
             const email = 'alice@example.org'; \
             const {{ challenge_id }} = await post('/v1/auth/otp', {{ email }}); \
             const {{ code }} = await post('/try-it/code', {{ challenge_id }}); \
             const {{ token }} = await post('/v1/auth/verify', {{ email, challenge_id, code }}); \
             const socket = new WebSocket({origin:?}.replace('http', 'ws') + '/v1/socket', \
               ['sealwire.v1.json', 'sealwire.token.' + token]); \
             return await new Promise((done, fail) => {{ socket.onmessage = (m) => done(JSON.parse(m.data).event); \
               socket.onclose = fail; }}); }})().catch((error) => 'failed: ' + error.name)"
        )
    };
    let mut page = Page::open().await;
    for host in ["localhost", "127.0.0.1"] {
        let origin = format!("http://{host}:{}", app.address().port());
        page.navigate(&origin).await;
        assert_eq!(page.evaluate(&script(&origin)).await, "welcome", "{host}");
    }
    assert_eq!(page.problems, Vec::<String>::new());
    let elsewhere = format!("http://{}", foreign.address());
    assert_eq!(page.evaluate(&script(&elsewhere)).await, "failed: TypeError", "the policy allows no other server");
    // A page of another origin that may connect anywhere is refused by the server.
    page.navigate(&format!("http://{}/healthz", foreign.address())).await;
    let origin = format!("http://{}", app.address());
    assert_eq!(page.evaluate(&script(&origin)).await, "failed: TypeError");
}
