//! Refused upgrades: the reason why a token is not valid, and the refusal that a browser gets on the socket.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::support::{
    Codec, PATIENCE, Person, Server, Socket, TestApp, eventually,
    http::{call, confirmation},
    raw::{HANDSHAKE, request_upgrade},
    sign_in, sign_in_as,
};

const ORIGIN: &str = "https://chat.example";

/// A refusal as a web page receives it.
struct PageRefusal {
    event: Value,
    code: u16,
    reason: String,
}

/// Connects as a web page does, with the token in a subprotocol. Returns the refusal, or the status of an HTTP error.
async fn connect_as_page(server: &impl Server, token: &str, codec: Codec) -> Result<PageRefusal, u16> {
    let mut request = format!("ws://{}/v1/socket", server.address()).into_client_request().unwrap();
    let offer = format!("{}, sealwire.token.{token}", codec.subprotocol());
    request.headers_mut().insert("origin", HeaderValue::from_static(ORIGIN));
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_str(&offer).unwrap());
    let (mut stream, response) = match connect_async(request).await {
        Ok(connected) => connected,
        Err(Error::Http(response)) => return Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(response.headers()["sec-websocket-protocol"], codec.subprotocol());
    let began = Instant::now();
    let event = codec.decode(&stream.next().await.unwrap().unwrap()).unwrap();
    let Some(Ok(Message::Close(Some(close)))) = stream.next().await else { panic!("no close") };
    // The client library has answered the Close frame, so the server ends the connection.
    while let Some(Ok(_)) = timeout(PATIENCE, stream.next()).await.unwrap() {}
    assert!(began.elapsed() < PATIENCE);
    Ok(PageRefusal { event, code: close.code.into(), reason: close.reason.to_string() })
}

fn app(more: &[(&'static str, &'static str)]) -> TestApp {
    TestApp::start(&[&[("SERVER__ALLOWED_ORIGINS", ORIGIN)][..], more].concat())
}

/// Checks that the token is refused with this reason: over HTTP, in an `Authorization` header and in a subprotocol.
async fn assert_reason(server: &impl Server, token: &str, reason: &str) {
    for method in [Method::GET, Method::DELETE] {
        let (status, body) = call(server, method, "/v1/auth/session", Some(token), None).await;
        assert_eq!((status.as_u16(), &body["error"]["details"]), (401, &json!({ "reason": reason })), "{body}");
    }
    let bearer = format!("Bearer {token}");
    let headers = [&HANDSHAKE[..], &[("authorization", bearer.as_str())]].concat();
    let (answer, _) = request_upgrade(server, &headers).await;
    assert_eq!((answer.status, &answer.body["error"]["details"]), (401, &json!({ "reason": reason })));
    for codec in Codec::ALL {
        let refusal = connect_as_page(server, token, codec).await.expect("a refusal on the socket");
        assert_eq!((refusal.code, refusal.reason.as_str()), (4507, "unauthorized"));
        assert_eq!(refusal.event["event"], "refused");
        assert_eq!(refusal.event["data"], answer.body["error"], "the same error as in the HTTP response");
    }
}

