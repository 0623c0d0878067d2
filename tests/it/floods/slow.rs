//! Clients that are slow on purpose: they send or read as little as possible to keep a connection open.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use super::{ADDRESS, GET, OTHER_NETWORK, is_served};
use crate::support::{Codec, Socket, TestApp, http::call, problem::assert_problem, raw::connect_from, sign_in};

/// Much longer than any of these connections may last, so that only one that is never closed reaches it.
const NEVER_CLOSED: Duration = Duration::from_mins(3);

/// Sends `begin`, then a byte every half second until the server closes the connection. Returns how long that took and
/// the answer.
async fn drip(app: &TestApp, begin: &str, byte_by_byte: &str, reads: bool) -> (Duration, String) {
    let mut stream = connect_from(ADDRESS, app).await;
    let (began, mut answer, mut bytes) = (Instant::now(), Vec::new(), byte_by_byte.bytes().cycle());
    // All of it, or as much as the server reads within two seconds.
    let _ = timeout(Duration::from_secs(2), stream.write_all(begin.as_bytes())).await;
    let mut chunk = [0; 4096];
    loop {
        assert!(
            began.elapsed() < NEVER_CLOSED,
            "the connection was not closed; the answer was {:?}",
            String::from_utf8_lossy(&answer)
        );
        if reads {
            match timeout(Duration::from_millis(500), stream.read(&mut chunk)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(n)) => answer.extend_from_slice(&chunk[..n]),
                Err(_) => {}
            }
        } else {
            sleep(Duration::from_millis(500)).await;
        }
        if let Some(byte) = bytes.next()
            && let Err(error) = stream.try_write(&[byte])
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            break;
        }
    }
    (began.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

/// Returns the statuses of consecutive answers, and asserts that each 408 (the request was too slow) is as documented.
fn statuses(name: &str, mut text: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !text.is_empty() {
        let (head, rest) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{name}: the head is incomplete: {text}"));
        let head = head.to_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{name}: {head}"));
        let (body, rest) = rest.split_at(header("content-length").map_or(0, |length| length.parse().unwrap()));
        if status == 408 {
            let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{name}: {error}: {body:?}"));
            assert_problem(&body["error"], "rate_limited", name);
            assert_eq!(body["error"]["retry_after_ms"], 1000, "{name}");
            assert_eq!((header("retry-after"), header("connection")), (Some("1"), Some("close")), "{name}: {head}");
            assert_eq!(header("content-type"), Some("application/json"), "{name}: {head}");
        }
        statuses.push(status);
        text = rest;
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_disconnected_with_an_answer_and_other_clients_are_served() {
    const EACH: usize = 40;
    let post = "POST /v1/auth/otp HTTP/1.1\r\nHost: x\r\n";
    let declared = format!("{post}Content-Length: 60000\r\n\r\n{{");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let unread = "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n";
    let unread_chunks = "GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n";
    let unfinished_upgrade = "GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: web";
    // Name, what is sent at once, what follows byte by byte, and the statuses of the answers.
    let cases: &[(&str, &str, &str, &[u16])] = &[
        ("sends nothing", "", "", &[408]),
        ("a head byte by byte", "GET /healthz HTTP/1.1\r\nX: ", "x", &[408]),
        ("a head that stops", "GET /healthz HTTP/1.1\r\nX: ", "", &[408]),
        ("an upgrade byte by byte", unfinished_upgrade, "s", &[408]),
        ("a second head byte by byte", &format!("{GET}GET "), "x", &[200, 408]),
        ("an idle connection", GET, "", &[200]),
        ("a body byte by byte", &declared, " ", &[408]),
        ("a body that stops", &declared, "", &[408]),
        ("a body chunk by chunk", &chunked, "1\r\n \r\n", &[408]),
        ("a chunk that stops", &chunked, "", &[408]),
        ("a body that the handler does not read", unread, " ", &[200]),
        // This request never becomes complete.
        ("chunks that the handler does not read", unread_chunks, " ", &[200, 408]),
    ];
    let app = TestApp::start(&[]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let drips = cases.iter().flat_map(|(name, begin, bytes, expected)| {
        let (app, name, expected) = (&app, *name, *expected);
        std::iter::repeat_with(move || async move {
            let (lasted, answer) = drip(app, begin, bytes, true).await;
            assert_eq!(statuses(name, &answer), expected, "{name}: {answer}");
            (name, lasted)
        })
        .take(EACH)
    });
    // More unread answers than the buffers on both sides hold.
    let unread_answers = GET.repeat(200_000);
    let never_reads = drip(&app, &unread_answers, "x", false);
    let is_over = AtomicBool::new(false);
    let attack = async {
        let (ends, _) = tokio::join!(join_all(drips), never_reads);
        is_over.store(true, Ordering::Relaxed);
        ends
    };
    let others = async {
        let mut round_trips = 0;
        while !is_over.load(Ordering::Relaxed) {
            socket.barrier().await;
            assert!(is_served(&mut connect_from(OTHER_NETWORK, &app).await).await);
            assert_eq!(call(&app, Method::GET, "/readyz", None, None).await.0, StatusCode::OK);
            round_trips += 1;
            sleep(Duration::from_millis(100)).await;
        }
        round_trips
    };
    let (ends, round_trips) = tokio::join!(attack, others);
    assert!(round_trips >= 10, "only {round_trips} round trips during the attack");
    // Ten seconds against thirty, so this holds on a busy machine too.
    let of = |case: &'static str| ends.iter().filter(move |(name, _)| name.contains(case)).map(|(_, lasted)| *lasted);
    let (slowest_head, first_idle) = (of("head").max().unwrap(), of("idle").min().unwrap());
    assert!(slowest_head < first_idle, "a head may take {slowest_head:?}, and idling {first_idle:?}");
}
