//! Upgrades that are refused for a moment, by the server and by proxies before it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sealwire_client::{Code, End, State, protocol::value::Named};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::{Device, at, sign_in};
use crate::support::{Server, TestApp};

/// Answers the first connections with these responses, and passes later ones on to the server.
async fn refusing_proxy(server: SocketAddr, responses: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut responses = responses.into_iter();
        while let Ok((mut client, _)) = listener.accept().await {
            if let Some(response) = responses.next() {
                let mut request = vec![0; 4096];
                let _ = client.read(&mut request).await;
                let (head, body) = response.split_at(response.find("\r\n\r\n").unwrap() + 4);
                let _ = client.write_all(head.as_bytes()).await;
                // The body may come later than the head.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = client.write_all(body.as_bytes()).await;
                continue;
            }
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn error(code: &str, retryable: bool) -> String {
    format!(r#"{{"error":{{"code":"{code}","message":"m","retryable":{retryable}}}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_waits_for_retry_after_and_tries_again() {
    let app = TestApp::start(&[]);
    let session = sign_in(&app, "alice@example.org").await;
    let address = refusing_proxy(
        app.address(),
        vec![
            response("503 Service Unavailable", "Retry-After: 1\r\n", &error("unavailable", true)),
            response("429 Too Many Requests", "Retry-After: 1\r\n", &error("rate_limited", true)),
            response("502 Bad Gateway", "", "<html>bad gateway</html>"),
            response("401 Unauthorized", "WWW-Authenticate: Basic\r\n", "<html>a proxy's own</html>"),
        ],
    )
    .await;
    let started = Instant::now();
    let device = Device::start(&at(address), session).await;
    device.is("waiting", |state| matches!(state, State::Waiting { .. })).await;
    device.client.connected().await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2), "twice a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_will_not_change_ends_the_client() {
    let app = TestApp::start(&[]);
    let session = sign_in(&app, "alice@example.org").await;
    let forbidden = response("403 Forbidden", "", &error("forbidden_origin", false));
    let address = refusing_proxy(app.address(), vec![forbidden]).await;
    let mut device = Device::start(&at(address), session).await;
    let End::Refused { code, message } = device.ended().await else { panic!("another end") };
    assert_eq!((code, &*message), (Named::Known(Code::ForbiddenOrigin), "m"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_speak_the_protocol_is_tried_again() {
    let app = TestApp::start(&[]);
    let session = sign_in(&app, "alice@example.org").await;
    let accept = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n";
    let address = refusing_proxy(
        app.address(),
        vec![format!("HTTP/1.1 101 Switching Protocols\r\n{accept}\r\n"), "SSH-2.0\r\n\r\n".to_owned()],
    )
    .await;
    let device = Device::start(&at(address), session).await;
    device.client.connected().await.unwrap();
}