async fn socket(server: &impl Server, person: &Person) -> Socket {
    Socket::connect(server, &person.token, Codec::Json).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_token_is_refused_with_the_reason_over_http_and_on_the_socket() {
    let app = app(&[]);
    let alice = sign_in(&app, "alice@example.org").await;
    let unknown = alice.token.replace(|c: char| c.is_ascii_lowercase(), "A");
    assert_reason(&app, &unknown, "unknown").await;

    let renewed = socket(&app, &alice).await.request("session.renew", json!({})).await;
    let newer = renewed["token"].as_str().unwrap();
    let current = Socket::connect(&app, newer, Codec::Json).await;
    assert_reason(&app, &alice.token, "superseded").await;

    let other = sign_in(&app, "alice@example.org").await;
    current.request("session.logout", json!({})).await;
    assert_reason(&app, newer, "logged_out").await;

    // The revocation replaces earlier reasons, so that a device that was offline still wipes its data.
    let revoking = socket(&app, &other).await;
    revoking.request("devices.revoke", json!({ "device_id": alice.device })).await;
    for token in [&alice.token, newer] {
        assert_reason(&app, token, "device_revoked").await;
    }
    revoking.request("account.delete", confirmation(&app, "alice@example.org", "delete").await).await;
    for token in [&alice.token, &other.token] {
        assert_reason(&app, token, "account_deleted").await;
    }
    let without_token = call(&app, Method::GET, "/v1/auth/session", None, None).await.1;
    assert_eq!(without_token["error"]["details"]["reason"], "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_session_can_be_renewed_by_signing_in_as_the_device() {
    let app = TestApp::with_clock(&[("SERVER__ALLOWED_ORIGINS", ORIGIN), ("AUTH__SESSION_DAYS", "1")]);
    let alice = sign_in(&app, "alice@example.org").await;
    app.advance(Duration::from_hours(25));
    assert_reason(&app, &alice.token, "expired").await;
    let again = sign_in_as(&app, "alice@example.org", json!({ "device": { "id": alice.device } })).await;
    assert_eq!(again.device, alice.device);
    socket(&app, &again).await.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_gets_the_refusal_of_a_network_limit_and_does_not_count_towards_it() {
    let app = app(&[("LIMITS__CONNECTIONS_PER_NETWORK", "2")]);
    let mut sockets = Vec::new();
    for name in ["a", "b"] {
        sockets.push(socket(&app, &sign_in(&app, &format!("{name}@example.org")).await).await);
    }
    let late = sign_in(&app, "c@example.org").await;
    for codec in Codec::ALL {
        let refusal = connect_as_page(&app, &late.token, codec).await.expect("a refusal on the socket");
        assert_eq!((refusal.code, refusal.reason.as_str()), (4004, "rate limited"));
        assert_eq!(refusal.event["data"]["code"], "rate_limited");
        assert_eq!(refusal.event["data"]["retryable"], true);
        assert!(refusal.event["data"]["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0));
    }
    drop(sockets.pop());
    // Fails if refused connections count as open sockets.
    eventually("the network is below its limit", || async {
        Socket::try_connect(&app, &late.token, Codec::Json).await.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_gets_the_refusal_of_a_node_at_its_connection_limit() {
    let app = app(&[("SERVER__MAX_CONNECTIONS", "1")]);
    let _first = socket(&app, &sign_in(&app, "a@example.org").await).await;
    let late = sign_in(&app, "b@example.org").await;
    let refusal = connect_as_page(&app, &late.token, Codec::Json).await.expect("a refusal on the socket");
    assert_eq!((refusal.code, refusal.reason.as_str()), (4003, "unavailable"));
    assert_eq!(refusal.event["data"]["code"], "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_page_that_may_connect_gets_its_refusal_on_the_socket() {
    let app = app(&[]);
    let json = "sealwire.v1.json";
    let token = format!("sealwire.token.{}", "A".repeat(43));
    let with_token = format!("{json}, {token}");
    let unknown = format!("chat, {token}");
    for (origin, offer, status) in [
        (Some(ORIGIN), with_token.as_str(), 101),
        // A malformed token is refused on the socket too.
        (Some(ORIGIN), "sealwire.v1.json, sealwire.token.x", 101),
        (Some(ORIGIN), json, 401),
        (Some(ORIGIN), token.as_str(), 400),
        (Some(ORIGIN), unknown.as_str(), 400),
        (Some("https://evil.example"), with_token.as_str(), 403),
        (None, with_token.as_str(), 401),
    ] {
        let mut headers = vec![("Sec-WebSocket-Protocol", offer)];
        headers.extend(origin.map(|origin| ("Origin", origin)));
        let (answer, _) = request_upgrade(&app, &[&HANDSHAKE[..], &headers].concat()).await;
        assert_eq!(answer.status, status, "{origin:?} {offer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_ends_even_if_the_page_does_not_answer_the_close() {
    let app = app(&[]);
    let offer = format!("sealwire.v1.json, sealwire.token.{}", "A".repeat(43));
    let headers = [&HANDSHAKE[..], &[("Origin", ORIGIN), ("Sec-WebSocket-Protocol", offer.as_str())]].concat();
    let (answer, mut socket) = request_upgrade(&app, &headers).await;
    assert_eq!(answer.status, 101);
    assert_eq!(socket.message().await.unwrap()["event"], "refused");
    // `close_code` also waits for the end of the stream.
    assert_eq!(socket.close_code().await, 4507);
}
